"""``token_bound``: a token above it is scaled down to it, with its gradient; the others are as they were."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from losses_kit import graded, rows

from mopd.distill.loss.registry import bind
from mopd.distill.recipe import (
    JSD,
    ForwardKL,
    FullReverseKL,
    SkewedKL,
    TopKReverseKL,
    WeightedReverseKL,
    WholeDistribution,
)

MASK = [[False, True, True, True], [False, True, False, True]]
TOKENS = [[0, 1, 2, 3], [3, 2, 1, 0]]


@pytest.mark.parametrize("settings", [FullReverseKL, WeightedReverseKL, ForwardKL, JSD, SkewedKL, TopKReverseKL])
@pytest.mark.parametrize("far", [True, False])
def test_value_and_gradient_keep_their_ratio(settings: type[WholeDistribution], far: bool) -> None:
    student = rows(2, 4, 6, seed=0)
    teacher = (student + (2.0 if far else 0.01) * rows(2, 4, 6, seed=1)).log_softmax(-1)
    batch = graded(settings.model_fields["estimator"].default, MASK, TOKENS, teacher)
    bound = 0.2

    def run(token_bound: float | None) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        logits = student.clone().requires_grad_()
        loss = bind(cast(Any, settings(token_bound=token_bound))).token_loss(logits, batch)
        loss.loss_BT.sum().backward()
        assert logits.grad is not None
        return loss.loss_BT.detach(), logits.grad, loss.stats

    plain, plain_gradient, plain_stats = run(None)
    bounded, gradient, stats = run(bound)
    assert "clipped" not in plain_stats
    part = torch.where(plain > bound, bound / plain, 1.0)
    assert bool((plain > bound).any()) == far
    torch.testing.assert_close(bounded, plain * part)
    torch.testing.assert_close(gradient, plain_gradient * part.unsqueeze(-1))
    torch.testing.assert_close(stats["clipped"], (plain > bound).to(plain.dtype))
    torch.testing.assert_close(stats["kl"], plain_stats["kl"])
