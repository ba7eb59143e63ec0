"""A run whose student is made of other checkpoints: its candidates are measured, and the result is a copy of one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from mopd.distill.errors import Interrupted
from mopd.distill.metrics.evaluate import Split
from mopd.distill.storage import publish, remove
from mopd.distill.types import Metrics
from mopd.recipes.resolve.merge_and_cascade import MakingJob
from mopd.recipes.resolve.methods import MadeMethod
from mopd.recipes.resolve.stages import stage_folder
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.job import Training
from mopd.rollouts.engines.base import FrozenModel


def make_student(method: MadeMethod, job: Training, context: RunContext) -> int:
    """Make the student as ``method`` does, measure it on test prompts and export it to ``student/``.

    Returns:
        The steps that the result stands for.

    Raises:
        Interrupted: somebody asked the run to stop; answers so far are kept.
    """
    recipe, evaluator = job.resolved.recipe, job.evaluator
    assert evaluator is not None, "a stage is always trained"
    taught = {name: domain.teacher_weights for name, domain in recipe.trained_domains.items()}
    code = recipe.student.trust_remote_code
    with ExitStack() as closing:
        samplers = job.samplers(context, closing)

        def evaluate(model: str, folder: str, step: int, split: Split) -> Metrics:
            if context.stop.is_set():
                raise Interrupted("stopped while models were measured")
            if evaluator.has_evaluated(model, step, split):
                return {}
            sampler = samplers.of(FrozenModel(folder, trust_remote_code=code))
            return evaluator.evaluate(model, step=step, split=split, sampler=sampler)

        def measure(model: str, folder: str, step: int) -> None:
            metrics = evaluate(model, folder, step, "validation")
            if metrics and model == "student":
                job.tracker.log("eval", step, metrics)
                context.report_soon()

        def adopt(candidate: str, step: int, metrics: Metrics) -> None:
            if not evaluator.has_evaluated("student", step, "validation"):
                answers = [replace(row, model="student", step=step) for row in evaluator.answers(candidate)]
                files = evaluator.files(candidate, 0)
                evaluator.take_over(answers, {"validation": files["validation"]})
                job.tracker.log("eval", step, {**metrics, **evaluator.against_teachers()})

        made = method.make(
            MakingJob(
                folder=job.folder,
                attempt=job.attempt,
                base=FrozenModel(job.model, trust_remote_code=code),
                teachers=job.frozen,
                chain=_chain(job.folder, {name: recipe.stages[name].steps for name in job.resolved.links}),
                taught=taught,
                merge=recipe.merge,
                measure=measure,
                rows=lambda: evaluator.rows,
                adopt=adopt,
                select=lambda last: evaluator.selected(last).step,
            )
        )
        evaluate("student", made.folder, made.step, "test")
    temporary = Path(f"{job.folder / 'student'}.tmp-{job.attempt}")
    remove(temporary)
    shutil.copytree(made.folder, temporary)
    for name, content in job.card().items():
        (temporary / name).write_bytes(content)
    publish(job.folder, job.attempt, temporary, job.folder / "student")
    return made.steps


def _chain(folder: Path, steps: Mapping[str, int]) -> dict[int, str]:
    """The checkpoints of a chain of stages by the steps trained until then; ``steps`` of each stage, first to last."""
    total = accumulate(steps.values())
    return {step: str(stage_folder(folder, name) / "student") for name, step in zip(steps, total, strict=True)}
