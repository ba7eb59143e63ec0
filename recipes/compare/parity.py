"""Compute to parity in a comparison: what a row needs to reach what distillation did, teachers counted or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mopd.distill.metrics.compute_to_parity import TOLERANCE, Curves, Parity, parity
from mopd.recipes.compare.cost import Cost
from mopd.recipes.compare.groups import Group
from mopd.recipes.report.data import Row

Points = Sequence[Mapping[str, Any]]
"""A run's curve: :func:`recipes.compare.cost.compute_curve`."""


def add_parity(
    rows: Sequence[dict[str, Any]], groups: Sequence[Group], curves: Mapping[str, Points], domains: Sequence[str]
) -> dict[str, Any]:
    """Give every row its ``parity``, in the order of its group; returns what is told of all of them.

    Args:
        curves: by run.
    """
    reference = _reference(rows)
    wanted = _curves(groups[reference], curves, domains)
    levels: dict[str, float] = {}
    for row, one in zip(rows, groups, strict=True):
        found = parity(_curves(one, curves, domains), wanted)
        levels = {name: told.level for name, told in found.items()}
        row["parity"] = {name: _told(told, row["cost"], rows[reference]["cost"]) for name, told in found.items()}
    return {"reference": rows[reference]["name"], "tolerance": TOLERANCE, "levels": levels}


def _reference(rows: Sequence[Row]) -> int:
    """The row whose score is to be reached: of those that distil the one with the best worst domain, or of all."""
    distilled = [i for i, row in enumerate(rows) if row["method"] == "mopd"] or list(range(len(rows)))

    def worst(i: int) -> float:
        value = rows[i]["metrics"]["worst_recovery"]
        return -math.inf if value is None else value

    return max(distilled, key=worst)


def _curves(one: Group, curves: Mapping[str, Points], domains: Sequence[str]) -> Curves:
    """The row's curves at the steps that every seed was measured at; questions in one order for all rows."""
    by_step = [{point["step"]: point["flops"] for point in curves[run.name]} for run in one.runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    answers = {}
    for domain in domains:
        given = [[run.answers["student", step, "validation"][domain] for step in steps] for run in one.runs]
        order = sorted(given[0][0])
        answers[domain] = np.array([[[answer[q] for q in order] for answer in of_run] for of_run in given])
    return Curves(one.seeds, np.array([[flops[step] for step in steps] for flops in by_step]), answers)


def _told(found: Parity, cost: Mapping[str, Cost | None], reference: Mapping[str, Cost | None]) -> dict[str, Any]:
    made, theirs = cost["teachers"], reference["teachers"]
    with_teachers = None
    if made is not None and theirs is not None:
        with_teachers = _ratio(found, teachers=made["flops"], reference_teachers=theirs["flops"])
    return {
        "flops": _finite(found.flops),
        "spent": found.spent,
        "reached": found.reached_share,
        **_ratio(found),
        "with_teachers": with_teachers,
    }


def _ratio(found: Parity, *, teachers: float = 0.0, reference_teachers: float = 0.0) -> dict[str, Any]:
    offsets = {"teachers": teachers, "reference_teachers": reference_teachers}
    low, high = found.interval(**offsets)
    at_most = (found.spent + teachers) / whole if (whole := found.reference_flops + reference_teachers) else None
    return {
        "ratio": _finite(found.ratio(**offsets)),
        "ratio_ci": None if math.isnan(low) else [_finite(low), _finite(high)],
        "tried": at_most,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
