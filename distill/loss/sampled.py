"""Estimators on the sampled token, and the advantages and ratios of single tokens that they are made of.

An advantage is one function, :func:`sampled_advantage`: the losses here use it, and so do the rules of the domains'
shares (distill/loss/shares.py). Advantages and ratios are detached, in nats.

Shape legend: B sequences, T tokens of a sequence, N trained tokens of a microbatch, in any order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import NamedTuple

import torch
from torch import Tensor

from mopd.distill.loss.base import (
    GradedTokens,
    TokenLoss,
    gap_to_teacher,
    log_softmax,
    pick,
    spread,
    teacher_gap,
    teachers_mean,
)
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.recipe import K2, NegativeLogLikelihood, PolicyGradient, SampledToken

STD_EPSILON = 1e-4
"""Added to a group's standard deviation, in units of reward; keeps a nearly constant group from exploding."""


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


class SampledAdvantage(NamedTuple):
    """What :func:`sampled_advantage` gives, each ``(N,)``.

    ``gap_N`` is the teacher gap, beyond the teacher where the loss extrapolates; ``clipped_gap_N`` the same within the
    bound, and ``clipped_N`` True where that changed it; ``advantage_N`` has the reward's part as well.
    """

    gap_N: Tensor
    clipped_gap_N: Tensor
    clipped_N: Tensor
    advantage_N: Tensor


def sampled_advantage(tokens: GradedTokens, settings: SampledToken) -> SampledAdvantage:
    """The advantage of sampled tokens: the clipped teacher gap, plus ``reward_weight`` times the reward's advantage.

    Raises:
        ValueError: the settings ask for a reference or a reward, and the tokens have none.

    Source: MiMo-V2-Flash report, arXiv 2601.02780, eqs 8-9; the clip is arXiv 2606.30406's.
    """
    gap_N = gap_to_teacher(tokens, settings)
    if settings.extrapolation != 1:
        if tokens.reference_N is None:
            raise ValueError(f"extrapolation is {settings.extrapolation:g} but the microbatch has no reference")
        beyond_N = extrapolated_gap(
            teacher_logprobs_N=tokens.teacher_N,
            student_logprobs_N=tokens.policy_N,
            reference_logprobs_N=tokens.reference_N,
            strength=settings.extrapolation,
        )
        gap_N = torch.where(tokens.taught_N, beyond_N, 0.0)
    clipped_gap_N, clipped_N = clip_gap(gap_N, settings.advantage_clip)
    advantage_N = clipped_gap_N
    if isinstance(settings, PolicyGradient) and settings.reward_weight > 0:
        if tokens.reward_N is None:
            raise ValueError(f"reward_weight is {settings.reward_weight:g} but the microbatch has no reward advantages")
        advantage_N = clipped_gap_N + settings.reward_weight * tokens.reward_N
    return SampledAdvantage(gap_N, clipped_gap_N, clipped_N, advantage_N)


def token_advantage(tokens: GradedTokens, settings: SampledToken) -> Tensor:
    """The advantage of :func:`sampled_advantage` alone, ``(N,)``."""
    return sampled_advantage(tokens, settings).advantage_N


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


class _Graded(NamedTuple):
    """The trained tokens as estimators on the sampled token see them; only ``logprobs_N`` has a gradient."""

    logprobs_N: Tensor
    advantage: SampledAdvantage
    gated: GatedRatio
    stats: dict[str, Tensor]


def policy_gradient(logits_BTV: Tensor, microbatch: Microbatch, settings: PolicyGradient) -> TokenLoss:
    """``- w_t A_t log pi_theta(y_t)`` with ``A_t`` the clipped teacher gap plus ``alpha`` times the reward's advantage.

    Unclipped, ungated and with ``alpha = 0`` its expected gradient is that of the per-token reverse KL. A rollout that
    no teacher graded has gap 0 and learns from its reward alone.

    Raises:
        ValueError: ``settings.reward_weight`` is above 0 and the microbatch has no reward advantages.

    Source: MiMo-V2-Flash report, arXiv 2601.02780, eqs 5-9; the clip is arXiv 2606.30406's.
    """
    logprobs_N, advantage, gated, stats = _graded(logits_BTV, microbatch, settings)
    advantage_N = advantage.advantage_N
    # A product and not a `where`: where the token is dropped and its advantage is NaN, the loss must be NaN.
    return spread(-(gated.weight_N * advantage_N) * logprobs_N, {**stats, "advantage": advantage_N}, microbatch.mask_BT)


def k2(logits_BTV: Tensor, microbatch: Microbatch, settings: K2) -> TokenLoss:
    """``w_t (log pi_T(y_t) - log pi_theta(y_t))^2 / 2``, back-propagated; linear where the gap is beyond the clip.

    Token by token its gradient is that of :func:`policy_gradient` without reward: right for the per-token reverse KL.
    Its value measures something, which that one's does not. Several teachers: the gap to their weighted mean, whose
    gradient is that of the weighted sum of squares.

    Source: k2 of J. Schulman, "Approximating KL divergence" (2020); the clipped square is Huber's loss.
    """
    logprobs_N, advantage, gated, stats = _graded(logits_BTV, microbatch, settings)
    clipped_gap_N = advantage.clipped_gap_N
    # h(gap) = clipped * (gap - clipped / 2): half a square inside the bound, linear outside, slope `clipped` in both.
    gap_N = advantage.gap_N + (logprobs_N.detach() - logprobs_N)
    loss_N = gated.weight_N * clipped_gap_N * (gap_N - clipped_gap_N / 2)
    return spread(loss_N, {**stats, "advantage": clipped_gap_N}, microbatch.mask_BT)


def nll(logits_BTV: Tensor, microbatch: Microbatch, settings: NegativeLogLikelihood) -> TokenLoss:
    """``- log pi_theta(y_t)``: cross-entropy of given tokens, for supervised stages and off-policy fine-tuning."""
    logprobs_N, entropy_N = _sampled_logprobs(logits_BTV, microbatch)
    return spread(-logprobs_N, {"entropy": entropy_N}, microbatch.mask_BT)


def _graded(logits_BTV: Tensor, microbatch: Microbatch, settings: SampledToken) -> _Graded:
    mask_BT = microbatch.mask_BT
    logprobs_N, entropy_N = _sampled_logprobs(logits_BTV, microbatch)

    def by_token(values_B: Tensor) -> Tensor:
        return values_B.unsqueeze(1).expand_as(mask_BT)[mask_BT]

    reward_B, reference_BT = microbatch.reward_advantage_B, microbatch.reference_BT
    tokens = GradedTokens(
        teacher_N=teachers_mean(microbatch)[mask_BT],
        policy_N=logprobs_N.detach(),
        taught_N=by_token(microbatch.has_teacher_B),
        reference_N=None if reference_BT is None else reference_BT[mask_BT],
        reward_N=None if reward_B is None else by_token(reward_B),
    )
    advantage = sampled_advantage(tokens, settings)
    gated = gated_ratio(
        student_logprobs_N=logprobs_N,
        sampler_logprobs_N=microbatch.sampler_logprobs_BT[mask_BT],
        gate=settings.gate,
    )
    stats = {
        "kl": -gap_to_teacher(tokens, settings),
        "entropy": entropy_N,
        "ratio": gated.ratio_N,
        "gate_dropped": gated.dropped_N,
        "clipped": advantage.clipped_N,
    }
    return _Graded(logprobs_N, advantage, gated, stats)


def _sampled_logprobs(logits_BTV: Tensor, microbatch: Microbatch) -> tuple[Tensor, Tensor]:
    """Log-probability of each trained token, with gradient, and the entropy of its distribution, without; both (N,)."""
    logp_NV = log_softmax(logits_BTV[microbatch.mask_BT])
    with torch.no_grad():
        entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
    return pick(logp_NV, microbatch.token_ids_BT[microbatch.mask_BT]), entropy_N
