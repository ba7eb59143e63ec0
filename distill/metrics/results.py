"""seesaw.json from evaluation rows: every model on every domain, the student's curve, the metrics, their intervals.

The format is stable (keys are added, never renamed): scores are fractions 0..1, intervals 95%, undefined is null.
Final scores and everything measured against teachers come from the final split, each model at its last step; the
curve, forgetting and the seesaw over time come from the student on the validation split.

Shape legend: D domains, C checkpoints, Q questions of a domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np

from mopd.distill.metrics import seesaw
from mopd.distill.metrics.against_teachers import (
    AGAINST_TEACHERS,
    METRICS,
    Table,
    changes_in_points,
    metrics,
    metrics_ci,
    plain,
    recoveries,
)
from mopd.distill.metrics.episodes import MeasuredEpisodes, measured_episodes
from mopd.distill.metrics.evaluate import Evaluation, Interval, Split, interval
from mopd.distill.metrics.extremes import Extreme, most_forgotten
from mopd.distill.metrics.power import Verdict, headroom_verdict, verdict
from mopd.distill.metrics.quotients import Quotients
from mopd.distill.metrics.seesaw import Float64

STATISTICS = 2
"""How metrics_ci were made: 1, which is not written, by resampling extremes; 2 by distill/metrics/extremes.py."""

Rows: TypeAlias = Mapping[tuple[str, int, Split], Mapping[str, Mapping[str, float]]]
"""(model, step, split) -> domain -> prompt id -> score of the answer."""

TeacherWeights: TypeAlias = Mapping[str, Mapping[str, float]]
"""Domain -> its teachers by name with weights that sum to 1 (``DomainRecipe.teacher_weights``); empty where none."""


def group(rows: Iterable[Evaluation]) -> Rows:
    """Rows by evaluation, domain and question. A run killed amid an evaluation repeats it: the later answer holds."""
    grouped: dict[tuple[str, int, Split], dict[str, dict[str, float]]] = {}
    for row in rows:
        domains = grouped.setdefault((row.model, row.step, row.split), {})
        domains.setdefault(row.domain, {})[row.prompt_id] = row.correct
    return grouped


def last_steps(grouped: Rows, split: Split) -> dict[str, int]:
    """The last step at which each model was evaluated on ``split``; models in the order of the rows."""
    last: dict[str, int] = {}
    for model, step, row_split in grouped:
        if row_split == split:
            last[model] = max(step, last.get(model, step))
    return last


def _column(grouped: Rows, evaluated: tuple[str, int, Split], domain: str, questions: Sequence[str]) -> Float64:
    """One model's scores on ``questions``, ``(Q,)``; NaN where it was not evaluated at all."""
    if evaluated not in grouped:
        return np.full(len(questions), np.nan)
    given = grouped[evaluated].get(domain, {})
    if given.keys() != set(questions):
        model, _, split = evaluated
        raise ValueError(
            f"{model!r} answered {len(given)} {split} questions of domain {domain!r} and 'base' {len(questions)}, "
            "or others; models can only be compared on the same questions"
        )
    return np.array([given[question] for question in questions])


def paired_table(
    grouped: Rows, split: Split, teachers: TeacherWeights, *, student_step: int | None = None
) -> Table | None:
    """The table of base, teachers and student on ``split``; None while base or student have not been evaluated.

    Each model at its last step, the student at ``student_step`` where that is given.

    Raises:
        ValueError: two models answered different questions of a domain, so that they can't be paired.
    """
    last = last_steps(grouped, split)
    if "base" not in last or "student" not in last:
        return None
    if student_step is not None:
        last["student"] = student_step
    answers: dict[str, Float64] = {}
    for domain, weights in teachers.items():
        questions = list(grouped["base", last["base"], split].get(domain, {}))
        columns = {
            model: _column(grouped, (model, last.get(model, 0), split), domain, questions)
            for model in ("base", "student", *(f"teachers/{name}" for name in weights))
        }
        teacher_Q = np.full(len(questions), 0.0 if weights else np.nan)
        for name, weight in weights.items():
            teacher_Q += weight * columns[f"teachers/{name}"]
        answers[domain] = np.stack([columns["base"], teacher_Q, columns["student"]])
    return Table(answers)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The student's mean score on every domain's validation questions after ``step`` finished steps."""

    step: int
    scores: Mapping[str, float]


def headrooms(grouped: Rows, teachers: TeacherWeights) -> dict[str, float]:
    """What each domain's teachers, by their weights, score above the base on validation prompts: parts of 1.

    Absent: a domain without a teacher, or with one that is measured on nothing.
    """

    def score(model: str, domain: str) -> float | None:
        scores = grouped.get((model, 0, "validation"), {}).get(domain)
        return fmean(scores.values()) if scores else None

    gains: dict[str, float] = {}
    for domain, weights in teachers.items():
        base, scores = score("base", domain), [score(f"teachers/{name}", domain) for name in weights]
        known = [value for value in scores if value is not None]
        if base is not None and weights and len(known) == len(scores):
            gains[domain] = sum(w * value for w, value in zip(weights.values(), known, strict=True)) - base
    return gains


def curve(grouped: Rows, domains: Sequence[str]) -> list[CurvePoint]:
    """The student's scores on validation at each evaluated step."""
    steps = sorted(step for model, step, split in grouped if model == "student" and split == "validation")
    points: list[CurvePoint] = []
    for step in steps:
        answers = grouped["student", step, "validation"]
        points.append(CurvePoint(step, {d: float(np.mean(list(answers[d].values()))) for d in domains}))
    return points


@dataclass(frozen=True, slots=True)
class OverTime:
    """The metrics of the student's curve; None where there are too few evaluations.

    Attributes:
        forgetting: domain -> its best score on the way less its last.
        forgetting_estimate: the same without what choosing the best of noisy scores adds.
        seesaw_share: the part of the movement that one domain took from another.
        seesaw_noise: the share that noise alone gives.
        seesaw_correlation: how far domains move against each other.
        seesaw_correlation_p: its p-value by permutation.
    """

    forgetting: Mapping[str, float | None] | None = None
    forgetting_estimate: Mapping[str, float | None] | None = None
    seesaw_share: float | None = None
    seesaw_noise: float | None = None
    seesaw_correlation: float | None = None
    seesaw_correlation_p: float | None = None


def over_time(grouped: Rows, domains: Sequence[str]) -> OverTime:
    """Forgetting and the seesaw of the curve."""
    points = curve(grouped, domains)
    if len(points) < 2:
        return OverTime()
    curve_CD = np.array([[point.scores[d] for d in domains] for point in points])
    asked_CD = np.array([[len(grouped["student", p.step, "validation"][d]) for d in domains] for p in points])
    se_CD = np.sqrt(curve_CD * (1 - curve_CD) / asked_CD)
    rho, p = seesaw.seesaw_correlation(curve_CD)
    return OverTime(
        forgetting=plain(seesaw.forgetting(curve_CD), domains),
        forgetting_estimate={d: extreme.estimate for d, extreme in forgotten([grouped], domains).items()},
        seesaw_share=plain(seesaw.seesaw_share(curve_CD, se_CD), domains),
        seesaw_noise=seesaw.noise_share(se_CD),
        seesaw_correlation=plain(rho, domains),
        seesaw_correlation_p=plain(p, domains),
    )


def forgotten(runs: Sequence[Rows], domains: Sequence[str]) -> dict[str, Extreme]:
    """Domain -> how far the student is below its own best on the way; of several runs, by their mean curve.

    Runs are taken at the steps that all were measured at, and at each one's last. Empty where that is one step.
    """
    steps = [[point.step for point in curve(grouped, domains)] for grouped in runs]
    if not all(steps):
        return {}
    common = sorted(set.intersection(*(set(own) - {own[-1]} for own in steps)))
    if not common:
        return {}
    of: dict[str, Extreme] = {}
    for domain in domains:
        answers = [
            [grouped["student", step, "validation"][domain] for step in (*common, own[-1])]
            for grouped, own in zip(runs, steps, strict=True)
        ]
        questions = sorted(set.intersection(*(set(given) for run in answers for given in run)))
        of[domain] = most_forgotten(np.array([[[given[q] for q in questions] for given in run] for run in answers]))
    return of


def scored_models(grouped: Rows, split: Split, domains: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Model -> domain -> score of its last step on ``split`` with its interval and the number of questions."""
    models: dict[str, dict[str, Interval]] = {}
    for model, step in last_steps(grouped, split).items():
        answers = grouped[model, step, split]
        models[model] = {d: interval(list(answers[d].values())) for d in domains if d in answers}
    return models


def sampled_models(rows: Sequence[Evaluation], split: Split, domains: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Model -> domain -> score of its sampled answers at its last step on ``split``, each question's mean counted once.

    Empty where no answers were sampled. The interval is over questions.
    """
    models: dict[str, dict[str, Interval]] = {}
    for model, answers in _last_rows(rows, split).items():
        by_domain = {d: [r.sampled for r in answers if r.domain == d and r.sampled is not None] for d in domains}
        if any(by_domain.values()):
            models[model] = {domain: interval(drawn) for domain, drawn in by_domain.items() if drawn}
    return models


@dataclass(frozen=True, slots=True)
class UnjudgedAnswers:
    """Answers to a domain's questions that no verifier looked at; they score 0.

    Attributes:
        no_answer: without an answer: the thought was cut off.
        refused: programs that the sandbox refused.
        first_reason: why, of the first of them.
    """

    no_answer: int
    refused: int
    first_reason: str


def unjudged_answers(rows: Sequence[Evaluation], split: Split) -> dict[str, dict[str, UnjudgedAnswers]]:
    """Model -> domain -> what no verifier looked at, of its greedy answers at its last step; where there are any."""
    models: dict[str, dict[str, UnjudgedAnswers]] = {}
    for model, answers in _last_rows(rows, split).items():
        for domain in dict.fromkeys(row.domain for row in answers if row.unjudged):
            there = [row for row in answers if row.domain == domain and row.unjudged]
            counts = [sum(row.unjudged == kind for row in there) for kind in ("no_answer", "refused")]
            first = next((row for row in there if row.unjudged == "refused"), there[0])
            models.setdefault(model, {})[domain] = UnjudgedAnswers(*counts, first_reason=first.reason)
    return models


def episodes_of_models(rows: Sequence[Evaluation], split: Split) -> dict[str, dict[str, MeasuredEpisodes]]:
    """Model -> domain -> how its greedy episodes went at its last step on ``split``; empty without environments."""
    models: dict[str, dict[str, MeasuredEpisodes]] = {}
    for model, answers in _last_rows(rows, split).items():
        for domain in dict.fromkeys(row.domain for row in answers if row.episode is not None):
            records = [row.episode for row in answers if row.domain == domain and row.episode is not None]
            models.setdefault(model, {})[domain] = measured_episodes(records)
    return models


def _last_rows(rows: Sequence[Evaluation], split: Split) -> dict[str, list[Evaluation]]:
    """Each model's rows of its last step; of a question that was asked twice, the later one."""
    last = last_steps(group(rows), split)
    kept: dict[str, dict[str, Evaluation]] = {model: {} for model in last}
    for row in rows:
        if row.split == split and row.step == last[row.model]:
            kept[row.model][f"{row.domain}/{row.prompt_id}"] = row
    return {model: list(answers.values()) for model, answers in kept.items()}


def teacher_changes(grouped: Rows, split: Split, domains: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Teacher -> domain -> ``[low, high]``: 95% intervals of its change over the base, paired by question.

    A domain that the teacher was not asked about is left out. Empty while the base has not been evaluated.
    """
    last = last_steps(grouped, split)
    if "base" not in last:
        return {}
    base = grouped["base", last["base"], split]
    changes: dict[str, dict[str, list[float]]] = {}
    for model, step in last.items():
        if not model.startswith("teachers/"):
            continue
        given = grouped[model, step, split]
        asked = [domain for domain in domains if domain in given and domain in base]
        columns = {d: _column(grouped, (model, step, split), d, list(base[d])) for d in asked}
        unknown = {d: np.full(len(base[d]), np.nan) for d in asked}
        table = Table({d: np.stack([np.array(list(base[d].values())), unknown[d], columns[d]]) for d in asked})
        ends = np.clip(changes_in_points([table]).ends(), -1.0, 1.0) if asked else ((), ())
        pairs = zip(asked, *ends, strict=True)
        changes[model.removeprefix("teachers/")] = {domain: [float(low), float(high)] for domain, low, high in pairs}
    return changes


def _teacher_transfer(table: Table, models: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    """Teacher -> domain -> its change over base as a share of that domain's headroom: who hurts whom."""
    domains = list(table.answers)
    transfer: dict[str, Any] = {}
    for model, scored in models.items():
        if model.startswith("teachers/"):
            means_D = np.array([scored[d].score for d in domains])
            row_D = seesaw.transfer_matrix(means_D[None], table.means[0], table.means[1], defined_D=table.defined)[0]
            transfer[model.removeprefix("teachers/")] = plain(row_D, domains)
    return transfer


def _verdict(table: Table) -> Verdict | None:
    """Whether the worst domain keeps enough; None where no domain has a teacher that was measured."""
    _, recovered = recoveries([table])
    if recovered is not None:
        return verdict(recovered)
    taught = [answers_3Q for answers_3Q in table.answers.values() if not np.isnan(answers_3Q[1]).any()]
    headrooms = [(answers_3Q[1] - answers_3Q[0])[None] for answers_3Q in taught]
    return headroom_verdict(Quotients.of_means(headrooms)) if headrooms else None


def build_seesaw(
    rows: Iterable[Evaluation],
    *,
    teachers: TeacherWeights,
    fingerprints: Mapping[str, str],
    split: Split = "test",
) -> dict[str, Any]:
    """The content of seesaw.json.

    Args:
        rows: of the whole run; models named ``base``, ``teachers/NAME`` and ``student``.
        teachers: every domain, in the recipe's order, with its teachers' weights (empty: none).
        fingerprints: domain -> fingerprint of its task: runs are comparable where these agree.
        split: what the final scores come from. ``validation`` shows a run in progress, and says so under ``split``.

    Raises:
        ValueError: two models that must be compared answered different questions.
    """
    rows = list(rows)
    grouped, domains = group(rows), list(teachers)
    models = scored_models(grouped, split, domains)
    table = paired_table(grouped, split, teachers)
    judged = None if table is None else _verdict(table)
    lost = {d: [extreme.low, extreme.high] for d, extreme in forgotten([grouped], domains).items()}
    return {
        "format": 1,
        "statistics": STATISTICS,
        "domains": domains,
        "tasks": {domain: {"fingerprint": fingerprints[domain]} for domain in domains},
        "teachers": {domain: dict(weights) for domain, weights in teachers.items()},
        "split": split,
        "models": {model: {d: asdict(score) for d, score in scored.items()} for model, scored in models.items()},
        "sampled": {
            model: {d: asdict(score) for d, score in scored.items()}
            for model, scored in sampled_models(rows, split, domains).items()
        },
        "unjudged": {
            model: {d: asdict(answers) for d, answers in by_domain.items()}
            for model, by_domain in unjudged_answers(rows, split).items()
        },
        "episodes": {
            model: {d: asdict(measured) for d, measured in by_domain.items()}
            for model, by_domain in episodes_of_models(rows, split).items()
        },
        "curve": [asdict(point) for point in curve(grouped, domains)],
        "metrics": (metrics(table) if table else dict.fromkeys(METRICS))
        | asdict(over_time(grouped, domains))
        | {"teacher_transfer": _teacher_transfer(table, models) if table else None},
        "metrics_ci": (metrics_ci(table) if table else dict.fromkeys(AGAINST_TEACHERS))
        | {"forgetting": lost or None, "teacher_points": teacher_changes(grouped, split, domains)},
        "verdict": None if judged is None else asdict(judged),
    }
