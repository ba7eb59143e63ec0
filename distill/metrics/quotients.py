"""Intervals of quotients of means over questions and seeds, in closed form; and of sums and differences of them.

Recovery is one: what the student gained over what there was to gain; points are another, over a headroom of 1. Over
questions the interval is Fieller's, which knows that the headroom is measured too; distances of several quotients
combine as in MOVER. Over seeds it is Student's t. What differs by question and seed is in the spread of the seeds
already, and is taken out of the questions' part: question noise counts once.

Shape legend: N seeds, K quotients, each over questions of its own; Q questions of one; C contrasts.

Source: E. C. Fieller, J. R. Stat. Soc. B 16 (1954) 175-185; A. Donner and G. Zou, Stat. Methods Med. Res. 21 (2012)
347-359 (MOVER); D. Bonett and R. Price, J. Educ. Behav. Stat. 37 (2012) 479-488 (the questions that are added).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from mopd.distill.metrics.seesaw import Float64

TAIL = 0.025
"""What a 95% interval leaves out on either side."""

BORROWED_SEEDS = 3
"""How many seeds' worth of weight the mean variance over quotients has beside each one's own: two seeds alone leave a
variance so uncertain that an interval which asks several domains would be many times as wide as the truth needs."""

MOST_HEADROOM_NOISE = 0.8
"""Fieller's interval is unbounded where the headroom is within noise of 0 (its ``g`` reaches 1); ``g`` ends here."""

ADDED_QUESTIONS = 2
"""Questions on which the student differs from the base, one up and one down, that every variance counts in: answers
that agree on all of 30 questions do not agree on all there are."""


class Ends(NamedTuple):
    """The ends of an interval; a list of two in JSON."""

    low: float
    high: float


class Distances(NamedTuple):
    """How far below and above their estimates an interval's ends are over questions, ``(K,)`` each."""

    down_K: Float64
    up_K: Float64


def t_quantile(tail: float, freedom: float | Float64) -> Float64:
    """Student's t that is exceeded with probability ``tail``."""
    return np.asarray(-stdtrit(freedom, tail), dtype=float)


@dataclass(frozen=True, slots=True)
class Quotients:
    """K quotients of N runs that differ in nothing but the seed, and answered the same questions.

    Attributes:
        gains_NK, headrooms_NK: means over questions of each run.
        covariance_3K: of their means over runs, over questions: of gain, of both, of headroom.
        common_K: which part of the questions' variance of the mean quotient all runs share.
        questions_K: of each.
    """

    gains_NK: Float64
    headrooms_NK: Float64
    covariance_3K: Float64
    common_K: Float64
    questions_K: Float64

    @classmethod
    def of(cls, answers: Sequence[tuple[Float64, Float64]]) -> Quotients:
        """From what every question says: for each quotient gain and headroom, ``(N, Q)`` each, in -1..1."""
        columns = [_column(gain_NQ, headroom_NQ) for gain_NQ, headroom_NQ in answers]
        gains, headrooms, covariances, common, questions = zip(*columns, strict=True)
        return cls(
            gains_NK=np.stack(gains, axis=1),
            headrooms_NK=np.stack(headrooms, axis=1),
            covariance_3K=np.stack(covariances, axis=1),
            common_K=np.array(common),
            questions_K=np.array(questions, dtype=float),
        )

    @classmethod
    def of_means(cls, answers: Sequence[Float64]) -> Quotients:
        """Of plain means: quotients over a headroom of 1; from ``(N, Q)`` each."""
        return cls.of([(gain_NQ, np.ones_like(gain_NQ)) for gain_NQ in answers])

    @property
    def of_runs(self) -> Float64:
        """Of each run."""
        return self.gains_NK / self.headrooms_NK

    @property
    def values(self) -> Float64:
        """Means over runs."""
        return self.of_runs.mean(axis=0)

    @property
    def runs(self) -> int:
        """How many."""
        return len(self.gains_NK)

    @property
    def question_variance(self) -> Float64:
        """Of the mean over runs, over questions, to first order."""
        v_gain_K, v_both_K, v_headroom_K = self.covariance_3K
        headroom_K = self.headrooms_NK.mean(axis=0)
        slope_K = self.gains_NK.mean(axis=0) / headroom_K
        return np.maximum(v_gain_K - 2 * slope_K * v_both_K + slope_K**2 * v_headroom_K, 0.0) / headroom_K**2

    def pooled(self) -> Quotients:
        """The sum of the gains over the sum of the headrooms, as one quotient."""
        whole_K = (
            self.covariance_3K[0] - 2 * self._slope * self.covariance_3K[1] + self._slope**2 * self.covariance_3K[2]
        )
        common = float(self.common_K @ whole_K / whole_K.sum()) if whole_K.sum() > 0 else 1.0
        return Quotients(
            gains_NK=self.gains_NK.sum(axis=1, keepdims=True),
            headrooms_NK=self.headrooms_NK.sum(axis=1, keepdims=True),
            covariance_3K=self.covariance_3K.sum(axis=1, keepdims=True),
            common_K=np.array([min(1.0, max(0.0, common))]),
            questions_K=self.questions_K.min(keepdims=True),
        )

    @property
    def _slope(self) -> float:
        return float(self.gains_NK.sum() / self.headrooms_NK.sum())

    def standard_errors(self) -> Float64:
        """Of the means over runs, ``(K,)``: over questions and seeds."""
        variance_K = self.question_variance
        if self.runs == 1:
            return np.sqrt(variance_K)
        seeds_K, _ = seed_variance(self.of_runs)
        return np.sqrt(np.maximum(variance_K, self.common_K * variance_K + seeds_K))

    def distances(self, tail: float) -> Distances:
        """Over questions alone: each end is missed with probability ``tail``."""
        v_gain_K, v_both_K, v_headroom_K = self.covariance_3K
        gain_K, headroom_K = self.gains_NK.mean(axis=0), self.headrooms_NK.mean(axis=0)
        t_K = t_quantile(tail, np.maximum(self.questions_K - 1, 1.0))
        slope_K = gain_K / headroom_K
        square_K = (t_K / headroom_K) ** 2
        g_K = np.minimum(square_K * v_headroom_K, MOST_HEADROOM_NOISE)
        shift_K = (slope_K - square_K * v_both_K) / (1 - g_K) - slope_K
        inside_K = v_gain_K - 2 * slope_K * v_both_K + slope_K**2 * v_headroom_K
        inside_K = inside_K - square_K * np.maximum(v_gain_K * v_headroom_K - v_both_K**2, 0.0)
        half_K = t_K / np.abs(headroom_K) / (1 - g_K) * np.sqrt(np.maximum(inside_K, 0.0))
        return Distances(np.maximum(half_K - shift_K, 0.0), np.maximum(half_K + shift_K, 0.0))

    def ends(self, tail: float = TAIL) -> tuple[Float64, Float64]:
        """Low and high end of every mean over runs, ``(K,)`` each, missed with probability ``tail`` each."""
        return self.contrast_ends(np.eye(len(self.questions_K)), tail)

    def contrast_ends(self, weights_CK: Float64, tail: float = TAIL) -> tuple[Float64, Float64]:
        """The same of weighted sums of the quotients, whose seeds' variances are of one family, ``(C,)`` each."""
        distances = self.distances(tail)
        values_NC = self.of_runs @ weights_CK.T
        low_C, high_C = (
            with_seeds(values_NC, whole_C, shared_C, tail)
            for whole_C, shared_C in _sides(distances, self.common_K, weights_CK)
        )
        middle_C = values_NC.mean(axis=0)
        return middle_C - low_C, middle_C + high_C


def _sides(distances: Distances, common_K: Float64, weights_CK: Float64) -> list[tuple[Float64, Float64]]:
    """For the low and the high end of weighted sums, ``(C,)`` each: distances over questions, and their shared part."""
    down_K, up_K = (distance_K**2 for distance_K in distances)
    plus_CK, minus_CK = np.maximum(weights_CK, 0.0) ** 2, np.minimum(weights_CK, 0.0) ** 2
    sides = ((down_K, up_K), (up_K, down_K))
    return [
        (
            np.sqrt(plus_CK @ of_plus_K + minus_CK @ of_minus_K),
            np.sqrt(plus_CK @ (common_K * of_plus_K) + minus_CK @ (common_K * of_minus_K)),
        )
        for of_plus_K, of_minus_K in sides
    ]


def _column(gain_NQ: Float64, headroom_NQ: Float64) -> tuple[Float64, Float64, Float64, float, int]:
    """A quotient's gains, headrooms, covariance, common part and questions."""
    runs, questions = gain_NQ.shape
    gains_N, headrooms_N = gain_NQ.mean(axis=1), headroom_NQ.mean(axis=1)
    both_2Q = np.stack([gain_NQ.mean(axis=0), headroom_NQ.mean(axis=0)])
    centred_2Q = both_2Q - both_2Q.mean(axis=1, keepdims=True)
    freedom = max(questions - 1, 1)
    covariance_22 = centred_2Q @ centred_2Q.T / freedom / questions
    covariance_3 = np.array([covariance_22[0, 0], covariance_22[0, 1], covariance_22[1, 1]])
    covariance_3[0] += ADDED_QUESTIONS / questions**2
    common = 1.0
    if runs > 1:
        influence_NQ = (gain_NQ - (gains_N / headrooms_N)[:, None] * headroom_NQ) / headrooms_N[:, None]
        centred_NQ = influence_NQ - influence_NQ.mean(axis=1, keepdims=True)
        between_NN = centred_NQ @ centred_NQ.T
        whole, own = float(between_NN.sum()), float(np.trace(between_NN))
        shared = (whole - own) / (runs - 1) * runs  # what the mean's variance would be without questions' own noise
        common = min(1.0, max(0.0, shared / whole)) if whole > 0 else 1.0
    return gains_N, headrooms_N, covariance_3, common, questions


def seed_variance(values_NC: Float64) -> tuple[Float64, float]:
    """Variance of the means over runs, ``(C,)``, by the spread of the runs, and its degrees of freedom.

    Each of the C has a part of the mean of all C, which are of one family.
    """
    runs, several = values_NC.shape
    own_C = values_NC.var(axis=0, ddof=1) / runs
    borrowed = min(BORROWED_SEEDS, several - 1)
    freedom = runs - 1 + borrowed
    return (borrowed * own_C.mean() + (runs - 1) * own_C) / freedom, float(freedom)


def with_seeds(values_NC: Float64, whole_C: Float64, shared_C: Float64, tail: float) -> Float64:
    """The distance of an end, ``(C,)``: over questions alone, and over questions and seeds, whichever is more.

    Args:
        values_NC: of each run.
        whole_C: the distance over questions alone.
        shared_C: the part of it that all runs share.
        tail: the probability of missing the end.
    """
    if len(values_NC) == 1:
        return whole_C
    variance_C, freedom = seed_variance(values_NC)
    seeds_C = t_quantile(tail, freedom) * np.sqrt(variance_C)
    return np.maximum(whole_C, np.hypot(shared_C, seeds_C))
