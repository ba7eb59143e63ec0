"""Estimators on whole distributions: reverse KL, forward KL and what lies between, exact for each token's prefix.

None of them depends on the token that was drawn, so no ratio of policy to sampler belongs in them: it would only add
variance. The figures for people (``kl``, ``advantage``, ``ratio``) are computed beside the loss.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, N trained tokens of the microbatch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mopd.distill.loss.base import Divergence, TokenLoss, divergence_loss, each_teacher, pick, teachers_mean
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.teacher_tensors import TeacherRows
from mopd.distill.recipe import JSD, ForwardKL, FullReverseKL, SkewedKL, WeightedReverseKL


def full_reverse_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: FullReverseKL) -> TokenLoss:
    """``KL(pi_theta || pi_T)`` of each token's whole distribution, exact.

    Several teachers: ``sum_k w_k KL(pi_theta || pi_k)``, exact too; see :func:`combine_teachers`.

    Source: the expectation of the MiMo-V2-Flash report's eqs 6-8 (arXiv 2601.02780) over the token, prefix held fixed.
    """
    return _reverse(logits_BTV, microbatch)


def weighted_reverse_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: WeightedReverseKL) -> TokenLoss:
    """``w_t KL(pi_theta || pi_T)`` of each token, exact; the weights move no gradient, their mean over a rollout is 1.

    ``w_t`` goes with a power of the student's own entropy at t, or of how many of the rollout's trained tokens come
    from t on. A rollout that is certain everywhere weighs its tokens alike.

    Source: none of its own; that few tokens of high entropy carry what is learnt is arXiv 2506.01939, for rewards.
    """
    loss, mask_BT = _reverse(logits_BTV, microbatch), microbatch.mask_BT
    if settings.by == "entropy":
        share_BT = loss.stats["entropy"].clamp(min=0)
    else:
        after_BT = mask_BT.flip(1).cumsum(1).flip(1)  # trained tokens from here on
        share_BT = after_BT.to(loss.loss_BT.dtype) / after_BT[:, :1].clamp(min=1)  # not per token
    raised_BT = share_BT.pow(settings.power).masked_fill(~mask_BT, 0.0)
    mean_B1 = raised_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    weight_BT = torch.where(mean_B1 > 0, raised_BT / mean_B1, 1.0)
    return TokenLoss(loss.loss_BT * weight_BT, loss.stats)


def forward_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: ForwardKL) -> TokenLoss:
    """``KL(pi_T || pi_theta)`` of each token's whole distribution, exact; several teachers: ``sum_k w_k`` of them.

    Source: GKD, arXiv 2306.13649, which calls it supervised KD on the student's own outputs.
    """
    return _each_against(logits_BTV, microbatch, forward_rows)


def jsd(logits_BTV: Tensor, microbatch: Microbatch, settings: JSD) -> TokenLoss:
    """``b KL(pi_T || m) + (1 - b) KL(pi_theta || m)`` with ``m = b pi_T + (1 - b) pi_theta``; ``b`` is ``beta``.

    At 0 and 1, where this vanishes, it is by definition the forward and the reverse KL. Several teachers:
    ``sum_k w_k`` of each one's divergence.

    Source: GKD, arXiv 2306.13649, eq 1; the two ends are those of TRL.
    """
    if settings.beta == 0:
        return _each_against(logits_BTV, microbatch, forward_rows)
    if settings.beta == 1:
        return _each_against(logits_BTV, microbatch, reverse_rows)
    return _each_against(logits_BTV, microbatch, lambda logp, logq: mixture_rows(logp, logq, beta=settings.beta))


def skewed_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: SkewedKL) -> TokenLoss:
    """``KL(pi_theta || a pi_theta + (1 - a) pi_T)``, or forward ``KL(pi_T || a pi_T + (1 - a) pi_theta)``.

    ``a`` is ``skew``. Neither exceeds ``-log a`` nats, however far the two are apart. Several teachers: ``sum_k w_k``
    of each one's.

    Source: DistiLLM, arXiv 2402.03898, eq 5 (skew KL) and the skew reverse KL beside it.
    """
    rows = skewed_forward_rows if settings.direction == "forward" else skewed_reverse_rows
    return _each_against(logits_BTV, microbatch, lambda logp, logq: rows(logp, logq, skew=settings.skew))


def reverse_rows(logp_NV: Tensor, logq_NV: Tensor) -> Divergence:
    """``KL(p || q)`` and ``p (log p / q - KL)``; overwrites ``logp_NV``."""
    p_NV = logp_NV.exp()
    # 0 log(0/q) is 0 by definition, also where both are 0 and the difference of their logarithms is NaN.
    log_ratio_NV = logp_NV.sub_(logq_NV).masked_fill_(p_NV == 0, 0.0)
    kl_N = (p_NV * log_ratio_NV).sum(-1)
    return Divergence(kl_N, p_NV.mul_(log_ratio_NV.sub_(kl_N.unsqueeze(-1))), kl_N.clone())


def forward_rows(logp_NV: Tensor, logq_NV: Tensor) -> Divergence:
    """``KL(q || p)`` and ``p - q``, for ``q`` that sums to 1; overwrites ``logp_NV``."""
    p_NV, q_NV = logp_NV.exp(), logq_NV.exp().to(logp_NV.dtype)
    log_ratio_NV = logp_NV.sub_(logq_NV)
    kl_N = (p_NV * log_ratio_NV.masked_fill(p_NV == 0, 0.0)).sum(-1)
    value_N = -(q_NV * log_ratio_NV.masked_fill_(q_NV == 0, 0.0)).sum(-1)
    return Divergence(value_N, p_NV - q_NV, kl_N)


def mixture_rows(logp_NV: Tensor, logq_NV: Tensor, *, beta: float) -> Divergence:
    """The generalised Jensen-Shannon divergence, ``0 < beta < 1``, and ``(1 - beta) p (log p / m - KL(p || m))``.

    Where the two agree, value and gradient are exactly 0.
    """
    p_NV, q_NV = logp_NV.exp(), logq_NV.exp().to(logp_NV.dtype)
    p_to_m_NV, q_to_m_NV = _to_mixture(logp_NV, logq_NV, beta)
    q_to_m_NV.masked_fill_(q_NV == 0, 0.0)
    p_to_m_NV.masked_fill_(p_NV == 0, 0.0)
    student_N = (p_NV * p_to_m_NV).sum(-1)
    value_N = beta * (q_NV * q_to_m_NV).sum(-1) + (1 - beta) * student_N
    kl_N = _kl(p_NV, logp_NV, logq_NV)
    return Divergence(value_N, p_NV.mul_(p_to_m_NV.sub_(student_N.unsqueeze(-1))).mul_(1 - beta), kl_N)


def skewed_reverse_rows(logp_NV: Tensor, logq_NV: Tensor, *, skew: float) -> Divergence:
    """``KL(p || m)``, ``m = skew p + (1 - skew) q``, and ``p (g - E_p g)`` with ``g = log p / m - skew p / m``."""
    p_NV = logp_NV.exp()
    p_to_m_NV, _ = _to_mixture(logp_NV, logq_NV, 1 - skew)
    p_to_m_NV.masked_fill_(p_NV == 0, 0.0)
    value_N = (p_NV * p_to_m_NV).sum(-1)
    pull_NV = p_to_m_NV - skew * p_to_m_NV.expm1()
    gradient_NV = p_NV * (pull_NV - (p_NV * pull_NV).sum(-1, keepdim=True))
    return Divergence(value_N, gradient_NV, _kl(p_NV, logp_NV, logq_NV))


def skewed_forward_rows(logp_NV: Tensor, logq_NV: Tensor, *, skew: float) -> Divergence:
    """``KL(q || m)``, ``m = skew q + (1 - skew) p``, and ``(1 - skew) (p E_q[p / m] - q p / m)``."""
    p_NV, q_NV = logp_NV.exp(), logq_NV.exp().to(logp_NV.dtype)
    p_to_m_NV, q_to_m_NV = _to_mixture(logp_NV, logq_NV, skew)
    value_N = (q_NV * q_to_m_NV.masked_fill_(q_NV == 0, 0.0)).sum(-1)
    # p / m - 1, so that the gradient is exactly 0 where the two agree, though a rounded q does not sum to 1.
    pull_NV = q_NV * p_to_m_NV.masked_fill_(p_NV == 0, -torch.inf).expm1_()
    gradient_NV = (p_NV - q_NV + p_NV * pull_NV.sum(-1, keepdim=True) - pull_NV).mul_(1 - skew)
    return Divergence(value_N, gradient_NV, _kl(p_NV, logp_NV, logq_NV))


def _to_mixture(logp_NV: Tensor, logq_NV: Tensor, part: float) -> tuple[Tensor, Tensor]:
    """The logarithms of ``p / m`` and ``q / m``, where ``m = part q + (1 - part) p``; NaN where p and q are both 0.

    With ``d = log q - log p`` they are written with ``expm1`` and ``log1p`` of ``-|d|``: nothing overflows, and where
    the two agree (``d = 0``) both are exactly 0.
    """
    d_NV = logq_NV - logp_NV
    weight_NV = torch.full_like(logp_NV, part).masked_fill_(d_NV > 0, 1 - part)
    rest_NV = torch.log1p(weight_NV * torch.expm1(-d_NV.abs()))
    q_to_m_NV = d_NV.clamp(max=0).sub_(rest_NV)
    return d_NV.clamp_(min=0).neg_().sub_(rest_NV), q_to_m_NV


def _kl(p_NV: Tensor, logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """``KL(p || q)``, which runs are compared by, whatever the loss."""
    return (p_NV * (logp_NV - logq_NV).masked_fill_(p_NV == 0, 0.0)).sum(-1)


def _reverse(logits_BTV: Tensor, microbatch: Microbatch) -> TokenLoss:
    return _against(logits_BTV, teachers_mean(microbatch), microbatch, microbatch.mask_BT, reverse_rows)


def _against(
    logits_BTV: Tensor,
    teacher_BTV: Tensor,
    microbatch: Microbatch,
    mask_BT: Tensor,
    divergence: Callable[[Tensor, Tensor], Divergence],
) -> TokenLoss:
    teacher_NV = teacher_BTV[mask_BT]
    return divergence_loss(
        logits_BTV,
        microbatch,
        mask_BT,
        lambda logp_NV: divergence(logp_NV, teacher_NV),
        teacher_logprobs_N=pick(teacher_NV, microbatch.token_ids_BT[mask_BT]),
    )


def _each_against(
    logits_BTV: Tensor, microbatch: Microbatch, divergence: Callable[[Tensor, Tensor], Divergence]
) -> TokenLoss:
    def one_teacher(rows: TeacherRows, mask_BT: Tensor) -> TokenLoss:
        return _against(logits_BTV, rows.arrays["logprobs_TV"], microbatch, mask_BT, divergence)

    return each_teacher(microbatch, one_teacher)
