"""Compute to parity in a comparison: what a row needs to reach what distillation did, teachers counted or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mopd.distill.metrics.compute_to_parity import TOLERANCE, Curves, Parity, parity
from mopd.recipes.compare.cost import ComputePoint, RunCost
from mopd.recipes.compare.groups import Group


class RatioEnds(NamedTuple):
    """The ends of a ratio's 95% interval; None where the level is never reached. A list of two in JSON."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ParityRatio:
    """Compute as a multiple of what the reference needs.

    Attributes:
        ratio: None where the level is never reached, is not above 0, or the reference needs nothing.
        ratio_ci, tried: the interval, and the ratio of the whole run; None where the reference needs nothing, or the
            level is not above 0.
    """

    ratio: float | None
    ratio_ci: RatioEnds | None
    tried: float | None


@dataclass(frozen=True, slots=True)
class RowParity:
    """What a row computes to reach a level.

    Attributes:
        flops: None where it never does in its whole run, which took ``spent``.
        reached: the part of the resamples in which it does.
        ratio, ratio_ci, tried: as in :class:`ParityRatio`, of training alone.
        with_teachers: the same with the making of both rows' teachers; None where that is unknown.
    """

    flops: float | None
    spent: float
    reached: float
    ratio: float | None
    ratio_ci: RatioEnds | None
    tried: float | None
    with_teachers: ParityRatio | None


@dataclass(frozen=True, slots=True)
class ParityTarget:
    """What is to be reached: the row ``reference``, and its last validation scores less ``tolerance``, by measure."""

    reference: str
    tolerance: float
    levels: Mapping[str, float]


def compute_parity(
    groups: Sequence[Group],
    worst: Mapping[str, float | None],
    costs: Mapping[str, RunCost],
    curves: Mapping[str, Sequence[ComputePoint]],
    domains: Sequence[str],
) -> tuple[ParityTarget, dict[str, dict[str, RowParity]]]:
    """What is to be reached; and by row and measure what that takes.

    Args:
        worst: recovery in the worst domain, by row; None where undefined.
        costs: by row.
        curves: by run.
    """
    reference = _reference(groups, worst)
    wanted = _curves(reference, curves, domains)
    levels: dict[str, float] = {}
    rows: dict[str, dict[str, RowParity]] = {}
    for group in groups:
        measured = parity(_curves(group, curves, domains), wanted)
        levels = {name: of_measure.level for name, of_measure in measured.items()}
        rows[group.name] = {
            name: _row_parity(of_measure, costs[group.name], costs[reference.name])
            for name, of_measure in measured.items()
        }
    return ParityTarget(reference.name, TOLERANCE, levels), rows


def _reference(groups: Sequence[Group], worst: Mapping[str, float | None]) -> Group:
    """The row whose score is to be reached: of those that distil the one with the best worst domain, or of all."""

    def worst_of(group: Group) -> float:
        value = worst[group.name]
        return -math.inf if value is None else value

    return max([group for group in groups if group.method == "mopd"] or groups, key=worst_of)


def _curves(group: Group, curves: Mapping[str, Sequence[ComputePoint]], domains: Sequence[str]) -> Curves:
    """The row's curves at the steps that every seed was measured at; questions in one order for all rows."""
    by_step = [{point.step: point.flops for point in curves[run.name]} for run in group.runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    answers = {}
    for domain in domains:
        given = [[run.answers["student", step, "validation"][domain] for step in steps] for run in group.runs]
        order = sorted(given[0][0])
        answers[domain] = np.array([[[answer[q] for q in order] for answer in of_run] for of_run in given])
    return Curves(group.seeds, np.array([[flops[step] for step in steps] for flops in by_step]), answers)


def _row_parity(measured: Parity, cost: RunCost, reference: RunCost) -> RowParity:
    alone, with_teachers = _ratio(measured), None
    if cost.teachers is not None and reference.teachers is not None:
        with_teachers = _ratio(measured, teachers=cost.teachers.flops, reference_teachers=reference.teachers.flops)
    return RowParity(
        flops=_finite(measured.flops),
        spent=measured.spent,
        reached=measured.reached_share,
        ratio=alone.ratio,
        ratio_ci=alone.ratio_ci,
        tried=alone.tried,
        with_teachers=with_teachers,
    )


def _ratio(measured: Parity, *, teachers: float = 0.0, reference_teachers: float = 0.0) -> ParityRatio:
    if measured.level <= 0:  # a score of 0 is reached by whoever has not begun
        return ParityRatio(ratio=None, ratio_ci=None, tried=None)
    low, high = measured.interval(teachers=teachers, reference_teachers=reference_teachers)
    whole = measured.reference_flops + reference_teachers
    return ParityRatio(
        ratio=_finite(measured.ratio(teachers=teachers, reference_teachers=reference_teachers)),
        ratio_ci=None if math.isnan(low) else RatioEnds(_finite(low), _finite(high)),
        tried=(measured.spent + teachers) / whole if whole else None,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
