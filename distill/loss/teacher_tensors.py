"""What teachers said of rollouts, as tensors of a microbatch: their weighted mean, each one, or hidden states.

Shape legend: B sequences, T tokens of the longest one, V vocabulary, K entries of a top-k support, N trained
tokens, H hidden size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mopd.distill.payload_rows import AskedSupport, payload_spec
from mopd.distill.payloads import Support, to_torch
from mopd.distill.types import (
    Float32,
    Full,
    Hidden,
    Payload,
    PayloadName,
    Rollout,
    Sampled,
    ScoredRollout,
    TeacherScore,
    trained_rows,
)

EXAMPLE_VOCABULARY = 1024
"""Of the uniform distribution whose payload says which arrays an empty microbatch has."""


@dataclass(frozen=True, slots=True)
class TeacherRows:
    """One teacher of each rollout, for losses that are not a function of the teachers' mean; padded like all else.

    Attributes:
        weight_B: float32, this teacher's weight; 0 where the rollout has none in this place, whose rows are zeros.
        arrays: the payload's arrays by the names of their fields, ``(B, T, ...)`` each; integers as int64. Of
            :class:`distill.payloads.Full` that is ``logprobs_TV``, of ``TopK`` ``ids_TK``, ``logprobs_TK``, ``rest_T``
            and ``sampled_T``.
    """

    weight_B: Tensor
    arrays: Mapping[str, Tensor]

    def to(self, device: torch.device | str) -> TeacherRows:
        """The same on a device."""
        arrays = {name: array.to(device) for name, array in self.arrays.items()}
        return TeacherRows(self.weight_B.to(device), arrays)


@dataclass(frozen=True, slots=True)
class HiddenPart:
    """What one teacher says of a group's tokens: its weight, its hidden states ``(N, H)``, their head's fingerprint."""

    weight: float
    hidden_NH: Tensor
    head: str


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """Teachers' hidden states at the trained tokens alone, those of the same heads and weights together.

    Attributes:
        places_N: int64, where each token is in the microbatch read row by row, ``b * T + t``; group after group.
        groups: each the teachers of consecutive tokens.
    """

    places_N: Tensor
    groups: tuple[tuple[HiddenPart, ...], ...]

    def to(self, device: torch.device | str) -> HiddenRows:
        """The same on a device."""
        groups = (tuple(HiddenPart(p.weight, p.hidden_NH.to(device), p.head) for p in group) for group in self.groups)
        return HiddenRows(self.places_N.to(device), tuple(groups))


def combine_teachers(scored: ScoredRollout, payload: PayloadName) -> Float32:
    """The weighted mean of the teachers' log-probabilities of a rollout's trained tokens, ``(N, V)`` or ``(N,)``, nats.

    It is not normalised, and need not be: ``sum_k w_k KL(pi || pi_k) = E_pi[log pi - sum_k w_k log pi_k]`` for weights
    that sum to 1, so one tensor stands for all teachers exactly. A single teacher's comes back untouched, bit by bit.

    Raises:
        ValueError: a teacher gave another payload, or vocabularies differ in size.
    """
    parts: list[Float32] = []
    for weight, score in scored.scores:
        match payload, score.payload:
            case ("full", Full(logprobs)) | ("sampled", Sampled(logprobs)):
                rows = trained_rows(logprobs, scored.rollout)
                # A single teacher has weight 1: multiplying would only copy the largest array of the step.
                parts.append(rows if len(scored.scores) == 1 else np.float32(weight) * rows)
            case _:
                raise _unfit(scored, score, payload)
    return functools.reduce(np.add, parts)


def mean_of_teachers(rollouts: Sequence[ScoredRollout], shape: tuple[int, int], payload: PayloadName) -> Tensor:
    """All rows of :func:`combine_teachers` where they belong, zeros elsewhere: ``(B, T, V)`` or ``(B, T)``.

    Args:
        shape: ``(B, T)``.

    Raises:
        ValueError: a rollout lacks the payload, or vocabularies differ in size.
    """
    if payload == "full":
        _refuse_untaught(rollouts)
    rows = [combine_teachers(scored, payload) if scored.scores else None for scored in rollouts]
    return _padded(rows, rollouts, (*shape, _width(rows)) if payload == "full" else shape)


def one_teacher(rollouts: Sequence[ScoredRollout], shape: tuple[int, int], name: str) -> Tensor:
    """What one teacher said of each trained token, whatever its weight: ``(B, T)``, zeros elsewhere.

    Raises:
        ValueError: it did not grade a rollout that others did, or gave another payload than ``sampled``.
    """
    rows: list[Float32 | None] = []
    for scored in rollouts:
        score = next((score for _, score in scored.scores if score.teacher == name), None)
        if score is None and scored.scores:
            rollout = scored.rollout
            raise ValueError(f"rollout {rollout.index} of domain {rollout.domain!r} has no score of reference {name!r}")
        match score and score.payload:
            case None:
                rows.append(None)
            case Sampled(logprobs_T):
                rows.append(trained_rows(logprobs_T, scored.rollout))
            case _:
                assert score is not None
                raise _unfit(scored, score, "sampled")
    return _padded(rows, rollouts, shape)


def each_teacher_tensors(
    rollouts: Sequence[ScoredRollout], shape: tuple[int, int], payload: PayloadName
) -> tuple[TeacherRows, ...]:
    """As many as the rollout with most teachers has; the k-th holds every rollout's k-th. ``shape``: ``(B, T)``.

    Raises:
        ValueError: a rollout has no teacher or lacks the payload, or vocabularies or supports differ in size.
    """
    _refuse_untaught(rollouts)
    most = max((len(scored.scores) for scored in rollouts), default=1)
    return tuple(_teacher_rows(rollouts, shape, payload, k) for k in range(most))


def _teacher_rows(
    rollouts: Sequence[ScoredRollout], shape: tuple[int, int], payload: PayloadName, k: int
) -> TeacherRows:
    expected = payload_spec(payload).payload
    weight_B = torch.zeros(shape[0])
    by_rollout: list[dict[str, np.ndarray] | None] = [None] * len(rollouts)
    for b, scored in enumerate(rollouts):
        if k < len(scored.scores):
            weight_B[b], score = scored.scores[k]
            if not isinstance(score.payload, expected):
                raise _unfit(scored, score, payload)
            arrays = score.payload.arrays()
            by_rollout[b] = {name: trained_rows(array, scored.rollout) for name, array in arrays.items()}
    some = next((arrays for arrays in by_rollout if arrays is not None), None)
    if some is None:  # a dummy: its rows broadcast against any, and none of them is ever read
        empty = {name: array[:0].reshape(0, *(1,) * (array.ndim - 1)) for name, array in _example(payload).items()}
        columns: dict[str, list[np.ndarray | None]] = {name: [array] for name, array in empty.items()}
    else:
        columns = {name: [None if arrays is None else arrays[name] for arrays in by_rollout] for name in some}
    padded = {name: _padded(rows, rollouts, (*shape, *_row_shape(rows))) for name, rows in columns.items()}
    return TeacherRows(weight_B, {name: _as_index(tensor) for name, tensor in padded.items()})


@functools.cache
def _example(payload: PayloadName) -> dict[str, np.ndarray]:
    """The arrays of a payload of one token, for their names, types and dimensions."""
    of_logprobs = payload_spec(payload).of_logprobs
    assert of_logprobs is not None, f"payload {payload} is made of no distributions"
    logprobs_TV = torch.full((1, EXAMPLE_VOCABULARY), -math.log(EXAMPLE_VOCABULARY))
    return of_logprobs(logprobs_TV, torch.zeros(1, dtype=torch.int64), AskedSupport(Support(1, ()))).arrays()


def _as_index(tensor: Tensor) -> Tensor:
    """Integers as int64, which torch takes as an index; all else as it is."""
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def hidden_rows(rollouts: Sequence[ScoredRollout], shape: tuple[int, int]) -> HiddenRows:
    """The hidden states of the rollouts' teachers; ``shape`` is ``(B, T)``.

    Raises:
        ValueError: a rollout has no teacher or lacks the payload.
    """
    _refuse_untaught(rollouts)
    places: dict[tuple[tuple[float, str], ...], list[np.ndarray]] = {}
    rows: dict[tuple[tuple[float, str], ...], list[list[np.ndarray]]] = {}
    for b, scored in enumerate(rollouts):
        hidden: list[tuple[float, Hidden]] = []
        for weight, score in scored.scores:
            if not isinstance(score.payload, Hidden):
                raise _unfit(scored, score, "hidden")
            hidden.append((weight, score.payload))
        mask = scored.rollout.loss_mask
        group = tuple((weight, payload.head) for weight, payload in hidden)
        places.setdefault(group, []).append(b * shape[1] + np.flatnonzero(mask))
        rows.setdefault(group, []).append([trained_rows(payload.hidden_TH, scored.rollout) for _, payload in hidden])
    parts = (
        tuple(
            HiddenPart(weight, to_torch(np.concatenate([by_teacher[k] for by_teacher in rows[group]])), head)
            for k, (weight, head) in enumerate(group)
        )
        for group in places
    )
    flat = [flat_N for group in places.values() for flat_N in group] or [np.zeros(0, dtype=np.int64)]
    return HiddenRows(torch.from_numpy(np.concatenate(flat)), tuple(parts))


def sampled_logprobs(scored: ScoredRollout) -> Float32:
    """The teachers' weighted mean log-probability of each trained token, ``(N,)``, in nats, whatever their payload.

    Raises:
        ValueError: no teacher graded the rollout, or one gave a payload that does not tell it, such as hidden states.
    """
    rollout = scored.rollout
    total_N = np.zeros(rollout.trained_tokens, dtype=np.float32)
    _refuse_untaught([scored])
    for weight, score in scored.scores:
        logprobs_N = sampled_rows(score.payload, rollout)
        if logprobs_N is None:
            raise _unfit(scored, score, "sampled")
        total_N += np.float32(weight) * logprobs_N
    return total_N


def sampled_rows(payload: Payload, rollout: Rollout) -> Float32 | None:
    """A teacher's log-probability of each trained token, ``(N,)``, in nats; None where the payload does not tell it."""
    rows = next((len(array) for array in payload.arrays().values()), 0)
    alone = rows == rollout.trained_tokens
    logprobs = payload.sampled_logprobs(rollout.token_ids[rollout.loss_mask] if alone else rollout.token_ids)
    return None if logprobs is None else trained_rows(logprobs, rollout)


def _width(rows: Sequence[Float32 | None]) -> int:
    """Of the last dimension. That of a dummy is 1, which broadcasts against any; no row of it is ever read."""
    return max((row.shape[1] for row in rows if row is not None), default=1)


def _row_shape(rows: Sequence[np.ndarray | None]) -> tuple[int, ...]:
    """The largest shape of one token's row."""
    shapes = [row.shape[1:] for row in rows if row is not None]  # not per token
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _padded(rows: Sequence[np.ndarray | None], rollouts: Sequence[ScoredRollout], shape: tuple[int, ...]) -> Tensor:
    """The rows of each rollout's trained tokens in their places, in a tensor of their own type; zeros elsewhere."""
    there = [row for row in rows if row is not None]
    padded = np.zeros(shape, dtype=there[0].dtype if there else np.float32)
    for b, row in enumerate(rows):
        if row is not None and rollouts:
            padded[b, np.flatnonzero(rollouts[b].rollout.loss_mask)] = row
    return torch.from_numpy(padded)


def _refuse_untaught(rollouts: Sequence[ScoredRollout]) -> None:
    for scored in rollouts:
        if not scored.scores:
            rollout = scored.rollout
            raise ValueError(f"rollout {rollout.index} of domain {rollout.domain!r} has no teacher; it needs one")


def _unfit(scored: ScoredRollout, score: TeacherScore, payload: PayloadName) -> ValueError:
    return ValueError(
        f"teacher {score.teacher!r} gave {type(score.payload).__name__} for rollout {scored.rollout.index} "
        f"(domain {scored.rollout.domain!r}); the loss needs {payload!r}"
    )
