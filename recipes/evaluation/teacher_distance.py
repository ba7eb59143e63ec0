"""At each evaluation the student writes on a few validation prompts as in training, and its teachers grade it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.metrics.teacher_distance import OVERLAP_K, distance_metrics
from mopd.distill.payloads import Support
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import Metrics, PayloadName, Prompt, Sampler
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.evaluator import Evaluator
from mopd.recipes.resolve.resolved import Resolved
from mopd.rollouts.sampler import recording
from mopd.teachers.pool import TeacherPool

FAULTS = ("teacher_retries/", "teacher_swaps/")
"""How the metrics begin that tell of what a teacher's processes went through."""


class Setting(Protocol):
    """What of a training run the grading needs."""

    @property
    def resolved(self) -> Resolved:
        """The run's recipe."""
        ...

    @property
    def evaluator(self) -> Evaluator | None:
        """Where the validation prompts are; a stage has none."""
        ...

    @property
    def tracker(self) -> Tracker:
        """Of the run."""
        ...

    @property
    def costs(self) -> Costs:
        """Of the run."""
        ...


def held_out(run: Setting, teachers: TeacherPool | None) -> HeldOut | None:
    """The grading of a run; None for a stage, without teachers, and where the recipe asks for no prompts."""
    n = run.resolved.recipe.evaluate.graded_prompts
    if run.evaluator is None or teachers is None or n == 0:
        return None
    questions = run.evaluator.prompts["validation"]
    prompts = [p for name, weights in run.resolved.routes.items() if weights for p in questions[name][:n]]
    return HeldOut(prompts, teachers, payload=payload_to_ask(run.resolved.loss), tracker=run.tracker, costs=run.costs)


def payload_to_ask(loss: BoundLoss) -> PayloadName:
    """What tells the teachers' likeliest tokens, where the loss' payload does; else what the KL needs."""
    if loss.support is not None:
        return "topk" if loss.support.k >= OVERLAP_K and loss.support.whose != "student" else "sampled"
    return "full" if loss.payload == "full" else "sampled"


class HeldOut:
    """Grades what is not trained on; its cost is an exam's."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        teachers: TeacherPool,
        *,
        payload: PayloadName,
        tracker: Tracker,
        costs: Costs,
    ) -> None:
        self._prompts, self._teachers = prompts, teachers
        self._payload: PayloadName = payload
        self._tracker, self._costs = tracker, costs

    def take(self, step: int, eval_sampler: Sampler) -> Metrics:
        """Of the weights that ``eval_sampler`` was given last; see :func:`distance_metrics`."""
        start = time.perf_counter()
        sampler = recording(eval_sampler, Support(OVERLAP_K, forced=()))
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
