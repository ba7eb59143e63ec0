"""What teachers said of rollouts, as tensors of a microbatch: their weighted mean, or each teacher apart.

Shape legend: B sequences, T tokens of the longest one, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.types import Float32, Full, PayloadName, Sampled, ScoredRollout, TeacherScore


@dataclass(frozen=True, slots=True)
class TeacherSlot:
    """One teacher of each rollout, for losses that are not a function of the teachers' mean; padded like all else.

    Attributes:
        weight_B: float32, this teacher's weight; 0 where the rollout has none in this slot, whose rows are zeros.
        logprobs: float32, nats, ``(B, T, V)``.
    """

    weight_B: Tensor
    logprobs: Tensor

    def to(self, device: torch.device | str) -> TeacherSlot:
        """The same on a device."""
        return TeacherSlot(self.weight_B.to(device), self.logprobs.to(device))


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
    # The vocabulary of a dummy is 1, which broadcasts against any; no row of it is ever read.
    V = max((row.shape[1] for row in rows if row is not None), default=1) if payload == "full" else None
    return _padded(rows, shape if V is None else (*shape, V))


def teachers_apart(rollouts: Sequence[ScoredRollout], shape: tuple[int, int]) -> tuple[TeacherSlot, ...]:
    """As many slots as the rollout with most teachers has; the k-th holds every rollout's k-th. ``shape``: ``(B, T)``.

    Raises:
        ValueError: a rollout has no teacher or lacks the payload, or vocabularies differ in size.
    """
    _refuse_untaught(rollouts)
    slots = []
    for k in range(max((len(scored.scores) for scored in rollouts), default=1)):
        weight_B = torch.zeros(shape[0])
        rows: list[Float32 | None] = []
        for b, scored in enumerate(rollouts):
            weight, row = 0.0, None
            if k < len(scored.scores):
                weight, score = scored.scores[k]
                if not isinstance(score.payload, Full):
                    raise _unfit(scored, score, "full")
                row = score.payload.logprobs_TV
            weight_B[b] = weight
            rows.append(row)
        V = max((row.shape[1] for row in rows if row is not None), default=1)
        slots.append(TeacherSlot(weight_B, _padded(rows, (*shape, V))))
    return tuple(slots)


def _padded(rows: Sequence[Float32 | None], shape: tuple[int, ...]) -> Tensor:
    padded = np.zeros(shape, dtype=np.float32)
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
