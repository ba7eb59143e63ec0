"""What teachers said of rollouts, as tensors of a microbatch: their weighted mean, each one, or hidden states.

Shape legend: B sequences, T tokens of the longest one, V vocabulary, K entries of a top-k support, N trained
tokens, H hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mopd.distill.payloads import to_torch
from mopd.distill.types import Float32, Full, Hidden, Int32, PayloadName, Sampled, ScoredRollout, TeacherScore, TopK


@dataclass(frozen=True, slots=True)
class SupportRows:
    """Where top-k log-probabilities belong; see :class:`distill.types.TopK`. ``ids_BTK`` is int64."""

    ids_BTK: Tensor
    rest_BT: Tensor
    sampled_BT: Tensor


@dataclass(frozen=True, slots=True)
class TeacherSlot:
    """One teacher of each rollout, for losses that are not a function of the teachers' mean; padded like all else.

    Attributes:
        weight_B: float32, this teacher's weight; 0 where the rollout has none in this slot, whose rows are zeros.
        logprobs: float32, nats, ``(B, T, V)`` for payload ``full``, ``(B, T, K)`` for ``topk``.
        support: for payload ``topk``, else None.
    """

    weight_B: Tensor
    logprobs: Tensor
    support: SupportRows | None = None

    def to(self, device: torch.device | str) -> TeacherSlot:
        """The same on a device."""
        s = self.support
        support = s and SupportRows(s.ids_BTK.to(device), s.rest_BT.to(device), s.sampled_BT.to(device))
        return TeacherSlot(self.weight_B.to(device), self.logprobs.to(device), support)


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
    """The weighted mean of a rollout's teachers' log-probabilities, ``(T, V)`` or ``(T,)``, in nats.

    It is not normalised, and need not be: ``sum_k w_k KL(pi || pi_k) = E_pi[log pi - sum_k w_k log pi_k]`` for weights
    that sum to 1, so one tensor stands for all teachers exactly. A single teacher's comes back untouched, bit by bit.

    Raises:
        ValueError: a teacher gave another payload, or vocabularies differ in size.
    """
    parts: list[Float32] = []
    for weight, score in scored.scores:
        match payload, score.payload:
            case ("full", Full(logprobs)) | ("sampled", Sampled(logprobs)):
                # A single teacher has weight 1: multiplying would only copy the largest array of the step.
                parts.append(logprobs if len(scored.scores) == 1 else np.float32(weight) * logprobs)
            case _:
                raise _unfit(scored, score, payload)
    return functools.reduce(np.add, parts)


def mean_of_teachers(rollouts: Sequence[ScoredRollout], shape: tuple[int, int], payload: PayloadName) -> Tensor:
    """All rows of :func:`combine_teachers`, padded with zeros to ``(B, T, V)`` or ``(B, T)``; ``shape`` is ``(B, T)``.

    Raises:
        ValueError: a rollout lacks the payload, or vocabularies differ in size.
    """
    if payload == "full":
        _refuse_untaught(rollouts)
    rows = [combine_teachers(scored, payload) if scored.scores else None for scored in rollouts]
    return _padded(rows, (*shape, _width(rows)) if payload == "full" else shape)


def one_teacher(rollouts: Sequence[ScoredRollout], shape: tuple[int, int], name: str) -> Tensor:
    """What one teacher said of each token, whatever its weight: ``(B, T)``, zeros where nobody graded the rollout.

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
                rows.append(logprobs_T)
            case _:
                assert score is not None
                raise _unfit(scored, score, "sampled")
    return _padded(rows, shape)


def each_teacher_tensors(
    rollouts: Sequence[ScoredRollout], shape: tuple[int, int], payload: PayloadName
) -> tuple[TeacherSlot, ...]:
    """As many slots as the rollout with most teachers has; the k-th holds every rollout's k-th. ``shape``: ``(B, T)``.

    Raises:
        ValueError: a rollout has no teacher or lacks the payload, or vocabularies or supports differ in size.
    """
    _refuse_untaught(rollouts)
    most = max((len(scored.scores) for scored in rollouts), default=1)
    return tuple(_slot(rollouts, shape, payload, k) for k in range(most))


def _slot(rollouts: Sequence[ScoredRollout], shape: tuple[int, int], payload: PayloadName, k: int) -> TeacherSlot:
    weight_B = torch.zeros(shape[0])
    fulls: list[Float32 | None] = [None] * len(rollouts)
    topks: list[TopK | None] = [None] * len(rollouts)
    for b, scored in enumerate(rollouts):
        if k < len(scored.scores):
            weight_B[b], score = scored.scores[k]
            match payload, score.payload:
                case "full", Full(logprobs_TV):
                    fulls[b] = logprobs_TV
                case "topk", TopK() as topk:
                    topks[b] = topk
                case _:
                    raise _unfit(scored, score, payload)
    if payload == "full":
        return TeacherSlot(weight_B, _padded(fulls, (*shape, _width(fulls))))
    logprobs = [topk and topk.logprobs_TK for topk in topks]
    wide = (*shape, _width(logprobs))
    support = SupportRows(
        ids_BTK=_padded([topk and topk.ids_TK for topk in topks], wide).long(),
        rest_BT=_padded([topk and topk.rest_T for topk in topks], shape),
        sampled_BT=_padded([topk and topk.sampled_T for topk in topks], shape),
    )
    return TeacherSlot(weight_B, _padded(logprobs, wide), support)


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
        group = tuple((weight, one.head) for weight, one in hidden)
        places.setdefault(group, []).append(b * shape[1] + np.flatnonzero(mask))
        rows.setdefault(group, []).append([one.hidden_TH[mask] for _, one in hidden])
    parts = (
        tuple(
            HiddenPart(weight, to_torch(np.concatenate([one[k] for one in rows[group]])), head)
            for k, (weight, head) in enumerate(group)
        )
        for group in places
    )
    flat = [part for some in places.values() for part in some] or [np.zeros(0, dtype=np.int64)]
    return HiddenRows(torch.from_numpy(np.concatenate(flat)), tuple(parts))


def sampled_logprobs(scored: ScoredRollout) -> Float32:
    """The teachers' weighted mean log-probability of each token, ``(T,)``, in nats, whatever their payload.

    Raises:
        ValueError: no teacher graded the rollout, or one gave hidden states.
    """
    ids = scored.rollout.token_ids
    total = np.zeros(len(ids), dtype=np.float32)
    _refuse_untaught([scored])
    for weight, score in scored.scores:
        match score.payload:
            case Sampled(logprobs_T):
                total += np.float32(weight) * logprobs_T
            case TopK(sampled_T=logprobs_T):
                total += np.float32(weight) * logprobs_T
            case Full(logprobs_TV):
                total += np.float32(weight) * logprobs_TV[range(len(ids)), ids]
            case _:
                raise _unfit(scored, score, "sampled")
    return total


def _width(rows: Sequence[Float32 | None]) -> int:
    """Of the last dimension. That of a dummy is 1, which broadcasts against any; no row of it is ever read."""
    return max((row.shape[1] for row in rows if row is not None), default=1)


def _padded(rows: Sequence[Float32 | Int32 | None], shape: tuple[int, ...]) -> Tensor:
    """Rows in a tensor of their own type, zeros elsewhere."""
    there = [row for row in rows if row is not None]
    padded = np.zeros(shape, dtype=there[0].dtype if there else np.float32)
    for b, row in enumerate(rows):
        if row is not None:
            padded[b, : len(row)] = row
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
