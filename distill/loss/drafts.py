"""What a guess of the draft heads costs: how far its distribution is from the student's own, token by token.

Shape legend: N tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS = 1024
"""Tokens whose distributions are held at a time; they are made again in the backward."""


class DraftLoss(NamedTuple):
    """Of each token, ``(N,)``: the divergence in nats, and the part of drafts that will be accepted, detached."""

    kl_N: Tensor
    overlap_N: Tensor


def draft_divergence(student_logits_NV: Tensor, draft_logits_NV: Tensor) -> DraftLoss:
    """``KL(pi || q)`` of the student's distribution pi and a draft head's q; pi gets no gradient.

    ``overlap_N`` is ``sum_v min(pi_v, q_v)``: no way to draw both makes them agree more often (Leviathan et al., arXiv
    2211.17192, section 3.2; the loss: EAGLE-3, arXiv 2503.01840, with the student's whole distribution as its label).

    Args:
        student_logits_NV, draft_logits_NV: both divided by the temperature already.
    """
    target_NV = student_logits_NV.detach().float().log_softmax(-1)
    draft_NV = draft_logits_NV.float().log_softmax(-1)
    p_NV = target_NV.exp()
    # A token that pi never writes counts nothing; its log-probability may be -inf.
    kl_N = torch.where(p_NV > 0, p_NV * (target_NV - draft_NV), 0.0).sum(-1)
    overlap_N = torch.minimum(p_NV, draft_NV.detach().exp()).sum(-1)
    return DraftLoss(kl_N, overlap_N)


def draft_loss(
    student_NH: Tensor,
    draft_NH: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float,
    vocabulary: int | None,
) -> DraftLoss:
    """:func:`draft_divergence` of hidden states under one output head, a part of the tokens at a time.

    Args:
        student_NH: the student's, without gradient.
        draft_NH: of the guesses at the same tokens.
        head: from hidden states to logits.
        vocabulary: both distributions are over this many ids; None: over the whole output head.
    """

    def divergence(own_nH: Tensor, guess_nH: Tensor) -> tuple[Tensor, Tensor]:
        logits = (head(hidden_nH)[:, :vocabulary] / temperature for hidden_nH in (own_nH, guess_nH))
        return tuple(draft_divergence(*logits))  # pyright: ignore[reportReturnType]

    if len(student_NH) <= ROWS:
        return DraftLoss(*divergence(student_NH.detach(), draft_NH))
    parts = [
        checkpoint(divergence, own_nH, guess_nH, use_reentrant=False)
        for own_nH, guess_nH in zip(student_NH.detach().split(ROWS), draft_NH.split(ROWS), strict=True)
    ]
    return DraftLoss(*(torch.cat(list(column)) for column in zip(*parts, strict=True)))
