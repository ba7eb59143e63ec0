"""Students that are made of other checkpoints: the end of a chain of stages, and specialists merged into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.metrics.results import group
from mopd.distill.metrics.selection import select_step
from mopd.distill.models.load import load_model
from mopd.distill.models.merging import merge_weights
from mopd.distill.recipe import MergeRecipe
from mopd.distill.storage import publish, remove
from mopd.distill.student.checkpoint import export_hf
from mopd.distill.types import Metrics, UserError
from mopd.recipes.resolve.damage import refuse_damaged
from mopd.rollouts.engines.base import FrozenModel


@dataclass(frozen=True, slots=True)
class MakingJob:
    """What a student is made of, and how candidates for it are measured.

    Attributes:
        folder: the run's; what is made lies in it.
        attempt: the id that owns ``folder``.
        base: the checkpoint that the recipe's student starts from.
        teachers: the checkpoints of its teachers, by name.
        chain: the checkpoints of the student's chain of stages, first to last, by the steps trained until then.
        taught: for each trained domain its teachers, with weights that sum to 1.
        merge: the recipe's section of that name.
        measure: ``measure(model, folder, step)`` evaluates a checkpoint on validation prompts, unless that was done;
            what is measured as ``student`` is logged as a point of its curve.
        rows: every answer so far, of all models.
        adopt: ``adopt(candidate, step, metrics)`` takes the answers of a candidate as the student's at ``step``, and
            logs ``metrics`` with them.
        select: the student's step that is the result, of those measured; its argument where none was, or where the
            recipe says the last.
    """

    folder: Path
    attempt: str
    base: FrozenModel
    teachers: Mapping[str, FrozenModel]
    chain: Mapping[int, str]
    taught: Mapping[str, Mapping[str, float]]
    merge: MergeRecipe
    measure: Callable[[str, str, int], None]
    rows: Callable[[], Sequence[Evaluation]]
    adopt: Callable[[str, int, Metrics], None]
    select: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class MadeStudent:
    """The student that was made: the run measures it on test prompts, and its result is a copy of it.

    Attributes:
        folder: its checkpoint.
        step: the step that it has in the run's results; the base's is 0.
        steps: the steps that the result stands for.
    """

    folder: str
    step: int
    steps: int


def cascade(job: MakingJob) -> MadeStudent:
    """Measure every link of the student's chain of stages; the selected one is the result.

    The curve of a cascade has a point after each link; its steps are those of all links so far.
    """
    for step, folder in job.chain.items():
        job.measure("student", folder, step)
    last = max(job.chain)
    chosen = job.select(last)
    return MadeStudent(job.chain[chosen], step=chosen, steps=last)


def merge(job: MakingJob) -> MadeStudent:
    """Merge the teachers at every strength and measure each; the one whose worst domain is best is the result.

    Weights are held whole in memory, base and teachers at a time, which is not done in parts.
    """
    folders = {strength: _merged(job, strength) for strength in _strengths(job)}
    for strength, folder in folders.items():
        job.measure(f"candidates/{strength:g}", folder, 0)
    chosen = _best(job, list(folders))
    job.adopt(f"candidates/{chosen:g}", 1, {"merge_strength": chosen})
    return MadeStudent(folders[chosen], step=1, steps=1)


def _strengths(job: MakingJob) -> tuple[float, ...]:
    """What the sum of the teachers' changes is multiplied by: one number for the average, all that are tried else."""
    teachers = {name for weights in job.taught.values() for name in weights}
    return (1 / len(teachers),) if job.merge.how == "average" else job.merge.strengths


def _merged(job: MakingJob, strength: float) -> str:
    """The merged checkpoint at a strength; made where it is not there."""
    final = job.folder / "candidates" / f"{strength:g}"
    if final.is_dir():
        refuse_damaged(final, "remove that folder, and the same command makes it again")
        return str(final)
    base, *models = (
        load_model(
            model.path,
            device="cpu",
            dtype="float32",
            adapter=model.adapter,
            trust_remote_code=model.trust_remote_code,
        )
        for model in (job.base, *job.teachers.values())
    )
    try:
        state = merge_weights(base.state_dict(), [model.state_dict() for model in models], strength)
    except ValueError as error:
        raise UserError(f"teachers {', '.join(job.teachers)} cannot be merged into their base: {error}") from error
    temporary = Path(f"{final}.tmp-{job.attempt}")
    remove(temporary)
    export_hf(temporary, state_dict=state, model=base, source=job.base.path, own_code=job.base.trust_remote_code)
    publish(job.folder, job.attempt, temporary, final)
    return str(final)


def _best(job: MakingJob, strengths: Sequence[float]) -> float:
    """The strength with the best worst domain on validation; candidates are judged like steps of a student."""
    answers = dict(group(job.rows()))
    for i, strength in enumerate(strengths, start=1):
        answers["student", i, "validation"] = answers[f"candidates/{strength:g}", 0, "validation"]
    best = select_step(answers, job.taught)
    assert best is not None, "every candidate was measured"
    return strengths[best.step - 1]
