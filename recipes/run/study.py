"""A study: its runs and the stages that they share, a few at a time around one Ray cluster, and their comparison."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mopd.distill.errors import Interrupted
from mopd.distill.recipe.study import Child, Study
from mopd.distill.storage import claim, write_atomic
from mopd.distill.tracking.console import Progress
from mopd.distill.types import RunError, UserError
from mopd.recipes.check.study import check_study, refuse_changed_runs
from mopd.recipes.compare.comparison import compare
from mopd.recipes.compare.console import console_tables
from mopd.recipes.compare.page import chosen_pair, write_comparison
from mopd.recipes.evaluation.cache import SharedAnswers
from mopd.recipes.report.page import write_report
from mopd.recipes.resolve.resolved import resolve, resolve_device
from mopd.recipes.resolve.run_folder import RECIPE, STUDY, move_aside, note_recipe
from mopd.recipes.resolve.sources import stage_name
from mopd.recipes.resolve.stages import finished, run_jobs, stage_fingerprint, stage_folder
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.launch import carry_out, is_finished, make_stage
from mopd.recipes.run.study_line import StudyLine
from mopd.recipes.run.surroundings import quieten_libraries, ray_cluster, stopping


@dataclass(frozen=True, slots=True)
class Job:
    """A stage or a run of a study.

    Attributes:
        kind: the stage's or the method's name; jobs of one kind take about as long.
        needs: paths of the stages that have to be there.
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
        Interrupted: Ctrl-C; every run under way finished its step and saved.
    """
    out = out.resolve()
    check_study(study, out)
    device = resolve_device(study.children[0].recipe.device)
    quieten_libraries(device)
    if restart:
        move_aside(out)
    refuse_changed_runs(study, out)
    with claim(out), Progress(title=study.name, keeps_finished=False) as progress, stopping(progress) as stop:
        prepare(study, out)
        failures: Mapping[str, BaseException] = {}
        jobs = unfinished_jobs(study, out)
        if jobs:
            context = RunContext(out, study.name, device, progress, stop, SharedAnswers(out / "answers"))
            with ray_cluster(out):
                failures = run_all(study, jobs, context)
        summarize(study, out, progress)
    refuse_unfinished(study, out, failures)


def prepare(study: Study, out: Path) -> None:
    """Write every run's recipe and links to the stages that it shares; from then on each can be run by itself."""
    children = {child.name: {"method": child.method, "seed": child.seed} for child in study.children}
    write_atomic(out / STUDY, json.dumps({"format": 1, "name": study.name, "runs": children}, indent=2) + "\n")
    for child in study.children:
        folder = out / child.name
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        if not (folder / RECIPE).is_file():
            note_recipe(child.recipe, folder)
        for name in child.recipe.stages:
            link, made = stage_folder(folder, name), shared_stage(child, name)
            (out / made).mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            if not link.exists():  # else the run has a stage of its own
                link.symlink_to(Path("../..") / made)


def shared_stage(child: Child, name: str) -> str:
    """The folder of a stage in the study's: one for all runs whose stage has the same fingerprint."""
    return f"stages-{child.seed}/{name}-{stage_fingerprint(child.recipe, name)[:8]}"


def unfinished_jobs(study: Study, out: Path) -> dict[str, Job]:
    """What has to be done, by path in the study's folder: of every seed first the stages, then the runs."""
    jobs: dict[str, Job] = {}
    for child in study.children:
        folder = out / child.name
        if is_finished(folder):
            continue
        paths = {n: str(stage_folder(folder, n).resolve().relative_to(out)) for n in child.recipe.stages}
        for name, stage in child.recipe.stages.items():
            if not finished(folder, name, stage_fingerprint(child.recipe, name)):
                before = stage_name(stage.from_)
                jobs.setdefault(paths[name], Job(name, () if before is None else (paths[before],), _stage(child, name)))
        jobs[child.name] = Job(child.method, tuple(paths.values()), _run(child))
    return jobs


def _stage(child: Child, name: str) -> Callable[[RunContext], None]:
    def run(context: RunContext) -> None:
        make_stage(child.recipe, name, replace(context, out=context.out / child.name), title=f"{name}-{child.seed}")

    return run


def _run(child: Child) -> Callable[[RunContext], None]:
    def run(context: RunContext) -> None:
        folder = context.out / child.name
        with claim(folder) as attempt:
            carry_out(resolve(child.recipe), replace(context, out=folder, title=child.name), attempt)
            write_report(folder)

    return run


def run_all(study: Study, jobs: Mapping[str, Job], context: RunContext) -> dict[str, BaseException]:
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
        context.progress.print(f"{path} failed: {error}\nthe others go on")
        return not context.stop.is_set()

    needed = {path: job.needs for path, job in jobs.items()}
    try:
        return run_jobs(needed, run_one, parallel=study.parallel, goes_on=goes_on)
    finally:
        line.close()


def summarize(study: Study, out: Path, progress: Progress) -> None:
    """Compare the runs that are finished: the table, ``comparison.html`` and ``comparison.json``."""
    done = [out / child.name for child in study.children if is_finished(out / child.name)]
    if not done:
        return
    comparison = compare(done)
    page = write_comparison(comparison, out, chosen_pair(comparison, None))
    progress.print(console_tables(comparison))
    progress.print(f"page: {page}")


def refuse_unfinished(study: Study, out: Path, failures: Mapping[str, BaseException]) -> None:
    """Say what a study lacks, once all that could be done is done.

    Raises:
        Interrupted: it was stopped.
        RunError: runs or stages failed; each is named, and what waited for it.
    """
    missing = [child.name for child in study.children if not is_finished(out / child.name)]
    done = f"{len(study.children) - len(missing)} of {len(study.children)} runs are finished"
    if any(isinstance(error, Interrupted) for error in failures.values()):
        raise Interrupted(f"{done}; each of the others goes on from its last step")
    if failures:
        told = "; ".join(f"{path}: {error}" for path, error in failures.items())
        waited = [name for name in missing if name not in failures]
        told += f". For want of a stage these were not begun: {', '.join(waited)}" if waited else ""
        raise RunError(f"{done}. Failed: {told}")
