"""At each evaluation the student writes on a few validation prompts as in training, and its teachers grade it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.metrics.teacher_distance import OVERLAP_K, distance_metrics
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import Metrics, PayloadName, Prompt, Sampler
from mopd.recipes.evaluation.costs import Costs
from mopd.teachers.pool import TeacherPool

FAULTS = ("teacher_retries/", "teacher_swaps/")
"""How the names of the metrics begin that say what a teacher's processes went through."""


def payload_to_ask(loss: BoundLoss) -> PayloadName:
    """What tells the teachers' likeliest tokens, where the loss' payload does; else what the KL needs."""
    if loss.support is not None:
        return "topk" if loss.support.k >= OVERLAP_K and loss.support.whose != "student" else "sampled"
    return "full" if loss.payload == "full" else "sampled"


class TeacherDistance:
    """Has the teachers grade what is not trained on; its cost is an evaluation's.

    Args:
        prompts: held-out prompts of domains that teachers grade.
        teachers: the run's.
        payload: what they are asked for; see :func:`payload_to_ask`.
        tracker: writes the cost down.
        costs: counts it.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        teachers: TeacherPool,
        *,
        payload: PayloadName,
        tracker: Tracker,
        costs: Costs,
    ) -> None:
        self._prompts = prompts
        self._teachers = teachers
        self._payload: PayloadName = payload
        self._tracker = tracker
        self._costs = costs

    def measure(self, step: int, sampler: Sampler) -> Metrics:
        """Of the weights that ``sampler`` was given last; see :func:`distance_metrics`.

        Args:
            sampler: writes one completion a prompt, and records the student's likeliest tokens where it can.
        """
        start = time.perf_counter()
        batch = self._teachers.score(sampler.sample(self._prompts, step=step), asking=self._payload)
        lost = {name: n for name, n in self._teachers.metrics().items() if name.startswith(FAULTS) and n}
        spent = self._costs.of_step(batch)
        row = {
            "model": "student",
            "step": step,
            "split": "held_out",
            "tokens": spent["tokens/generation"],
            "flops": sum(n for name, n in spent.items() if name.startswith("flops/") and name != "flops/update"),
            "seconds": round(time.perf_counter() - start, 3),
        }
        self._tracker.append_rows("exams", [row])
        return distance_metrics(batch) | lost
