"""Several runs side by side: what comparison.json holds, whose keys are stable, from the folders of the runs.

``compare`` returns the content of comparison.json. Scores and recoveries are fractions (1.0 is 100%), intervals 95%,
undefined is null. Of a row with several seeds every number is the mean over them, but for ``..._estimate``, which are
of the domains' means; docs/statistics.md has the definitions. Keys are added, never renamed:

    format, split, domains    1; ``test``, or ``validation`` while a run is under way or where asked; names
    statistics                2: how intervals are made, distill/metrics/results.py
    tasks                     domain -> fingerprint (null for a dataset's run under way), questions
    rows                      one a recipe: name, method, runs, seeds, n, finished, step, steps, taught_by; trials, the
                              settings tried before these were chosen, 0 if that is not told;
                              ``metrics`` and ``metrics_ci`` as in seesaw.json, and ``scores``; ``seesaws``, how many of
                              its runs are one; ``cost``: training, teachers, with_teachers, base, evaluation, each
                              flops and seconds, or null; ``curve``: [{step, flops, scores: {domain: [mean, lowest,
                              highest of the seeds]}}]; ``behind``: metric, or points by domain -> [difference to the
                              leader, low, high]; ``at_least``: the lower end of the worst recovery, corrected for the
                              number of rows; ``verdict``: seesaw, gone, remains or unknown, against ``bar``, from how
                              many questions, and how many are needed to tell ten points;
                              ``parity``: worst_score and mean_score -> flops to reach the level below, null: never in
                              its whole run, which took ``spent``; reached, the part of resamples that do; ratio to what
                              the reference needs, null as flops, or where that needs none; ratio_ci, whose null ends
                              are never; tried, the ratio of its whole run; with_teachers, the last three with the
                              making of both rows' teachers, null where that is unknown
    leader                    the row with the highest worst recovery (on validation: with its highest lower end), of
                              those that saw no gold answers if there are any; null if there is none
    parity                    reference, the row whose last validation scores are to be reached; levels, these less the
                              tolerance: distill/metrics/compute_to_parity.py
    runs                      one a folder: name, folder, row, seed, stages_seed (null: seed), commit, finished, step,
                              steps; selected, the step that was scored; base, the first run that began from the same
                              base; against, whose teacher each domain is measured by, and borrowed, the domains where
                              that is another run's; models (scores with intervals); sampled, the same of sampled
                              answers; episodes, by model and domain as in seesaw.json, and paces, by model turns, calls
                              and solved episodes a minute, both empty without environments; metrics, metrics_ci and
                              cost, as those of rows
    levels                    base and teachers on validation questions, by domain: what curves are drawn against
    transfer                  the teachers themselves: name, own domains, n, scores, transfer
    differing                 leaf of the recipes -> its value in each row, where they aren't all the same
    tried                     sets of rows that differ in one number: leaf; rows from its lowest value up; values; best;
                              edge, lowest or highest, null inside; next; ahead: [worst recovery of the best less the
                              next's, low, high], or null
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mopd.distill.metrics.against_teachers import Measured, Table, measure, plain, recoveries
from mopd.distill.metrics.differences import differences
from mopd.distill.metrics.episodes import MeasuredEpisodes
from mopd.distill.metrics.evaluate import Interval, Split
from mopd.distill.metrics.extremes import Extreme, least
from mopd.distill.metrics.power import Verdict, verdict
from mopd.distill.metrics.quotients import TAIL, Ends, Quotients
from mopd.distill.metrics.results import STATISTICS, OverTime, forgotten, over_time, scored_models
from mopd.recipes.compare.cost import ComputePoint, RunCost, compute_curve, mean_cost, run_cost
from mopd.recipes.compare.groups import Group, Tried, differing_leaves, group_seeds, tried_settings
from mopd.recipes.compare.parity import ParityTarget, RowParity, compute_parity
from mopd.recipes.compare.reference import (
    MeasuredAgainst,
    Reference,
    TeacherTransfer,
    references,
    teachers_on_every_domain,
)
from mopd.recipes.compare.runs import Run, common_split, expand_studies, read_runs, refuse_unlike
from mopd.recipes.report.records import PerDomain, as_ends, reading
from mopd.recipes.report.wording import trades


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
    """The metrics of a run or a row: as in seesaw.json, and the student's ``scores``; None where undefined.

    Of a row with several seeds, what ends in ``_estimate`` is of the domains' means over seeds; ``worst_by_seed`` is
    the mean of the seeds' worst recoveries, which ``worst_recovery`` is too, without the latter's bias.
    """

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
    pooled_recovery: float | None
    worst_recovery_estimate: float | None
    worst_by_seed: float | None
    imbalance_estimate: float | None
    max_regression_estimate: float
    pareto_gap_estimate: float | None
    forgetting_estimate: PerDomain | None


@dataclass(frozen=True, slots=True)
class ComparedIntervals:
    """95% intervals of the :class:`ComparedMetrics`; None where the metric is undefined.

    Those of extremes are of the domains' means over seeds; ``worst_by_seed`` has its own. ``points_at_once`` holds for
    all domains of all rows together.
    """

    points: Mapping[str, Ends | None]
    recovery: Mapping[str, Ends | None]
    mean_recovery: Ends | None
    worst_recovery: Ends | None
    imbalance: Ends | None
    max_regression: Ends
    pareto_gap: Ends | None
    scores: Mapping[str, Ends]
    points_at_once: Mapping[str, Ends]
    pooled_recovery: Ends | None
    worst_by_seed: Ends | None
    forgetting: Mapping[str, Ends] | None


@dataclass(frozen=True, slots=True)
class RowPoint:
    """A point of a row's curve, at a step that every seed was measured at; FLOPs are the mean over seeds."""

    step: int
    flops: float
    scores: Mapping[str, SeedSpread]


@dataclass(frozen=True, slots=True)
class BehindLeader:
    """Differences to the leader on the same questions and seeds; None where there is none in common, or undefined.

    Intervals are corrected for the number of rows; those of ``points``, the students' scores by domain, for the number
    of domains too. ``worst_recovery`` is the difference of the least of the domains' means.
    """

    worst_recovery: Difference | None
    mean_recovery: Difference | None
    points: Mapping[str, Difference] | None


@dataclass(frozen=True, slots=True)
class ComparedTrials(Tried):
    """Settings of one number that were tried, and the worst recovery of the best less that of the next.

    Attributes:
        ahead: corrected for how many were tried; None where they have no seed in common, or no recovery.
    """

    ahead: Difference | None


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
        at_least: the lower end of the worst recovery, corrected for the number of rows that are looked at.
        verdict: whether the worst domain keeps enough; None where there is no recovery.
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
    at_least: float | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run, as a comparison shows it.

    Attributes:
        row: the name of its row.
        stages_seed: what base and specialists were made with, where that is not its seed.
        selected: the step that was scored.
        base: the first run that began from the same base.
        against: domain -> whose teacher its recovery is measured by; None where nobody has one.
        borrowed: the domains where that is another run's.
        models: scores with intervals of base, teachers and student, by domain.
        sampled: the same of sampled answers; empty where none were sampled.
        episodes: how those of environments went, by model and domain; empty where there were none.
        paces: by model, turns, calls of tools and solved episodes a minute; empty where there were none.
    """

    name: str
    folder: str
    row: str
    seed: int
    stages_seed: int | None
    commit: str | None
    finished: bool
    step: int
    selected: int
    steps: int
    base: str
    against: Mapping[str, MeasuredAgainst | None]
    borrowed: Sequence[str]
    models: Mapping[str, Mapping[str, Interval]]
    sampled: Mapping[str, Mapping[str, Interval]]
    episodes: Mapping[str, Mapping[str, MeasuredEpisodes]]
    paces: Mapping[str, Mapping[str, float]]
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
    tried: Sequence[ComparedTrials]

    def record(self) -> dict[str, Any]:
        """The content of comparison.json: fields in order as keys, triples and intervals as lists."""
        return {"format": 1, "statistics": STATISTICS} | asdict(self)


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
    of_run = {name: measure([reference.table]) for name, reference in reference_of.items()}
    tables = {group.name: [reference_of[run.name].table for run in group.runs] for group in groups}
    of_row = {name: measure(of_group, looks=len(groups)) for name, of_group in tables.items()}
    timed = {run.name: over_time(run.answers, domains) for run in runs}
    curves = {run.name: compute_curve(run, domains) for run in runs}
    lost = {group.name: forgotten([run.answers for run in group.runs], domains) for group in groups}
    averages = {g.name: _mean_over_time([timed[r.name] for r in g.runs], lost[g.name], domains) for g in groups}
    metrics = {group.name: _metrics(of_row[group.name], averages[group.name]) for group in groups}
    costs = {group.name: mean_cost([cost_of[run.name] for run in group.runs]) for group in groups}
    intervals = {group.name: _intervals(of_row[group.name], lost[group.name]) for group in groups}
    chosen_by = {name: chosen_by_value(split, metrics[name], intervals[name]) for name in metrics}
    leader = _leader(groups, chosen_by)
    target, parities = compute_parity(groups, chosen_by, costs, curves, domains)
    return Comparison(
        split=split,
        domains=domains,
        tasks=_tasks(runs, split, domains),
        rows=[
            _row(
                group,
                metrics=metrics[group.name],
                intervals=intervals[group.name],
                over_runs=[timed[run.name] for run in group.runs],
                cost=costs[group.name],
                curve=_mean_curve([curves[run.name] for run in group.runs], domains),
                behind=None if leader is None or group is leader else _behind(group, leader, tables, len(groups) - 1),
                parity=parities[group.name],
                recovered=recoveries(tables[group.name])[1],
                looks=len(groups),
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
        tried=[_trials(each, groups, tables) for each in tried_settings(groups, chosen_by)],
    )


def _trials(tried: Tried, groups: Sequence[Group], tables: Mapping[str, Sequence[Table]]) -> ComparedTrials:
    """What was tried, with how far the best is ahead of the next: two rows that were chosen among all pairs."""
    of = {group.name: group for group in groups}
    ahead = None
    if tried.best is not None and tried.next is not None:
        ahead = _behind(of[tried.best], of[tried.next], tables, math.comb(len(tried.rows), 2)).worst_recovery
    return ComparedTrials(**asdict(tried), ahead=ahead)


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


def _metrics(measured: Measured, timed: OverTime) -> ComparedMetrics:
    return ComparedMetrics(**measured.values, **asdict(timed))


def _intervals(measured: Measured, lost: Mapping[str, Extreme]) -> ComparedIntervals:
    intervals = {name: as_ends(interval) for name, interval in measured.intervals.items()}
    return ComparedIntervals(**intervals, forgetting={d: Ends(e.low, e.high) for d, e in lost.items()} or None)


def _mean_over_time(runs: Sequence[OverTime], lost: Mapping[str, Extreme], domains: Sequence[str]) -> OverTime:
    """The mean over runs of each metric, None where it is undefined in any, and forgetting of the mean curve."""
    by_run = [run.forgetting or {} for run in runs]
    by_domain = {d: _mean([of_run.get(d) for of_run in by_run]) for d in domains}
    return OverTime(
        forgetting=by_domain if any(by_run) else None,
        forgetting_estimate={domain: extreme.estimate for domain, extreme in lost.items()} or None,
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
    recovered: Quotients | None,
    looks: int,
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
        at_least=None if recovered is None else least(recovered, TAIL / looks).low,
        verdict=None if recovered is None else verdict(recovered),
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


def chosen_by_value(split: Split, metrics: ComparedMetrics, intervals: ComparedIntervals) -> float | None:
    """What rows are ordered by. On validation questions, where a setting is chosen: the lower end of the worst
    recovery; on test questions, where rows are reported: its estimate."""
    if split == "validation":
        return None if intervals.worst_recovery is None else intervals.worst_recovery.low
    return metrics.worst_recovery_estimate


def _leader(groups: Sequence[Group], worst: Mapping[str, float | None]) -> Group | None:
    known = {group.name: value for group in rivals(groups) if (value := worst[group.name]) is not None}
    leaders = [group for group in groups if group.name in known]
    return max(leaders, key=lambda group: known[group.name]) if leaders else None


def _behind(group: Group, leader: Group, tables: Mapping[str, Sequence[Table]], looks: int) -> BehindLeader:
    """Differences to the leader on the same questions, seed by seed; of seeds that only one has, nothing is said.

    None where they have no seed in common: other seeds have other bases and teachers.
    """
    common = [seed for seed in group.seeds if seed in leader.seeds]
    if not common:
        return BehindLeader(None, None, None)
    own, best = ([tables[of.name][of.seeds.index(seed)] for seed in common] for of in (group, leader))
    between = differences(own, best, looks=looks)
    points = {domain: Difference(*astuple(extreme)) for domain, extreme in between.points.items()}
    worst, mean = (
        None if extreme is None else Difference(*astuple(extreme))
        for extreme in (between.worst_recovery, between.mean_recovery)
    )
    return BehindLeader(worst_recovery=worst, mean_recovery=mean, points=points)


def _run(
    run: Run,
    row: str,
    reference: Reference,
    measured: Measured,
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
        stages_seed=run.recipe.tree.get("stages_seed"),
        commit=run.commit,
        finished=run.finished,
        step=run.step("validation"),
        selected=run.step(split),
        steps=run.recipe.steps,
        base=reference.base.name,
        against=reference.against,
        borrowed=reference.borrowed,
        models=scored_models(run.answers, split, domains),
        sampled=run.sampled[split],
        episodes=run.episodes[split],
        paces=run.paces[split],
        metrics=_metrics(measured, timed),
        metrics_ci=_intervals(measured, forgotten([run.answers], domains)),
        cost=cost,
    )


def _levels(of_runs: Sequence[Reference], domains: Sequence[str]) -> ReferenceLevels:
    """Means over the distinct bases of base and teachers."""
    distinct = {reference.base.name: reference.table.means for reference in of_runs}
    base_D, teacher_D, _ = np.mean(list(distinct.values()), axis=0)
    return ReferenceLevels(base=plain(base_D, domains), teacher=plain(teacher_D, domains))
