"""What is left out as stale, against a loop over tokens."""

from __future__ import annotations

import math

import pytest
import torch
from losses_kit import FULL, HALF, NLL, PLAIN, V, graded, microbatch, rows, run

from mopd.distill.loss.stale import stale_tokens, without_stale
from mopd.distill.recipe import RunRecipe, StaleRecipe
from mopd.distill.types import UserError

B, T = 7, 9
MASK = rows(B, T, seed=1) > -0.5
MASK[:, 0] = False
MASK[6] = False  # a rollout that trains nothing


def by_hand(ratios: list[list[float]], action: str, low: float, high: float) -> list[list[bool]]:
    """Token after token, with the mean of a rollout's trained ones as a root of their product."""
    left_out = []
    for b, row in enumerate(ratios):
        drawn = [ratio for ratio, trained in zip(row, MASK[b].tolist(), strict=True) if trained]
        mean = math.prod(drawn) ** (1 / len(drawn)) if drawn else 1.0
        judged = row if action == "mask" else [mean] * T
        left_out.append([t and not low <= r <= high for r, t in zip(judged, MASK[b].tolist(), strict=True)])
    return left_out


@pytest.mark.parametrize("action", ["drop", "mask"])
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.6, 1.2), (0.99, 1e6)])
def test_what_is_outside_of_the_range_is_left_out(action: str, low: float, high: float) -> None:
    ratio_BT = rows(B, T, seed=2).exp()
    stale = StaleRecipe.model_validate({"ratio": (low, high), "action": action})
    found = stale_tokens(ratio_BT, MASK, stale)
    assert found.tolist() == by_hand(ratio_BT.tolist(), action, low, high)
    assert found.any()
    assert not found[MASK].all()
    assert torch.equal(stale_tokens(ratio_BT.masked_fill(~MASK, float("nan")), MASK, stale), found), "of trained tokens"


@pytest.mark.parametrize(("name", "settings"), [("policy_gradient", PLAIN), ("full_reverse_kl", FULL), ("jsd", HALF)])
def test_others_weigh_what_they_did_and_stale_tokens_have_no_gradient(name: str, settings: object) -> None:
    tokens = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))
    logits = rows(B, T, V, seed=4).requires_grad_()
    sampler = logits.detach().log_softmax(-1).gather(-1, tokens[..., None])[..., 0] - 0.05
    sampler[2] -= 1.0  # the student finds all of it likelier by now
    batch = graded(name, MASK, tokens, rows(B, T, V, seed=5).log_softmax(-1), sampler=sampler)
    token_loss, _ = run(name, logits, batch, settings)
    learnt, told = without_stale(batch, token_loss, StaleRecipe())
    stale = torch.zeros_like(MASK)
    stale[2] = MASK[2]
    assert torch.equal(told.stats["stale"] == 1, stale)
    assert torch.equal(learnt.weights_BT, batch.weights_BT.masked_fill(stale, 0.0))
    assert torch.equal(told.loss_BT, token_loss.loss_BT), "a loss that is not finite is still found there"


def test_rollouts_that_no_teacher_graded_have_no_ratio_where_teachers_are_taken_one_by_one() -> None:
    tokens = torch.zeros((2, 2), dtype=torch.int64)
    teacher, mask = rows(2, 2, V, seed=6).log_softmax(-1), [[False, True]] * 2
    batch = microbatch(mask, tokens, slots=[([1.0, 0.0], teacher)], taught=[True, False], sampler=torch.zeros(2, 2))
    token_loss, _ = run("jsd", rows(2, 2, V, seed=7), batch, HALF)
    assert token_loss.stats["ratio"][1, 1] == 0
    learnt, _ = without_stale(batch, token_loss, StaleRecipe(ratio=(1e-4, 2.0)))
    assert learnt.weights_BT[1, 1] == 1


def test_nothing_is_stale_without_a_rule_and_no_rule_works_without_a_ratio() -> None:
    tokens = torch.zeros((1, 2), dtype=torch.int64)
    batch = microbatch([[False, True]], tokens)
    token_loss, _ = run("nll", rows(1, 2, V, seed=8), batch, NLL)
    assert without_stale(batch, token_loss, None) == (batch, token_loss)
    with pytest.raises(UserError, match="no statistic `ratio`"):
        without_stale(batch, token_loss, StaleRecipe())


@pytest.mark.parametrize("ratio", [(2.0, 0.5), (1.0, 2.0), (0.5, 1.0)])
def test_a_range_has_one_inside(ratio: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="a bound below 1 and one above"):
        RunRecipe.model_validate({"stale": {"ratio": ratio}})
