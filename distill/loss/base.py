"""What an estimator returns, and the few lines that all of them share.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, N trained tokens of the microbatch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.teacher_tensors import TeacherRows


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """What an estimator returns.

    Attributes:
        loss_BT: loss of each token; 0 at masked ones. Its value is for the gradient: that of ``policy_gradient`` is a
            surrogate and measures nothing.
        stats: detached, each ``(B, T)``, 0 at masked tokens. Where the estimator knows them: ``kl`` (reverse KL per
            token in nats, whatever the loss; exact for the full vocabulary, else the one-sample estimate
            ``log pi - log q``, unclipped), ``entropy`` (of the student's distribution, nats), ``advantage`` (nats; of
            the token that was drawn), ``ratio`` (policy over sampler), ``gate_dropped`` and ``clipped`` (1 where it
            happened).
    """

    loss_BT: Tensor
    stats: dict[str, Tensor]


class Divergence(NamedTuple):
    """Of rows: its value and its gradient at the student's logits; ``kl_N`` is the reverse KL, whatever the loss."""

    value_N: Tensor
    gradient_NV: Tensor
    kl_N: Tensor


@dataclass(frozen=True, slots=True)
class GradedTokens:
    """Trained tokens and what a token's advantage is made of, each ``(N,)``, detached; log-probabilities in nats.

    Attributes:
        teacher_N: the teachers' weighted mean log-probability; anything where no teacher graded the rollout.
        policy_N: of the policy.
        taught_N: bool, whether a teacher graded the rollout.
        reference_N: of the loss' reference, None where it has none.
        reward_N: the group-normalised reward of the rollout, None where the loss uses none.
    """

    teacher_N: Tensor
    policy_N: Tensor
    taught_N: Tensor
    reference_N: Tensor | None = None
    reward_N: Tensor | None = None


def teacher_gap(*, teacher_logprobs_N: Tensor, student_logprobs_N: Tensor) -> Tensor:
    """How much likelier the teacher finds each token than the student does, in nats.

    Both log-probabilities are of the training engines under one temperature, never the sampler's. With several teachers
    ``teacher_logprobs_N`` is their weighted mean. Positive where the student should do it more.

    Source: MiMo-V2-Flash report, arXiv 2601.02780, eq 8: ``sg[log pi_T(y_t) - log pi_theta(y_t)]``.
    """
    return (teacher_logprobs_N - student_logprobs_N).detach()


def gap_to_teacher(tokens: GradedTokens, settings: Any) -> Tensor:
    """The teacher gap, 0 where no teacher graded the rollout: the advantage of a loss that has no other, ``(N,)``."""
    gap_N = teacher_gap(teacher_logprobs_N=tokens.teacher_N, student_logprobs_N=tokens.policy_N)
    return torch.where(tokens.taught_N, gap_N, 0.0)


def log_softmax(logits_NV: Tensor) -> Tensor:
    """Log-probabilities in float32 at least."""
    return logits_NV.log_softmax(-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))


def pick(values_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """The entry of each row that its token names, shape ``(N,)``."""
    return values_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


def teachers_mean(microbatch: Microbatch) -> Tensor:
    """The teachers' weighted mean log-probabilities.

    Raises:
        ValueError: the microbatch was collated without.
    """
    if microbatch.teacher is None:
        raise ValueError("this estimator needs teacher scores, and the microbatch was collated without")
    return microbatch.teacher


def spread(loss_N: Tensor, stats: dict[str, Tensor], mask_BT: Tensor) -> TokenLoss:
    """Back from the tokens of a mask to ``(B, T)``, zeros elsewhere."""

    def back(values_N: Tensor) -> Tensor:
        return loss_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N.to(loss_N.dtype))

    return TokenLoss(back(loss_N), {name: back(values_N) for name, values_N in stats.items()})


def each_teacher(microbatch: Microbatch, one_loss: Callable[[TeacherRows, Tensor], TokenLoss]) -> TokenLoss:
    """``sum_k w_k`` of what ``one_loss(rows, mask_BT)`` says of each rollout's k-th teacher, statistics too.

    Raises:
        ValueError: the microbatch was collated without.
    """
    if not microbatch.per_teacher:
        raise ValueError("this estimator needs every teacher's scores, and the microbatch was collated without")
    total: TokenLoss | None = None
    for rows in microbatch.per_teacher:
        weight_BT = rows.weight_B.unsqueeze(1).expand_as(microbatch.mask_BT)
        part = one_loss(rows, microbatch.mask_BT & (weight_BT != 0))
        loss_BT = weight_BT * part.loss_BT
        stats = {name: weight_BT * values_BT for name, values_BT in part.stats.items()}
        if total is not None:
            loss_BT = loss_BT + total.loss_BT
            stats = {name: values_BT + total.stats[name] for name, values_BT in stats.items()}
        total = TokenLoss(loss_BT, stats)
    assert total is not None
    return total


def bounded(loss: TokenLoss, bound: float | None) -> TokenLoss:
    """The loss with no token above ``bound`` nats: what is above it is scaled down to it, and its gradient with it.

    A teacher that sees more than the student may be certain where the student cannot be, and one such token would
    outweigh the others. A NaN is not bounded, so that it is found.

    Example:
        With ``bound`` 2 a token of 8 nats keeps a quarter of its loss and of its gradient, and ``clipped`` is 1 there.
    """
    if bound is None:
        return loss
    value_BT = loss.loss_BT.detach()
    over_BT = value_BT > bound
    part_BT = torch.where(over_BT, bound / value_BT, 1.0)
    return TokenLoss(loss.loss_BT * part_BT, loss.stats | {"clipped": over_BT.to(value_BT.dtype)})


def divergence_loss(
    logits_BTV: Tensor,
    microbatch: Microbatch,
    mask_BT: Tensor,
    divergence: Callable[[Tensor], Divergence],
    *,
    teacher_logprobs_N: Tensor,
) -> TokenLoss:
    """A divergence as the loss of the tokens of a mask, with the statistics that all of its kind have.

    Args:
        divergence: from the student's log-probabilities ``(N, V)``, which it may overwrite.
        teacher_logprobs_N: of the tokens that were drawn, in nats.
    """
    tokens_N = microbatch.token_ids_BT[mask_BT]
    value_N, kl_N, entropy_N, logprobs_N = _Rows.apply(logits_BTV[mask_BT], tokens_N, divergence)
    gap_N = teacher_gap(teacher_logprobs_N=teacher_logprobs_N, student_logprobs_N=logprobs_N)
    ratio_N = (logprobs_N - microbatch.sampler_logprobs_BT[mask_BT]).exp()
    return spread(value_N, {"kl": kl_N, "entropy": entropy_N, "advantage": gap_N, "ratio": ratio_N}, mask_BT)


class _Rows(torch.autograd.Function):
    """A divergence of rows with its analytic gradient.

    Autograd's own gradient reaches 0 at p = q only up to rounding, and keeps several N x V tensors. These are exactly
    0 there and keep one: the gradient itself, computed in the forward while everything is at hand.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, tokens_N: Tensor, divergence: Callable[[Tensor], Divergence]
    ) -> tuple[Tensor, ...]:
        logp_NV = log_softmax(logits_NV)
        entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
        logprobs_N = pick(logp_NV, tokens_N)
        value_N, gradient_NV, kl_N = divergence(logp_NV)
        ctx.save_for_backward(gradient_NV)
        ctx.mark_non_differentiable(kl_N, entropy_N, logprobs_N)
        ctx.logits_dtype = logits_NV.dtype
        return value_N, kl_N, entropy_N, logprobs_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_N, *_ = grads
        (gradient_NV,) = ctx.saved_tensors
        return (gradient_NV * grad_N.unsqueeze(-1)).to(ctx.logits_dtype), None, None
