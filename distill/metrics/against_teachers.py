"""Base, teacher and student on the same questions: the seesaw metrics and their 95% intervals, of one run or several.

Values are the measures of distill/metrics/seesaw.py, means over runs; what ends in ``_estimate`` is without the bias
that a plain extreme of noisy numbers has. Of several runs, which differ in nothing but the seed, intervals and
estimates are of the domains' means over seeds; ``worst_by_seed`` is the mean of the seeds' worst domains.

Shape legend: D domains, Q questions of a domain, N runs; 3 is base, teacher, student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mopd.distill.metrics import seesaw
from mopd.distill.metrics.extremes import Extreme, least, mean_gap, mean_of_least, most_lost, span_of
from mopd.distill.metrics.quotients import TAIL, Quotients
from mopd.distill.metrics.seesaw import Float64


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


def _standard_error(values_Q: Float64) -> float:
    return float(values_Q.std(ddof=1) / math.sqrt(len(values_Q))) if len(values_Q) > 1 else float("inf")


AGAINST_TEACHERS = (
    "points",
    "points_at_once",
    "recovery",
    "mean_recovery",
    "pooled_recovery",
    "worst_recovery",
    "imbalance",
    "max_regression",
    "pareto_gap",
)
"""Keys of ``metrics_ci`` in seesaw.json that are measured against base and teachers. ``points``, ``points_at_once``
(its intervals that hold for all domains together) and ``recovery`` are one interval a domain."""

ESTIMATES = (
    "worst_recovery_estimate",
    "imbalance_estimate",
    "max_regression_estimate",
    "pareto_gap_estimate",
)
"""Numbers whose interval is that of the metric without ``_estimate``."""


METRICS = (*(name for name in AGAINST_TEACHERS if name != "points_at_once"), *ESTIMATES)
"""Keys of ``metrics`` in seesaw.json that are measured against base and teachers."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of runs that differ in nothing but the seed: plain values, as they stand in JSON; undefined is None.

    Attributes:
        values: of :data:`METRICS`, and ``scores`` and ``worst_by_seed``.
        intervals: ``[low, high]``, or domain -> that, of :data:`AGAINST_TEACHERS`, ``scores`` and ``worst_by_seed``.
    """

    values: Mapping[str, Any]
    intervals: Mapping[str, Any]


def plain(value: Any, domains: Sequence[str]) -> Any:
    """A number, or one number a domain, for JSON: NaN becomes None."""
    array = np.asarray(value, dtype=float)
    if array.ndim == 1:
        return {domain: plain(number, domains) for domain, number in zip(domains, array, strict=True)}
    return None if math.isnan(array) else float(array)


def recoveries(tables: Sequence[Table]) -> tuple[list[str], Quotients | None]:
    """The domains that have a recovery in every run, and their recoveries; None where no domain has one."""
    has_D = np.logical_and.reduce([table.defined for table in tables])
    domains = [domain for domain, has in zip(tables[0].answers, has_D, strict=True) if has]
    if not domains:
        return [], None
    pairs = [(_gains(tables, domain, 2), _gains(tables, domain, 1)) for domain in domains]
    return domains, Quotients.of(pairs)


def changes_in_points(tables: Sequence[Table]) -> Quotients:
    """The student's change over the base in every domain."""
    return Quotients.of_means([_gains(tables, domain, 2) for domain in tables[0].answers])


def _gains(tables: Sequence[Table], domain: str, row: int) -> Float64:
    """By question, ``(N, Q)``: teacher (1) or student (2) less the base."""
    return np.stack([table.answers[domain][row] - table.answers[domain][0] for table in tables])


def measure(tables: Sequence[Table], *, looks: int = 1) -> Measured:
    """The metrics against base and teachers, with 95% intervals.

    Args:
        tables: of runs that differ in nothing but the seed and answered the same questions in the same order.
        looks: how many such rows are looked at together: ``points_at_once`` holds for all of their domains.
    """
    domains = list(tables[0].answers)
    defined_D = np.logical_and.reduce([table.defined for table in tables])
    each = [_plain_metrics(table, defined_D) for table in tables]
    values = {name: plain(np.mean([metrics[name] for metrics in each], axis=0), domains) for name in each[0]}
    points = changes_in_points(tables)
    scores = Quotients.of_means([np.stack([table.answers[d][2] for table in tables]) for d in domains])
    intervals: dict[str, Any] = {
        "points": _by_domain(domains, points.ends(), within=(-1.0, 1.0)),
        "points_at_once": _by_domain(domains, points.ends(TAIL / len(domains) / looks), within=(-1.0, 1.0)),
        "scores": _by_domain(domains, scores.ends(), within=(0.0, 1.0)),
    }
    with_recovery, quotients = recoveries(tables)
    recovered = {} if quotients is None else _by_domain(with_recovery, quotients.ends())
    intervals |= {"recovery": dict.fromkeys(domains) | recovered} | _means(quotients)
    values["pooled_recovery"] = None if quotients is None else float(quotients.pooled().values[0])
    extremes: dict[str, Extreme | None] = {
        name: None if quotients is None else extreme_of(quotients) for name, extreme_of in EXTREMES.items()
    }
    extremes["max_regression"] = most_lost(points)
    for name, extreme in extremes.items():
        values[f"{name}_estimate"] = None if extreme is None else extreme.estimate
        intervals[name] = None if extreme is None else [extreme.low, extreme.high]
    values["worst_by_seed"] = values.pop("worst_by_seed_estimate")
    return Measured(values, intervals)


EXTREMES: Mapping[str, Callable[[Quotients], Extreme]] = {
    "worst_recovery": least,
    "worst_by_seed": mean_of_least,
    "imbalance": span_of,
    "pareto_gap": mean_gap,
}
"""What depends on the worst recovery, by name."""


def _means(quotients: Quotients | None) -> dict[str, Any]:
    """The intervals of the mean recovery and of the pooled one."""
    if quotients is None:
        return {"mean_recovery": None, "pooled_recovery": None}
    several = len(quotients.questions_K)
    mean = quotients.contrast_ends(np.full((1, several), 1 / several))
    both = {"mean_recovery": mean, "pooled_recovery": quotients.pooled().ends()}
    return {name: [float(low_1[0]), float(high_1[0])] for name, (low_1, high_1) in both.items()}


def _by_domain(
    domains: Sequence[str], ends: tuple[Float64, Float64], within: tuple[float, float] = (-np.inf, np.inf)
) -> dict[str, Any]:
    """``within``: what there can be; Student's t of a few seeds or questions knows of no bounds."""
    pairs = zip(domains, *np.clip(ends, *within), strict=True)
    return {d: [float(low), float(high)] for d, low, high in pairs}


def _plain_metrics(table: Table, defined_D: npt.NDArray[np.bool_]) -> dict[str, Float64]:
    """The measures of one run, by their definitions."""
    base_D, teacher_D, student_D = table.means
    recovery_D = seesaw.recovery(student_D, base_D, teacher_D, defined_D=defined_D)
    return {
        "points": student_D - base_D,
        "recovery": recovery_D,
        "mean_recovery": seesaw.mean_recovery(recovery_D),
        "worst_recovery": seesaw.worst_recovery(recovery_D),
        "imbalance": seesaw.imbalance(recovery_D),
        "max_regression": seesaw.max_regression(student_D, base_D),
        "pareto_gap": seesaw.pareto_gap(recovery_D),
        "scores": student_D,
    }


def metrics(table: Table) -> dict[str, Any]:
    """The metrics of one run, as seesaw.json has them; per-domain ones are dicts, undefined ones None."""
    values = measure([table]).values
    return {name: values[name] for name in METRICS}


def metrics_ci(table: Table) -> dict[str, Any]:
    """95% intervals of :func:`metrics` over questions: metric -> ``[low, high]``, or domain -> that; None undefined.

    Which domains have a recovery is decided on the point estimates and held fixed.
    """
    intervals = measure([table]).intervals
    return {name: intervals[name] for name in AGAINST_TEACHERS}
