"""Compute to parity against curves drawn by hand, and its interval against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mopd.distill.metrics.compute_to_parity import Curves, compute_to_reach, parity


def reach(values: list[float], level: float, flops: list[float] | None = None) -> float:
    flops = flops or [10.0 * i for i in range(len(values))]
    return float(compute_to_reach(np.array([flops]), np.array([values]), np.array([level]))[0])


@pytest.mark.parametrize(
    ("values", "level", "flops"),
    [
        ([0.2, 0.6, 0.8], 0.5, 7.5),
        ([0.2, 0.6, 0.8], 0.6, 10.0),  # not below is enough
        ([0.2, 0.6, 0.8], 0.2, 0.0),  # from the start
        ([0.2, 0.6, 0.8], 0.9, math.inf),
        ([0.2, 0.9, 0.3, 0.9, 0.9], 0.6, 25.0),  # a lone spike does not count
        ([0.2, 0.3, 0.9], 0.6, 15.0),  # the last evaluation has nobody to confirm it
        ([0.9, 0.2, 0.3], 0.6, math.inf),
        ([0.7], 0.6, 0.0),  # a merge: no curve, one point
        ([0.5], 0.6, math.inf),
    ],
)
def test_compute_to_reach_a_level_worked_out_by_hand(values: list[float], level: float, flops: float) -> None:
    assert reach(values, level) == pytest.approx(flops)


def test_a_single_point_is_reached_at_its_own_cost() -> None:
    assert reach([0.7], 0.6, [42.0]) == 42.0


def certain(values: dict[str, list[float]], flops: list[float], seeds: tuple[int, ...] = (0,), n: int = 100) -> Curves:
    """Curves on which every seed gives the first ``n * value`` of ``n`` questions right."""
    answers = {
        domain: np.array([[[float(q < round(n * v)) for q in range(n)] for v in points]] * len(seeds))
        for domain, points in values.items()
    }
    return Curves(seeds, np.array([flops] * len(seeds)), answers)


REFERENCE = certain({"math": [0.2, 0.8], "code": [0.4, 0.6]}, [0.0, 100.0])
"""Worst 0.2 to 0.6, mean 0.3 to 0.7."""


def test_ratios_by_hand_with_and_without_teachers() -> None:
    slow = certain({"math": [0.2, 0.5, 0.8, 0.8], "code": [0.4, 0.5, 0.6, 0.6]}, [0.0, 300.0, 600.0, 900.0])
    found = parity(slow, REFERENCE, tolerance=0.0, resamples=10)
    worst, mean = found["worst_score"], found["mean_score"]
    # Worst: 0.5 at 300 and 0.6 at 600, of the reference 0.6 at 100.
    assert (worst.level, worst.flops, worst.reference_flops, worst.spent) == pytest.approx((0.6, 600.0, 100.0, 900.0))
    assert worst.ratio() == pytest.approx(6.0)
    assert worst.ratio(reference_teachers=200.0) == pytest.approx(2.0)
    assert worst.ratio(teachers=300.0, reference_teachers=200.0) == pytest.approx(3.0)
    assert (mean.level, mean.flops) == pytest.approx((0.7, 600.0))


def test_the_tolerance_spares_both_the_last_point() -> None:
    found = parity(REFERENCE, REFERENCE, tolerance=0.04, resamples=10)["worst_score"]
    assert found.level == pytest.approx(0.56)
    # Worst runs 0.2, 0.6 in a straight line: 0.56 at 90 FLOP.
    assert found.flops == found.reference_flops == pytest.approx(90.0)


def test_who_never_reaches_it_is_infinitely_dear_and_tells_what_it_spent() -> None:
    weak = certain({"math": [0.2, 0.3], "code": [0.4, 0.4]}, [0.0, 500.0])
    found = parity(weak, REFERENCE, resamples=50)["worst_score"]
    assert math.isinf(found.ratio())
    assert math.isinf(found.interval()[1])
    assert found.spent == 500.0
    assert found.reached_share < 0.05


def test_a_reference_that_learnt_nothing_has_no_ratio() -> None:
    flat = certain({"math": [0.5, 0.5]}, [0.0, 100.0])
    found = parity(certain({"math": [0.2, 0.9]}, [0.0, 100.0]), flat, resamples=5)["worst_score"]
    assert math.isnan(found.ratio())
    assert all(math.isnan(end) for end in found.interval())
    assert found.ratio(reference_teachers=10.0) > 0


def test_a_method_is_at_parity_with_itself_whatever_the_noise() -> None:
    rng = np.random.default_rng(0)
    levels = np.linspace(0.3, 0.8, 6)
    answers = {d: (rng.random((3, 6, 100)) < levels[:, None]).astype(float) for d in ("math", "code")}
    noisy = Curves((0, 1, 2), np.array([np.arange(6.0) * 10] * 3), answers)
    found = parity(noisy, noisy, resamples=200)["worst_score"]
    assert found.ratio() == 1.0
    assert found.interval() == pytest.approx((1.0, 1.0)), "same questions, same seeds: the noise is shared"


def test_another_draw_of_the_same_learner_is_within_the_interval_of_one() -> None:
    rng = np.random.default_rng(1)
    levels = np.linspace(0.3, 0.8, 6)

    def draw() -> Curves:
        answers = {d: (rng.random((3, 6, 100)) < levels[:, None]).astype(float) for d in ("math", "code")}
        return Curves((0, 1, 2), np.array([np.arange(6.0) * 10] * 3), answers)

    intervals = [parity(draw(), draw(), resamples=200)["mean_score"].interval() for _ in range(20)]
    holds = sum(low <= 1.0 <= high for low, high in intervals)
    assert holds >= 17, intervals


def test_the_bootstrap_is_that_of_plain_loops() -> None:
    rng = np.random.default_rng(2)
    both = [
        Curves((4, 7), np.array([[0.0, 5.0, 10.0], [0.0, 7.0, 14.0]]) * scale, {"math": rng.random((2, 3, 30)).round()})
        for scale in (1.0, 2.0)
    ]
    found = parity(both[0], both[1], tolerance=0.1, resamples=300)["worst_score"]
    ratios = []
    for _ in range(3000):
        questions, seeds = rng.integers(0, 30, 30), rng.integers(0, 2, 2)
        needed = []
        curves = [
            (c.flops[seeds].mean(axis=0), c.answers["math"][seeds][:, :, questions].mean(axis=(0, 2))) for c in both
        ]
        for flops, values in curves:
            needed.append(reach(list(values), curves[1][1][-1] - 0.1, list(flops)))
        ratios.append(needed[0] / needed[1] if needed[1] else math.nan)
    known = np.array(ratios)[~np.isnan(ratios)]
    assert found.reached_share == pytest.approx(np.isfinite(known).mean(), abs=0.1)
    finite = known[np.isfinite(known)]
    mine = found.resampled[0, found.resampled[1] > 0] / found.resampled[1, found.resampled[1] > 0]
    assert np.median(mine[np.isfinite(mine)]) == pytest.approx(np.median(finite), rel=0.15)


def test_seeds_in_another_order_are_the_same_seeds() -> None:
    rng = np.random.default_rng(3)
    answers = {"math": (rng.random((3, 4, 50)) < np.linspace(0.2, 0.9, 4)[:, None]).astype(float)}
    flops = np.arange(12.0).reshape(3, 4)
    one = Curves((0, 1, 2), flops, answers)
    other = Curves((2, 0, 1), flops[[2, 0, 1]], {"math": answers["math"][[2, 0, 1]]})
    assert parity(one, other, resamples=100)["mean_score"].interval() == pytest.approx((1.0, 1.0))


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="questions"):
        parity(certain({"math": [0.2]}, [0.0], n=50), certain({"math": [0.2]}, [0.0], n=60))
    with pytest.raises(ValueError, match="needed"):
        Curves((0, 1), np.zeros((1, 2)), {"math": np.zeros((1, 2, 3))})
