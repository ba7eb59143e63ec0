"""Sections of the report on scores: the seesaw of each specialist, the student's curves, recovery, health."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mopd.distill.metrics.episodes import ENDINGS, MeanCount, MeasuredEpisodes
from mopd.distill.metrics.evaluate import Interval, interval
from mopd.distill.metrics.quotients import Ends
from mopd.distill.verdicts import PER_MINUTE
from mopd.recipes.report.chart_parts import Bar, Line, ReferenceLine
from mopd.recipes.report.charts import ModelBars, bar_chart, line_chart
from mopd.recipes.report.data import RunData, css_of, series_of
from mopd.recipes.report.drawing import Picture
from mopd.recipes.report.records import DomainScore, SeesawRecord, own_teacher
from mopd.recipes.report.wording import between, percent, points

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class ChangePanel:
    """The changes of one model: a teacher's name, or the student."""

    title: str
    student: bool
    picture: Picture


def changes(data: RunData) -> list[ChangePanel]:
    """The seesaw as bars with intervals: every teacher's, and the student's, change against the base on each domain.

    All have one scale, so that bars of different models compare. Empty while the base has not been measured.
    """
    models = change_bars(data.seesaw, series_of(data))
    drawn = [(bar.value, *(bar.ends or ())) for model in models for bar in model.bars]
    values = [value for of_bar in drawn for value in of_bar if value is not None]
    low, high = min([0.0, *values]), max([2.0, *values])
    edge = 0.03 * (high - low)
    return [
        ChangePanel(
            title=model.model,
            student=model.model == "student",
            picture=bar_chart(
                model.bars,
                title=f"Change of {_called(model.model)} against the base on each domain, in points",
                x_range=(max(-100.0, low - edge), min(100.0, high + edge)),
                x_format=lambda x: f"{x:+g}".replace("-", "−") if x else "0",
                x_label="points",
                head=["domain", "points", "95% interval"],
            ),
        )
        for model in models
    ]


def change_bars(seesaw: SeesawRecord, series: Mapping[str, int]) -> list[ModelBars]:
    """Teachers, then the student: each one's change against the base by domain, in points; beside its own, faint.

    Empty while the base has not been measured.
    """
    base = seesaw.models.get("base")
    if base is None:
        return []
    intervals = seesaw.intervals
    models: list[ModelBars] = []
    for model, scores in seesaw.models.items():
        name = model.removeprefix("teachers/")
        if model == name != "student":  # the base, and what is compared with neither
            continue
        ends = intervals.points if model == "student" else (intervals.teacher_points or {}).get(name)
        bars = [
            _change_bar(
                domain,
                series[domain],
                scores[domain].score - base[domain].score,
                _of(ends, domain),
                own=model == "student" or name in seesaw.teachers[domain],
            )
            for domain in seesaw.domains
            if domain in scores and domain in base
        ]
        models.append(ModelBars(name, bars))
    return models


def _change_bar(domain: str, series: int, change: float, ends: Ends | None, *, own: bool) -> Bar:
    return Bar(
        label=domain,
        series=series,
        value=100 * change,
        ends=None if ends is None else (100 * ends.low, 100 * ends.high),
        text=points(change),
        interval="" if ends is None else f"{points(ends.low)} to {points(ends.high)}",
        faint=not own,
    )


def _called(model: str) -> str:
    return "the student" if model == "student" else f"teacher {model}"


@dataclass(frozen=True, slots=True)
class DomainChart:
    """A chart of one domain, in its colour."""

    title: str
    css: str
    picture: Picture


def curves(data: RunData) -> list[DomainChart]:
    """The student's score on validation over steps, a chart a domain, against its teacher's and the base's line."""
    css, series, curve = css_of(data), series_of(data), data.validation.curve
    models = data.validation.models if "base" in data.validation.models else data.seesaw.models
    if not curve:
        return []
    n = data.recipe.prompts["validation"]
    bands = {d: [(point.step, *_ends(point.scores[d], n)) for point in curve] for d in data.domains}
    lowest = [low for band in bands.values() for _, low, _ in band]
    lowest += [100 * models["base"][d].score for d in data.domains if "base" in models]
    floor = 10 * math.floor(min(lowest) / 10)
    charts: list[DomainChart] = []
    for domain in data.domains:
        levels: list[ReferenceLine] = []
        if (teacher := own_teacher(models, data.validation.teachers, domain)) is not None:
            levels.append(ReferenceLine("teacher", series[domain], 100 * teacher.score, dashed=True))
        if "base" in models:
            levels.append(ReferenceLine("base", None, 100 * models["base"][domain].score, dashed=False))
        path = [(point.step, 100 * point.scores[domain]) for point in curve]
        picture = line_chart(
            [Line("student", series[domain], path, bands[domain], marks=True)],
            title=f"Score of the student on {domain} over training steps, in %",
            y_range=(floor, 100),
            y_format="{:.3g}".format,
            levels=levels,
            x_end=data.steps,
        )
        charts.append(DomainChart(domain, css[domain], picture))
    return charts


def _ends(score: float, n: int) -> tuple[float, float]:
    """In %."""
    right = round(score * n)
    wilson = interval([1.0] * right + [0.0] * (n - right))
    return 100 * wilson.low, 100 * wilson.high


@dataclass(frozen=True, slots=True)
class RecoveryRow:
    """A domain's row in the table of recovery.

    Attributes:
        teachers: names of its teachers, or ``none``.
        n: questions, or a dash.
        base, teacher, student: None where not measured.
        points, points_ci: the student's change over the base in points, as text.
        recovery_text, recovery_ci: :attr:`recovery` as text, and its interval.
        whisker: ends of the interval in percent of the meter, which ends at 110%.
    """

    domain: str
    css: str
    teachers: str
    n: int | str
    base: DomainScore | None
    teacher: DomainScore | None
    student: DomainScore | None
    points: str
    points_ci: str
    recovery: float | None
    recovery_text: str
    recovery_ci: str
    whisker: Sequence[float] | None


def recovery_rows(data: RunData) -> list[RecoveryRow]:
    """Base, own teacher, student and recovery of each domain."""
    css, seesaw = css_of(data), data.seesaw
    metrics, intervals = seesaw.metrics, seesaw.intervals
    rows: list[RecoveryRow] = []
    for domain in data.domains:
        base, student = (seesaw.models.get(model, {}).get(domain) for model in ("base", "student"))
        ends, moved = _of(intervals.recovery, domain), _of(intervals.points, domain)
        recovery, measured = _of(metrics.recovery, domain), base or student
        rows.append(
            RecoveryRow(
                domain=domain,
                css=css[domain],
                teachers=", ".join(seesaw.teachers[domain]) or "none",
                n="–" if measured is None else measured.n,
                base=base,
                teacher=seesaw.own_teacher(domain),
                student=student,
                points=points(_of(metrics.points, domain)),
                points_ci="" if moved is None else f"{points(moved.low)} to {points(moved.high)}",
                recovery=recovery,
                recovery_text=percent(recovery),
                recovery_ci=between(ends),
                whisker=None if ends is None else [min(1.1, max(0.0, end)) / 1.1 * 100 for end in ends],
            )
        )
    return rows


def _of(by_domain: Mapping[str, ValueT | None] | None, domain: str) -> ValueT | None:
    return None if by_domain is None else by_domain.get(domain)


@dataclass(frozen=True, slots=True)
class HealthRow:
    """Signs of health of the answers to a domain's questions, as text: mean tokens, part cut off, repetition."""

    domain: str
    css: str
    step: int
    length: str
    truncation: str
    repetition: str


def health(data: RunData) -> list[HealthRow]:
    """Length, truncation and repetition of the last evaluation's answers."""
    measured = [row for row in data.evals if any(name.startswith("length/") for name in row.values)]
    if not measured:
        return []
    last, css = measured[-1], css_of(data)
    return [
        HealthRow(
            domain=d,
            css=css[d],
            step=last.step,
            length=f"{last.values[f'length/{d}']:.1f}",
            truncation=percent(last.values.get(f"truncation/{d}"), 1),
            repetition=percent(last.values.get(f"repetition/{d}")),
        )
        for d in data.domains
        if last.values.get(f"length/{d}") is not None
    ]


@dataclass(frozen=True, slots=True)
class SampledRow:
    """Greedy and sampled score of a model on a domain, as text, with the interval of the latter."""

    model: str
    domain: str
    css: str
    greedy: str
    sampled: str
    ends: str


def sampled_rows(data: RunData) -> list[SampledRow]:
    """Every model's sampled scores beside its greedy ones; none where no answers were sampled."""
    css = css_of(data)
    return [
        SampledRow(
            model=model.removeprefix("teachers/"),
            domain=domain,
            css=css[domain],
            greedy=percent(data.seesaw.models[model][domain].score, 1),
            sampled=percent(score.score, 1),
            ends="" if score.low is None or score.high is None else between((score.low, score.high), 1),
        )
        for model, scores in data.seesaw.sampled.items()
        for domain, score in scores.items()
    ]


@dataclass(frozen=True, slots=True)
class UnjudgedRow:
    """How many of a model's answers to a domain's questions no verifier looked at, and why the first of them."""

    model: str
    domain: str
    css: str
    no_answer: int
    refused: int
    first_reason: str


def unjudged_rows(data: RunData) -> list[UnjudgedRow]:
    """What no verifier looked at, of the answers that were scored; none where all were judged."""
    css = css_of(data)
    return [
        UnjudgedRow(model.removeprefix("teachers/"), domain, css[domain], of.no_answer, of.refused, of.first_reason)
        for model, by_domain in data.seesaw.unjudged.items()
        for domain, of in by_domain.items()
    ]


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """How a model's episodes of a domain went, as text: part solved, means an episode, each with its interval.

    Attributes:
        after_failure: part solved of the episodes in which the environment first told of a failure.
        ended: how many were ended by what.
    """

    model: str
    domain: str
    solved: str
    turns: str
    tool_calls: str
    tool_errors: str
    after_failure: str
    ended: str


def episode_rows(models: Mapping[str, Mapping[str, MeasuredEpisodes]]) -> list[EpisodeRow]:
    """A row for each model and domain."""
    return [
        EpisodeRow(
            model=model.removeprefix("teachers/"),
            domain=domain,
            solved=_solved(of.solved),
            turns=_counted(of.turns),
            tool_calls=_counted(of.tool_calls),
            tool_errors=_counted(of.tool_errors),
            after_failure="–" if of.solved_after_failure is None else _solved(of.solved_after_failure),
            ended=", ".join(f"{count} by {ENDINGS[how]}" for how, count in of.ended.items()),
        )
        for model, by_domain in models.items()
        for domain, of in by_domain.items()
    ]


def _solved(part: Interval) -> str:
    return f"{percent(part.score, 1)} ({between((part.low, part.high), 1)}) of {part.n}"


def _counted(count: MeanCount) -> str:
    ends = "" if count.low is None or count.high is None else f" ({count.low:.2f}–{count.high:.2f})"
    return f"{count.mean:.2f}{ends}"


@dataclass(frozen=True, slots=True)
class PaceRow:
    """What a model did in a minute of its evaluation, all questions side by side, as text."""

    model: str
    turns: str
    tool_calls: str
    solved: str


def pace_rows(paces: Mapping[str, Mapping[str, float]]) -> list[PaceRow]:
    """A row for each model."""
    return [
        PaceRow(model.removeprefix("teachers/"), *(f"{pace[name]:,.0f}" for name in PER_MINUTE))
        for model, pace in paces.items()
    ]
