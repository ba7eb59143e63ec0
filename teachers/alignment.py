"""Where two tokenizers cut a text at the same byte: chunks, of some tokens of each, that are the same bytes.

Pure functions of the bytes of tokens. Nothing is lost: every token up to the first byte in which the two differ is in
exactly one chunk.

Shape legend: N tokens of the student, M of the teacher, C chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ByteChunks:
    """ByteChunks in their order; chunk ``c`` has the tokens from where ``c - 1`` ends up to where it ends itself.

    Attributes:
        student_C: where each ends among the student's tokens, ascending.
        teacher_C: among the teacher's.

    Example:
        ``th|e| cat`` and ``the| c|at`` have two: ``th|e`` with ``the`` and `` cat`` with `` c|at``; both ends are
        ``[2, 3]`` and ``[1, 3]``.
    """

    student_C: Places
    teacher_C: Places

    @property
    def student_sizes(self) -> Places:
        """How many tokens of the student each has, ``(C,)``."""
        return np.diff(self.student_C, prepend=0)

    @property
    def teacher_sizes(self) -> Places:
        """How many tokens of the teacher each has, ``(C,)``."""
        return np.diff(self.teacher_C, prepend=0)

    @property
    def alike(self) -> int:
        """How many have one token of each: there both tokenizers cut alike."""
        return int(((self.student_sizes == 1) & (self.teacher_sizes == 1)).sum())

    def upto(self, student: int, teacher: int) -> ByteChunks:
        """Those that end within so many tokens of each."""
        keep_C = (self.student_C <= student) & (self.teacher_C <= teacher)
        return ByteChunks(self.student_C[keep_C], self.teacher_C[keep_C])

    def first(self, count: int) -> ByteChunks:
        """The first so many."""
        return ByteChunks(self.student_C[:count], self.teacher_C[:count])

    def closed(self, student: int, teacher: int) -> ByteChunks:
        """The same, and one more that ends at so many tokens of each: what closes both."""
        return ByteChunks(np.append(self.student_C, student), np.append(self.teacher_C, teacher))


def align(student: Sequence[bytes], teacher: Sequence[bytes]) -> ByteChunks:
    """The chunks of two tokenisations, up to the first byte in which they differ.

    A token of no bytes belongs to the chunk before it; at the beginning, to the first.

    Args:
        student: the bytes of each of its N tokens.
        teacher: of each of its M tokens.
    """
    ends_N, ends_M = (np.cumsum([len(token) for token in tokens], dtype=np.int64) for tokens in (student, teacher))
    same = same_bytes(b"".join(student), b"".join(teacher))
    cuts_C = np.intersect1d(ends_N, ends_M)
    cuts_C = cuts_C[(cuts_C > 0) & (cuts_C <= same)]
    return ByteChunks(np.searchsorted(ends_N, cuts_C, side="right"), np.searchsorted(ends_M, cuts_C, side="right"))


def same_bytes(first: bytes, second: bytes) -> int:
    """With how many of the same bytes both begin."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:  # not per token
        return shorter
    return next(place for place in range(shorter) if first[place] != second[place])
