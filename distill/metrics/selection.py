"""Which of a run's evaluations is its result: the one whose worst domain is best, on validation prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mopd.distill.metrics import seesaw
from mopd.distill.metrics.results import Rows, TeacherWeights, paired_table


@dataclass(frozen=True, slots=True)
class Selected:
    """A chosen step.

    Attributes:
        step: finished steps of the weights that are the run's result.
        by: ``last``; ``worst_recovery`` (of the domains that have one); or, where no domain has a recovery because no
            teacher is clearly better than the base, ``worst_points``: the least change of score over the base.
        value: what it was chosen by, on validation; a fraction. None for ``last``.
    """

    step: int
    by: Literal["last", "worst_recovery", "worst_points"]
    value: float | None = None


def select_step(grouped: Rows, teachers: TeacherWeights) -> Selected | None:
    """The step with the best worst domain on validation; of equal ones the later. None before the first evaluation.

    Step 0 is the base and no candidate. Whether a domain has a recovery depends on base and teachers alone, so all
    steps are judged by the same number. The best of several is too good by chance: that is why it is chosen on
    validation and reported on test prompts.

    Args:
        teachers: the trained domains with their teachers' weights, empty where they have none.

    Source: MOPD paper, arXiv 2606.30406: recovery; one checkpoint for all domains, never the best per benchmark.
    """
    best: Selected | None = None
    for step in sorted(step for model, step, split in grouped if (model, split) == ("student", "validation") and step):
        judged = _judged(grouped, teachers, step)
        if judged is not None and (best is None or _value(judged) >= _value(best)):
            best = judged
    return best


def _value(selected: Selected) -> float:
    assert selected.value is not None
    return selected.value


def _judged(grouped: Rows, teachers: TeacherWeights, step: int) -> Selected | None:
    table = paired_table(grouped, "validation", teachers, student_step=step)
    if table is None:
        return None
    base_D, teacher_D, student_D = table.means
    worst = float(seesaw.worst_recovery(seesaw.recovery(student_D, base_D, teacher_D, defined_D=table.defined)))
    if math.isnan(worst):
        return Selected(step, "worst_points", float((student_D - base_D).min()))
    return Selected(step, "worst_recovery", worst)
