"""Is it known from so many questions, and how many would tell? The bar of the worst domain, and a power calculation.

Shape legend: K quotients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr

from mopd.distill.metrics.extremes import least
from mopd.distill.metrics.quotients import TAIL, Quotients, seed_variance, t_quantile
from mopd.distill.metrics.seesaw import MIN_HEADROOM_SE

BAR = 0.75
"""A student that keeps at least this part of every specialist's gain has them all; the project's acceptance bound."""

BEYOND = 0.1
"""Ten points of recovery beyond the bar: what is worth telling."""

POWER = 0.85
"""How often it is told by as many questions as are asked for; above the 80% that are wanted, for what the calculation
starts from is measured too."""

MOST_QUESTIONS = 10**7
"""What needs more is not told by questions."""

CAUTION = 0.5
"""Standard errors by which the headroom is taken lower than it was measured: M goes by its square."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the worst domain keeps enough.

    Attributes:
        seesaw: ``gone`` where the interval of the worst recovery is above ``bar``, ``remains`` where it is below, else
            ``unknown``.
        bar: a fraction of the teachers' gain.
        questions: the fewest of a domain that has a recovery.
        needed: as many questions a domain as would tell a truth ten points beyond the bar; None where no number would.
    """

    seesaw: Literal["gone", "remains", "unknown"]
    bar: float
    questions: int
    needed: int | None


def verdict(quotients: Quotients, *, bar: float = BAR) -> Verdict:
    """The verdict on the recoveries of a run, or of runs that differ in nothing but the seed."""
    worst = least(quotients)
    seesaw: Literal["gone", "remains", "unknown"] = "unknown"
    if worst.low >= bar:
        seesaw = "gone"
    elif worst.high < bar:
        seesaw = "remains"
    return Verdict(seesaw, bar, int(quotients.questions_K.min()), questions_to_tell(quotients, bar=bar))


def headroom_verdict(headrooms: Quotients, *, bar: float = BAR) -> Verdict:
    """The verdict where no teacher is clearly better than its base; ``needed`` would show one of ten points.

    Args:
        headrooms: teachers less base, in points.
    """
    variance_K = headrooms.question_variance * headrooms.questions_K
    power = float(t_quantile(1 - POWER, math.inf))
    needed = float(variance_K.max()) * ((MIN_HEADROOM_SE + power) / BEYOND) ** 2
    return Verdict("unknown", bar, int(headrooms.questions_K.min()), rounded_up(needed))


def questions_to_tell(
    quotients: Quotients, *, bar: float = BAR, beyond: float = BEYOND, power: float = POWER
) -> int | None:
    """How many questions a domain tell whether the least of the quotients is above a bar, ``beyond`` away from it.

    Two significant digits, rounded up. None where the spread of the seeds alone is too large.
    """
    headroom_K = quotients.headrooms_NK.mean(axis=0)
    sure_K = np.maximum(headroom_K - CAUTION * np.sqrt(quotients.covariance_3K[2]), headroom_K / MIN_HEADROOM_SE)
    v_gain_K, v_both_K, v_headroom_K = quotients.covariance_3K * quotients.questions_K
    variance_K = np.maximum(v_gain_K - 2 * bar * v_both_K + bar**2 * v_headroom_K, 0.0) / sure_K**2  # at the bar
    seeds_K = np.zeros_like(variance_K)
    freedom = math.inf
    if quotients.runs > 1:
        seeds_K, freedom = seed_variance(quotients.of_runs)
    t_low, t_high = (float(t_quantile(tail, freedom)) for tail in (TAIL, TAIL / len(variance_K)))

    def power_of(questions: float) -> float:
        error_K = np.sqrt(variance_K / questions + seeds_K)
        gone = float(np.prod(ndtr(beyond / error_K - t_low)))  # every domain just as far above
        remains = float(ndtr(beyond / error_K.max() - t_high))  # one below, the least certain
        return min(gone, remains)

    if power_of(MOST_QUESTIONS) < power:
        return None
    low, high = 1.0, float(MOST_QUESTIONS)
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return rounded_up(high)


def rounded_up(number: float) -> int:
    """To two significant digits: 1234 becomes 1300."""
    step = 10 ** max(0, math.floor(math.log10(max(number, 1.0))) - 1)
    return math.ceil(number / step) * step
