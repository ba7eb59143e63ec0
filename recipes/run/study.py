"""A study: its runs and the stages that they share, a few at a time around one Ray cluster, and their comparison."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mopd.distill.errors import Interrupted, NoHeadroom
from mopd.distill.recipe.study import Study
from mopd.distill.storage import claim, write_atomic
from mopd.distill.tracking.console import Progress
from mopd.distill.types import RunError, UserError
from mopd.recipes.check.study import check_study, refuse_changed_runs
from mopd.recipes.compare.budget import note_budget
from mopd.recipes.compare.comparison import compare
from mopd.recipes.compare.console import console_tables
from mopd.recipes.compare.page import chosen_pair, write_comparison
from mopd.recipes.evaluation.cache import SharedAnswers
from mopd.recipes.report.page import write_report
from mopd.recipes.resolve.damage import result_damage
from mopd.recipes.resolve.run_folder import RECIPE, STUDY, kept, move_aside, note_recipe
from mopd.recipes.resolve.stages import finished, run_jobs, stage_folder
from mopd.recipes.resolve.study import StudyRun, study_runs
from mopd.recipes.run.cluster import ray_cluster
from mopd.recipes.run.context import RunContext, end_reports, noting_its_end, quieten_libraries, stopping
from mopd.recipes.run.launch import carry_out, is_finished, make_stage
from mopd.recipes.run.study_line import StudyLine


@dataclass(frozen=True, slots=True)
class StudyJob:
    """A stage or a run of a study.

    Attributes:
        kind: the stage's or the method's name; jobs of one kind take about as long.
        needs: paths of the stages that have to be there, and of the run that sets its budget.
        run: brings it to its end.
    """

    kind: str
    needs: tuple[str, ...]
    run: Callable[[RunContext], None]


def run_study(study: Study, out: Path, *, restart: bool = False) -> None:
    """Run what is not finished of a study in the folder ``out``, then compare its runs.

    A run that fails leaves the others alone.

    Raises:
        UserError: a run can't run as it is, was begun with another recipe, or another process runs there.
        RunError: runs failed; the others are finished, and the same command goes on with those.
        Interrupted: Ctrl-C or SIGTERM; every run under way finished its step and saved.
    """
    out = Path(os.path.realpath(out))
    runs = study_runs(study)
    check_study(study, runs, out)
    device = runs[0].resolved.device
    quieten_libraries(device)
    if restart:
        move_aside(out)
    refuse_changed_runs(runs, out)
    with (
        claim(out),
        Progress(title=study.name, keeps_finished=False) as progress,
        stopping(progress, partial(kept, out)) as stop,
    ):
        prepare(study.name, runs, out)
        failures: Mapping[str, BaseException] = {}
        jobs = unfinished_jobs(runs, out)
        if jobs:
            context = RunContext(out, study.name, device, progress, stop, SharedAnswers(out / "answers"))
            with ray_cluster(out, niceness=max(run.resolved.niceness for run in runs), device=device):
                failures = run_all(study, jobs, context)
            end_reports()
    console = Console()
    summarize(study, out, console)
    refuse_unfinished(study, out, failures, console)


def prepare(name: str, runs: Sequence[StudyRun], out: Path) -> None:
    """Write every run's recipe and links to the stages that it shares; from then on each can be run by itself."""
    names = {run.name: {"method": run.method, "seed": run.seed} for run in runs}
    write_atomic(out / STUDY, json.dumps({"format": 1, "name": name, "runs": names}, indent=2) + "\n")
    for run in runs:
        folder = out / run.name
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        if not (folder / RECIPE).is_file():
            note_recipe(run.resolved.recipe, folder)
        for stage, fingerprint in run.fingerprints.items():
            link, made = stage_folder(folder, stage), shared_stage(run.seed, stage, fingerprint)
            (out / made).mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            if not link.exists():  # else the run has a stage of its own
                link.symlink_to(Path("../..") / made)


def shared_stage(seed: int, name: str, fingerprint: str) -> str:
    """The folder of a stage in the study's: one for all runs whose stage has the same fingerprint."""
    return f"stages-{seed}/{name}-{fingerprint[:8]}"


def unfinished_jobs(runs: Sequence[StudyRun], out: Path) -> dict[str, StudyJob]:
    """What has to be done, by path in the study's folder: of every seed first the stages, then the runs."""
    jobs: dict[str, StudyJob] = {}
    # The first run of a seed that has teachers tells whether they have room; runs without teachers wait for it.
    scouts: dict[int, str] = {}
    for run in runs:
        if run.taught and run.min_headroom > 0:
            scouts.setdefault(run.seed, run.name)
    for run in runs:
        folder = out / run.name
        if is_finished(folder) and not result_damage(folder):
            continue
        paths = {n: str(stage_folder(folder, n).resolve().relative_to(out)) for n in run.fingerprints}
        for name, fingerprint in run.fingerprints.items():
            if not finished(folder, name, fingerprint) or result_damage(stage_folder(folder, name)):
                before = tuple(paths[other] for other in run.needs[name])
                make = partial(_make_stage, run, name)
                jobs.setdefault(paths[name], StudyJob(name, before, make))
        scout = None if run.taught else scouts.get(run.seed)
        after = tuple(name for name in (run.equal_to, scout) if name is not None)
        jobs[run.name] = StudyJob(run.method, (*paths.values(), *after), partial(_carry_out, run))
    return jobs


def _make_stage(run: StudyRun, name: str, context: RunContext) -> None:
    own = replace(context, out=context.out / run.name)
    make_stage(run.resolved, name, own, title=f"{name}-{run.seed}")


def _carry_out(run: StudyRun, context: RunContext) -> None:
    folder = context.out / run.name
    own = replace(context, out=folder, title=run.name)
    with claim(folder) as attempt:
        with noting_its_end(own, attempt):
            if run.compute is not None and run.equal_to is not None:
                note_budget(context.out / run.equal_to, folder, run.compute.times)
            carry_out(run.resolved, own, attempt)
        write_report(folder)


def run_all(study: Study, jobs: Mapping[str, StudyJob], context: RunContext) -> dict[str, BaseException]:
    """Run the jobs, a few at a time; returns what the failed ones raised."""
    runs = len(study.children)
    done = runs - sum(child.name in jobs for child in study.children)
    line = StudyLine(study.name, context.progress, runs=runs, done=done, jobs=jobs, parallel=study.parallel)

    def run_one(path: str) -> None:
        with line.under_way(path):
            jobs[path].run(context)

    def goes_on(path: str, error: BaseException) -> bool:
        if isinstance(error, Interrupted):
            return False
        if not isinstance(error, UserError | RunError | OSError):
            context.progress.print("".join(traceback.format_exception(error)))
        what = "is left out" if isinstance(error, NoHeadroom) else "failed"
        context.progress.print(f"{path} {what}: {error}\nthe others go on")
        return not context.stop.is_set()

    needed = {path: job.needs for path, job in jobs.items()}
    try:
        return run_jobs(needed, run_one, parallel=study.parallel, goes_on=goes_on)
    finally:
        line.close()


def summarize(study: Study, out: Path, console: Console) -> None:
    """Compare the runs that are finished: the table, ``comparison.html`` and ``comparison.json``."""
    done = [out / child.name for child in study.children if is_finished(out / child.name)]
    if not done:
        return
    comparison = compare(done)
    page = write_comparison(comparison, out, chosen_pair(comparison, None))
    console.print(console_tables(comparison))
    console.print(Text(f"page: {page}"), soft_wrap=True)


def refuse_unfinished(study: Study, out: Path, failures: Mapping[str, BaseException], console: Console) -> None:
    """Say what a study lacks, once all that could be done is done. A seed without headroom is told, and no failure.

    Raises:
        Interrupted: it was stopped.
        RunError: runs or stages failed; each is named, and what waited for it.
    """
    low = {child.seed for child in study.children if isinstance(failures.get(child.name), NoHeadroom)}
    unfinished = [child for child in study.children if not is_finished(out / child.name)]
    missing = [child.name for child in unfinished if child.seed not in low]
    done = f"{len(study.children) - len(unfinished)} of {len(study.children)} runs are finished"
    if low:
        shown = ", ".join(map(str, sorted(low)))
        done += (
            f", and none of seed {shown} was trained, whose teachers are too near the base (`evaluate.min_headroom`)"
        )
    failures = {path: error for path, error in failures.items() if not isinstance(error, NoHeadroom)}
    if any(isinstance(error, Interrupted) for error in failures.values()):
        raise Interrupted(f"{done}; each of the others goes on from its last step")
    if failures:
        failed = "; ".join(f"{path}: {error}" for path, error in failures.items())
        waited = [name for name in missing if name not in failures]
        failed += f". For want of a stage these were not begun: {', '.join(waited)}" if waited else ""
        raise RunError(f"{done}. Failed: {failed}")
    if low:
        console.print(Text(done), soft_wrap=True)
