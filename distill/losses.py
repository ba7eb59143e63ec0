"""Estimators of the distillation loss: pure functions, in nats, one value per token; the dict ``LOSSES``.

Logits come in aligned (row ``t`` is the distribution of token ``t``) and divided by the temperature; log-probabilities
are taken in float32 at least. Only the rows of trained tokens are ever read: a masked place may hold NaN, its loss is
exactly 0 and so is its gradient. Weighing the tokens (``g_d / N_d``) is the caller's, with ``Microbatch.weights_BT``.

**A further estimator** is one function here, one row of ``LOSSES``, and one class of settings in the recipe's ``Loss``.
Those that look right and are not, with the reason, are in ``distill.recipe.TRAPS``.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, N trained tokens of the microbatch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.advantages import clip_gap, gated_ratio, teacher_gap
from distill.batch import Microbatch, PayloadName
from distill.recipe import FullReverseKL, NegativeLogLikelihood, PolicyGradient


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """What an estimator returns.

    Attributes:
        loss_BT: loss of each token; 0 at masked ones. Its value is for the gradient: that of ``policy_gradient`` is a
            surrogate and measures nothing.
        stats: detached, each ``(B, T)``, 0 at masked tokens. Where the estimator knows them: ``kl`` (reverse KL per
            token in nats; exact for the full vocabulary, else the one-sample estimate ``log pi - log q``, unclipped),
            ``entropy`` (of the student's distribution, nats), ``advantage`` (nats; of the token that was drawn),
            ``ratio`` (policy over sampler), ``gate_dropped`` and ``clipped`` (1 where it happened).
    """

    loss_BT: Tensor
    stats: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class LossSpec:
    """An estimator.

    Attributes:
        payload: what it needs of every teacher, None if it needs no teacher.
        token_loss: ``(logits_BTV, microbatch, settings) -> TokenLoss``; ``settings`` is the recipe's ``loss``, of the
            class that has this estimator's name.
    """

    payload: PayloadName | None
    token_loss: Callable[[Tensor, Microbatch, Any], TokenLoss]


def full_reverse_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: FullReverseKL) -> TokenLoss:
    """``KL(pi_theta || pi_T)`` of each token's whole distribution, exact.

    Several teachers: ``sum_k w_k KL(pi_theta || pi_k)``, exact too; see :func:`distill.batch.combine_teachers`.

    Source: the expectation of the MiMo-V2-Flash report's eqs 6-8 (arXiv 2601.02780) over the token, prefix held fixed.
    """
    mask_BT = microbatch.mask_BT
    teacher_NV, tokens_N = _teacher(microbatch)[mask_BT], microbatch.token_ids_BT[mask_BT]
    kl_N, entropy_N, logprobs_N = _ReverseKL.apply(logits_BTV[mask_BT], teacher_NV, tokens_N)
    gap_N = teacher_gap(teacher_logprobs_N=_gather(teacher_NV, tokens_N), student_logprobs_N=logprobs_N)
    ratio_N = (logprobs_N - microbatch.sampler_logprobs_BT[mask_BT]).exp()
    stats = {"kl": kl_N.detach(), "entropy": entropy_N, "advantage": gap_N, "ratio": ratio_N}
    return _token_loss(kl_N, stats, mask_BT)


def policy_gradient(logits_BTV: Tensor, microbatch: Microbatch, settings: PolicyGradient) -> TokenLoss:
    """``- w_t A_t log pi_theta(y_t)`` with ``A_t`` the clipped teacher gap plus ``alpha`` times the reward's advantage.

    Unclipped, ungated and with ``alpha = 0`` its expected gradient is that of the per-token reverse KL. A rollout that
    no teacher graded has gap 0 and learns from its reward alone.

    Raises:
        ValueError: ``settings.reward_weight`` is above 0 and the microbatch has no reward advantages.

    Source: MiMo-V2-Flash report, arXiv 2601.02780, eqs 5-9; the clip is arXiv 2606.30406's.
    """
    mask_BT = microbatch.mask_BT
    logprobs_N, entropy_N = _sampled_logprobs(logits_BTV, microbatch)
    taught_N = microbatch.has_teacher_B.unsqueeze(1).expand_as(mask_BT)[mask_BT]
    gap_N = teacher_gap(teacher_logprobs_N=_teacher(microbatch)[mask_BT], student_logprobs_N=logprobs_N)
    gap_N = torch.where(taught_N, gap_N, 0.0)
    advantage_N, clipped_N = clip_gap(gap_N, settings.advantage_clip)
    if settings.reward_weight > 0:
        if microbatch.reward_advantage_B is None:
            raise ValueError(f"reward_weight is {settings.reward_weight:g} but the microbatch has no reward advantages")
        reward_N = microbatch.reward_advantage_B.unsqueeze(1).expand_as(mask_BT)[mask_BT]
        advantage_N = advantage_N + settings.reward_weight * reward_N
    gated = gated_ratio(
        student_logprobs_N=logprobs_N,
        sampler_logprobs_N=microbatch.sampler_logprobs_BT[mask_BT],
        gate=settings.gate,
    )
    stats = {
        "kl": -gap_N,
        "entropy": entropy_N,
        "advantage": advantage_N,
        "ratio": gated.ratio_N,
        "gate_dropped": gated.dropped_N,
        "clipped": clipped_N,
    }
    # A product and not a `where`: where the token is dropped and its advantage is NaN, the loss must be NaN.
    return _token_loss(-(gated.weight_N * advantage_N) * logprobs_N, stats, mask_BT)


def nll(logits_BTV: Tensor, microbatch: Microbatch, settings: NegativeLogLikelihood) -> TokenLoss:
    """``- log pi_theta(y_t)``: cross-entropy of given tokens, for supervised stages and off-policy fine-tuning."""
    logprobs_N, entropy_N = _sampled_logprobs(logits_BTV, microbatch)
    return _token_loss(-logprobs_N, {"entropy": entropy_N}, microbatch.mask_BT)


LOSSES: dict[str, LossSpec] = {
    "full_reverse_kl": LossSpec("full", full_reverse_kl),
    "policy_gradient": LossSpec("sampled", policy_gradient),
    "nll": LossSpec(None, nll),
}
"""Estimators by the name that a recipe gives them."""


class _ReverseKL(torch.autograd.Function):
    """``KL(p || q)`` of rows, with the analytic gradient ``p * (log p / q - KL)`` with respect to the logits of ``p``.

    Autograd's own gradient reaches 0 at p = q only up to rounding, and keeps three N x V tensors. This one is
    exactly 0 there and keeps one: the gradient itself, computed in the forward while everything is at hand.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, teacher_NV: Tensor, tokens_N: Tensor) -> tuple[Tensor, ...]:
        logp_NV = _log_softmax(logits_NV)
        p_NV = logp_NV.exp()
        entropy_N = torch.special.entr(p_NV).sum(-1)
        logprobs_N = _gather(logp_NV, tokens_N)
        # 0 log(0/q) is 0 by definition, also where both are 0 and the difference of their logarithms is NaN.
        log_ratio_NV = logp_NV.sub_(teacher_NV).masked_fill_(p_NV == 0, 0.0)
        kl_N = (p_NV * log_ratio_NV).sum(-1)
        ctx.save_for_backward(p_NV.mul_(log_ratio_NV.sub_(kl_N.unsqueeze(-1))))
        ctx.mark_non_differentiable(entropy_N, logprobs_N)
        ctx.logits_dtype = logits_NV.dtype
        return kl_N, entropy_N, logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_kl_N, *_ = grads
        (gradient_NV,) = ctx.saved_tensors
        return (gradient_NV * grad_kl_N.unsqueeze(-1)).to(ctx.logits_dtype), None, None


def _log_softmax(logits_NV: Tensor) -> Tensor:
    """Log-probabilities in float32 at least."""
    return logits_NV.log_softmax(-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))


def _gather(values_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return values_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


def _sampled_logprobs(logits_BTV: Tensor, microbatch: Microbatch) -> tuple[Tensor, Tensor]:
    """Log-probability of each trained token, with gradient, and the entropy of its distribution, without; both (N,)."""
    logp_NV = _log_softmax(logits_BTV[microbatch.mask_BT])
    with torch.no_grad():
        entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
    return _gather(logp_NV, microbatch.token_ids_BT[microbatch.mask_BT]), entropy_N


def _teacher(microbatch: Microbatch) -> Tensor:
    if microbatch.teacher is None:
        raise ValueError("this estimator needs teacher scores, and the microbatch was collated without")
    return microbatch.teacher


def _token_loss(loss_N: Tensor, stats: dict[str, Tensor], mask_BT: Tensor) -> TokenLoss:
    """Back from trained tokens to ``(B, T)``, zeros elsewhere."""

    def spread(values_N: Tensor) -> Tensor:
        return loss_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N.to(loss_N.dtype))

    return TokenLoss(spread(loss_N), {name: spread(values_N) for name, values_N in stats.items()})
