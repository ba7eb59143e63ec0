"""A masked place may hold anything and reach nothing; a trained place that is broken must reach the loss."""

import math

import pytest
import torch
from losses_kit import BUCKET, CHUNKED, FORWARD, FULL, HALF, NLL, PLAIN, SQUARE, TOPK, V, graded, microbatch, rows, run

from mopd.distill.loss.registry import LOSSES
from mopd.distill.recipe import PolicyGradient


def poisoned_case(name, masked):
    mask = torch.tensor([[False, True, True, False], [False, False, True, False]])
    logits, full = rows(2, 4, V, seed=20), rows(2, 4, V, seed=21).log_softmax(-1)
    tokens = torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1]])
    sampler = full[..., 1].clone()
    for tensor in (logits, full, sampler):
        tensor[~mask] = masked
    return logits, graded(name, mask, tokens, full, sampler=sampler, reward=[0.5, -1.0])


CASES = [
    (settings.estimator, settings)
    for settings in (
        FULL,
        FORWARD,
        HALF,
        TOPK,
        BUCKET,
        CHUNKED,
        PLAIN.model_copy(update={"reward_weight": 1.0}),
        SQUARE,
        NLL,
    )
]


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_masked_place_never_reaches_loss_gradient_or_statistics(name, settings, poison):
    clean, clean_gradient = run(name, *poisoned_case(name, 0.0), settings)
    out, gradient = run(name, *poisoned_case(name, poison), settings)
    assert torch.equal(out.loss_BT, clean.loss_BT)
    assert torch.equal(gradient, clean_gradient)
    assert out.loss_BT.isfinite().all()
    assert all(torch.equal(stat, clean.stats[key]) for key, stat in out.stats.items())


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_nothing_trained_gives_zero_loss_and_a_gradient_of_zeros(name, settings):
    batch = graded(name, [[False, False]], [[0, 0]], torch.zeros(1, 2, V), reward=[0.0])
    out, gradient = run(name, torch.full((1, 2, V), math.nan).double(), batch, settings)
    assert torch.equal(out.loss_BT, torch.zeros(1, 2).double())
    assert torch.equal(gradient, torch.zeros(1, 2, V).double())


@pytest.mark.parametrize("where", ["logits", "teacher", "sampler_logprobs_BT"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_nan_at_a_trained_place_is_not_hidden(name, settings, where):
    logits, batch = poisoned_case(name, 0.0)
    target = logits if where == "logits" else getattr(batch, where)
    if target is None:
        target = next(a for name, a in batch.per_teacher[0].arrays.items() if name.startswith("logprobs"))
    target[0, 1] = math.nan
    out, _ = run(name, logits, batch, settings)
    reads = {
        "full": {"logits", "teacher"},
        "topk": {"logits", "teacher"},
        "chunked": {"logits", "teacher"},
        "sampled": {"logits", "teacher", "sampler_logprobs_BT"},
        None: {"logits"},
    }[LOSSES[name].payload]
    assert bool(out.loss_BT[0, 1].isnan()) == (where in reads)
    assert out.loss_BT[0, 2].isfinite()


def test_a_broken_teacher_is_not_hidden_by_clip_or_gate():
    logits, batch = poisoned_case("policy_gradient", 0.0)
    batch.teacher[0, 1] = -math.inf
    batch.teacher[0, 2] = math.nan
    batch.sampler_logprobs_BT[0, 1:3] = -100.0  # both tokens are far outside the gate
    settings = PolicyGradient(estimator="policy_gradient", advantage_clip=5.0, gate=(0.2, 5.0))
    out, _ = run("policy_gradient", logits, batch, settings)
    assert not out.loss_BT[0, 1:3].isfinite().any()


@pytest.mark.parametrize(("name", "settings"), [case for case in CASES if LOSSES[case[0]].payload is not None])
def test_loss_without_its_teacher_is_refused(name, settings):
    with pytest.raises(ValueError, match=r"needs (teacher|every teacher's) scores"):
        run(name, rows(1, 2, V, seed=22), microbatch([[False, True]], [[0, 1]]), settings)
