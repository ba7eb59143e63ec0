"""Teachers of another tokenizer: they read a rollout's text in tokens of their own, and answer on the student's.

The prompt is written by the teacher's own tokenizer and chat template, the completion is encoded by it anew, and the
token that closes an answer stands for the student's. Where both tokenizers cut at the same byte a chunk ends; what the
teacher says of the tokens of a chunk is compared with what the student says of its own: :mod:`distill.loss.chunked`.

Where the two have not the same bytes, a teacher says nothing from there on, and that is counted by its reason:

- ``text``: the student wrote bytes that are no text (UTF-8), such as a part of a character;
- ``control``: it wrote a control token amid its answer, or the teacher takes what it wrote for one;
- ``other``: the teacher's tokenizer writes the text otherwise, for example because it normalises;
- ``cut``: the rollout was cut at the limit, so that nobody knows how its last chunk goes on;
- ``context``: it is longer than the teacher's context.

Shape legend: N trained tokens of the student, M of the teacher, C chunks, K entries of a support, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from mopd.distill.payloads import Chunked
from mopd.distill.types import (
    Float32,
    GradingFailed,
    Int32,
    Payload,
    PayloadName,
    Prompt,
    Rollout,
    Sampled,
    TopK,
    trained_rows,
)
from mopd.teachers.alignment import ByteChunks, align, same_bytes
from mopd.teachers.token_bytes import TokenBytes
from mopd.teachers.views import Reads, TeacherText, TeacherView

SomePayload = TypeVar("SomePayload", bound=Payload)
Reason: TypeAlias = Literal["text", "control", "other", "cut", "context"]

NO_TOKEN = -1
"""In the place of a student's token that there is none of."""
LEAST_PROBABILITY = 0.01
"""Of a token that is compared as one of a whole distribution. A teacher that has cut here writes hardly what would have
been in one token with what was before, whatever it thinks of the text; less likely tokens are learnt from as they are
drawn, by the text's own probability. Our choice."""
WORDS: dict[Reason, str] = {
    "text": "from bytes on that are no text",
    "control": "from a control token in an answer on",
    "other": "from text on that its tokenizer writes otherwise",
    "cut": "at the end of answers that were cut",
    "context": "beyond its context",
}
PAYLOADS_ACROSS: tuple[PayloadName, ...] = ("sampled", "chunked")
"""Payloads that a teacher of another tokenizer can be turned into."""


def asked_payload(payload: PayloadName) -> PayloadName:
    """What a teacher's process is asked for, where the loss needs ``payload``: chunks are made of its top k here."""
    return "topk" if payload == "chunked" else payload


@dataclass(frozen=True, slots=True)
class TokenizerSide:
    """A tokenizer as it is needed to align it.

    Attributes:
        strings: the bytes of its tokens.
        encode: ids of a text, without special tokens; raises ValueError where it takes a part for a control token.
        ends: tokens that end an answer; the first is the one that closes it.
        encode_each: ids of each of many texts, which may be control tokens.
    """

    strings: TokenBytes
    encode: Callable[[str], Sequence[int]]
    ends: tuple[int, ...]
    encode_each: Callable[[Sequence[str]], Sequence[Sequence[int]]]

    def paths(self, strings: Sequence[bytes]) -> list[list[int]]:
        """The tokens by which it writes each string.

        Where it writes the string otherwise than it stands in a text, such as with a space before it, or where it is no
        text, that is the longest token that it begins with; none where there is none.
        """
        of = {token: i for i, token in reversed([*enumerate(self.strings.bytes_V)]) if token}
        texts = [string.decode(errors="ignore") for string in strings]
        made: list[list[int]] = []
        for string, ids in zip(strings, self.encode_each(texts), strict=True):
            if b"".join(self.strings.bytes_V[i] or b"" for i in ids) == string:
                made.append([*ids])
            else:
                fitting = (of.get(string[:n]) for n in range(len(string), 0, -1))
                made.append(list(itertools.islice((i for i in fitting if i is not None), 1)))
        return made


@dataclass(frozen=True, slots=True)
class Retokenized:
    """A rollout in a teacher's tokens.

    Attributes:
        original: in the student's.
        rollout: in the teacher's: its own prompt, then its tokens of the completion, of which the chunks' are scored.
        chunks: where tokens of both end at the same byte, counted over the trained tokens of each.
        leads: bytes of a space that each side's tokenizer begins the completion with and the other's does not have:
            of the student's, of the teacher's.
        unscored: how many trained tokens of the student no chunk has, by reason.
        text: what stands in the place of the prompt.
    """

    original: Rollout
    rollout: Rollout
    chunks: ByteChunks
    leads: tuple[bool, bool]
    unscored: Mapping[Reason, int]
    text: TeacherText

    @property
    def view(self) -> TeacherView:
        """What a scorer is given of it, in the teacher's tokens."""
        own = self.rollout
        return TeacherView(own.domain, self.text.text, self.text.hint, own.loss_mask, hint_ids=self.text.hint_ids)

    @property
    def numbers(self) -> Int32:
        """The number of the chunk of each trained token of the student, ``(N,)``; -1 where it is in none."""
        chunk_N = np.full(self.original.trained_tokens, NO_TOKEN, dtype=np.int32)
        sizes_C = self.chunks.student_sizes
        chunk_N[: int(sizes_C.sum())] = np.repeat(np.arange(len(sizes_C), dtype=np.int32), sizes_C)
        return chunk_N

    def log_ratios(self, logprobs_M: Float32) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Of each chunk, ``(C,)``, nats: the teacher's log-probability of its tokens; and that less the sampler's."""
        sampler_N = trained_rows(self.original.sampler_logprobs, self.original).astype(np.float64)
        teacher_C = _sums(logprobs_M.astype(np.float64), self.chunks.teacher_C)
        return teacher_C, teacher_C - _sums(sampler_N, self.chunks.student_C)

    def apportioned(self, logprobs_M: Float32) -> Float32:
        """The teacher's log-probability of each trained token of the student, ``(N,)``, such that a chunk's add up.

        A chunk's log-ratio is dealt out evenly. In no chunk it is the sampler's own: no ratio.
        """
        return self._spread(logprobs_M, evenly=True)

    def credited(self, logprobs_M: Float32) -> Float32:
        """The same, but every token of a chunk gets the whole log-ratio: what it is credited with as an advantage."""
        return self._spread(logprobs_M, evenly=False)

    def _spread(self, logprobs_M: Float32, *, evenly: bool) -> Float32:
        spread_N = trained_rows(self.original.sampler_logprobs, self.original).astype(np.float64)
        _, ratio_C = self.log_ratios(logprobs_M)
        sizes_C = self.chunks.student_sizes
        spread_N[: int(sizes_C.sum())] += np.repeat(ratio_C / sizes_C if evenly else ratio_C, sizes_C)
        return spread_N.astype(np.float32)


def _sums(values_N: npt.NDArray[np.float64], ends_C: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Sums of the values up to each end, from the one before."""
    total = np.concatenate([[0.0], np.cumsum(values_N)])
    return np.diff(total[ends_C], prepend=0.0)


class Retokenizer:
    """Writes rollouts in a teacher's tokens, and its answers on the student's.

    Args:
        name: the teacher's.
        student, teacher: both tokenizers.
        reads: what the teacher reads in the place of a prompt, in its own tokens.
        context: tokens that it can read; None: any number.
        width: K of payload ``chunked``, the same for all teachers of a run.
    """

    def __init__(
        self,
        name: str,
        *,
        student: TokenizerSide,
        teacher: TokenizerSide,
        reads: Reads,
        context: int | None,
        width: int,
    ) -> None:
        self._name = name
        self._student, self._teacher = student, teacher
        self._reads = reads
        self._context = context
        self._width = width
        self._maps: dict[tuple[bool, bool], list[list[int]]] = {}

    def __call__(self, rollout: Rollout) -> Retokenized:
        """The rollout in the teacher's tokens.

        Raises:
            GradingFailed: it has several turns, whose messages only the student's tokenizer has written.
        """
        if not _one_turn(rollout):
            raise GradingFailed(
                f"teacher {self._name!r} has another tokenizer, and rollout {rollout.index} of domain "
                f"{rollout.domain!r} has several turns"
            )
        text = self._reads(rollout.prompt)
        written = [int(i) for i in rollout.token_ids[rollout.loss_mask]]
        closed = rollout.finish == "eos" and written[-1] in self._student.ends
        answer = [*written]
        if closed:
            answer.pop()
        tokens, why = self._readable(answer)
        # A space that the student's tokenizer begins texts with is no part of the answer.
        leads = self._student.strings.leads and b"".join(tokens).startswith(b" ")
        tokens = _without_lead(tokens) if leads else tokens
        ids, others, led, refused = self._encoded(b"".join(tokens))
        why = why or refused
        chunks = align(tokens, others)
        whole = len(tokens) == len(answer) and _covers(chunks, tokens, others)
        why = why if why is not None else None if whole else "other"
        if whole and closed:
            ids = [*ids, self._teacher.ends[0]]
            chunks = chunks.closed(len(written), len(ids))
        elif why is None and not closed and len(chunks.student_C):
            chunks, why = chunks.first(len(chunks.student_C) - 1), "cut"
        room = len(ids) if self._context is None else max(0, self._context - len(text.token_ids))
        if len((kept := chunks.upto(len(written), room)).student_C) < len(chunks.student_C):
            chunks, why = kept, "context"
        return self._retokenized(rollout, text, ids, chunks, (leads, led), why)

    def _readable(self, answer: Sequence[int]) -> tuple[list[bytes], Reason | None]:
        """The bytes of the tokens up to the first that is no text, and why it is none."""
        bytes_V = self._student.strings.bytes_V
        tokens: list[bytes] = []
        why: Reason | None = None
        for i in answer:
            token = bytes_V[i] if i < len(bytes_V) else None
            if token is None:
                why = "control"
                break
            tokens.append(token)
        try:
            b"".join(tokens).decode()
        except UnicodeDecodeError as error:
            ends = np.cumsum([len(token) for token in tokens])
            return tokens[: int(np.searchsorted(ends, error.start, side="right"))], "text"
        return tokens, why

    def _encoded(self, data: bytes) -> tuple[list[int], list[bytes], bool, Reason | None]:
        """The teacher's tokens of a text: ids, bytes without a leading space of its own, whether it had one, and why
        there are none."""
        try:
            ids = list(self._teacher.encode(data.decode(errors="ignore"))) if data else []
        except ValueError:
            return [], [], False, "control"
        strings = (self._teacher.strings.bytes_V[i] for i in ids)
        others = [token for token in itertools.takewhile(lambda token: token is not None, strings) if token is not None]
        whole = b"".join(others)
        led = self._teacher.strings.leads and same_bytes(whole, b" " + data) > same_bytes(whole, data)
        return ids, _without_lead(others) if led else others, led, None

    def _retokenized(
        self,
        rollout: Rollout,
        text: TeacherText,
        ids: Sequence[int],
        chunks: ByteChunks,
        leads: tuple[bool, bool],
        why: Reason | None,
    ) -> Retokenized:
        scored = int(chunks.teacher_C[-1]) if len(chunks.teacher_C) else 0
        left = rollout.trained_tokens - (int(chunks.student_C[-1]) if len(chunks.student_C) else 0)
        # A request has a token at least; of one that is in no chunk nobody reads what is said.
        completion = [*ids[:scored]] if scored else [self._teacher.ends[0]]
        prompt = rollout.prompt
        own = Prompt(prompt.domain, prompt.id, text.token_ids, text.text, prompt.answer)
        token_ids = np.array([*text.token_ids, *completion], dtype=np.int32)
        read = replace(
            rollout,
            prompt=own,
            token_ids=token_ids,
            loss_mask=np.arange(len(token_ids)) >= len(text.token_ids),
            sampler_logprobs=np.zeros(len(token_ids), dtype=np.float32),
            routed_experts=None,
            support_ids=None,
            drafts=None,
        )
        return Retokenized(rollout, read, chunks, leads, {why: left} if left and why else {}, text)

    # ---- what comes back

    def payload(self, read: Retokenized, payload: Payload, *, learnt: bool = True) -> Payload:
        """A teacher's answer to :attr:`Retokenized.rollout`, on the trained tokens of the student, ``N`` rows.

        ``Sampled`` becomes one whose tokens are credited with their chunk's log-ratio, ``TopK`` becomes ``Chunked``.

        Args:
            learnt: whether it is learnt from; what is only measured has a chunk's log-ratio once.

        Raises:
            GradingFailed: of any other payload there is no such thing.
        """
        rows = trained(payload, read.rollout)
        if isinstance(rows, TopK):
            return self._chunked(read, rows)
        if isinstance(rows, Sampled):
            return Sampled((read.credited if learnt else read.apportioned)(rows.logprobs_T))
        raise GradingFailed(
            f"teacher {self._name!r} has another tokenizer, and gave {type(payload).__name__}; {PAYLOADS_ACROSS} alone "
            "can be compared by chunks"
        )

    def apportioned(self, read: Retokenized, logprobs_S: Float32) -> Float32:
        """What a teacher says of the tokens that it read, on those of the student, ``(T,)``; 0 where not trained."""
        whole_T = np.zeros(len(read.original.token_ids), dtype=np.float32)
        whole_T[read.original.loss_mask] = read.apportioned(trained_rows(logprobs_S, read.rollout))
        return whole_T

    def view(self, read: Retokenized) -> TeacherView:
        """What it is given of the rollout, in the student's tokens: the hint by which repetitions are counted."""
        hint, rollout = read.text.hint, read.original
        try:
            hint_ids = () if hint is None else tuple(self._student.encode(hint))
        except ValueError:  # it spells a control token, which the student does not write as text
            hint_ids = ()
        return TeacherView(rollout.domain, read.text.text, hint, rollout.loss_mask, hint_ids=hint_ids)

    def _chunked(self, read: Retokenized, rows: TopK) -> Chunked:
        """See :class:`distill.payloads.Chunked`."""
        n, written = read.original.trained_tokens, read.original.token_ids[read.original.loss_mask]
        chunks, chunk_N = read.chunks, np.full(read.original.trained_tokens, NO_TOKEN, dtype=np.int32)
        teacher_ids_M = read.rollout.token_ids[read.rollout.loss_mask]
        teacher_C, _ = read.log_ratios(rows.sampled_T)
        ids_NK = np.repeat(written[:, None], self._width, axis=1).astype(np.int32)
        logprobs_NK = np.full((n, self._width), -np.inf, dtype=np.float32)
        owed_N = np.zeros(n, dtype=np.float32)
        t = s = 0
        reach = _Reach()
        for c, (end, stop) in enumerate(zip(chunks.student_C.tolist(), chunks.teacher_C.tolist(), strict=True)):
            paths = self._paths(read.leads if c == 0 else (False, False))
            drawn = written[t:end].tolist()
            closing = {self._student.ends[0]: drawn[-1]} if drawn[-1] in self._student.ends else {}
            probs_K = np.exp(rows.logprobs_TK[s].astype(np.float64)).tolist()
            ways = [
                (paths[i], reach.cut * p) for i, p in zip(rows.ids_TK[s].tolist(), probs_K, strict=True) if paths[i]
            ]
            ways = [([closing.get(i, i) for i in path], p) for path, p in [*ways, *reach.beyond]]
            taken = [closing.get(i, i) for i in paths[int(teacher_ids_M[s])]]
            compared, ahead = _along(ways, taken, drawn, self._width)
            for place, (ids, logprobs) in enumerate(compared.rows, start=t):
                ids_NK[place, : len(ids)], logprobs_NK[place, : len(ids)] = ids, logprobs
            # What whole distributions say of the first tokens is said; the others owe what is left.
            chunk_N[t + compared.tokens : end] = c
            owed_N[t + compared.tokens : end] = teacher_C[c] + math.log(reach.cut) - compared.logprob
            reach = ahead if stop == s + 1 else _Reach()
            t, s = end, stop
        used_NK = np.where(np.isfinite(logprobs_NK), np.exp(logprobs_NK.astype(np.float64)), 0.0)
        rest_N = np.log(np.maximum(1.0 - used_NK.sum(axis=1), np.finfo(np.float32).tiny)).astype(np.float32)
        return Chunked(ids_NK, logprobs_NK, rest_N, read.apportioned(rows.sampled_T), chunk_N, owed_N)

    def _paths(self, leads: tuple[bool, bool]) -> list[list[int]]:
        """Of every id of the teacher the student's tokens that its bytes are, as its tokenizer writes them.

        None where that is not known: of a token that both have, where the student has a longer one, which the teacher
        writes by this one and more.
        """
        if leads not in self._maps:
            student_leads, teacher_leads = leads
            known = {token for token in self._teacher.strings.bytes_V if token}
            lacking = [token for token in self._student.strings.bytes_V if token and token not in known]
            begins = {path[0] for path in self._teacher.paths(lacking) if path}
            paths: list[list[int]] = [[] for _ in self._teacher.strings.bytes_V]
            bytes_V = self._teacher.strings.bytes_V
            ids = [i for i, token in enumerate(bytes_V) if token and (not teacher_leads or token.startswith(b" "))]
            strings = [b" " * student_leads + (bytes_V[i] or b"")[int(teacher_leads) :] for i in ids]
            for i, path in zip(ids, self._student.paths(strings), strict=True):
                paths[i] = [] if len(path) == 1 and i in begins else path
            paths[self._teacher.ends[0]] = [self._student.ends[0]]
            self._maps[leads] = paths
        return self._maps[leads]


@dataclass(frozen=True, slots=True)
class _Compared:
    """What is said of the first tokens of a chunk by whole distributions.

    Attributes:
        rows: of each the student's tokens and their log-probabilities; one more where the drawn one is not among them.
        tokens: how many of the drawn tokens are among theirs.
        logprob: of these together.
    """

    rows: list[tuple[list[int], list[float]]]
    tokens: int
    logprob: float


@dataclass(frozen=True, slots=True)
class _Reach:
    """What a teacher's likeliest tokens say of what follows a chunk that is one of its tokens.

    Attributes:
        cut: the probability that it ends its token here, given that it wrote these bytes.
        beyond: the student's tokens by which longer ones go on, with the probability of each.
    """

    cut: float = 1.0
    beyond: tuple[tuple[list[int], float], ...] = ()


def _along(
    ways: Sequence[tuple[list[int], float]], taken: Sequence[int], drawn: Sequence[int], width: int
) -> tuple[_Compared, _Reach]:
    """The teacher's next token as a distribution over the student's next, and next but one, as far as it reaches.

    Args:
        ways: the student's tokens that each of the teacher's likeliest is, with its probability.
        taken: those of the one that the teacher's chunk begins with; ``drawn`` the student's chunk.
    """
    rows: list[tuple[list[int], list[float]]] = []
    alive, total, logprob = [*ways], 1.0, 0.0
    for place, token in enumerate(drawn):
        if place >= len(taken):
            break  # what follows is the teacher's next token's
        masses: dict[int, float] = {}
        for way, p in alive:
            if len(way) > place:
                masses[way[place]] = masses.get(way[place], 0.0) + p
        # Where the teacher's text goes another way through the drawn bytes, neither way's probability says anything.
        apart = {token, taken[place]} if taken[place] != token else set[int]()
        likely = {i: min(1.0, m / total) for i, m in masses.items() if i not in apart}
        kept = sorted((i for i, p in likely.items() if p >= LEAST_PROBABILITY), key=lambda i: (-likely[i], i))[:width]
        rows.append((kept, [math.log(likely[i]) for i in kept]))
        if token not in kept:
            return _Compared(rows, place, logprob), _Reach()
        logprob += math.log(likely[token])
        alive, total = [(way, p) for way, p in alive if len(way) > place and way[place] == token], masses[token]
    n = len(rows)
    if n < len(drawn) or n < len(taken):
        return _Compared(rows, n, logprob), _Reach()
    cut = math.fsum(p for way, p in alive if len(way) == n) / total
    if cut < LEAST_PROBABILITY:
        return _Compared(rows, n, logprob), _Reach()
    beyond = tuple((way[n:], p / total) for way, p in alive if len(way) > n)
    return _Compared(rows, n, logprob), _Reach(min(1.0, cut), beyond)


def as_chunks(payload: TopK, token_ids_N: Int32) -> Chunked:
    """The answer of a teacher of the student's own tokenizer: every token is a chunk.

    One that the teacher's likeliest have is compared as one of these, any other is learnt from as it was drawn.

    Args:
        payload: a row for each of the tokens.
    """
    outside_N = (payload.ids_TK != token_ids_N[:, None]).all(axis=1)
    chunk_N = np.where(outside_N, np.arange(len(token_ids_N)), NO_TOKEN).astype(np.int32)
    owed_N = np.where(outside_N, payload.sampled_T, 0.0).astype(np.float32)
    return Chunked(payload.ids_TK, payload.logprobs_TK, payload.rest_T, payload.sampled_T, chunk_N, owed_N)


@dataclass(slots=True)
class ChunkCount:
    """How the tokens of rollouts align with a teacher's."""

    tokens: int = 0
    alike: int = 0
    chunked: int = 0
    unscored: Counter[Reason] | None = None

    def add(self, read: Retokenized) -> None:
        """Count a rollout."""
        self.tokens += read.original.trained_tokens
        self.alike += read.chunks.alike
        self.chunked += int(read.chunks.student_sizes.sum())
        self.unscored = self.left + Counter(read.unscored)

    @property
    def share(self) -> float:
        """The part of the student's tokens that are one token of the teacher's, too, 0..1."""
        return self.alike / max(1, self.tokens)

    @property
    def sentence(self) -> str:
        """How they align, as a person reads it."""
        reasons = ", ".join(f"{100 * n / max(1, self.tokens):.2g}% {WORDS[why]}" for why, n in self.left.items() if n)
        scored = f"{100 * self.share:.0f}% of the student's tokens are one of the teacher's, too"
        return scored + (f"; it says nothing of {reasons}" if reasons else "")

    @property
    def left(self) -> Counter[Reason]:
        """Tokens in no chunk, by reason."""
        return Counter() if self.unscored is None else self.unscored

    def metrics(self, teacher: str) -> dict[str, float]:
        """By name: shares of the student's trained tokens, 0..1."""
        if not self.tokens:
            return {}
        reasons = {f"unscored/{teacher}/{why}": n / self.tokens for why, n in self.left.items()}
        return {f"aligned/{teacher}": self.share, f"unscored/{teacher}": 1 - self.chunked / self.tokens, **reasons}


def _one_turn(rollout: Rollout) -> bool:
    """Whether all that follows the prompt is the policy's."""
    return bool(rollout.loss_mask[len(rollout.prompt.token_ids) :].all())


def _covers(chunks: ByteChunks, student: Sequence[bytes], teacher: Sequence[bytes]) -> bool:
    """Whether chunks have all of the tokens that have bytes."""
    if not any(student):
        return not any(teacher)
    ends = len(student), len(teacher)
    return len(chunks.student_C) > 0 and (int(chunks.student_C[-1]), int(chunks.teacher_C[-1])) == ends


def _without_lead(tokens: Sequence[bytes]) -> list[bytes]:
    """Tokens without the first byte, which is a space."""
    place = next(n for n, token in enumerate(tokens) if token)
    return [token[1:] if n == place else token for n, token in enumerate(tokens)]  # not per token


def trained(payload: SomePayload, rollout: Rollout) -> SomePayload:
    """A payload with the rows of a rollout's trained tokens alone."""
    arrays = payload.arrays()
    return replace(payload, **{name: trained_rows(array, rollout) for name, array in arrays.items()})
