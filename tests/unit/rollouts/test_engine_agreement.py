"""Whether an engine holds the student's weights and draws from its distribution: what is found, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from student_kit import make_model

from mopd.distill.models.load import load_model
from mopd.distill.types import RunError
from mopd.rollouts.engines.agreement import (
    LATER_TOKENS,
    SCORED,
    Published,
    check_published,
    draws_problem,
    fixed_rows,
    later_draws_problem,
    most_telling,
    next_logprobs,
    row_logprobs,
    shared_beginnings,
    short_prompts,
    visible_temperature,
)


def distribution(size: int, spread: float, seed: int = 0) -> np.ndarray:
    logits_V = np.random.default_rng(seed).normal(0, spread, size)
    return logits_V - np.logaddexp.reduce(logits_V)


def drawn(logprobs_V: np.ndarray, n: int, seed: int, *, temperature: float = 1.0) -> np.ndarray:
    likely_V = np.exp(logprobs_V / temperature - np.logaddexp.reduce(logprobs_V / temperature))
    return np.random.default_rng(seed).choice(len(logprobs_V), n, p=likely_V / likely_V.sum())


@pytest.mark.parametrize(("size", "spread"), [(5, 0.1), (64, 1.0), (5000, 3.0), (3, 20.0), (2000, 0.01)])
def test_a_right_sampler_is_not_refused(size: int, spread: float) -> None:
    for seed in range(40):
        logprobs_V = distribution(size, spread, seed)
        for n in (50, 5000):
            assert draws_problem(drawn(logprobs_V, n, seed).tolist(), logprobs_V) is None


@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_a_temperature_off_by_two_percent_is_refused(spread: float) -> None:
    """With as many draws as the part that is visible needs, in nine cases of ten or more; both ways."""
    refused = 0
    for seed in range(10):
        logprobs_V = distribution(3000, spread, seed)
        n = next(n for n in range(1000, 10**7, 1000) if visible_temperature(logprobs_V, n) <= 0.02)
        for temperature in (0.98, 1.02):
            refused += (
                draws_problem(drawn(logprobs_V, n, seed, temperature=temperature).tolist(), logprobs_V) is not None
            )
    assert refused >= 15  # of 20: of nine in ten the standard deviation is 1.3


def test_what_temperatures_do_not_show_is_refused_too() -> None:
    logprobs_V = distribution(100, 1.0)
    sound = drawn(logprobs_V, 20_000, 0)
    twins = np.argsort(-logprobs_V)[[0, 10]]  # of which one is twice as likely
    swapped = np.where(sound == twins[0], twins[1], np.where(sound == twins[1], twins[0], sound))
    for wrong in (swapped, np.full(500, twins[0]), np.append(sound, 100), np.append(sound, -1)):
        assert draws_problem(wrong.tolist(), logprobs_V) is not None
    greedy_of_many = np.full(300, int(np.argmax(logprobs_V)))
    assert draws_problem(greedy_of_many.tolist(), logprobs_V) is not None


@pytest.mark.parametrize(("temperature", "refused"), [(1.0, False), (1.5, True), (0.7, True)])
def test_later_tokens_are_held_against_the_distribution_after_those_before_them(
    temperature: float, refused: bool
) -> None:
    """First tokens are drawn rightly; a chain of which each token depends on the one before it."""
    first_V, after_VV = distribution(12, 1.0), [distribution(12, 1.5, seed) for seed in range(12)]
    for seed in range(10):
        rows = [[int(token)] for token in drawn(first_V, 2000, seed)]
        rng = np.random.default_rng(seed)
        for row in rows:
            while len(row) < LATER_TOKENS and row[-1]:  # 0 ends a row
                row.append(int(drawn(after_VV[row[-1]], 1, int(rng.integers(1 << 30)), temperature=temperature)[0]))
        shared = shared_beginnings(rows)
        assert [len(prefixes[0]) for prefixes in shared[:2]] == [1, 2]
        logprobs_of = {prefix: after_VV[prefix[-1]] for prefixes in shared for prefix in prefixes}
        assert draws_problem([row[0] for row in rows], first_V) is None
        problem = later_draws_problem(rows, logprobs_of)
        assert (problem is not None) is refused
        assert problem is None or problem.startswith("after the first token of a row, ")


def test_the_prompt_after_which_a_temperature_shows_most_is_taken() -> None:
    flat, sharp, spread = np.zeros(50), np.array([0.0, *[-30.0] * 49]), distribution(50, 3.0)
    rows = np.stack([row - np.logaddexp.reduce(row) for row in (flat, sharp, spread)])
    assert most_telling(rows) == 2
    assert visible_temperature(rows[2], 20_000) < visible_temperature(rows[1], 20_000)


# ---- weights


@pytest.mark.parametrize("family", ["qwen3", "mimo_v2_flash"])
def test_fixed_rows_are_scored_as_a_naive_loop_scores_them(tmp_path: Path, family: str) -> None:
    model = load_model(make_model(tmp_path, family), device="cpu", dtype="float32")
    rows = fixed_rows(model.config, context=64)
    assert rows == fixed_rows(model.config, context=64)
    assert max(map(len, rows)) < 64
    scored = row_logprobs(model, rows)
    for row, own_N in zip(rows, scored, strict=True):
        assert len(own_N) == min(SCORED, len(row) - 1)
        for back in (1, len(own_N)):
            t = len(row) - back
            with torch.no_grad():
                expected = torch.log_softmax(model(input_ids=torch.tensor([row[:t]])).logits[0, -1], -1)[row[t]]
            assert own_N[-back] == pytest.approx(float(expected), abs=1e-4)
    prompts = short_prompts(60)
    likely = next_logprobs(model, prompts, 0.5, 60)
    with torch.no_grad():
        logits_V = model(input_ids=torch.tensor([prompts[3]])).logits[0, -1, :60]
    np.testing.assert_allclose(likely[3], torch.log_softmax(logits_V / 0.5, -1).numpy(), atol=1e-4)


def published(own: np.ndarray, engine: np.ndarray) -> Published:
    return Published([own[:4], own[4:]], [engine[:4], engine[4:]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_the_version_before_are_found_in_every_dtype(dtype: str) -> None:
    """Also where a step has moved less than rounding: then the student has moved, and the engine not at all."""
    rng = np.random.default_rng(0)
    own = rng.normal(-5, 1, 50).astype(np.float32)
    noise = rng.normal(0, 1e-6 if dtype == "float32" else 0.01, 50).astype(np.float32)
    first = published(own, own + noise)
    mean, most = check_published(first, None, dtype=dtype, named="a server")
    assert (mean, most) == (pytest.approx(np.abs(noise).mean(), rel=0.2), pytest.approx(np.abs(noise).max(), rel=0.2))
    moved = own + rng.normal(0, 2e-5, 50).astype(np.float32)
    check_published(published(moved, moved + noise), first, dtype=dtype, named="a server")
    with pytest.raises(RunError, match="a server holds the weights of the version before"):
        check_published(published(moved, own + noise), first, dtype=dtype, named="a server")
    check_published(published(own, own + noise), first, dtype=dtype, named="a server")  # a step that moved nothing
    far = own + 2.0
    with pytest.raises(RunError, match="a server does not hold the student's weights"):
        check_published(published(far, own + noise), first, dtype=dtype, named="a server")
    broken = own + np.where(np.arange(50) == 7, np.nan, 0).astype(np.float32)
    with pytest.raises(RunError):
        check_published(published(own, broken), None, dtype=dtype, named="a server")
