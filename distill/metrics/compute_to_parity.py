"""Compute to parity: how much one method has to compute to reach what another reached. Pure functions of curves.

A curve is the validation scores of a run's student at its evaluated steps, over the FLOPs that training had taken.
What is to be reached is a level of the worst domain's score, or of the mean. A curve has reached it at an evaluation
that is not below it and is followed by another such one: a single lucky evaluation does not count, the very last does.
Between evaluations it is taken as straight.

The level is what the reference scored at its *last* evaluation, not its best, which is too high by chance, less
:data:`TOLERANCE`; and the reference's own compute is found by the same rule. Intervals are a bootstrap over questions
and seeds: both curves of a resample answer the same questions, and share seeds where they can. A curve that does not
reach the level in a resample counts as infinitely dear in it, so that an interval may be open to the right. A few
seeds tell little of all others: resampled, three of them give too narrow an interval, and one gives none for seeds.

Shape legend: D domains, Q questions of a domain, P points of a curve, N seeds, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mopd.distill.metrics.seesaw import Float64

TOLERANCE = 0.01
"""Parity is a point below the level: between two plateaus of one height, chance would often keep one from the other."""

RESAMPLES = 1000
"""Resamples of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The curves of runs that differ in nothing but the seed, at the steps at which all of them were evaluated.

    Attributes:
        seeds: of the runs, N different ones.
        flops: ``(N, P)``, ascending: what training had taken at each evaluation.
        answers: domain -> ``(N, P, Q)``: scores 0..1 of the answers; a column is one question in all curves.
    """

    seeds: Sequence[int]
    flops: Float64
    answers: Mapping[str, Float64]

    def __post_init__(self) -> None:
        shape = (len(self.seeds), *self.flops.shape[1:])  # not per token
        if not self.answers or self.flops.shape != shape or not self.flops.size:
            raise ValueError(f"FLOPs of shape {self.flops.shape}, {len(self.seeds)} seeds; (seeds, points) needed")
        for domain, answers_NPQ in self.answers.items():
            if answers_NPQ.shape[:2] != shape:
                raise ValueError(f"answers of domain {domain!r} have shape {answers_NPQ.shape}; {shape} are needed")

    @property
    def scores(self) -> Float64:
        """Mean scores over questions, ``(N, P, D)``."""
        return np.stack([answers_NPQ.mean(axis=-1) for answers_NPQ in self.answers.values()], axis=-1)


def worst(scores_D: Float64) -> Float64:
    """The lowest score over domains, the last axis."""
    return scores_D.min(axis=-1)


def mean(scores_D: Float64) -> Float64:
    """The mean score over domains, the last axis."""
    return scores_D.mean(axis=-1)


MEASURES = {"worst_score": worst, "mean_score": mean}
"""What a level is a level of."""


def compute_to_reach(flops_SP: Float64, values_SP: Float64, level_S: Float64) -> Float64:
    """FLOPs at which each curve reaches its level for good, ``(S,)``; infinite where it doesn't.

    Args:
        flops_SP: ascending.
        values_SP: the curve.
        level_S: what is to be reached.

    Example:
        Values 0.2, 0.6, 0.8 at 0, 10, 20 FLOP reach 0.5 at 7.5 FLOP.
    """
    above_SP = values_SP >= level_S[:, None]
    stays_SP = above_SP & np.concatenate([above_SP[:, 1:], np.ones_like(above_SP[:, :1])], axis=1)  # not per token
    first_S = stays_SP.argmax(axis=1)
    rows = np.arange(len(values_SP))
    before_S = np.maximum(first_S - 1, 0)
    (low_S, high_S), (start_S, end_S) = (
        (of_SP[rows, before_S], of_SP[rows, first_S]) for of_SP in (values_SP, flops_SP)
    )
    rise_S = np.where(high_S > low_S, high_S - low_S, 1.0)
    reached_S = np.where(first_S > 0, start_S + (level_S - low_S) / rise_S * (end_S - start_S), end_S)
    return np.where(stays_SP.any(axis=1), reached_S, np.inf)


@dataclass(frozen=True, slots=True)
class Parity:
    """Compute to one level.

    Attributes:
        level: the score that counts as parity.
        flops: what a method needs to reach it; infinite: it doesn't in its whole run.
        reference_flops: what the reference needs by the same rule.
        spent: FLOPs of the method's whole run.
        resampled: :attr:`flops` and :attr:`reference_flops` in each resample, ``(2, S)``.
    """

    level: float
    flops: float
    reference_flops: float
    spent: float
    resampled: Float64

    @property
    def reached_share(self) -> float:
        """The part of the resamples in which the level is reached."""
        return float(np.isfinite(self.resampled[0]).mean())

    def ratio(self, *, teachers: float = 0.0, reference_teachers: float = 0.0) -> float:
        """How many times the reference's compute the method needs; NaN where the reference needs none.

        Args:
            teachers: FLOPs of making the method's teachers, added to what it needs.
            reference_teachers: the same of the reference's.
        """
        return float(_over(np.array(self.flops + teachers), np.array(self.reference_flops + reference_teachers)))

    def interval(self, *, teachers: float = 0.0, reference_teachers: float = 0.0) -> tuple[float, float]:
        """95% percentile interval of :meth:`ratio`; an end may be infinite."""
        flops_S, reference_S = self.resampled
        ratios = np.sort(_over(flops_S + teachers, reference_S + reference_teachers))
        ratios = ratios[~np.isnan(ratios)]
        if not len(ratios):
            return float("nan"), float("nan")
        # Order statistics: between a number and infinity nothing can be interpolated.
        low, high = np.floor(0.025 * len(ratios)), np.ceil(0.975 * len(ratios)) - 1
        return float(ratios[int(low)]), float(ratios[int(high)])


def _over(flops: Float64, reference: Float64) -> Float64:
    return np.where(reference > 0, flops / np.where(reference > 0, reference, 1.0), np.nan)


def parity(
    method: Curves, reference: Curves, *, tolerance: float = TOLERANCE, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Parity]:
    """What ``method`` needs to reach what ``reference`` reached, by :data:`MEASURES`.

    Both must have answered the same questions of the same domains, in the same order.

    Raises:
        ValueError: they didn't.
    """
    asked, wanted = ({d: a.shape[-1] for d, a in curves.answers.items()} for curves in (method, reference))
    if asked != wanted:
        raise ValueError(f"curves of {asked} and of {wanted} questions; the same are needed")
    drawn = _resampled([method, reference], resamples, seed)
    exact = [(curves.flops.mean(axis=0)[None], curves.scores.mean(axis=0)[None]) for curves in (method, reference)]
    parities: dict[str, Parity] = {}
    for name, measure in MEASURES.items():
        points, samples = (
            _needed([(flops, measure(scores)) for flops, scores in both], tolerance) for both in (exact, drawn)
        )
        level = float(measure(exact[1][1])[0, -1]) - tolerance
        flops, reference_flops = map(float, points[:, 0])
        spent = float(exact[0][0][0, -1])
        parities[name] = Parity(level, flops, reference_flops, spent, samples)
    return parities


def _needed(both: Sequence[tuple[Float64, Float64]], tolerance: float) -> Float64:
    """FLOPs of method and reference, ``(2, S)``, from the FLOPs and values ``(S, P)`` of each."""
    level_S = both[1][1][:, -1] - tolerance
    return np.stack([compute_to_reach(flops_SP, values_SP, level_S) for flops_SP, values_SP in both])


def _resampled(both: Sequence[Curves], resamples: int, seed: int) -> list[tuple[Float64, Float64]]:
    """FLOPs ``(S, P)`` and scores ``(S, P, D)`` of each, means over resampled questions and seeds."""
    rng = np.random.default_rng(seed)
    times: list[Float64] = []
    for answers_NPQ in both[0].answers.values():
        questions = answers_NPQ.shape[-1]
        times.append(rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples) / questions)
    weights = _seed_weights(both, resamples, rng)
    means: list[tuple[Float64, Float64]] = []
    for curves, weights_SN in zip(both, weights, strict=True):
        scores = [
            np.einsum("npq,sq,sn->sp", answers_NPQ, times_SQ, weights_SN, optimize=True)
            for answers_NPQ, times_SQ in zip(curves.answers.values(), times, strict=True)
        ]
        means.append((weights_SN @ curves.flops, np.stack(scores, axis=-1)))
    return means


def _seed_weights(both: Sequence[Curves], resamples: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """How much each seed counts in each resample, ``(S, N)``; where both have the same seeds, these are drawn once."""
    weights: list[npt.NDArray[np.float64]] = []
    for curves in both:
        n = len(curves.seeds)
        if weights and sorted(curves.seeds) == sorted(both[0].seeds):
            order = [list(both[0].seeds).index(seed) for seed in curves.seeds]
            weights.append(weights[0][:, order])
        else:
            weights.append(rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n)
    return weights
