"""Which of a run's evaluations is its result: the one whose worst domain is surest, on validation prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mopd.distill.metrics.against_teachers import Table, changes_in_points, recoveries
from mopd.distill.metrics.differences import recovery_differences
from mopd.distill.metrics.extremes import difference_of_least, least
from mopd.distill.metrics.power import questions_to_tell
from mopd.distill.metrics.quotients import TAIL, Quotients
from mopd.distill.metrics.results import Rows, TeacherWeights, paired_table


@dataclass(frozen=True, slots=True)
class Selected:
    """A chosen step.

    Attributes:
        step: finished steps of the weights that are the run's result.
        by: ``last``; ``worst_recovery`` (of the domains that have one); or, where no domain has a recovery because no
            teacher is clearly better than the base, ``worst_points``: the least change of score over the base.
        value: that of the chosen step, on validation; a fraction. None for ``last``.
        bound: the lower end of its 95% interval, which is the highest of all steps: what was chosen by. None for
            ``last``, and in results of older versions, which chose by ``value``.
        among: how many steps there were to choose from.
        as_good: how many of the others chance may have put behind it.
        needed: validation prompts a domain that would tell it from the next best, were they ten points apart; None
            where there is no other.
    """

    step: int
    by: Literal["last", "worst_recovery", "worst_points"]
    value: float | None = None
    bound: float | None = None
    among: int | None = None
    as_good: int | None = None
    needed: int | None = None


@dataclass(frozen=True, slots=True)
class _Candidate:
    step: int
    table: Table
    judged: Quotients
    bound: float


def select_step(grouped: Rows, teachers: TeacherWeights) -> Selected | None:
    """The step whose worst domain has the highest lower end on validation; of equal ones the later.

    None before the first evaluation. Step 0 is the base and no candidate. Whether a domain has a recovery depends on
    base and teachers alone, so all steps are judged by the same number. A lower end is not taken in by a domain that
    was lucky; the best of several is too good by chance all the same: that is why it is chosen on validation and
    reported on test prompts, and why ``as_good`` says how many others might be it.

    Args:
        teachers: the trained domains with their teachers' weights, empty where they have none.

    Source: MOPD paper, arXiv 2606.30406: recovery; one checkpoint for all domains, never the best per benchmark.
    """
    steps = sorted(step for model, step, split in grouped if (model, split) == ("student", "validation") and step)
    tables = [(step, paired_table(grouped, "validation", teachers, student_step=step)) for step in steps]
    candidates = [_candidate(step, table) for step, table in tables if table is not None]
    if not candidates:
        return None
    ranked = sorted(candidates, key=lambda candidate: (candidate.bound, candidate.step), reverse=True)
    best, *others = ranked
    domains, _ = recoveries([best.table])
    return Selected(
        step=best.step,
        by="worst_recovery" if domains else "worst_points",
        value=float(best.judged.values.min()),
        bound=best.bound,
        among=len(candidates),
        as_good=sum(_may_be_better(other, best, domains, looks=len(others)) for other in others),
        needed=questions_to_tell(_difference(others[0], best, domains), bar=0.0) if others else None,
    )


def _candidate(step: int, table: Table) -> _Candidate:
    _, recovered = recoveries([table])
    judged = changes_in_points([table]) if recovered is None else recovered
    return _Candidate(step, table, judged, least(judged).low)


def _may_be_better(other: _Candidate, best: _Candidate, domains: Sequence[str], *, looks: int) -> bool:
    between = _difference(other, best, domains)
    return difference_of_least(other.judged, best.judged, between, TAIL / looks).high > 0


def _difference(other: _Candidate, best: _Candidate, domains: Sequence[str]) -> Quotients:
    """By domain, paired by question: in recovery, or in points where no domain has one."""
    if domains:
        return recovery_differences([other.table], [best.table], domains)
    pairs = zip(other.table.answers.values(), best.table.answers.values(), strict=True)
    return Quotients.of_means([np.asarray(a_3Q[2] - b_3Q[2])[None] for a_3Q, b_3Q in pairs])
