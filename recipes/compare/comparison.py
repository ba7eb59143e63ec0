"""Several runs side by side: what comparison.json holds, whose keys are stable, from the folders of the runs.

``compare`` returns the content of comparison.json. Scores and recoveries are fractions (1.0 is 100%), intervals 95%,
undefined is null. Of a row with several seeds every number is the mean over them. Keys are added, never renamed:

    format, split, domains    1; ``test``, or ``validation`` while a run is under way or where asked; names
    tasks                     domain -> fingerprint (null for a dataset's run under way), questions
    rows                      one a recipe: name, method, runs, seeds, n, finished, step, steps, taught_by; trials, the
                              settings tried before these were chosen, 0 if that is not told;
                              ``metrics`` and ``metrics_ci`` as in seesaw.json, and ``scores``; ``seesaws``, how many of
                              its runs are one; ``cost``: training, teachers, with_teachers, base, evaluation, each
                              flops and seconds, or null; ``curve``: [{step, flops, scores: {domain: [mean, lowest,
                              highest of the seeds]}}]; ``behind``: metric -> [difference to the leader, low, high];
                              ``parity``: worst_score and mean_score -> flops to reach the level below, null: never in
                              its whole run, which took ``spent``; reached, the part of resamples that do; ratio to what
                              the reference needs, null as flops, or where that needs none; ratio_ci, whose null ends
                              are never; tried, the ratio of its whole run; with_teachers, the last three with the
                              making of both rows' teachers, null where that is unknown
    leader                    the row with the highest worst recovery, of those that saw no gold answers if there are
                              any; null if there is none
    parity                    reference, the row whose last validation scores are to be reached; levels, these less the
                              tolerance: distill/metrics/compute_to_parity.py
    runs                      one a folder: name, folder, row, seed, commit, finished, step, steps; selected, the step
                              that was scored; base, the first run that began from the same base; against, whose
                              teacher each domain is measured by, and borrowed, the domains where that is another
                              run's; models (scores with intervals); metrics, metrics_ci and cost, as those of rows
    levels                    base and teachers on validation questions, by domain: what curves are drawn against
    transfer                  the teachers themselves: name, own domains, n, scores, transfer
    differing                 leaf of the recipes -> its value in each row, where they aren't all the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mopd.distill.metrics.bootstrap import Measured, ends, measured, over_seeds, plain
from mopd.distill.metrics.evaluate import Interval, Split
from mopd.distill.metrics.results import OverTime, over_time, scored_models
from mopd.recipes.compare.cost import ComputePoint, RunCost, compute_curve, mean_cost, run_cost
from mopd.recipes.compare.groups import Group, differing_leaves, group_seeds
from mopd.recipes.compare.parity import ParityTarget, RowParity, compute_parity
from mopd.recipes.compare.reference import (
    MeasuredAgainst,
    Reference,
    TeacherTransfer,
    references,
    teachers_on_every_domain,
)
from mopd.recipes.compare.runs import Run, common_split, expand_studies, read_runs, reading, refuse_unlike
from mopd.recipes.report.records import Ends, PerDomain, as_ends
from mopd.recipes.report.wording import trades

NOT_NEGATIVE = ("imbalance", "max_regression", "pareto_gap")


class Difference(NamedTuple):
    """A difference to the leader with its 95% interval; a list of three in JSON."""

    value: float
    low: float
    high: float


class SeedSpread(NamedTuple):
    """The mean over the seeds, the lowest and the highest of them; a list of three in JSON."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class ComparedTask:
    """The questions of a domain: the task's fingerprint (None for a dataset's run under way), and how many."""

    fingerprint: str | None
    questions: int


@dataclass(frozen=True, slots=True)
class ComparedMetrics:
    """The metrics of a run or a row: as in seesaw.json, and the student's ``scores``; None where undefined."""

    points: PerDomain
    recovery: PerDomain
    mean_recovery: float | None
    worst_recovery: float | None
    imbalance: float | None
    max_regression: float
    pareto_gap: float | None
    scores: Mapping[str, float]
    forgetting: PerDomain | None
    seesaw_share: float | None
    seesaw_noise: float | None
    seesaw_correlation: float | None
    seesaw_correlation_p: float | None


@dataclass(frozen=True, slots=True)
class ComparedIntervals:
    """95% intervals of the :class:`ComparedMetrics` that have one; None where the metric is undefined."""

    points: Mapping[str, Ends | None]
    recovery: Mapping[str, Ends | None]
    mean_recovery: Ends | None
    worst_recovery: Ends | None
    imbalance: Ends | None
    max_regression: Ends
    pareto_gap: Ends | None
    scores: Mapping[str, Ends]


@dataclass(frozen=True, slots=True)
class RowPoint:
    """A point of a row's curve, at a step that every seed was measured at; FLOPs are the mean over seeds."""

    step: int
    flops: float
    scores: Mapping[str, SeedSpread]


@dataclass(frozen=True, slots=True)
class BehindLeader:
    """Differences to the leader on the same questions and seeds; None where there is none in common, or undefined."""

    worst_recovery: Difference | None
    mean_recovery: Difference | None


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A row: runs of one recipe that differ in nothing but the seed; numbers are means over them.

    Attributes:
        runs: their names.
        n: how many.
        step: finished steps of the student that was measured last on validation; of the first run.
        steps: that the recipe asks for.
        taught_by: names of the recipe's teachers.
        seesaws: how many of its runs are a seesaw.
        behind: None of the leader itself, and where there is no leader.
        parity: by measure, see :class:`~mopd.recipes.compare.parity.RowParity`.
    """

    name: str
    method: str
    runs: Sequence[str]
    seeds: Sequence[int]
    trials: int
    n: int
    finished: bool
    step: int
    steps: int
    taught_by: Sequence[str]
    metrics: ComparedMetrics
    metrics_ci: ComparedIntervals
    seesaws: int
    cost: RunCost
    curve: Sequence[RowPoint]
    behind: BehindLeader | None
    parity: Mapping[str, RowParity]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run, as a comparison shows it.

    Attributes:
        row: the name of its row.
        selected: the step that was scored.
        base: the first run that began from the same base.
        against: domain -> whose teacher its recovery is measured by; None where nobody has one.
        borrowed: the domains where that is another run's.
        models: scores with intervals of base, teachers and student, by domain.
    """

    name: str
    folder: str
    row: str
    seed: int
    commit: str | None
    finished: bool
    step: int
    selected: int
    steps: int
    base: str
    against: Mapping[str, MeasuredAgainst | None]
    borrowed: Sequence[str]
    models: Mapping[str, Mapping[str, Interval]]
    metrics: ComparedMetrics
    metrics_ci: ComparedIntervals
    cost: RunCost


@dataclass(frozen=True, slots=True)
class ReferenceLevels:
    """Mean scores of base and teachers on validation questions, by domain."""

    base: PerDomain
    teacher: PerDomain


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side; attributes are the keys of comparison.json, see the head of this file."""

    split: Split
    domains: Sequence[str]
    tasks: Mapping[str, ComparedTask]
    rows: Sequence[ComparedRow]
    leader: str | None
    parity: ParityTarget
    runs: Sequence[ComparedRun]
    levels: ReferenceLevels
    transfer: Sequence[TeacherTransfer]
    differing: Mapping[str, Sequence[str]]

    def record(self) -> dict[str, Any]:
        """The content of comparison.json: fields in order as keys, triples and intervals as lists."""
        return {"format": 1} | asdict(self)


def compare(folders: Sequence[Path], *, validation: bool = False) -> Comparison:
    """Compare runs, finished or under way, by what lies in their folders.

    Args:
        validation: score the last answers to validation prompts even where test prompts were asked: settings are chosen
            by these.

    Raises:
        UserError: a folder holds no run, or runs were measured on different questions.
    """
    runs = read_runs(expand_studies(folders))
    refuse_unlike(runs)
    split, domains = "validation" if validation else common_split(runs), runs[0].domains
    reference_of = dict(zip([run.name for run in runs], references(runs, split), strict=True))
    cost_of = {run.name: _cost(run) for run in runs}
    groups = group_seeds(runs)
    of_run = {name: measured(reference.table) for name, reference in reference_of.items()}
    of_row = {group.name: over_seeds([of_run[run.name] for run in group.runs]) for group in groups}
    timed = {run.name: over_time(run.answers, domains) for run in runs}
    curves = {run.name: compute_curve(run, domains) for run in runs}
    averages = {group.name: _mean_over_time([timed[run.name] for run in group.runs], domains) for group in groups}
    metrics = {group.name: _metrics(of_row[group.name], averages[group.name], domains) for group in groups}
    costs = {group.name: mean_cost([cost_of[run.name] for run in group.runs]) for group in groups}
    leader = _leader(groups, metrics)
    worst = {name: of_group.worst_recovery for name, of_group in metrics.items()}
    target, parities = compute_parity(groups, worst, costs, curves, domains)
    return Comparison(
        split=split,
        domains=domains,
        tasks=_tasks(runs, split, domains),
        rows=[
            _row(
                group,
                metrics=metrics[group.name],
                intervals=_intervals(of_row[group.name], domains),
                over_runs=[timed[run.name] for run in group.runs],
                cost=costs[group.name],
                curve=_mean_curve([curves[run.name] for run in group.runs], domains),
                behind=None if leader is None or group is leader else _behind(group, leader, of_row),
                parity=parities[group.name],
            )
            for group in groups
        ],
        leader=None if leader is None else leader.name,
        parity=target,
        runs=[
            _run(run, group.name, reference_of[run.name], of_run[run.name], timed[run.name], cost_of[run.name], split)
            for group in groups
            for run in group.runs
        ],
        levels=_levels(references(runs, "validation"), domains),
        transfer=teachers_on_every_domain(runs, list(reference_of.values()), split),
        differing=differing_leaves(groups),
    )


RivalT = TypeVar("RivalT", Group, ComparedRow)


def rivals(rows: Sequence[RivalT]) -> list[RivalT]:
    """The rows that a leader is chosen of: gold answers, which no other method sees, are a bound."""
    return [row for row in rows if row.method != "supervised"] or list(rows)


def _cost(run: Run) -> RunCost:
    with reading(run.folder):
        return run_cost(run)


def _tasks(runs: Sequence[Run], split: Split, domains: Sequence[str]) -> dict[str, ComparedTask]:
    known = {d: next((r.fingerprints[d] for r in runs if r.fingerprints.get(d)), None) for d in domains}
    return {d: ComparedTask(known[d], len(runs[0].questions(split, d))) for d in domains}


def _metrics(values: Mapping[str, Measured], timed: OverTime, domains: Sequence[str]) -> ComparedMetrics:
    means = {name: plain(metric.mean, domains) for name, metric in values.items()}
    return ComparedMetrics(**means, **asdict(timed))


def _intervals(values: Mapping[str, Measured], domains: Sequence[str]) -> ComparedIntervals:
    # Student's t knows nothing of bounds: what cannot be negative by definition isn't told to be.
    resampled = {n: np.maximum(m.spread(), 0.0) if n in NOT_NEGATIVE else m.spread() for n, m in values.items()}
    return ComparedIntervals(**{name: as_ends(ends(samples, domains)) for name, samples in resampled.items()})


def _mean_over_time(runs: Sequence[OverTime], domains: Sequence[str]) -> OverTime:
    """The mean over runs of each metric; None where it is undefined in any."""
    forgotten = [run.forgetting or {} for run in runs]
    by_domain = {d: _mean([of_run.get(d) for of_run in forgotten]) for d in domains}
    return OverTime(
        forgetting=by_domain if any(forgotten) else None,
        seesaw_share=_mean([run.seesaw_share for run in runs]),
        seesaw_noise=_mean([run.seesaw_noise for run in runs]),
        seesaw_correlation=_mean([run.seesaw_correlation for run in runs]),
        seesaw_correlation_p=_mean([run.seesaw_correlation_p for run in runs]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else float(np.mean(known))


def _row(
    group: Group,
    *,
    metrics: ComparedMetrics,
    intervals: ComparedIntervals,
    over_runs: Sequence[OverTime],
    cost: RunCost,
    curve: Sequence[RowPoint],
    behind: BehindLeader | None,
    parity: Mapping[str, RowParity],
) -> ComparedRow:
    first = group.runs[0]
    return ComparedRow(
        name=group.name,
        method=group.method,
        runs=[run.name for run in group.runs],
        seeds=group.seeds,
        trials=first.recipe.trials,
        n=len(group.runs),
        finished=all(run.finished for run in group.runs),
        step=first.step("validation"),
        steps=first.recipe.steps,
        taught_by=sorted({name for weights in first.recipe.teacher_weights.values() for name in weights}),
        metrics=metrics,
        metrics_ci=intervals,
        seesaws=sum(trades(run.seesaw_share, run.seesaw_correlation_p) for run in over_runs),
        cost=cost,
        curve=curve,
        behind=behind,
        parity=parity,
    )


def _mean_curve(curves: Sequence[Sequence[ComputePoint]], domains: Sequence[str]) -> list[RowPoint]:
    """At the steps that every seed was measured at: mean FLOPs; mean, lowest and highest score."""
    by_step = [{point.step: point for point in curve} for curve in curves]
    points: list[RowPoint] = []
    for step in sorted(set.intersection(*map(set, by_step))):
        of_seeds = [curve[step] for curve in by_step]
        scores = {d: [point.scores[d] for point in of_seeds] for d in domains}
        spread = {d: SeedSpread(float(np.mean(values)), min(values), max(values)) for d, values in scores.items()}
        points.append(RowPoint(step, float(np.mean([point.flops for point in of_seeds])), spread))
    return points


def _leader(groups: Sequence[Group], metrics: Mapping[str, ComparedMetrics]) -> Group | None:
    worst = {name: of_group.worst_recovery for name, of_group in metrics.items()}
    known = {group.name: value for group in rivals(groups) if (value := worst[group.name]) is not None}
    leaders = [group for group in groups if group.name in known]
    return max(leaders, key=lambda group: known[group.name]) if leaders else None


def _behind(group: Group, leader: Group, values: Mapping[str, Mapping[str, Measured]]) -> BehindLeader:
    """Differences to the leader on the same questions, seed by seed; of seeds that only one has, nothing is said.

    None where they have no seed in common: other seeds have other bases and teachers.
    """
    common = [seed for seed in group.seeds if seed in leader.seeds]

    def difference(name: str) -> Difference | None:
        if not common:
            return None
        own, best = (_of(values[of.name][name], of.seeds, common) for of in (group, leader))
        between = own.minus(best)
        interval, value = as_ends(ends(between.spread(), [])), plain(between.mean, [])
        return None if value is None or interval is None else Difference(value, *interval)

    return BehindLeader(worst_recovery=difference("worst_recovery"), mean_recovery=difference("mean_recovery"))


def _of(metric: Measured, seeds: Sequence[int], wanted: Sequence[int]) -> Measured:
    order = [seeds.index(seed) for seed in wanted]
    return Measured(metric.values[order], metric.resampled[order])


def _run(
    run: Run,
    row: str,
    reference: Reference,
    values: Mapping[str, Measured],
    timed: OverTime,
    cost: RunCost,
    split: Split,
) -> ComparedRun:
    domains = list(reference.table.answers)  # in the order of the comparison, which may not be the run's own
    return ComparedRun(
        name=run.name,
        folder=str(run.folder),
        row=row,
        seed=run.recipe.seed,
        commit=run.commit,
        finished=run.finished,
        step=run.step("validation"),
        selected=run.step(split),
        steps=run.recipe.steps,
        base=reference.base.name,
        against=reference.against,
        borrowed=reference.borrowed,
        models=scored_models(run.answers, split, domains),
        metrics=_metrics(values, timed, domains),
        metrics_ci=_intervals(values, domains),
        cost=cost,
    )


def _levels(of_runs: Sequence[Reference], domains: Sequence[str]) -> ReferenceLevels:
    """Means over the distinct bases of base and teachers."""
    distinct = {reference.base.name: reference.table.means for reference in of_runs}
    base_D, teacher_D, _ = np.mean(list(distinct.values()), axis=0)
    return ReferenceLevels(base=plain(base_D, domains), teacher=plain(teacher_D, domains))
