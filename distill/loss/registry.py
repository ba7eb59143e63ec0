"""Estimators on the sampled token, and the dict ``LOSSES`` of all: pure functions, in nats, one value per token.

Logits come in aligned (row ``t`` is the distribution of token ``t``) and divided by the temperature; log-probabilities
are taken in float32 at least. Only the rows of trained tokens are ever read: a masked place may hold NaN, its loss is
exactly 0 and so is its gradient. Weighing the tokens (``g_d / N_d``) is the caller's, with ``Microbatch.weights_BT``.

**A further estimator** is one function here, in ``divergences.py`` or in ``topk.py``, one row of ``LOSSES``, and one
class of settings in the recipe's ``Loss``. Those that look right and are not, with the reason, are in
``distill.recipe.TRAPS``.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, N trained tokens of the microbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mopd.distill.loss.advantages import GatedRatio, clip_gap, extrapolated_gap, gated_ratio, teacher_gap
from mopd.distill.loss.base import TokenLoss as TokenLoss
from mopd.distill.loss.base import log_softmax, pick, spread, teachers_mean
from mopd.distill.loss.divergences import forward_kl, full_reverse_kl, jsd
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.topk import topk_reverse_kl
from mopd.distill.payloads import Support
from mopd.distill.recipe import (
    K2,
    CustomLoss,
    FullReverseKL,
    Loss,
    NegativeLogLikelihood,
    PolicyGradient,
    SampledToken,
    TopKReverseKL,
)
from mopd.distill.recipe.plugins import load_plugin, located_plugin
from mopd.distill.types import PayloadName, UserError


@dataclass(frozen=True, slots=True)
class LossSpec:
    """An estimator.

    Attributes:
        payload: what it needs of every teacher, None if it needs no teacher.
        token_loss: ``(logits_BTV, microbatch, settings) -> TokenLoss``; ``settings`` is the recipe's ``loss``, of the
            class that has this estimator's name; for a user's own estimator its ``settings``, numbers by name.
        needs_each_teacher: whether it needs several teachers one by one; the others need only the mean of their
            log-probabilities.
    """

    payload: PayloadName | None
    token_loss: Callable[[Tensor, Microbatch, Any], TokenLoss]
    needs_each_teacher: bool = False


class _Graded(NamedTuple):
    """The trained tokens as estimators on the sampled token see them; only ``logprobs_N`` has a gradient."""

    logprobs_N: Tensor
    gap_N: Tensor
    clipped_gap_N: Tensor
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
    mask_BT = microbatch.mask_BT
    logprobs_N, _, advantage_N, gated, stats = _graded(logits_BTV, microbatch, settings)
    if settings.reward_weight > 0:
        if microbatch.reward_advantage_B is None:
            raise ValueError(f"reward_weight is {settings.reward_weight:g} but the microbatch has no reward advantages")
        reward_N = microbatch.reward_advantage_B.unsqueeze(1).expand_as(mask_BT)[mask_BT]
        advantage_N = advantage_N + settings.reward_weight * reward_N
    # A product and not a `where`: where the token is dropped and its advantage is NaN, the loss must be NaN.
    return spread(-(gated.weight_N * advantage_N) * logprobs_N, {**stats, "advantage": advantage_N}, mask_BT)


def k2(logits_BTV: Tensor, microbatch: Microbatch, settings: K2) -> TokenLoss:
    """``w_t (log pi_T(y_t) - log pi_theta(y_t))^2 / 2``, back-propagated; linear where the gap is beyond the clip.

    Token by token its gradient is that of :func:`policy_gradient` without reward: right for the per-token reverse KL.
    Its value measures something, which that one's does not. Several teachers: the gap to their weighted mean, whose
    gradient is that of the weighted sum of squares.

    Source: k2 of J. Schulman, "Approximating KL divergence" (2020); the clipped square is Huber's loss.
    """
    logprobs_N, gap_N, clipped_N, gated, stats = _graded(logits_BTV, microbatch, settings)
    # h(gap) = clipped * (gap - clipped / 2): half a square inside the bound, linear outside, slope `clipped` in both.
    gap_N = gap_N + (logprobs_N.detach() - logprobs_N)
    loss_N = gated.weight_N * clipped_N * (gap_N - clipped_N / 2)
    return spread(loss_N, {**stats, "advantage": clipped_N}, microbatch.mask_BT)


def nll(logits_BTV: Tensor, microbatch: Microbatch, settings: NegativeLogLikelihood) -> TokenLoss:
    """``- log pi_theta(y_t)``: cross-entropy of given tokens, for supervised stages and off-policy fine-tuning."""
    logprobs_N, entropy_N = _sampled_logprobs(logits_BTV, microbatch)
    return spread(-logprobs_N, {"entropy": entropy_N}, microbatch.mask_BT)


LOSSES: dict[str, LossSpec] = {
    "full_reverse_kl": LossSpec("full", full_reverse_kl),
    "forward_kl": LossSpec("full", forward_kl, needs_each_teacher=True),
    "jsd": LossSpec("full", jsd, needs_each_teacher=True),
    "topk_reverse_kl": LossSpec("topk", topk_reverse_kl, needs_each_teacher=True),
    "policy_gradient": LossSpec("sampled", policy_gradient),
    "k2": LossSpec("sampled", k2),
    "nll": LossSpec(None, nll),
}
"""Estimators by the name that a recipe gives them."""
OWN_PAYLOADS: tuple[PayloadName | None, ...] = ("sampled", "full", None)
"""What a user's own estimator may ask of teachers; a top-k support is a setting of the shipped loss."""


@dataclass(frozen=True, slots=True)
class BoundLoss:
    """A recipe's loss: its estimator with its settings, and all that anybody else asks of them. See :func:`bind`.

    Attributes:
        settings: the recipe's ``loss``; what crosses to other processes, which bind it again.
        spec: the estimator's row.
        estimator: its name in the recipe.
        custom: whether it is a user's own.
        payload: what it needs of every teacher, None if it needs no teacher.
        arguments: what the row's functions are given: ``settings``; a user's own, its numbers by name.
        reference: the teacher that it extrapolates away from, if it does.
        extrapolates: whether its settings have an extrapolation and a reference at all.
        extrapolation: lambda of ExOPD, 1 where it does not extrapolate.
        takes_reward: whether its settings have a weight of the reward at all.
        reward_weight: alpha, 0 where it uses no reward.
        support: which tokens it is computed on, without the forced ones; None where it is on other ones.
    """

    settings: Loss
    spec: LossSpec
    estimator: str
    custom: bool
    payload: PayloadName | None
    arguments: Any
    reference: str | None
    extrapolates: bool
    extrapolation: float
    takes_reward: bool
    reward_weight: float
    support: Support | None

    def support_with(self, forced: Sequence[int]) -> Support | None:
        """The support with the tokens that are always in it; None where the loss has none."""
        return None if self.support is None else replace(self.support, forced=tuple(forced))

    def token_loss(self, logits_BTV: Tensor, microbatch: Microbatch) -> TokenLoss:
        """The loss of each token of a microbatch; ``logits_BTV`` are raw, aligned and divided by the temperature."""
        return self.spec.token_loss(logits_BTV, microbatch, self.arguments)


def bind(settings: Loss) -> BoundLoss:
    """A recipe's ``loss`` as it is used: once a run, before anything else is asked of it.

    Raises:
        UserError: a user's own estimator can't be loaded, is no :class:`LossSpec`, or asks teachers for what they
            don't give.
    """
    spec = _custom_spec(settings.estimator) if isinstance(settings, CustomLoss) else LOSSES[settings.estimator]
    sampled = settings if isinstance(settings, SampledToken) else None
    rewarded = settings if isinstance(settings, PolicyGradient) else None
    return BoundLoss(
        settings=settings,
        spec=spec,
        estimator=settings.estimator,
        custom=isinstance(settings, CustomLoss),
        payload=settings.payload if isinstance(settings, FullReverseKL) else spec.payload,
        arguments=settings.settings if isinstance(settings, CustomLoss) else settings,
        reference=None if sampled is None else sampled.reference,
        extrapolates=sampled is not None,
        extrapolation=1.0 if sampled is None else sampled.extrapolation,
        takes_reward=rewarded is not None,
        reward_weight=0.0 if rewarded is None else rewarded.reward_weight,
        support=Support(settings.k, (), settings.support) if isinstance(settings, TopKReverseKL) else None,
    )


def _custom_spec(reference: str) -> LossSpec:
    spec = load_plugin(reference, where="loss.estimator")
    if not isinstance(spec, LossSpec):
        raise UserError(
            f"`loss.estimator`: {reference} is {type(spec).__name__}, and must be a "
            f"mopd.distill.loss.registry.LossSpec, for "
            'example LossSpec("full", my_token_loss)'
        )
    if spec.payload not in OWN_PAYLOADS:
        offered = ", ".join(map(repr, OWN_PAYLOADS))
        raise UserError(f"`loss.estimator`: {reference} has payload {spec.payload!r}; take one of {offered}")
    return spec


def located(loss: Loss) -> Loss:
    """The same for a process with another working folder: an own file by its absolute path."""
    if not isinstance(loss, CustomLoss):
        return loss
    return loss.model_copy(update={"estimator": located_plugin(loss.estimator)})


def _graded(logits_BTV: Tensor, microbatch: Microbatch, settings: SampledToken) -> _Graded:
    mask_BT = microbatch.mask_BT
    logprobs_N, entropy_N = _sampled_logprobs(logits_BTV, microbatch)
    taught_N = microbatch.has_teacher_B.unsqueeze(1).expand_as(mask_BT)[mask_BT]
    teacher_N = teachers_mean(microbatch)[mask_BT]
    to_teacher_N = torch.where(taught_N, teacher_gap(teacher_logprobs_N=teacher_N, student_logprobs_N=logprobs_N), 0.0)
    gap_N = to_teacher_N
    if settings.extrapolation != 1:
        if microbatch.reference_BT is None:
            raise ValueError(f"extrapolation is {settings.extrapolation:g} but the microbatch has no reference")
        beyond_N = extrapolated_gap(
            teacher_logprobs_N=teacher_N,
            student_logprobs_N=logprobs_N,
            reference_logprobs_N=microbatch.reference_BT[mask_BT],
            strength=settings.extrapolation,
        )
        gap_N = torch.where(taught_N, beyond_N, 0.0)
    clipped_gap_N, clipped_N = clip_gap(gap_N, settings.advantage_clip)
    gated = gated_ratio(
        student_logprobs_N=logprobs_N,
        sampler_logprobs_N=microbatch.sampler_logprobs_BT[mask_BT],
        gate=settings.gate,
    )
    stats = {
        "kl": -to_teacher_N,
        "entropy": entropy_N,
        "ratio": gated.ratio_N,
        "gate_dropped": gated.dropped_N,
        "clipped": clipped_N,
    }
    return _Graded(logprobs_N, gap_N, clipped_gap_N, gated, stats)


def _sampled_logprobs(logits_BTV: Tensor, microbatch: Microbatch) -> tuple[Tensor, Tensor]:
    """Log-probability of each trained token, with gradient, and the entropy of its distribution, without; both (N,)."""
    logp_NV = log_softmax(logits_BTV[microbatch.mask_BT])
    with torch.no_grad():
        entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
    return pick(logp_NV, microbatch.token_ids_BT[microbatch.mask_BT]), entropy_N
