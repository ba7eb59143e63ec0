"""What an estimator returns, and the few lines that all of them share.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, N trained tokens of the microbatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.batch import Microbatch


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


def add_up(parts: Sequence[TokenLoss]) -> TokenLoss:
    """The sum of losses, and of each of their statistics, token by token; at least one, and all know the same ones."""
    first, *others = parts
    for other in others:
        stats = {name: values_BT + other.stats[name] for name, values_BT in first.stats.items()}
        first = TokenLoss(first.loss_BT + other.loss_BT, stats)
    return first
