"""What a teacher can say of a rollout, and which tokens of a distribution it says it of.

Part of distill/types.py, and imported from there; the rows of PAYLOADS are in distill/payload_rows.py.

Shape legend: T tokens of a sequence, V vocabulary, K entries of a top-k support, H hidden size. Row ``t`` speaks of
token ``t`` given the tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Int32: TypeAlias = npt.NDArray[np.int32]
Float32: TypeAlias = npt.NDArray[np.float32]
UInt16: TypeAlias = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Payload:
    """What a teacher says of a rollout: a frozen dataclass of arrays with a row for each of the rollout's T tokens.

    On its way to the student it has the rows of the trained tokens alone; nobody reads the others.
    A further one is a subclass and a row, see :class:`distill.payload_rows.PayloadSpec`.
    """

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Its arrays by the names of their fields, ``(T, ...)`` each."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def at(self, mask_T: npt.NDArray[np.bool_]) -> Self:
        """The rows where ``mask_T`` is True."""
        return replace(self, **{name: array[mask_T] for name, array in self.arrays().items()})

    def sampled_logprobs(self, token_ids_T: Int32) -> Float32 | None:
        """The teacher's log-probability of each token, ``(T,)``, in nats; None where the payload does not tell it.

        Args:
            token_ids_T: the tokens that the rows speak of, as many.
        """
        return None


@dataclass(frozen=True, slots=True)
class Sampled(Payload):
    """The teacher's log-probability of each token, in nats, shape ``(T,)``."""

    logprobs_T: Float32

    def sampled_logprobs(self, token_ids_T: Int32) -> Float32:
        """What it holds."""
        return self.logprobs_T


@dataclass(frozen=True, slots=True)
class TopK(Payload):
    """Log-probabilities (never renormalised, in nats) on a support of K tokens per position, both ``(T, K)``.

    ``rest_T`` is the log-probability of all other tokens together, -inf where there are none: it cannot be had from
    the support without losing all its digits. ``sampled_T`` is that of the token itself, in the support or not.
    """

    ids_TK: Int32
    logprobs_TK: Float32
    rest_T: Float32
    sampled_T: Float32

    def sampled_logprobs(self, token_ids_T: Int32) -> Float32:
        """``sampled_T``."""
        return self.sampled_T


@dataclass(frozen=True, slots=True)
class Chunked(TopK):
    """What a teacher of any tokenizer says, by chunks: tokens of the student that are the same bytes as the teacher's.

    ``ids_TK`` and ``logprobs_TK`` have the student's tokens by which the teacher's likeliest go on; -inf marks a place
    that is not used, and at some tokens none is. ``sampled_T`` adds up over a chunk to the teacher's log-probability of
    it; where the teacher says nothing it is the sampler's own.

    Attributes:
        chunk_T: which tokens are learnt from together, as they were drawn: those of one number; -1: none.
        owed_T: the teacher's log-probability of these together, in nats, the same at each of them.
    """

    chunk_T: Int32
    owed_T: Float32


@dataclass(frozen=True, slots=True)
class Hidden(Payload):
    """What goes into the output head: the last hidden states ``(T, H)``, aligned.

    Attributes:
        hidden_TH: float32; or bfloat16, which numpy has not, as its bits: uint16.
        head: fingerprint of the output head that they belong to; see :func:`distill.models.heads.fingerprint`.
    """

    hidden_TH: Float32 | UInt16
    head: str


@dataclass(frozen=True, slots=True)
class Full(Payload):
    """Log-probabilities over the whole vocabulary, aligned, shape ``(T, V)``, in nats."""

    logprobs_TV: Float32

    def sampled_logprobs(self, token_ids_T: Int32) -> Float32:
        """The entry of each row that its token names."""
        return self.logprobs_TV[range(len(token_ids_T)), token_ids_T]


PayloadName: TypeAlias = str
"""A name of :data:`distill.payload_rows.PAYLOADS`, or ``/path/file.py:NAME`` of the estimator that needs its own."""


def payload_bytes(payload: Payload) -> int:
    """Bytes of a payload's arrays: what travels from a teacher to the student."""
    return sum(array.nbytes for array in payload.arrays().values())


def finite_rows(values: Float32 | UInt16) -> npt.NDArray[np.bool_]:
    """Where every number of a row is finite, ``(T,)``, without a copy of the rows: ``(T,)`` or ``(T, ...)``."""
    if values.dtype == np.uint16:  # the bits of bfloat16: an exponent of all ones is NaN or infinity
        return np.bitwise_and(values, np.uint16(0x7F80)).max(axis=1) != 0x7F80
    if values.ndim == 1:
        return np.isfinite(values)
    return np.isfinite(values.min(axis=1)) & np.isfinite(values.max(axis=1))  # both pass NaN on


def to_numpy(tensor: torch.Tensor) -> Float32 | UInt16:
    """Floats of a tensor on the CPU as an array that shares its memory; bfloat16 as its bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.float().numpy()


def to_torch(array: Float32 | UInt16) -> torch.Tensor:
    """The inverse of :func:`to_numpy`; the array must be writable."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


@dataclass(frozen=True, slots=True)
class TeacherScore:
    """What one teacher says of one rollout."""

    teacher: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class Support:
    """Which tokens of every distribution a teacher ships.

    Attributes:
        k: how many likeliest, besides the forced ones; all others where there are fewer.
        forced: tokens that are always there: the closing EOS and all control tokens. They are rare and decide how a
            rollout ends, so a push on them must not depend on their rank.
        whose: likeliest under which distribution: the teacher's; the student's as it wrote the rollout; or both.
    """

    k: int
    forced: tuple[int, ...]
    whose: Literal["teacher", "student", "union"] = "teacher"

    @property
    def given(self) -> bool:
        """Whether it needs the student's own likeliest tokens, which a rollout then carries to its teachers."""
        return self.whose != "teacher"


def likeliest(logprobs: torch.Tensor, support: Support) -> torch.Tensor:
    """The k likeliest tokens of each distribution, and the forced ones: ids ``(..., K)``, ``K = min(k + forced, V)``.

    Args:
        logprobs: nats, normalised or not, ``(..., V)``.
    """
    forced = torch.tensor(support.forced, dtype=torch.int64, device=logprobs.device)
    return _joined(logprobs, forced.expand(*logprobs.shape[:-1], len(forced)), support.k)  # not per token


def top_k(
    logprobs: torch.Tensor, support: Support, given: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The support of each distribution, its log-probabilities, and that of all other tokens together.

    The union holds the student's K tokens and the teacher's k likeliest *others*. So it has the likeliest of both,
    every token once, and, where the two overlap, the teacher's next ones: every position has as many.

    Args:
        logprobs: the teacher's, normalised, nats, ``(..., V)``.
        given: the student's support, ids ``(..., K)`` by :func:`likeliest`; None where it is the teacher's alone.

    Returns:
        Token ids and log-probabilities, ``(..., K)`` (``min(2 k + forced, V)`` of them for the union, else as
        :func:`likeliest`), and the rest's, ``(...)``.

    Raises:
        ValueError: the support needs the student's tokens, and there are none.
    """
    if support.given and given is None:
        raise ValueError(
            f"the support is {support.whose}, and the rollout does not carry the student's likeliest tokens"
        )
    if not support.given or given is None:
        ids = likeliest(logprobs, support)
    else:
        ids = given if support.whose == "student" else _joined(logprobs, given, support.k)
    return ids, logprobs.gather(-1, ids), rest_logprobs(logprobs, ids)


def _joined(logprobs: torch.Tensor, ids: torch.Tensor, k: int) -> torch.Tensor:
    """The k likeliest of all tokens but ``ids``, and those; all others where there are fewer."""
    k = min(k, logprobs.shape[-1] - ids.shape[-1])
    others = logprobs.scatter(-1, ids, -torch.inf).topk(k, dim=-1).indices
    return torch.cat([others, ids], dim=-1)


def rest_logprobs(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The log-probability of all tokens but ``ids``, summed over the others: ``1 - sum`` would keep no digit of it."""
    return logprobs.scatter(-1, ids, -torch.inf).logsumexp(-1)
