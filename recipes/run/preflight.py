"""Every run before its first step: the teachers it will have grade a few rollouts of the student it will train."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.recipe import Recipe
from mopd.distill.storage import write_atomic
from mopd.distill.student.driver import DeepSpeedStudent
from mopd.distill.types import Float32, GradingFailed, NonFinite, Prompt, Rollout, RunError, Sampler
from mopd.recipes.resolve.sources import SELF
from mopd.recipes.run.findings import ROLLOUTS, Finding, findings_table, judge, refuse_unusable, unanswering
from mopd.teachers.dry_run import DryRun
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import TOLERANCE

if TYPE_CHECKING:
    from mopd.recipes.run.context import RunContext
    from mopd.recipes.run.job import Training

PREFLIGHT = "preflight.json"
"""In the run's folder: ``{"format": 1, "passed": true, "rollouts": 48, "seconds": 1.2, "findings": [{"teacher": ...,
"domain": ..., "verdict": ..., "reason": ..., "remedy": ...}]}``; keys may come, none goes."""
UNSTEADY = 0.1
"""A teacher whose answers differ by more than this part of its distance to the student teaches noise; our choice."""
FLOOR = 1e-3
"""Nats a token: how far apart answers may be whatever the distance, so that an anchor, at distance 0, is usable."""


def preflight(
    recipe: Recipe,
    out: Path,
    *,
    pool: TeacherPool,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    rows: Sequence[Evaluation],
    dtypes: Mapping[str, str],
    say: Callable[[Any], None],
) -> None:
    """Try every teacher out on rollouts of the student, and write the findings to ``preflight.json``.

    Nothing that a run computes depends on it: rollouts are keyed by their step, and nobody learns from these.

    Args:
        pool: the teachers, loaded.
        sampler: the student's, with the weights that it starts from.
        prompts: those of the first step; a few of each domain are taken.
        rows: answers of base and teachers to the validation prompts.
        dtypes: of each teacher, see :data:`teachers.scorer.TOLERANCE`.

    Raises:
        UserError: a teacher is unusable; the weights have not moved.
    """
    start = time.perf_counter()
    taught = {name: domain.teacher_weights for name, domain in recipe.trained_domains.items() if domain.teacher_weights}
    asked = [prompt for name in taught for prompt in [p for p in prompts if p.domain == name][:ROLLOUTS]]
    rollouts = [rollout for microbatch in sampler.sample(asked, step=0) for rollout in microbatch]
    findings: list[Finding] = []
    for teacher, settings in recipe.teachers.items():
        for domain in [name for name, weights in taught.items() if teacher in weights]:
            mine = [rollout for rollout in rollouts if rollout.domain == domain]
            anchor = settings.model == SELF and settings.adapter is None
            theirs = [] if anchor else _answers(rows, domain, f"teachers/{teacher}")
            scores = _answers(rows, domain, "base"), None if settings.scorer is not None else theirs
            findings.append(_tried(pool, teacher, domain, mine, TOLERANCE[dtypes[teacher]], *scores))
    say(findings_table(findings))
    told = {
        "format": 1,
        "passed": all(one.verdict != "unusable" for one in findings),
        "rollouts": len(rollouts),
        "seconds": round(time.perf_counter() - start, 3),
        "findings": [asdict(one) for one in findings],
    }
    write_atomic(out / PREFLIGHT, json.dumps(told, indent=2) + "\n")
    refuse_unusable(findings)


def before_first_step(
    training: Training, context: RunContext, pool: TeacherPool, student: DeepSpeedStudent, sampler: Sampler
) -> None:
    """Wait for the teachers of a run that is about to be trained, and try them out unless that was done before.

    Raises:
        RunError: a teacher has not come, or with fewer output tokens than the student's tokenizer has.
        UserError: as in :func:`preflight`.
    """
    from mopd.recipes.run.job import prompt_source  # which imports this file

    tokens = len(training.tokenizer)
    for name, size in pool.wait_until_ready().items():
        if size < tokens:
            raise RunError(f"teacher {name!r} has {size} output tokens, the student's tokenizer {tokens}")
    if training.evaluator is None or _passed(training.folder):
        return
    sampler.load_weights(student.weights(), version=0)
    preflight(
        training.resolved.recipe,
        training.folder,
        pool=pool,
        sampler=sampler,
        prompts=prompt_source(training.resolved.recipe, training.tasks, training.tokenizer, held_out=False)(0),
        rows=training.evaluator.rows,
        dtypes={name: training.resolved.teachers[name].dtype for name in training.teachers},
        say=context.progress.print,
    )


def trouble(trial: DryRun, rollouts: Sequence[Rollout], tolerance: float) -> tuple[str, str] | None:
    """What is wrong with a teacher's scores, and what to do about it; None where they may be learnt from.

    Args:
        tolerance: nats by which a score may differ from the teacher's own reference.
    """
    ours_N = _trained([rollout.sampler_logprobs for rollout in rollouts], rollouts)
    first_N, *others = (_trained(answer, rollouts) for answer in trial.answers)
    signal = float(np.abs(ours_N - first_N).mean())
    apart = max(float(np.abs(other_N - first_N).mean()) for other_N in others)
    if not apart <= max(FLOOR, UNSTEADY * signal):
        processes = len(trial.answers) // 2
        who = "asked twice" if processes == 1 else f"asked twice in each of its {processes} processes"
        return (
            f"{who}, it scores the same tokens {apart:.2g} nats apart, and is {signal:.2g} nats from the student",
            "score in float32, on a machine whose kernels repeat, or take another teacher",
        )
    if trial.reference is not None:
        mask_T = rollouts[0].loss_mask
        wrong = float(np.abs(trial.reference - trial.answers[0][0])[mask_T].max())
        if not wrong <= tolerance:
            return (
                f"its scores are {wrong:.2g} nats from its own distribution at the recipe's temperature",
                "mend the teacher's code: it scores under another temperature, or other tokens than it was given",
            )
    return None


def _tried(
    pool: TeacherPool,
    teacher: str,
    domain: str,
    rollouts: Sequence[Rollout],
    tolerance: float,
    ours: Sequence[float],
    theirs: Sequence[float] | None,
) -> Finding:
    """The finding of one teacher on one domain."""
    try:
        trial = pool.dry_run(teacher, rollouts)
    except (NonFinite, GradingFailed) as error:
        return unanswering(teacher, domain, str(error))
    return conclude(teacher, domain, trial, rollouts, tolerance, ours, theirs)


def conclude(
    teacher: str,
    domain: str,
    trial: DryRun,
    rollouts: Sequence[Rollout],
    tolerance: float,
    ours: Sequence[float],
    theirs: Sequence[float] | None,
) -> Finding:
    """The finding of a trial; ``ours`` and ``theirs`` are the verdicts on the same prompts, see :func:`judge`."""
    if (found := trouble(trial, rollouts, tolerance)) is not None:
        return Finding(teacher, domain, "unusable", *found)
    gap_N = _trained([r.sampler_logprobs for r in rollouts], rollouts) - _trained(trial.answers[0], rollouts)
    # The divergence's expectation over what the student writes: no distribution has to be shipped for it.
    error = float(gap_N.std()) / math.sqrt(len(gap_N))
    return judge(teacher, domain, float(gap_N.mean()), ours, theirs, error=error)


def _trained(values: Sequence[Float32], rollouts: Sequence[Rollout]) -> npt.NDArray[np.float64]:
    """Values ``(T,)`` of each rollout at its trained tokens, one after the other."""
    pairs = zip(values, rollouts, strict=True)
    return np.concatenate([value_T[rollout.loss_mask].astype(np.float64) for value_T, rollout in pairs])


def _answers(rows: Sequence[Evaluation], domain: str, model: str) -> list[float]:
    """A model's verdicts on the validation prompts of a domain, in order of the prompts' ids."""
    mine = [r for r in rows if (r.model, r.domain, r.split, r.step) == (model, domain, "validation", 0)]
    return [row.correct for row in sorted(mine, key=lambda row: row.prompt_id)]


def _passed(out: Path) -> bool:
    path = out / PREFLIGHT
    return path.is_file() and bool(json.loads(path.read_text())["passed"])
