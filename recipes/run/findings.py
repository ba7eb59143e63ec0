"""What is found of a teacher before it teaches: verdict, reason, what to do; by `mopd check --deep` and every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from mopd.distill.types import Float32, Rollout, UserError

ROLLOUTS = 16
"""Of the student, a domain: what teachers are asked to score."""
FAR = 0.2
"""Nats a token, reverse KL of the student to a teacher before the first step; about 0.04 is healthy for teachers of one
origin. Source: shared method notes, section 6."""
POINTS = 0.02
"""A teacher's gain over the student that is worth teaching, at least, if it is above 3 standard errors; section 5."""

Verdict = Literal["usable", "warning", "unusable", "later"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a teacher on a domain that it grades, and what to do about it."""

    teacher: str
    domain: str
    verdict: Verdict
    reason: str
    remedy: str = ""


def reverse_kl(student: Sequence[Float32], teacher: Sequence[Float32], rollouts: Sequence[Rollout]) -> float:
    """Mean over trained tokens of ``KL(student || teacher)``, in nats; rows ``(T, V)`` of log-probabilities."""
    total, tokens = 0.0, 0
    for student_TV, teacher_TV, rollout in zip(student, teacher, rollouts, strict=True):
        p_TV = student_TV[rollout.loss_mask].astype(np.float64)
        q_TV = teacher_TV[rollout.loss_mask, : p_TV.shape[1]].astype(np.float64)
        possible = np.isfinite(p_TV)  # what the student never says (a padded head) adds nothing
        total += float((np.exp(p_TV[possible]) * (p_TV[possible] - q_TV[possible])).sum())
        tokens += len(p_TV)
    return total / tokens


def unanswering(teacher: str, domain: str, why: str) -> Finding:
    """Of a teacher that does not answer, or with something else than it was asked for."""
    return Finding(teacher, domain, "unusable", why, "take a teacher that answers, or mend this one")


def judge(
    teacher: str, domain: str, kl: float, ours: Sequence[float], theirs: Sequence[float] | None, *, error: float = 0.0
) -> Finding:
    """A finding from the distance of a teacher and from both models' verdicts on the same prompts, in order.

    Args:
        theirs: empty where the teacher is the student itself; None where it only scores and answers nothing.
        error: standard error of ``kl``, where it was sampled.
    """
    if not math.isfinite(kl):
        return Finding(teacher, domain, "unusable", f"KL to it is {kl}", "take a teacher without NaN or masked tokens")
    near = f" ± {2 * error:.3f}" if error > 0 else ""
    reasons = [f"KL {kl:.3f}{near} nats a token at the start"]
    remedies = []
    if kl > FAR:
        reasons[0] += f", above {FAR:g}"
        remedies.append("take a teacher of the student's own origin, or expect a slow start")
    if theirs:
        gain = np.array(theirs) - np.array(ours)
        needed = max(POINTS, 3 * float(gain.std()) / math.sqrt(len(gain)))
        reasons.append(f"{100 * np.mean(theirs):.1f}% right, the student {100 * np.mean(ours):.1f}%")
        if gain.mean() < needed:
            reasons[1] += f": no gain of {100 * needed:.1f} points"
            remedies.append("take a better specialist of this domain, or set more evaluate.validation_prompts")
    else:
        reasons.append("it only scores, so it was not asked" if theirs is None else "the student itself, as an anchor")
    return Finding(teacher, domain, "warning" if remedies else "usable", "; ".join(reasons), "; ".join(remedies))


def findings_table(findings: Sequence[Finding]) -> Table:
    """What a person reads: teacher, verdict, reason, what to do."""
    styles: dict[Verdict, str] = {"usable": "green", "warning": "yellow", "unusable": "red", "later": "dim"}
    table = Table(title="can they teach this student?")
    for name in ("teacher", "domain", "verdict", "reason", "what to do"):
        table.add_column(name, overflow="fold")
    for one in findings:
        verdict = Text(one.verdict, style=styles[one.verdict])
        table.add_row(Text(one.teacher), Text(one.domain), verdict, Text(one.reason), Text(one.remedy))
    return table


def refuse_unusable(findings: Sequence[Finding]) -> None:
    """Refuse a run that has a teacher which cannot teach.

    Raises:
        UserError: naming each.
    """
    unusable = [
        f"`teachers.{one.teacher}` cannot teach domain {one.domain!r}: {one.reason}; {one.remedy}"
        for one in findings
        if one.verdict == "unusable"
    ]
    if unusable:
        raise UserError(*unusable)
