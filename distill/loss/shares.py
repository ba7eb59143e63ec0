"""Domains' shares of a step's loss: as the recipe says, scaled by the noise of their advantages, or by their gaps.

A rule is a pure function of the recipe's shares and of the step's own rollouts, so a resumed run has the same ones.
It is asked once a step, before the first of its updates, and holds for all of them: at that point the sampler's
log-probabilities are the policy's, up to rounding, or with `run.lag` those that it had so many steps before.

Shape legend: N trained tokens of a domain in the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mopd.distill.loss.base import GradedTokens, gap_to_teacher
from mopd.distill.loss.registry import BoundLoss
from mopd.distill.loss.teacher_tensors import sampled_logprobs, sampled_rows
from mopd.distill.types import ScoredRollout, trained_rows

Array: TypeAlias = npt.NDArray[np.float64]

NOISE_BOUNDS = (0.25, 4.0)
"""Of the factor of :func:`variance_scaled`; DN-MOPD, arXiv 2609.35347."""
GAP_BOUNDS = (0.05, 20.0)
"""Of the factor of :func:`gap_following`."""


@dataclass(frozen=True, slots=True)
class DomainTokens:
    """What a rule sees of a domain's trained tokens in the step; both ``(N,)``, in nats.

    Attributes:
        gap_N: ``log pi_T - log mu`` with the teachers' mean, 0 where no teacher graded the rollout.
        advantage_N: what the loss acts on: the gap, beyond the teacher where the loss extrapolates, clipped where it
            clips, and the reward's part where it has one.
    """

    gap_N: Array
    advantage_N: Array


ShareRule: TypeAlias = Callable[[Mapping[str, float], Mapping[str, DomainTokens]], dict[str, float]]
"""``g_d`` of the recipe and the step's tokens, by domain -> the step's ``g_d``; both relative to each other."""


def explicit(shares: Mapping[str, float], tokens: Mapping[str, DomainTokens]) -> dict[str, float]:
    """The recipe's, whatever the tokens say."""
    return dict(shares)


def variance_scaled(shares: Mapping[str, float], tokens: Mapping[str, DomainTokens]) -> dict[str, float]:
    """``g_d * clip(sigma_all / sigma_d, 0.25, 4)``: a domain whose token advantages scatter more gets less.

    ``sigma`` is the population standard deviation of the token advantage, in the domain and over all tokens of the
    step. A domain without any scatter gets the upper bound; where no domain has any, all keep their shares.

    Source: DN-MOPD, arXiv 2609.35347.
    """
    sigma = {domain: float(np.std(tokens[domain].advantage_N)) for domain in shares}
    sigma_all = float(np.std(np.concatenate([tokens[domain].advantage_N for domain in shares])))
    return {domain: g * _factor(sigma_all, sigma[domain], NOISE_BOUNDS) for domain, g in shares.items()}


def gap_following(shares: Mapping[str, float], tokens: Mapping[str, DomainTokens]) -> dict[str, float]:
    """``g_d * clip(KL_d / mean KL, 0.05, 20)``: a domain that is further from its teachers gets more.

    ``KL_d`` is the one-sample estimate of the reverse KL per token, ``mean(log mu - log pi_T)``, and 0 where chance
    makes that negative; the mean is over domains. Where every domain's is 0, all keep their shares.
    """
    kl = {domain: max(0.0, -float(np.mean(tokens[domain].gap_N))) for domain in shares}
    mean = fmean(kl.values())
    return {domain: g * _factor(kl[domain], mean, GAP_BOUNDS) for domain, g in shares.items()}


SHARE_RULES: dict[str, ShareRule] = {
    "explicit": explicit,
    "variance_scaled": variance_scaled,
    "gap_following": gap_following,
}
"""Rules by the name that a recipe's ``share_rule`` gives them."""


def step_tokens(
    batch: Sequence[ScoredRollout], loss: BoundLoss, rewards: Sequence[float] | None
) -> dict[str, DomainTokens]:
    """What the rules see of a step, by domain.

    Args:
        rewards: the group-normalised reward of each rollout, None where the loss uses none.
    """
    gaps: dict[str, list[Array]] = {}
    advantages: dict[str, list[Array]] = {}
    for i, scored in enumerate(batch):
        tokens = _graded_tokens(scored, loss.reference, None if rewards is None else rewards[i])
        gap_N = gap_to_teacher(tokens, None)
        gaps.setdefault(scored.rollout.domain, []).append(gap_N.numpy())
        advantages.setdefault(scored.rollout.domain, []).append(loss.token_advantage(tokens).numpy())
    return {d: DomainTokens(np.concatenate(gaps[d]), np.concatenate(advantages[d])) for d in gaps}


def normalised(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares that sum to 1."""
    total = math.fsum(shares.values())
    return {domain: g / total for domain, g in shares.items()}


def _graded_tokens(scored: ScoredRollout, reference: str | None, reward: float | None) -> GradedTokens:
    """A rollout's trained tokens in float64; the policy's log-probabilities are the sampler's."""

    def trained(values: npt.NDArray[np.floating]) -> torch.Tensor:
        return torch.from_numpy(trained_rows(values, scored.rollout).astype(np.float64))

    policy_N = trained(scored.rollout.sampler_logprobs)
    reference_N = None
    if reference is not None and scored.scores:
        payload = next(score.payload for _, score in scored.scores if score.teacher == reference)
        logprobs_N = sampled_rows(payload, scored.rollout)
        assert logprobs_N is not None, "a loss that extrapolates asks for payload sampled"
        reference_N = trained(logprobs_N)
    return GradedTokens(
        teacher_N=trained(sampled_logprobs(scored)) if scored.scores else torch.zeros_like(policy_N),
        policy_N=policy_N,
        taught_N=torch.full(policy_N.shape, bool(scored.scores)),
        reference_N=torch.zeros_like(policy_N) if reference_N is None and reference is not None else reference_N,
        reward_N=None if reward is None else torch.full_like(policy_N, reward),
    )


def _factor(above: float, below: float, bounds: tuple[float, float]) -> float:
    """``above / below`` within bounds; 1 where both are 0."""
    if above == below:
        return 1.0
    low, high = bounds
    return high if below == 0 else min(high, max(low, above / below))
