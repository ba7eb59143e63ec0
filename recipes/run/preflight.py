"""Can these teachers teach this student? Each scores a few of its rollouts before it is trusted; yields findings.

Every run asks before its first step, of the processes that will grade; `mopd check --deep` asks the same of teachers
that it opens one at a time (recipes/run/check_deep.py). Nothing that a run computes depends on it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.recipe import DomainRecipe
from mopd.distill.storage import write_atomic
from mopd.distill.types import Float32, Prompt, Rollout, RunError, Sampler, UserError
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.recipes.tables import Fitted
from mopd.teachers.dry_run import DryRun
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import TOLERANCE

PREFLIGHT = "preflight.json"
"""In the run's folder: ``{"format": 1, "passed": true, "rollouts": 48, "seconds": 1.2, "findings": [{"teacher": ...,
"domain": ..., "verdict": ..., "reason": ..., "remedy": ...}]}``; keys may come, none goes."""
PROMPTS = 16
"""Of each domain, which the student answers for teachers to score."""
UNSTEADY = 0.1
"""A teacher whose answers differ by more than this part of its distance to the student teaches noise; our choice."""
FLOOR = 1e-3
"""Nats a token: how far apart answers may be whatever the distance, so that an anchor, at distance 0, is usable."""
FAR = 0.2
"""Nats a token, reverse KL of the student to a teacher before the first step; about 0.04 is healthy for teachers of one
origin. Source: shared method notes, section 6."""
POINTS = 0.02
"""A teacher's gain over the student that is worth teaching, at least, if it is above 3 standard errors; section 5."""

COPIED = 0.8
"""A teacher of whose gain more than this part repeats its hint teaches to copy what the student never sees; our choice.
"""

Verdict = Literal["usable", "warning", "unusable", "later"]
ByDomain = Mapping[str, Sequence[float]]
"""Verdicts on the validation prompts of each domain, 0..1, in the order of the prompts' ids."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a teacher on a domain that it grades, and what to do about it."""

    teacher: str
    domain: str
    verdict: Verdict
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A teacher before it is trusted.

    Attributes:
        domains: those that it grades.
        dtype: what it computes in: its scores may be off by :data:`teachers.scorer.TOLERANCE`.
        is_student: whether it is the student itself, as an anchor.
        can_write: whether it answers the validation prompts.
        own_prompt: whether it reads another prompt than the student, so that what it answers without says little.
    """

    name: str
    domains: tuple[str, ...]
    dtype: str
    is_student: bool
    can_write: bool
    own_prompt: bool = False


def candidates(teachers: Mapping[str, ResolvedTeacher], trained: Mapping[str, DomainRecipe]) -> list[Candidate]:
    """The teachers that grade a domain, in the recipe's order; ``trained`` are the domains that are."""
    graded = {name: tuple(d for d, domain in trained.items() if name in domain.teacher_weights) for name in teachers}
    return [
        Candidate(
            name,
            graded[name],
            teacher.dtype,
            is_student=teacher.is_self and teacher.adapter is None and teacher.settings.own_prompt is None,
            can_write=teacher.kind.can_write,
            own_prompt=teacher.settings.own_prompt is not None,
        )
        for name, teacher in teachers.items()
        if graded[name]
    ]


# ---- what is asked of each


def sample_rollouts(
    sampler: Sampler, prompts: Sequence[Prompt], candidates: Sequence[Candidate]
) -> dict[str, list[Rollout]]:
    """What the student writes to a few prompts of each domain that a teacher grades.

    Args:
        sampler: with the weights that the student starts from.
        prompts: those of the first step.
    """
    graded = dict.fromkeys(domain for candidate in candidates for domain in candidate.domains)
    asked = [prompt for domain in graded for prompt in [p for p in prompts if p.domain == domain][:PROMPTS]]
    rollouts = [rollout for microbatch in sampler.sample(asked, step=0) for rollout in microbatch]
    return {domain: [rollout for rollout in rollouts if rollout.domain == domain] for domain in graded}


def verdicts_of(rows: Sequence[Evaluation], model: str) -> dict[str, list[float]]:
    """A model's verdicts on the validation prompts before the first step, by domain; see :data:`ByDomain`."""
    verdicts: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.prompt_id):
        if (row.model, row.split, row.step) == (model, "validation", 0):
            verdicts.setdefault(row.domain, []).append(row.correct)
    return verdicts


def examine(
    candidate: Candidate,
    dry_run: Callable[[Sequence[Rollout]], DryRun],
    rollouts: Mapping[str, Sequence[Rollout]],
    *,
    student: ByDomain,
    teacher: ByDomain,
) -> list[Finding]:
    """The findings of one teacher, one of each domain that it grades.

    Args:
        dry_run: has the teacher score rollouts twice.
        rollouts: of the student, by domain.
        student, teacher: their verdicts; the teacher's are not read where it cannot write or is the student itself.
    """
    findings = []
    for domain in candidate.domains:
        asked = candidate.can_write and not candidate.own_prompt
        gave = None if not asked else [] if candidate.is_student else teacher.get(domain, [])
        try:
            trial = dry_run(rollouts[domain])
        except RunError as error:
            findings.append(unanswering(candidate.name, domain, str(error)))
            continue
        problem = trouble(trial, rollouts[domain], TOLERANCE[candidate.dtype])
        if problem is not None:
            findings.append(Finding(candidate.name, domain, "unusable", *problem))
            continue
        kl, error = distance(trial, rollouts[domain])
        finding = judge(candidate.name, domain, kl, student.get(domain, []), gave, error=error)
        if trial.aligned is not None:
            finding = replace(finding, reason=f"{finding.reason}; {trial.aligned.sentence}")
        findings.append(with_hint(finding, trial) if candidate.own_prompt else finding)
    return findings


# ---- what is concluded


def trouble(trial: DryRun, rollouts: Sequence[Rollout], tolerance: float) -> tuple[str, str] | None:
    """What is wrong with a teacher's scores, and what to do about it; None where they may be learnt from.

    Args:
        tolerance: nats by which a score may differ from the teacher's own reference.
    """
    student_N = _trained([rollout.sampler_logprobs for rollout in rollouts], rollouts)
    first_N, *others = (_trained(answer, rollouts) for answer in trial.answers)
    signal = float(np.abs(student_N - first_N).mean())
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
                "correct the teacher's code: it scores at another temperature, or other tokens than it was given",
            )
    return None


def distance(trial: DryRun, rollouts: Sequence[Rollout]) -> tuple[float, float]:
    """The reverse KL of student to teacher, in nats a trained token, and its standard error.

    It is estimated by the mean log-ratio of what the student wrote: no distribution has to be shipped for it.
    """
    student_N = _trained([rollout.sampler_logprobs for rollout in rollouts], rollouts)
    gap_N = student_N - _trained(trial.answers[0], rollouts)
    return float(gap_N.mean()), float(gap_N.std()) / math.sqrt(len(gap_N))


def _trained(values: Sequence[Float32], rollouts: Sequence[Rollout]) -> npt.NDArray[np.float64]:
    """Values ``(T,)`` of each rollout at its trained tokens, one after the other."""
    pairs = zip(values, rollouts, strict=True)
    return np.concatenate([value_T[rollout.loss_mask].astype(np.float64) for value_T, rollout in pairs])


def judge(
    name: str,
    domain: str,
    kl: float,
    student: Sequence[float],
    teacher: Sequence[float] | None,
    *,
    error: float = 0.0,
) -> Finding:
    """A finding from the distance of a teacher and from both models' verdicts on the same prompts, in order.

    Args:
        kl: nats a token.
        teacher: empty where it is the student itself; None where it only scores and answers nothing.
        error: standard error of ``kl``.
    """
    if not math.isfinite(kl):
        return Finding(name, domain, "unusable", f"KL to it is {kl}", "take a teacher without NaN or masked tokens")
    near = f" ± {2 * error:.3f}" if error > 0 else ""
    reasons = [f"KL {kl:.3f}{near} nats a token at the start"]
    remedies = []
    if kl > FAR:
        reasons[0] += f", above {FAR:g}"
        remedies.append("take a teacher of the student's own origin, or expect a slow start")
    if teacher:
        gain = np.array(teacher) - np.array(student)
        needed = max(POINTS, 3 * float(gain.std()) / math.sqrt(len(gain)))
        reasons.append(f"{100 * np.mean(teacher):.1f}% right, the student {100 * np.mean(student):.1f}%")
        if gain.mean() < needed:
            reasons[1] += f": no gain of {100 * needed:.1f} points"
            remedies.append("take a better specialist of this domain, or set more evaluate.validation_prompts")
    else:
        reasons.append("it only scores, so it was not asked" if teacher is None else "the student itself, as an anchor")
    return Finding(name, domain, "warning" if remedies else "usable", "; ".join(reasons), "; ".join(remedies))


def with_hint(finding: Finding, trial: DryRun) -> Finding:
    """A finding on a teacher that reads a prompt of its own: what its gain is made of in the place of a score."""
    reason = finding.reason.replace("it only scores, so it was not asked", "it reads a prompt of its own")
    if trial.hint is None:
        return replace(finding, reason=reason)
    part = trial.hint.copied
    reason += f"; {100 * part:.0f}% of what it likes better than the student did repeats its hint"
    if part <= COPIED:
        return replace(finding, reason=reason)
    remedy = "give a hint that is no answer to be copied, or bound a token's part (loss.token_bound)"
    remedy = "; ".join(filter(None, [finding.remedy, remedy]))
    return replace(finding, reason=reason, verdict="warning", remedy=remedy)


def unanswering(teacher: str, domain: str, why: str) -> Finding:
    """Of a teacher that does not answer, or with something else than it was asked for."""
    return Finding(teacher, domain, "unusable", why, "take a teacher that answers, or correct this one")


def findings_table(findings: Sequence[Finding]) -> Fitted:
    """What a person reads: teacher, verdict, reason, what to do."""
    styles: dict[Verdict, str] = {"usable": "green", "warning": "yellow", "unusable": "red", "later": "dim"}
    table = Table(title="can they teach this student?")
    for name in ("teacher", "domain", "verdict", "reason", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=styles[finding.verdict])
        words = Text(finding.reason), Text(finding.remedy)
        table.add_row(Text(finding.teacher), Text(finding.domain), verdict, *words)
    return Fitted(table)


def refuse_unusable(findings: Sequence[Finding]) -> None:
    """Refuse a run that has a teacher which cannot teach.

    Raises:
        UserError: naming each.
    """
    unusable = [
        f"`teachers.{finding.teacher}` cannot teach domain {finding.domain!r}: {finding.reason}; {finding.remedy}"
        for finding in findings
        if finding.verdict == "unusable"
    ]
    if unusable:
        raise UserError(*unusable)


# ---- before the first step of a run


def wait_for_teachers(pool: TeacherPool, *, tokens: int, own: Mapping[str, int]) -> None:
    """Wait until every teacher is loaded and scores at least as many tokens as its tokenizer has.

    Args:
        tokens: of the student's tokenizer, which is that of teachers that are not in ``own``.
        own: tokens of the tokenizers of the others, by name.

    Raises:
        RunError: one has not come, or has fewer.
    """
    for name, size in pool.wait_until_ready().items():
        if size < (needed := own.get(name, tokens)):
            whose = "its own" if name in own else "the student's"
            raise RunError(f"teacher {name!r} has {size} output tokens, {whose} tokenizer {needed}")


def preflight(
    out: Path,
    *,
    pool: TeacherPool,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    rows: Sequence[Evaluation],
    candidates: Sequence[Candidate],
    say: Callable[[Any], None],
) -> None:
    """Try every teacher out on rollouts of the student, and write the findings to ``preflight.json``.

    Rollouts are keyed by their step, and nobody learns from these.

    Args:
        pool: the teachers, loaded.
        sampler: the student's, with the weights that it starts from.
        prompts: those of the first step; a few of each domain are taken.
        rows: answers of base and teachers to the validation prompts.

    Raises:
        UserError: a teacher is unusable; the weights have not moved.
    """
    start = time.perf_counter()
    rollouts = sample_rollouts(sampler, prompts, candidates)
    student = verdicts_of(rows, "base")
    findings = [
        finding
        for candidate in candidates
        for finding in examine(
            candidate,
            partial(pool.dry_run, candidate.name),
            rollouts,
            student=student,
            teacher=verdicts_of(rows, f"teachers/{candidate.name}"),
        )
    ]
    say(findings_table(findings))
    written = {
        "format": 1,
        "passed": all(finding.verdict != "unusable" for finding in findings),
        "rollouts": sum(map(len, rollouts.values())),
        "seconds": round(time.perf_counter() - start, 3),
        "findings": [asdict(finding) for finding in findings],
    }
    write_atomic(out / PREFLIGHT, json.dumps(written, indent=2) + "\n")
    refuse_unusable(findings)


def passed(out: Path) -> bool:
    """Whether the teachers of the run in ``out`` were tried out before, and may teach."""
    path = out / PREFLIGHT
    return path.is_file() and bool(json.loads(path.read_text())["passed"])
