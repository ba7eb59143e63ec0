"""Methods whose student is not trained by the run: the end of a chain of stages, and specialists merged into one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from mopd.distill.errors import Interrupted
from mopd.distill.metrics.evaluate import Split
from mopd.distill.metrics.results import group
from mopd.distill.metrics.selection import select_step
from mopd.distill.models.load import load_model
from mopd.distill.models.merging import merge_weights
from mopd.distill.recipe import Recipe
from mopd.distill.storage import publish, remove
from mopd.distill.student.checkpoint import export_hf
from mopd.distill.types import Metrics, UserError
from mopd.recipes.evaluation.evaluator import Evaluator
from mopd.recipes.resolve.methods import decoding
from mopd.recipes.resolve.stages import stage_folder
from mopd.recipes.resolve.teachers import adapter_folders
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.job import Training
from mopd.rollouts.engines.workers import SamplerWorkers
from mopd.rollouts.sampler import StudentSampler

Ask: TypeAlias = Callable[[str, str, int, Split], Metrics]
"""Let the checkpoint at a path sit the exam: its name, the path, the step, the split."""


def cascade(job: Training, context: RunContext) -> int:
    """Measure every link of the student's chain of stages on validation, and the selected one on test; export it.

    The curve of a cascade has a point after each link; its steps are those of all links so far.

    Returns:
        the steps of the whole chain.
    """
    recipe, evaluator = job.resolved.recipe, _exam(job)
    folders: dict[int, str] = {}
    step = 0
    for name in job.resolved.links:
        step += recipe.stages[name].steps
        folders[step] = str(stage_folder(job.folder, name) / "student")
    with asking(job, context) as ask:
        for at, folder in folders.items():
            metrics = ask("student", folder, at, "validation")
            if metrics:
                job.tracker.log("eval", at, metrics)
        chosen = evaluator.selected(step).step
        ask("student", folders[chosen], chosen, "test")
    _publish(job, folders[chosen])
    return step


def merge(job: Training, context: RunContext) -> int:
    """Merge the teachers at every strength, measure each on validation, and the best on test; export that.

    The best is the one whose worst domain is (:func:`select_step`). Weights are held whole in memory,
    base and teachers at a time, which is not done in parts.

    Returns:
        1, the step that the student has in the run's results; the base's is 0.
    """
    recipe, evaluator = job.resolved.recipe, _exam(job)
    folders = {strength: _merged(job, strength) for strength in strengths(recipe)}
    with asking(job, context) as ask:
        for strength, folder in folders.items():
            ask(f"candidates/{strength:g}", folder, 0, "validation")
        chosen = _best(recipe, evaluator, list(folders))
        if not evaluator.taken("student", 1, "validation"):
            answers = [replace(one, model="student", step=1) for one in evaluator.answers(f"candidates/{chosen:g}")]
            evaluator.take_over(answers)
            taught = {name: domain.teacher_weights for name, domain in recipe.trained_domains.items()}
            job.tracker.log("eval", 1, {"merge_strength": chosen, **evaluator.against_teachers(taught)})
        ask("student", folders[chosen], 1, "test")
    _publish(job, folders[chosen])
    return 1


UNTRAINED: dict[str, Callable[[Training, RunContext], int]] = {"cascade": cascade, "merge": merge}
"""By the name of the method; each returns the number of steps that its result stands for."""


def strengths(recipe: Recipe) -> tuple[float, ...]:
    """What the sum of the teachers' changes is multiplied by: one number for the average, all that are tried else."""
    taught = {name for domain in recipe.trained_domains.values() for name in domain.teacher_weights}
    return (1 / len(taught),) if recipe.merge.how == "average" else recipe.merge.strengths


@contextmanager
def asking(job: Training, context: RunContext) -> Iterator[Ask]:
    """Processes that hold one checkpoint after another and write its answers; what was answered is not asked again.

    Raises:
        Interrupted: somebody asked the run to stop; answers so far are kept.
    """
    recipe, evaluator = job.resolved.recipe, _exam(job)
    how = decoding(recipe, job.tokenizer)
    sampler = StudentSampler(how, samples_per_prompt=1, batch_size=recipe.rollout.batch_size)
    engine = recipe.student.engine
    processes = max(2, engine.ranks) if context.device == "cpu" else engine.ranks
    workers = SamplerWorkers(processes, device=context.device, dtype=job.resolved.dtype, gpus=context.gpus)
    held: list[str] = []

    def ask(model: str, folder: str, step: int, split: Split) -> Metrics:
        if context.stop.is_set():
            raise Interrupted("stopped while models were measured")
        if evaluator.taken(model, step, split):
            return {}
        if held != [folder]:
            workers.load(folder, trust_remote_code=recipe.student.trust_remote_code)
            held[:] = [folder]
        sampler.load_weights(workers, version=step)
        return evaluator.take(model, step=step, split=split, sampler=sampler)

    try:
        yield ask
    finally:
        workers.close()


def _exam(job: Training) -> Evaluator:
    assert job.evaluator is not None, "a stage is always trained"
    return job.evaluator


def _merged(job: Training, strength: float) -> str:
    """The merged checkpoint at a strength; made where it is not there."""
    final = job.folder / "candidates" / f"{strength:g}"
    if final.is_dir():
        return str(final)
    code, adapters = job.resolved.models["student.model"].trusted, adapter_folders(job.resolved.teachers)
    base = load_model(job.model, device="cpu", dtype="float32", trust_remote_code=code)
    models = [
        load_model(path, device="cpu", dtype="float32", adapter=adapters.get(name), trust_remote_code=code)
        for name, path in job.teachers.items()
    ]
    try:
        state = merge_weights(base.state_dict(), [model.state_dict() for model in models], strength)
    except ValueError as error:
        raise UserError(f"teachers {', '.join(job.teachers)} cannot be merged into their base: {error}") from error
    temporary = Path(f"{final}.tmp-{job.attempt}")
    remove(temporary)
    export_hf(temporary, state_dict=state, model=base, source=job.model, own_code=code)
    publish(job.folder, job.attempt, temporary, final)
    return str(final)


def _best(recipe: Recipe, evaluator: Evaluator, tried: list[float]) -> float:
    """The strength with the best worst domain on validation; candidates are judged like steps of a student."""
    answers = dict(group(evaluator.rows))
    for i, strength in enumerate(tried, start=1):
        answers["student", i, "validation"] = answers[f"candidates/{strength:g}", 0, "validation"]
    best = select_step(answers, {name: domain.teacher_weights for name, domain in recipe.trained_domains.items()})
    assert best is not None, "every candidate was measured"
    return tried[best.step - 1]


def _publish(job: Training, folder: str) -> None:
    """The run's result is a copy of a checkpoint."""
    temporary = Path(f"{job.folder / 'student'}.tmp-{job.attempt}")
    remove(temporary)
    shutil.copytree(folder, temporary)
    publish(job.folder, job.attempt, temporary, job.folder / "student")
