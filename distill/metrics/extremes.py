"""Estimates and intervals of what depends on the worst domain: worst recovery, imbalance, Pareto gap, regression.

The least of several noisy numbers is too low by chance, and resampling it adds the noise a second time: where domains
are equal, its percentile interval lies below the truth in a quarter of cases. So no extreme is resampled here. The
interval of the least goes from the least of the lower ends to the least of the upper ends, of which only the upper ones
are asked for all domains at once (Bonferroni): the least truth is below its own lower end, and so below the least of
all, no more often than one domain's. What an estimate is the extreme of are values that were drawn towards their mean
until they spread as much as the truth does, by what their errors say; where they differ by no more than noise, these
are all one.

Shape legend: K quotients (a domain's recovery, or its change in points); P pairs of them; N runs, C checkpoints, Q
questions.

Source: T. Louis, JASA 79 (1984) 393-398: values whose spread is that of the truth; R. DerSimonian and N. Laird,
Control. Clin. Trials 7 (1986) 177-188: the truth's variance; R. Berger, Technometrics 24 (1982) 295-300:
intersection-union tests, whose turned sides these intervals are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mopd.distill.metrics.quotients import TAIL, Quotients, with_seeds
from mopd.distill.metrics.seesaw import Float64

LARGEST_BIAS = 0.399
"""A noisy number cut at 0 is too high by at most this many standard errors, where the truth is 0."""

FAR = 3.0
"""Standard errors from 0 beyond which cutting at 0 changes nothing."""

LEAST_OF_NORMALS = (0.0, 0.5642, 0.8463, 1.0294, 1.163, 1.2672, 1.3522, 1.4236, 1.485, 1.5388)
"""By how many standard errors the least of 1 to 10 equal numbers is too low on average. Of more it is a little more."""


@dataclass(frozen=True, slots=True)
class Extreme:
    """What depends on the worst domain: an estimate without the bias of the plain extreme, and its 95% interval."""

    estimate: float
    low: float
    high: float


def spread_as_the_truth(values_K: Float64, errors_K: Float64) -> Float64:
    """Values drawn towards their mean until they spread as the truth does; ``(K,)``.

    Args:
        values_K: estimates.
        errors_K: their standard errors.

    Example:
        0.8 and 0.9 with errors of 0.1 each differ by less than chance: both become 0.85.
    """
    variance_K = np.maximum(errors_K**2, 1e-12)
    weights_K = 1 / variance_K
    mean = float(weights_K @ values_K / weights_K.sum())
    beyond = float(weights_K @ (values_K - mean) ** 2) - (len(values_K) - 1)
    scale = float(weights_K.sum() - (weights_K**2).sum() / weights_K.sum())
    truth = max(0.0, beyond / scale) if scale > 0 else 0.0
    return mean + (values_K - mean) * np.sqrt(truth / (truth + variance_K))


def least(quotients: Quotients, tail: float = TAIL) -> Extreme:
    """The least of the K quotients.

    Args:
        tail: the probability with which each end is missed at most.
    """
    low_K, _ = quotients.ends(tail)
    _, high_K = quotients.ends(tail / len(low_K))
    drawn_K = spread_as_the_truth(quotients.values, quotients.standard_errors())
    low, high = float(low_K.min()), float(high_K.min())
    estimate = min(float(drawn_K.min()), float(quotients.values.mean()))  # the mean that they are drawn to has weights
    return Extreme(float(np.clip(estimate, low, high)), low, high)


def most_lost(quotients: Quotients, tail: float = TAIL) -> Extreme:
    """How far the least of the K changes of scores is below 0; 0 where none is, and at most 1."""
    worst = least(quotients, tail)
    estimate, low, high = (min(1.0, max(0.0, -value)) for value in (worst.estimate, worst.high, worst.low))
    return Extreme(estimate, low, high)


def span_of(quotients: Quotients, tail: float = TAIL) -> Extreme:
    """The largest of the K quotients less the least: low is 0 where their equality is not rejected."""
    several = len(quotients.values)
    if several == 1:
        return Extreme(0.0, 0.0, 0.0)
    pairs_PK = np.array([np.eye(several)[i] - np.eye(several)[j] for i in range(several) for j in range(i)])
    lower_P, upper_P = quotients.contrast_ends(pairs_PK, tail)
    low_P, high_P = quotients.contrast_ends(pairs_PK, tail / (2 * len(pairs_PK)))
    drawn_K = spread_as_the_truth(quotients.values, quotients.standard_errors())
    low, high = max(0.0, float(low_P.max()), float((-high_P).max())), max(float(upper_P.max()), -float(lower_P.min()))
    return Extreme(float(np.clip(drawn_K.max() - drawn_K.min(), low, high)), low, high)


def mean_gap(quotients: Quotients, tail: float = TAIL) -> Extreme:
    """Mean over the K quotients of what each lacks to 1, none set off by what another has above it.

    Cutting at 0 shrinks errors and raises the mean: the high end needs no more than the uncut mean's distance, the low
    end the bias at its largest on top.
    """
    several = len(quotients.values)
    missing_K, errors_K = 1.0 - quotients.values, quotients.standard_errors()
    plain = float(np.maximum(missing_K, 0.0).mean())
    low_mean, high_mean = (float(end[0]) for end in quotients.contrast_ends(np.full((1, several), 1 / several), tail))
    middle = float(quotients.values.mean())
    bias = LARGEST_BIAS * float(errors_K[np.abs(missing_K) < FAR * errors_K].sum()) / several
    drawn_K = spread_as_the_truth(quotients.values, errors_K)
    low, high = max(0.0, plain - bias - (high_mean - middle)), plain + (middle - low_mean)
    return Extreme(float(np.clip(np.maximum(1.0 - drawn_K, 0.0).mean(), low, high)), low, high)


def mean_of_least(quotients: Quotients, tail: float = TAIL) -> Extreme:
    """The mean over runs of each run's least quotient; at most the least of the means, which :func:`least` is.

    Each run's plain minimum is too low, by between nothing and what the least of as many equal numbers is too low by:
    the high end has the latter on top of its distance.
    """
    values_NK, runs = quotients.of_runs, quotients.runs
    if runs == 1:
        return least(quotients, tail)
    common_K = quotients.common_K
    single_K = np.sqrt(quotients.question_variance * (common_K + runs * (1 - common_K)))  # of one run
    lowest_N1, worst_N = values_NK.min(axis=1, keepdims=True), values_NK.argmin(axis=1)
    near_NK = values_NK - lowest_N1 < FAR * np.hypot(single_K, single_K[worst_N, None])
    bias = float(np.mean([_bias_of_least(single_K[near_K]) for near_K in near_NK]))
    down_K, up_K = quotients.distances(tail)
    family = np.concatenate([lowest_N1, values_NK], axis=1)  # the seeds' spread borrows from that of the domains
    low, high = (
        float(with_seeds(family, whole_N.mean(keepdims=True), shared_N.mean(keepdims=True), tail)[0])
        for whole_N, shared_N in ((d[worst_N], (np.sqrt(common_K) * d)[worst_N]) for d in (down_K, up_K))
    )
    middle = float(lowest_N1.mean())
    drawn = [spread_as_the_truth(values_K, single_K).min() for values_K in values_NK]
    low, high = middle - low, middle + bias + high
    estimate = min(float(np.mean(drawn)), least(quotients, tail).estimate)
    return Extreme(float(np.clip(estimate, low, high)), low, high)


def _bias_of_least(errors_K: Float64) -> float:
    """By how much the least of equal numbers with these errors is too low: of normal ones, and not more."""
    return LEAST_OF_NORMALS[min(len(errors_K), len(LEAST_OF_NORMALS)) - 1] * float(errors_K.max())


def most_forgotten(answers_NCQ: Float64, tail: float = TAIL) -> Extreme:
    """How far the last mean is below the highest on the way, of C checkpoints that answered the same questions.

    Of N runs it is that of the mean curve.

    The estimate chooses the highest on one half of the questions and reports it on the other, and the other way round,
    over a few ways to halve them: choosing by noise adds nothing then.
    """
    _, checkpoints, questions = answers_NCQ.shape
    last = checkpoints - 1
    behind_NCQ = answers_NCQ[:, :last] - answers_NCQ[:, last:]  # not per token
    differences = Quotients.of_means([behind_NCQ[:, c] for c in range(last)])
    behind_CQ = behind_NCQ.mean(axis=0)
    low_C, _ = differences.ends(tail / len(behind_CQ))
    _, high_C = differences.ends(tail)
    low, high = max(0.0, float(low_C.max())), max(0.0, float(high_C.max()))
    reported = []
    for half_Q in _halves(questions):
        first_C, second_C = behind_CQ[:, half_Q].mean(axis=1), behind_CQ[:, ~half_Q].mean(axis=1)
        reported += [second_C[first_C.argmax()], first_C[second_C.argmax()]]
    estimate = float(np.mean(reported)) if reported else float(differences.values.max())
    return Extreme(float(np.clip(estimate, low, high)), low, high)


def _halves(questions: int, ways: int = 8) -> list[npt.NDArray[np.bool_]]:
    """Ways to halve the questions, always the same ones; none where there is only one question."""
    if questions < 2:
        return []
    rng = np.random.default_rng(questions)
    even_Q = np.arange(questions) % 2 == 0
    return [even_Q[rng.permutation(questions)] for _ in range(ways)]


def difference_of_least(first: Quotients, second: Quotients, difference: Quotients, tail: float = TAIL) -> Extreme:
    """The least of ``first`` less the least of ``second``, by the paired ``difference`` of each quotient.

    It is at least the difference in the quotient that is least in ``first``, and at most that in the one that is least
    in ``second``; which these are is known up to a tenth of ``tail``. The estimate is the mean of these two, whose
    biases are opposite.
    """
    chosen, rest = tail / 10, 0.9 * tail
    low_K, high_K = difference.ends(rest)
    low = float(low_K[_may_be_least(first, chosen)].min())
    high = float(high_K[_may_be_least(second, chosen)].max())
    estimate = difference.values[[first.values.argmin(), second.values.argmin()]].mean()
    return Extreme(float(np.clip(estimate, low, high)), low, high)


def _may_be_least(quotients: Quotients, tail: float) -> npt.NDArray[np.bool_]:
    """Which quotients may be the least, ``(K,)``; the one that is least is missed with probability ``2 tail``."""
    low_K, _ = quotients.ends(tail)
    return low_K <= least(quotients, tail).high
