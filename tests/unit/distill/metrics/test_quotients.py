"""Intervals of quotients against Fieller's definition, a textbook analysis of variance, and naive loops."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev, variance

import numpy as np
import pytest
from scipy import stats

from mopd.distill.metrics.quotients import ADDED_QUESTIONS, BORROWED_SEEDS, Quotients


def answered(rng: random.Random, level: float, n: int) -> list[float]:
    return [float(rng.random() < level) for _ in range(n)]


def test_over_questions_the_interval_is_fiellers() -> None:
    """All quotients r for which the mean of gain - r headroom is within t standard errors of 0: by trying them."""
    rng, n = random.Random(3), 150
    base, teacher, student = (answered(rng, level, n) for level in (0.3, 0.6, 0.5))
    gain = [s - b for s, b in zip(student, base, strict=True)]
    headroom = [t - b for t, b in zip(teacher, base, strict=True)]
    t = stats.t.ppf(0.975, n - 1)
    inside = []
    for i in range(-1000, 4000):
        r = i / 1000
        left = [g - r * h for g, h in zip(gain, headroom, strict=True)]
        error = math.sqrt(variance(left) / n + ADDED_QUESTIONS / n**2)
        if abs(fmean(left)) <= t * error:
            inside.append(r)
    low, high = Quotients.of([(np.array([gain]), np.array([headroom]))]).ends()
    assert (float(low[0]), float(high[0])) == pytest.approx((min(inside), max(inside)), abs=2e-3)
    assert high[0] - fmean(gain) / fmean(headroom) > fmean(gain) / fmean(headroom) - low[0]  # it leans to the right


def test_means_of_one_run_have_students_t() -> None:
    rng, n = random.Random(1), 40
    difference = [a - b for a, b in zip(answered(rng, 0.7, n), answered(rng, 0.5, n), strict=True)]
    low, high = Quotients.of_means([np.array([difference])]).ends()
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(variance(difference) / n + ADDED_QUESTIONS / n**2)
    assert (float(low[0]), float(high[0])) == pytest.approx((fmean(difference) - half, fmean(difference) + half))


def test_what_differs_by_question_and_seed_counts_once() -> None:
    """Means over runs and questions, crossed: the variance is that of a two-way analysis, by its sums of squares."""
    rng, runs, n = np.random.default_rng(2), 4, 600
    values = 0.4 + 0.08 * rng.normal(size=(runs, 1)) + 0.3 * rng.normal(size=n) + rng.normal(size=(runs, n))
    quotients = Quotients.of_means([values])
    grand = values.mean()
    by_run, by_question = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_run[:, None] - by_question + grand
    mean_square_runs = n * sum((v - grand) ** 2 for v in by_run) / (runs - 1)
    mean_square_questions = runs * sum((v - grand) ** 2 for v in by_question) / (n - 1)
    mean_square_rest = (rest**2).sum() / (runs - 1) / (n - 1)
    whole = (mean_square_runs + mean_square_questions - mean_square_rest) / (runs * n)
    assert quotients.standard_errors()[0] ** 2 == pytest.approx(whole, rel=0.03)
    twice = (mean_square_runs + mean_square_questions) / (runs * n)
    assert twice > 1.2 * whole


def test_no_noise_of_questions_leaves_students_t_over_seeds() -> None:
    values = [0.41, 0.52, 0.47]
    same = np.repeat(np.array(values)[:, None], 5000, axis=1)
    low, high = Quotients.of_means([same]).ends()
    half = stats.t.ppf(0.975, 2) * stdev(values) / math.sqrt(3)
    assert (float(low[0]), float(high[0])) == pytest.approx((fmean(values) - half, fmean(values) + half), rel=1e-3)


def test_several_quotients_lend_each_other_their_spread_over_seeds() -> None:
    """Two seeds: 12.7 standard errors of one variance, or fewer of one that has the mean of all beside it."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 4))
    low, high = Quotients.of_means([np.repeat(values[:, k, None], 50, axis=1) for k in range(4)]).ends()
    own = values.var(axis=0, ddof=1) / 2
    weight = min(BORROWED_SEEDS, 3)
    shrunk = (own + weight * own.mean()) / (1 + weight)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 1 + weight) * np.sqrt(shrunk), rel=0.01)


def test_over_seeds_an_interval_is_never_narrower_than_over_questions() -> None:
    rng = np.random.default_rng(5)
    same = (rng.random(200) < 0.5).astype(float)
    low, high = Quotients.of_means([np.stack([same, same, same])]).ends()
    alone_low, alone_high = Quotients.of_means([same[None]]).ends()
    assert high - low == pytest.approx(alone_high - alone_low, rel=1e-9)


def test_a_contrast_is_the_weighted_sum_of_independent_quotients() -> None:
    rng, n = np.random.default_rng(7), 4000
    columns = [(rng.random((1, n)) < level).astype(float) for level in (0.4, 0.6)]
    low, high = Quotients.of_means(columns).contrast_ends(np.array([[1.0, -1.0]]))
    errors = [math.sqrt(column.var(ddof=1) / n) for column in columns]
    assert (high - low)[0] / 2 == pytest.approx(1.961 * math.hypot(*errors), rel=0.01)
    assert (high + low)[0] / 2 == pytest.approx(columns[0].mean() - columns[1].mean())


def test_the_pooled_quotient_is_the_sum_of_gains_over_that_of_headrooms() -> None:
    rng, n = np.random.default_rng(4), 300
    pairs = [
        ((rng.random((1, n)) < g).astype(float), (rng.random((1, n)) < h).astype(float))
        for g, h in ((0.3, 0.4), (0.1, 0.2))
    ]
    pooled = Quotients.of(pairs).pooled()
    gain, headroom = (sum(float(pair[i].mean()) for pair in pairs) for i in (0, 1))
    assert float(pooled.values[0]) == pytest.approx(gain / headroom)
    drawn = []
    for _ in range(3000):
        parts = []
        for g, h in pairs:
            chosen = rng.integers(n, size=n)
            parts.append((g[0, chosen].mean(), h[0, chosen].mean()))
        drawn.append(sum(g for g, _ in parts) / sum(h for _, h in parts))
    low, high = pooled.ends()
    assert (float(low[0]), float(high[0])) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
