"""The power calculation against a plain normal approximation, and the verdict against the ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mopd.distill.metrics.power import POWER, headroom_verdict, questions_to_tell, rounded_up, verdict
from mopd.distill.metrics.quotients import Quotients


def recovered(*levels: float, n: int, seed: int = 0) -> Quotients:
    """Recoveries over a headroom that is known: every teacher answers what its base does not."""
    rng = np.random.default_rng(seed)
    return Quotients.of([((rng.random((1, n)) < level).astype(float), np.ones((1, n))) for level in levels])


def test_one_domain_needs_what_a_textbook_says() -> None:
    quotients = recovered(0.8, n=4000)
    variance = float(quotients.question_variance[0]) * 4000
    textbook = variance * ((stats.norm.ppf(0.975) + stats.norm.ppf(POWER)) / 0.1) ** 2
    assert questions_to_tell(quotients) == rounded_up(textbook * 1.0025)
    # Half as far needs four times as many; more domains, all of which must be above the bar, need more.
    assert questions_to_tell(quotients, beyond=0.05) == pytest.approx(4 * textbook, rel=0.05)
    assert (questions_to_tell(recovered(0.8, 0.8, 0.8, n=4000)) or 0) > textbook


def test_a_noisy_headroom_asks_for_more() -> None:
    rng = np.random.default_rng(1)
    gain, headroom = ((rng.random((1, 300)) < level).astype(float) for level in (0.1, 0.12))
    sure = Quotients.of([(gain, np.full_like(headroom, headroom.mean()))])
    assert (questions_to_tell(Quotients.of([(gain, headroom)])) or 0) > (questions_to_tell(sure) or 0)


def test_where_seeds_differ_by_too_much_no_number_of_questions_tells() -> None:
    apart = Quotients.of_means([np.repeat(np.array([[0.5], [0.9]]), 100, axis=1)])
    assert questions_to_tell(apart) is None


@pytest.mark.parametrize(
    ("levels", "n", "seesaw"),
    [
        ((0.9, 0.9), 2000, "gone"),
        ((0.9, 0.6), 2000, "remains"),
        ((0.9, 0.76), 2000, "unknown"),
        ((0.8, 0.8), 30, "unknown"),
    ],
)
def test_the_verdict_is_that_of_the_ends(levels: tuple[float, ...], n: int, seesaw: str) -> None:
    judged = verdict(recovered(*levels, n=n))
    assert (judged.seesaw, judged.questions, judged.bar) == (seesaw, n, 0.75)


def test_without_a_clear_teacher_it_is_told_what_would_show_one() -> None:
    rng = np.random.default_rng(2)
    headroom = (rng.random((1, 30)) < 0.5).astype(float) - (rng.random((1, 30)) < 0.5)
    judged = headroom_verdict(Quotients.of_means([headroom]))
    error = math.sqrt(float(Quotients.of_means([headroom]).question_variance[0]) * 30)
    assert judged.seesaw == "unknown"
    assert judged.needed == rounded_up((error * (3 + stats.norm.ppf(POWER)) / 0.1) ** 2)


def test_numbers_are_rounded_up_to_two_digits() -> None:
    assert [rounded_up(x) for x in (0.2, 7, 99, 101, 1234, 99_500)] == [1, 7, 99, 110, 1300, 100_000]
