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
from pathlib import Path
from typing import Any

import numpy as np

from mopd.distill.metrics.bootstrap import Measured, ends, measured, over_seeds, plain
from mopd.distill.metrics.evaluate import Split
from mopd.distill.metrics.results import over_time, scored_models
from mopd.distill.metrics.seesaw import is_seesaw
from mopd.recipes.compare.cost import Cost, compute_curve, cost, mean_cost
from mopd.recipes.compare.groups import Group, differing_leaves, group_seeds, rivals
from mopd.recipes.compare.parity import add_parity
from mopd.recipes.compare.reference import Reference, teachers_on_every_domain, yardsticks
from mopd.recipes.compare.runs import Run, common_split, expand_studies, read_runs, reading, refuse_unlike
from mopd.recipes.report.data import Row, teacher_weights

NOT_NEGATIVE = ("imbalance", "max_regression", "pareto_gap")

BEHIND = ("worst_recovery", "mean_recovery")


def compare(folders: Sequence[Path], *, validation: bool = False) -> dict[str, Any]:
    """The content of comparison.json; see the head of this file.

    Args:
        validation: score the last answers to validation prompts even where test prompts were asked: settings are chosen
            by these.

    Raises:
        UserError: a folder holds no run, or runs were measured on different questions.
    """
    runs = read_runs(expand_studies(folders))
    refuse_unlike(runs)
    split, domains = "validation" if validation else common_split(runs), runs[0].domains
    measures = dict(zip([run.name for run in runs], yardsticks(runs, split), strict=True))
    costs: dict[str, dict[str, Cost | None]] = {}
    for run in runs:
        with reading(run.folder):
            costs[run.name] = cost(run)
    groups = group_seeds(runs)
    of_run = {name: measured(measure.table) for name, measure in measures.items()}
    of_row = {one.name: over_seeds([of_run[run.name] for run in one.runs]) for one in groups}
    timed = {run.name: over_time(run.answers, domains) for run in runs}
    curves = {run.name: compute_curve(run, domains) for run in runs}
    rows = [_row(one, of_row[one.name], timed, costs, curves, domains) for one in groups]
    leader = _leader(rows)
    if leader is not None:
        ahead = next(one for one in groups if one.name == leader)
        for row, one in zip(rows, groups, strict=True):
            row["behind"] = None if one is ahead else _behind(one, ahead, of_row)
    return {
        "format": 1,
        "split": split,
        "domains": domains,
        "tasks": _tasks(runs, split, domains),
        "rows": rows,
        "leader": leader,
        "parity": add_parity(rows, groups, curves, domains),
        "runs": [
            _run(run, one.name, measures[run.name], split, domains)
            | {"metrics": _metrics(of_run[run.name], domains) | timed[run.name]}
            | {"metrics_ci": _intervals(of_run[run.name], domains), "cost": costs[run.name]}
            for one in groups
            for run in one.runs
        ],
        "levels": _levels(yardsticks(runs, "validation"), domains),
        "transfer": teachers_on_every_domain(runs, list(measures.values()), split),
        "differing": differing_leaves(groups),
    }


def _tasks(runs: Sequence[Run], split: Split, domains: Sequence[str]) -> dict[str, Any]:
    known = {d: next((r.fingerprints[d] for r in runs if r.fingerprints.get(d)), None) for d in domains}
    return {d: {"fingerprint": known[d], "questions": len(runs[0].questions(split, d))} for d in domains}


def _row(
    one: Group,
    found: Mapping[str, Measured],
    timed: Mapping[str, Row],
    costs: Mapping[str, Mapping[str, Cost | None]],
    curves: Mapping[str, Sequence[Row]],
    domains: Sequence[str],
) -> dict[str, Any]:
    first = one.runs[0]
    over_runs = [timed[run.name] for run in one.runs]
    averaged = {name: _mean([told[name] for told in over_runs], domains) for name in over_runs[0]}
    return {
        "name": one.name,
        "method": first.recipe["method"],
        "runs": [run.name for run in one.runs],
        "seeds": one.seeds,
        "trials": int(first.recipe.get("trials", 0)),
        "n": len(one.runs),
        "finished": all(run.finished for run in one.runs),
        "step": first.step("validation"),
        "steps": int(first.recipe["run"]["steps"]),
        "taught_by": sorted({name for weights in teacher_weights(first.recipe).values() for name in weights}),
        "metrics": _metrics(found, domains) | averaged,
        "metrics_ci": _intervals(found, domains),
        "seesaws": sum(_seesaws(told) for told in over_runs),
        "cost": mean_cost([costs[run.name] for run in one.runs]),
        "curve": _mean_curve([curves[run.name] for run in one.runs], domains),
        "behind": None,
    }


def _metrics(found: Mapping[str, Measured], domains: Sequence[str]) -> dict[str, Any]:
    return {name: plain(metric.mean, domains) for name, metric in found.items()}


def _intervals(found: Mapping[str, Measured], domains: Sequence[str]) -> dict[str, Any]:
    # Student's t knows nothing of bounds: what cannot be negative by definition isn't told to be.
    resampled = {n: np.maximum(m.spread(), 0.0) if n in NOT_NEGATIVE else m.spread() for n, m in found.items()}
    return {name: ends(samples, domains) for name, samples in resampled.items()}


def _mean(values: Sequence[Any], domains: Sequence[str]) -> Any:
    """The mean over runs of a number or of one number a domain; None where any is undefined."""
    if any(isinstance(value, dict) for value in values):
        return {d: _mean([value[d] if value else None for value in values], domains) for d in domains}
    return None if None in values else float(np.mean(values))


def _seesaws(timed: Mapping[str, Any]) -> bool:
    share, p = timed["seesaw_share"], timed["seesaw_correlation_p"]
    return share is not None and p is not None and is_seesaw(share, p)


def _mean_curve(curves: Sequence[Sequence[Row]], domains: Sequence[str]) -> list[dict[str, Any]]:
    """At the steps that every seed was measured at: mean FLOPs; mean, lowest and highest score."""
    by_step = [{point["step"]: point for point in curve} for curve in curves]
    points: list[dict[str, Any]] = []
    for step in sorted(set.intersection(*map(set, by_step))):
        there = [curve[step] for curve in by_step]
        scores = {d: [point["scores"][d] for point in there] for d in domains}
        told = {d: [float(np.mean(values)), min(values), max(values)] for d, values in scores.items()}
        points.append({"step": step, "flops": float(np.mean([p["flops"] for p in there])), "scores": told})
    return points


def _leader(rows: Sequence[Row]) -> str | None:
    known = [row for row in rivals(rows) if row["metrics"]["worst_recovery"] is not None]
    return max(known, key=lambda row: row["metrics"]["worst_recovery"])["name"] if known else None


def _behind(one: Group, ahead: Group, found: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    """Differences to the leader on the same questions, seed by seed; of seeds that only one has, nothing is said.

    None where they have no seed in common: other seeds have other bases and teachers.
    """
    both = [seed for seed in one.seeds if seed in ahead.seeds]
    if not both:
        return dict.fromkeys(BEHIND)
    told: dict[str, Any] = {}
    for name in BEHIND:
        mine, best = (_of(found[row.name][name], row.seeds, both) for row in (one, ahead))
        difference = mine.minus(best)
        interval, value = ends(difference.spread(), []), plain(difference.mean, [])
        told[name] = None if value is None or interval is None else [value, *interval]
    return told


def _of(metric: Measured, seeds: Sequence[int], wanted: Sequence[int]) -> Measured:
    order = [seeds.index(seed) for seed in wanted]
    return Measured(metric.values[order], metric.resampled[order])


def _run(run: Run, row: str, measure: Reference, split: Split, domains: Sequence[str]) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "row": row,
        "seed": run.recipe["seed"],
        "commit": run.commit,
        "finished": run.finished,
        "step": run.step("validation"),
        "selected": run.step(split),
        "steps": int(run.recipe["run"]["steps"]),
        "base": measure.base.name,
        "against": dict(measure.against),
        "borrowed": list(measure.borrowed),
        "models": scored_models(run.answers, split, domains),
    }


def _levels(measures: Sequence[Reference], domains: Sequence[str]) -> dict[str, Any]:
    """Means over the distinct bases of base and teachers."""
    distinct = {measure.base.name: measure.table.means for measure in measures}
    base_D, teacher_D, _ = np.mean(list(distinct.values()), axis=0)
    return {"base": plain(base_D, domains), "teacher": plain(teacher_D, domains)}
