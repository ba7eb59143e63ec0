"""Advantages and ratios of single tokens: pure functions, everything detached.

Shape legend: N trained tokens of a microbatch, in any order; every function works token by token, so any shape does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to a group's standard deviation, in units of reward; keeps a nearly constant group from exploding."""


def teacher_gap(*, teacher_logprobs_N: Tensor, student_logprobs_N: Tensor) -> Tensor:
    """How much likelier the teacher finds each token than the student does, in nats.

    Both log-probabilities are of the training engines under one temperature, never the sampler's. With several teachers
    ``teacher_logprobs_N`` is their weighted mean. Positive where the student should do it more.

    Source: MiMo-V2-Flash report, arXiv 2601.02780, eq 8: ``sg[log pi_T(y_t) - log pi_theta(y_t)]``.
    """
    return (teacher_logprobs_N - student_logprobs_N).detach()


def extrapolated_gap(
    *, teacher_logprobs_N: Tensor, student_logprobs_N: Tensor, reference_logprobs_N: Tensor, strength: float
) -> Tensor:
    """The teacher gap, and ``strength - 1`` times as far again in the direction that the teacher took from a reference.

    ``strength`` is lambda, without a unit: 1 is :func:`teacher_gap`, above 1 the student is asked to go beyond its
    teacher (1.25 was good there, 1.5 unstable). The reference is the student before distillation; all three
    log-probabilities are under one temperature. It is the gap to a mean of two "teachers" with weights that sum to 1,
    ``lambda log pi_T + (1 - lambda) log pi_ref``.

    Source: ExOPD, arXiv 2602.12125: ``(log pi_T - log pi_theta) + (lambda - 1) (log pi_T - log pi_ref)``.
    """
    gap_N = teacher_gap(teacher_logprobs_N=teacher_logprobs_N, student_logprobs_N=student_logprobs_N)
    taken_N = teacher_gap(teacher_logprobs_N=teacher_logprobs_N, student_logprobs_N=reference_logprobs_N)
    return gap_N + (strength - 1) * taken_N


def clip_gap(gap_N: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Clip the teacher gap to ``[-bound, bound]`` nats; say where it was outside.

    It is for the combined gap of all teachers, before any reward is added. A gap that is not finite passes through,
    because a broken score is to stop the run and not to become a large, innocent advantage.

    Returns:
        The clipped gap and a boolean tensor, True where clipping changed it, both of the shape of ``gap_N``.

    Source: arXiv 2606.30406, which uses a bound of 5.
    """
    gap_N = gap_N.detach()
    clipped_N = gap_N.isfinite() & (gap_N.abs() > bound)
    return torch.where(clipped_N, gap_N.clamp(-bound, bound), gap_N), clipped_N


@dataclass(frozen=True, slots=True)
class GatedRatio:
    """Importance weights of tokens.

    Attributes:
        weight_N: ``w_t``: the ratio where it is kept, 0 where the token is dropped.
        ratio_N: policy over sampler, before the gate.
        dropped_N: True where the ratio lies outside the gate.
    """

    weight_N: Tensor
    ratio_N: Tensor
    dropped_N: Tensor


def gated_ratio(*, student_logprobs_N: Tensor, sampler_logprobs_N: Tensor, gate: tuple[float, float]) -> GatedRatio:
    """The ratio of policy to sampler, and its gate; both bounds of ``gate`` are inside.

    A dropped token has no gradient but stays in its domain's count of trained tokens: dropping must not make the other
    tokens louder. A NaN ratio is not dropped, so that it reaches the loss and stops the run.

    Source: MiMo-V2-Flash report, arXiv 2601.02780, eq 7.
    """
    low, high = gate
    ratio_N = (student_logprobs_N - sampler_logprobs_N).detach().exp()
    dropped_N = (ratio_N < low) | (ratio_N > high)
    return GatedRatio(torch.where(dropped_N, 0.0, ratio_N), ratio_N, dropped_N)


def group_advantages(rewards: Sequence[float | None], groups: Sequence[int]) -> list[float]:
    """Rewards normalised within the samples of one prompt: ``(r - mean) / (population std + STD_EPSILON)``.

    A group whose rewards are all equal gives exactly 0, a group of one sample too: it says nothing of what to prefer.
    An item without a reward gives 0 and counts in no mean. Groups are those of the whole batch, so this
    comes before the batch is split into updates.

    Example:
        >>> [round(a, 3) for a in group_advantages([1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])]
        [1.0, -1.0, 0.0, 0.0]

    Source: GRPO, arXiv 2402.03300, section 4.1.2, outcome supervision.
    """
    members: dict[int, list[float]] = defaultdict(list)
    for reward, group in zip(rewards, groups, strict=True):
        if reward is not None:
            members[group].append(reward)

    def advantage(reward: float | None, group: int) -> float:
        rewards_of_group = members[group]
        if reward is None or min(rewards_of_group) == max(rewards_of_group):
            return 0.0
        return (reward - fmean(rewards_of_group)) / (pstdev(rewards_of_group) + STD_EPSILON)

    return [advantage(reward, group) for reward, group in zip(rewards, groups, strict=True)]
