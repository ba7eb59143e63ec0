"""A small `make coverage`: intervals hold the truth and words are seldom wrong, whether domains are equal or not.

Random numbers are fixed. Bounds leave three standard errors of so few draws: an interval that covers 93% passes, one
that covers 75%, as a resampled minimum does where domains are equal, does not.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from coverage_kit import KINDS, Cell, forgetting, intervals, no_regression, power, regression, rows
from draws_kit import answer

DRAWS = 60


def least(draws: int, wanted: float = 0.93) -> float:
    return wanted - 3 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("questions", "seeds", "headroom"), [(200, 1, 0.3), (1000, 1, 0.0), (300, 3, 0.4)])
def test_intervals_of_recoveries_hold_the_truth(kind: str, questions: int, seeds: int, headroom: float) -> None:
    found = intervals(Cell(kind, questions, seeds, headroom, DRAWS))
    for name in ("worst_recovery", "worst_by_seed", "imbalance", "pareto_gap"):
        if name in found:
            assert found[name].part >= least(DRAWS), name
            assert found[name].ratio <= 1.4, name
    for name in ("recovery", "mean_recovery", "pooled_recovery", "points_at_once"):
        assert found[name].part >= least(DRAWS), name
    for name in ("gone, and it is not", "remains, and it is gone", "at least, and it is less"):
        assert found[name].part <= 0.05, name


def test_the_estimate_of_the_worst_is_far_less_biased_than_the_minimum() -> None:
    worst = intervals(Cell("balanced", 400, 1, 0.3, DRAWS))["worst_recovery"]
    assert worst.plain / worst.draws < -0.05
    assert abs(worst.bias) < 0.5 * abs(worst.plain)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_what_was_lost_hold_the_truth(kind: str) -> None:
    lost = regression(Cell(kind, 400, 1, 0.3, DRAWS, loses=True))["max_regression"]
    assert lost.part >= least(DRAWS)
    assert lost.ratio <= 1.4
    forgot = forgetting(Cell(kind, 400, 1, 0.3, DRAWS))["forgetting"]
    assert forgot.part >= least(DRAWS)
    assert abs(forgot.bias) < 0.6 * abs(forgot.plain)


def test_nobody_is_called_below_the_base_who_is_not() -> None:
    for questions in (30, 300):
        below = no_regression(Cell("balanced", questions, 1, 0.3, 2 * DRAWS))
        assert below["below its base, and it is not"].part <= 0.05


@pytest.mark.parametrize("seeds", [1, 3])
def test_of_several_equal_methods_none_is_called_ahead(seeds: int) -> None:
    found = rows(Cell("balanced", 300, seeds, 0.4, DRAWS // 2), methods=3)
    assert found["ahead of all, and it is not"].part <= 0.05
    assert found["the best of several keeps at least, and it is less"].part <= 0.05
    assert found["differences in points"].part >= least(DRAWS // 2)
    assert found["difference of worst recoveries"].part >= least(DRAWS // 2)


def test_as_many_questions_as_are_asked_for_tell() -> None:
    for name, tally in power(Cell("balanced", 200, 1, 0.4, DRAWS)).items():
        assert tally.draws > DRAWS // 3
        assert tally.part >= 0.80, name


def test_drawn_answers_have_the_scores_and_the_pairs_that_were_meant() -> None:
    rng = np.random.default_rng(0)
    scores = np.array([[[0.3], [0.6], [0.5]]])
    answers = answer(scores, 40_000, rng)[0][0].astype(float)
    assert answers.mean(axis=1) == pytest.approx([0.3, 0.6, 0.5], abs=0.01)
    correlation = np.corrcoef(answers)
    assert 0.3 < correlation[0, 1] < 0.7  # of questions that are hard for all
