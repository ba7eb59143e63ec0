"""Base, teacher and student on the same questions: the seesaw metrics with paired bootstrap intervals.

Shape legend: D domains, Q questions of a domain, S resamples, N seeds; 3 is base, teacher, student.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mopd.distill.metrics import seesaw
from mopd.distill.metrics.seesaw import Float64

RESAMPLES = 2000
"""Resamples of the bootstrap: the ends of a 95% interval are then good to about a tenth of its width."""


@dataclass(frozen=True, slots=True)
class Table:
    """Base, own teacher and student on the same questions: what recovery and its intervals are computed from.

    Attributes:
        answers: domain -> ``(3, Q)``: scores of base, teacher and student, columns are questions. The teacher of a
            domain with several is the weighted mean of their scores; NaN where a domain has none.
    """

    answers: Mapping[str, Float64]

    def __post_init__(self) -> None:
        for domain, answers_3Q in self.answers.items():
            if answers_3Q.ndim != 2 or len(answers_3Q) != 3 or not answers_3Q.size:
                raise ValueError(f"answers of domain {domain!r} have shape {answers_3Q.shape}; (3, questions) needed")

    @property
    def means(self) -> Float64:
        """Mean scores ``(3, D)``: base, teacher, student."""
        return np.stack([answers_3Q.mean(axis=1) for answers_3Q in self.answers.values()], axis=1)

    @property
    def headroom_se(self) -> Float64:
        """Standard error of teacher minus base on the same questions, ``(D,)``."""
        return np.array([_standard_error(a_3Q[1] - a_3Q[0]) for a_3Q in self.answers.values()])

    @property
    def defined(self) -> npt.NDArray[np.bool_]:
        """Which domains have a recovery, ``(D,)``."""
        return seesaw.has_headroom(self.means[0], self.means[1], self.headroom_se)

    def resampled(self, resamples: int, seed: int) -> Float64:
        """Means of a paired bootstrap over questions, ``(S, 3, D)``: one draw of questions serves all three."""
        asked = tuple(answers_3Q.shape[1] for answers_3Q in self.answers.values())
        drawn = _drawn(asked, resamples, seed)
        means = [
            times_SQ @ answers_3Q.T / answers_3Q.shape[1]
            for answers_3Q, times_SQ in zip(self.answers.values(), drawn, strict=True)
        ]
        return np.stack(means, axis=-1)


@functools.lru_cache(maxsize=2)  # a comparison asks for the same draws for every run
def _drawn(asked: tuple[int, ...], resamples: int, seed: int) -> list[Float64]:
    """How often each question is drawn in each resample: ``(S, Q)`` for each domain, as many questions as asked."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float) for n in asked]


def _standard_error(values_Q: Float64) -> float:
    return float(values_Q.std(ddof=1) / math.sqrt(len(values_Q))) if len(values_Q) > 1 else float("inf")


AGAINST_TEACHERS = (
    "points",
    "recovery",
    "mean_recovery",
    "worst_recovery",
    "imbalance",
    "max_regression",
    "pareto_gap",
)
"""The metrics of the final table; ``points`` and ``recovery`` are one number a domain."""


def _against_teachers(means_3D: Float64, defined_D: npt.NDArray[np.bool_]) -> dict[str, Float64]:
    """The metrics of ``(..., 3, D)`` means of base, teacher and student; each keeps the leading axes."""
    base_D, teacher_D, student_D = means_3D[..., 0, :], means_3D[..., 1, :], means_3D[..., 2, :]
    recovery_D = seesaw.recovery(student_D, base_D, teacher_D, defined_D=defined_D)
    return {
        "points": student_D - base_D,
        "recovery": recovery_D,
        "mean_recovery": seesaw.mean_recovery(recovery_D),
        "worst_recovery": seesaw.worst_recovery(recovery_D),
        "imbalance": seesaw.imbalance(recovery_D),
        "max_regression": seesaw.max_regression(student_D, base_D),
        "pareto_gap": seesaw.pareto_gap(recovery_D),
    }


def plain(value: Any, domains: Sequence[str]) -> Any:
    """A number, or one number a domain, for JSON: NaN becomes None."""
    array = np.asarray(value, dtype=float)
    if array.ndim == 1:
        return {domain: plain(number, domains) for domain, number in zip(domains, array, strict=True)}
    return None if math.isnan(array) else float(array)


def metrics(table: Table) -> dict[str, Any]:
    """The metrics against base and teachers; per-domain ones are dicts, undefined ones None."""
    domains = list(table.answers)
    return {name: plain(value, domains) for name, value in _against_teachers(table.means, table.defined).items()}


def metrics_ci(table: Table, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """95% percentile intervals of :func:`metrics` by paired bootstrap over questions, seeded.

    Which domains have a recovery is decided on the point estimates and held fixed.

    Returns:
        metric -> ``[low, high]``, or domain -> that; None where the metric is undefined. Forgetting and the seesaw
        share have none: both are maxima over noise, and resampling would add the noise a second time.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    domains = list(table.answers)
    resampled = _against_teachers(table.resampled(resamples, seed), table.defined)
    return {name: ends(samples, domains) for name, samples in resampled.items()}


def ends(samples: Float64, domains: Sequence[str]) -> Any:
    """95% percentile interval of ``(S,)`` or ``(S, D)`` resamples: ``[low, high]``, or one a domain; None undefined."""
    undefined = np.isnan(samples).all(axis=0)
    both = np.nanpercentile(np.where(undefined, 0.0, samples), [2.5, 97.5], axis=0)
    low, high = (plain(np.where(undefined, np.nan, end), domains) for end in both)
    if isinstance(low, dict):
        return {d: None if low[d] is None else [low[d], high[d]] for d in domains}
    return None if low is None else [low, high]


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of N runs that differ in nothing but the seed.

    Attributes:
        values: the metric of each run, ``(N,)`` or ``(N, D)``.
        resampled: the same under each resample of the questions, ``(N, S)`` or ``(N, S, D)``. The draws are the same
            in every run and every row that answered the same questions: so differences between them are paired.
    """

    values: Float64
    resampled: Float64

    @property
    def mean(self) -> Float64:
        """Over seeds; NaN where the metric is undefined in any of them."""
        return self.values.mean(axis=0)

    def spread(self, seed: int = 0) -> Float64:
        """Resamples of :attr:`mean`, ``(S,)`` or ``(S, D)``: questions are resampled, seeds are drawn by Student's t.

        A few seeds can't be resampled: of three, a bootstrap's 95% would cover the truth in three of four cases only.
        So the uncertainty over seeds is that of their mean, ``t_{N-1} s / sqrt(N)``, added to each resample of the
        questions. What differs by question *and* seed is in both parts: the interval is on the safe side. With one
        seed it speaks of questions alone.
        """
        runs = len(self.values)
        samples = self.resampled.mean(axis=0)
        if runs == 1:
            return samples
        standard_error = self.values.std(axis=0, ddof=1) / math.sqrt(runs)
        drawn_S = np.random.default_rng([seed, 1]).standard_t(runs - 1, size=len(samples))
        return samples + np.multiply.outer(drawn_S, standard_error)

    def minus(self, other: Measured) -> Measured:
        """The difference, seed by seed: both must hold the same seeds in the same order."""
        return Measured(self.values - other.values, self.resampled - other.resampled)


def measured(table: Table, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Measured]:
    """The metrics of one run, resampled as in :func:`metrics_ci`, and ``scores``: its student's mean by domain."""
    both = [
        _against_teachers(means_3D, table.defined) | {"scores": means_3D[..., 2, :]}
        for means_3D in (table.means, table.resampled(resamples, seed))
    ]
    return {name: Measured(both[0][name][None], both[1][name][None]) for name in both[0]}


def over_seeds(runs: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    """The metrics of runs that differ in nothing but the seed, and answered the same questions in the same order."""
    return {
        name: Measured(
            np.concatenate([run[name].values for run in runs]), np.concatenate([run[name].resampled for run in runs])
        )
        for name in runs[0]
    }
