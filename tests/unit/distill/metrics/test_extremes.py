"""What depends on the worst domain, worked out by hand and against naive searches; coverage is in test_coverage.py."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mopd.distill.metrics.extremes import (
    Extreme,
    difference_of_least,
    least,
    mean_gap,
    mean_of_least,
    most_forgotten,
    most_lost,
    span_of,
    spread_as_the_truth,
)
from mopd.distill.metrics.quotients import TAIL, Quotients


def of_levels(*levels: float, n: int = 2000, seed: int = 0) -> Quotients:
    rng = np.random.default_rng(seed)
    return Quotients.of_means([(rng.random((1, n)) < level).astype(float) for level in levels])


def test_the_least_is_between_the_least_ends() -> None:
    quotients = of_levels(0.5, 0.52, 0.9)
    low = min(float(end) for end in quotients.ends(TAIL)[0])
    high = min(float(end) for end in quotients.ends(TAIL / 3)[1])
    worst = least(quotients)
    assert (worst.low, worst.high) == pytest.approx((low, high))
    assert low < worst.estimate < high
    alone = of_levels(0.5)
    assert least(alone) == Extreme(*(pytest.approx(float(v[0])) for v in (alone.values, *alone.ends())))


def test_values_that_differ_by_noise_become_one_and_others_stay() -> None:
    assert spread_as_the_truth(np.array([0.8, 0.9]), np.array([0.1, 0.1])) == pytest.approx([0.85, 0.85])
    assert spread_as_the_truth(np.array([0.2, 0.9]), np.array([0.001, 0.001])) == pytest.approx([0.2, 0.9], abs=1e-5)
    # Variance 0.02 of two values, of which 0.01 is noise: drawn in by sqrt(1/2).
    half = spread_as_the_truth(np.array([0.8, 1.0]), np.array([0.1, 0.1]))
    assert half == pytest.approx([0.9 - 0.1 / 2**0.5, 0.9 + 0.1 / 2**0.5])
    assert spread_as_the_truth(np.array([0.7]), np.array([0.1])) == pytest.approx([0.7])


def test_imbalance_begins_at_0_where_equality_is_not_rejected() -> None:
    equal, apart = span_of(of_levels(0.5, 0.5, 0.5)), span_of(of_levels(0.3, 0.5, 0.7))
    assert equal.low == 0.0
    assert 0.3 < apart.low < 0.4 < apart.high < 0.5
    assert equal.estimate < 0.02
    quotients = of_levels(0.3, 0.5, 0.7)
    pairs = [np.eye(3)[i] - np.eye(3)[j] for i, j in combinations(range(3), 2)]
    ends = [quotients.contrast_ends(np.array([pair]), TAIL) for pair in pairs]
    assert apart.high == pytest.approx(max(max(float(high[0]), -float(low[0])) for low, high in ends))
    assert span_of(of_levels(0.4)) == Extreme(0.0, 0.0, 0.0)


def test_what_is_lost_is_not_negative() -> None:
    rng = np.random.default_rng(1)
    gained = Quotients.of_means([(rng.random((1, 500)) < 0.5).astype(float)])
    assert most_lost(gained) == Extreme(0.0, 0.0, 0.0)
    lost = Quotients.of_means([-(rng.random((1, 500)) < 0.2).astype(float), np.zeros((1, 500))])
    assert 0.1 < most_lost(lost).low < most_lost(lost).estimate < most_lost(lost).high < 0.25


def test_the_gap_allows_for_the_bias_of_cutting_at_0() -> None:
    """Both at their teachers: half of the noise is cut, and what is left is no gap."""
    at_one = mean_gap(
        Quotients.of([((r := np.random.default_rng(i).random((1, 400))) < 0.5, r < 0.5) for i in range(2)])
    )
    assert at_one.low == 0.0
    below = mean_gap(of_levels(0.6, 0.8, n=4000))
    assert below.low < 0.3 < below.high
    assert below.estimate == pytest.approx(0.3, abs=0.02)


def test_forgetting_of_a_flat_curve_is_noise_and_of_a_fall_is_not() -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.random(600)
    flat = np.array([[difficulty + 0.2 * rng.normal(size=600) < 0.5 for _ in range(8)]], dtype=float)
    means = flat[0].mean(axis=1)
    none = most_forgotten(flat)
    assert none.low == 0.0
    assert none.estimate < means.max() - means[-1]
    fell = flat.copy()
    fell[0, -1] = difficulty < 0.3
    lost = most_forgotten(fell)
    assert 0.1 < lost.low < 0.2 < lost.high < 0.3
    assert most_forgotten(fell[:, ::-1]).low == 0.0  # the other way round it is a rise
    one = most_forgotten(np.array([[[1.0], [0.0]]]))  # of a single question nothing can be held out
    assert one.low == 0.0
    assert one.high >= 1.0


def test_a_difference_of_two_least_lies_between_those_of_their_own_worst() -> None:
    first, second = of_levels(0.3, 0.9, seed=1), of_levels(0.9, 0.4, seed=2)
    rng = np.random.default_rng(4)
    gaps = [
        (rng.random((1, 2000)) < p).astype(float) - (rng.random((1, 2000)) < q) for p, q in ((0.3, 0.9), (0.9, 0.4))
    ]
    difference = difference_of_least(first, second, Quotients.of_means(gaps))
    assert difference.low < -0.6 < -0.1 < 0.5 < difference.high
    apart = difference_of_least(
        first, of_levels(0.2, 0.9, seed=3), Quotients.of_means([g + s for g, s in zip(gaps, (0.7, -0.5), strict=True)])
    )
    assert 0.0 < apart.low < 0.1 < apart.high < 0.2  # only the first can be the least in either


def test_the_mean_of_the_least_is_no_higher_than_the_least_of_the_means() -> None:
    rng = np.random.default_rng(5)
    swapped = [np.stack([(rng.random(3000) < p) for p in levels]).astype(float) for levels in ((0.4, 0.6), (0.6, 0.4))]
    quotients = Quotients.of_means(swapped)
    each, means = mean_of_least(quotients), least(quotients)
    assert each.estimate == pytest.approx(0.4, abs=0.03)
    assert means.estimate == pytest.approx(0.5, abs=0.03)
    assert each.low < 0.4 < each.high
