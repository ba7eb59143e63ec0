"""Differences between two methods on the same questions, seed by seed: in points by domain, and in recovery.

Shape legend: N seeds, Q questions of a domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mopd.distill.metrics.against_teachers import Table, recoveries
from mopd.distill.metrics.extremes import Extreme, difference_of_least
from mopd.distill.metrics.quotients import TAIL, Quotients
from mopd.distill.metrics.seesaw import Float64


@dataclass(frozen=True, slots=True)
class Differences:
    """One method less another, each with its interval.

    Attributes:
        points: domain -> the students' scores; the intervals hold for all domains and rows together.
        worst_recovery: the least of the domains' mean recoveries; None where no domain has a recovery in both.
        mean_recovery: over the domains that have one in both.
    """

    points: Mapping[str, Extreme]
    worst_recovery: Extreme | None
    mean_recovery: Extreme | None


def differences(first: Sequence[Table], second: Sequence[Table], *, looks: int = 1) -> Differences:
    """``first`` less ``second``, with 95% intervals.

    Args:
        first, second: a table a seed, the same seeds in the same order; all answered the same questions in one order.
        looks: how many others there are besides ``second``, which may have been picked for being the best of all. A
            row is called ahead of all others wrongly in at most 5% of cases then (J. Hsu, Ann. Stat. 9 (1981)
            1026-1034); the intervals of ``points`` hold for all pairs of rows.
    """
    domains = list(first[0].answers)
    students = [_students(first, domain) - _students(second, domain) for domain in domains]
    points = Quotients.of_means(students)
    pairs = looks * (looks + 1) // 2
    low_D, high_D = np.clip(points.ends(TAIL / len(domains) / pairs), -1.0, 1.0)
    shared = [d for d in recoveries(first)[0] if d in recoveries(second)[0]]
    worst = mean = None
    if shared:
        between = recovery_differences(first, second, shared)
        of_first, of_second = (recoveries([_only(table, shared) for table in tables])[1] for tables in (first, second))
        assert of_first is not None
        assert of_second is not None
        worst = difference_of_least(of_first, of_second, between, TAIL / looks)
        low_1, high_1 = between.contrast_ends(np.full((1, len(shared)), 1 / len(shared)), TAIL / looks)
        mean = Extreme(float(between.values.mean()), float(low_1[0]), float(high_1[0]))
    by_domain = zip(domains, points.values, low_D, high_D, strict=True)
    return Differences({d: Extreme(float(v), float(low), float(high)) for d, v, low, high in by_domain}, worst, mean)


def recovery_differences(first: Sequence[Table], second: Sequence[Table], domains: Sequence[str]) -> Quotients:
    """Recovery of ``first`` less that of ``second``, by domain.

    Seeds that share base and teachers differ in their students alone, over one headroom. Others are each measured by
    their own, to first order.
    """
    pairs: list[tuple[Float64, Float64]] = []
    for d in domains:
        both = [(a.answers[d], b.answers[d]) for a, b in zip(first, second, strict=True)]
        if all(np.array_equal(a_3Q[:2], b_3Q[:2]) for a_3Q, b_3Q in both):  # not per token
            gains = np.stack([a_3Q[2] - b_3Q[2] for a_3Q, b_3Q in both])
            pairs.append((gains, np.stack([a_3Q[1] - a_3Q[0] for a_3Q, _ in both])))
        else:
            linear = np.stack([_linear(a_3Q) - _linear(b_3Q) for a_3Q, b_3Q in both])
            pairs.append((linear, np.ones_like(linear)))
    return Quotients.of(pairs)


def _linear(answers_3Q: Float64) -> Float64:
    """What each question says of the recovery, to first order, ``(Q,)``; its mean is the recovery."""
    base_Q, teacher_Q, student_Q = answers_3Q
    gain_Q, headroom_Q = student_Q - base_Q, teacher_Q - base_Q
    headroom = headroom_Q.mean()
    recovery = gain_Q.mean() / headroom
    return recovery + (gain_Q - recovery * headroom_Q) / headroom


def _students(tables: Sequence[Table], domain: str) -> Float64:
    return np.stack([table.answers[domain][2] for table in tables])


def _only(table: Table, domains: Sequence[str]) -> Table:
    return Table({d: table.answers[d] for d in domains})
