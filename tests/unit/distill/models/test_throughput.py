"""Bounds of writing against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mopd.distill.models.flops import AttentionShape, ModelCost
from mopd.distill.models.throughput import Accelerator, WritingCost, speed

CARD = Accelerator("a card", bandwidth=1e12, flops=1e14, memory=1e11)


def dense(parameters: int) -> WritingCost:
    layer = AttentionShape(heads=1, query_dim=0, value_dim=0, window=None, cached=1000)
    return WritingCost(ModelCost(parameters, parameters, parameters, (layer,)), 0, 0)


def test_a_single_row_is_bound_by_what_is_read() -> None:
    """2 GB of weights and 2 bytes x 1000 values x 500 tokens of cache, at 1 TB a second."""
    result = speed(dense(10**9), CARD, 1, rows=1, context=500, hourly=3.6)
    assert result.each == result.together == pytest.approx(1e12 / (2e9 + 1e6))
    assert result.price == pytest.approx(0.001 / result.together * 1e6)
    assert speed(dense(10**9), CARD, 2, rows=1, context=500, hourly=3.6).each == pytest.approx(2 * result.each)


def test_many_rows_are_bound_by_what_is_multiplied() -> None:
    result = speed(dense(10**9), CARD, 1, rows=10_000, context=1, hourly=1.0)
    assert result.together == pytest.approx(1e14 / 2e9)


def test_experts_that_several_tokens_need_are_those_of_a_simulation() -> None:
    """Of 16 experts of which a token takes 2, in a model of 196 parameters of which a token passes 28."""
    writing = WritingCost(ModelCost(196, 28, 28, ()), 16, 2, weight_bytes=1.0)
    assert writing.weights_read(1) == pytest.approx(28)
    assert writing.weights_read(10_000) == pytest.approx(196)
    rng = np.random.default_rng(0)
    used = [len({e for _ in range(5) for e in rng.choice(16, 2, replace=False)}) for _ in range(20_000)]
    assert writing.weights_read(5) == pytest.approx(4 + 192 / 16 * float(np.mean(used)), rel=0.01)


def test_guesses_read_their_heads_and_are_checked_together() -> None:
    model = dense(10**9)
    heads = WritingCost(model.cost, 0, 0, head_parameters=10**8)
    plain, drafted = (w.round_seconds(CARD, 1, rows=1, context=500, guesses=g) for w, g in ((model, 0), (heads, 3)))
    assert drafted == pytest.approx(plain + 3 * 2e8 / 1e12)
    how = {"rows": 1, "context": 500, "hourly": 1.0}
    faster = speed(heads, CARD, 1, **how, guesses=3, tokens_per_round=3.0).each / speed(model, CARD, 1, **how).each  # type: ignore
    assert faster == pytest.approx(3.0 / (drafted / plain))
