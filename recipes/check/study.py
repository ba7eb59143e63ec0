"""Checks of a study before anything is spent: each method's recipe, whether they can be compared, one plan for all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mopd.distill.recipe import ComputeRecipe
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.study import Study
from mopd.distill.types import UserError
from mopd.recipes.check.plan.room import FAR, Room, bytes_in, memory_here
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.check.plan.view import out_of, print_aligned, print_warnings
from mopd.recipes.check.plan.work import Part
from mopd.recipes.check.static import SharedChecks, check
from mopd.recipes.resolve.run_folder import check_folder, refuse_changed_recipe, size
from mopd.recipes.resolve.study import StudyRun
from mopd.recipes.tables import Fitted


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study will take; bytes and FLOPs are estimates.

    Attributes:
        of_method: the plan of one run of each method.
        stages: stages that are made in all, each once a seed for all runs that share it.
    """

    name: str
    parallel: int
    runs: Sequence[StudyRun]
    of_method: Mapping[str, Plan]
    stages: int

    @property
    def memory_bytes(self) -> float:
        """Of as many of the largest runs as run at a time."""
        each = [self.of_method[run.method].memory_bytes for run in self.runs]
        return sum(sorted(each, reverse=True)[: self.parallel])

    @property
    def work(self) -> list[Part]:
        """Of all runs; a stage that several share counts once."""
        made: set[str] = set()
        parts: list[Part] = []
        for run in self.runs:
            own = {stage for stage, fingerprint in run.fingerprints.items() if fingerprint not in made}
            made.update(run.fingerprints.values())
            parts += [p for p in self.of_method[run.method].work if p.stage is None or p.stage in own]
        return parts

    @property
    def disk_bytes(self) -> float:
        """Of all runs, as if none shared a stage."""
        return sum(self.of_method[run.method].disk_bytes for run in self.runs)


def check_study(
    study: Study, runs: Sequence[StudyRun], out: Path, *, offline: bool = False, plan_only: bool = False
) -> StudyPlan:
    """Check the recipe of every method, on the first seed: on others it differs in nothing that is checked.

    Args:
        runs: of the study, see :func:`recipes.resolve.study.study_runs`.

    Raises:
        UserError: with every problem that was found; those that not every method has are told with the method.
    """
    first: dict[str, StudyRun] = {}
    for run in runs:
        first.setdefault(run.method, run)
    shared = SharedChecks()
    plans: dict[str, Plan] = {}
    problems: dict[str, list[str]] = {}
    for method, run in first.items():
        try:
            plans[method] = check(run.resolved, out / run.name, offline=offline, plan_only=plan_only, shared=shared)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(method)
    sentences = [
        problem if len(of) == len(first) else f"{', '.join(f'`methods.{name}`' for name in of)}: {problem}"
        for problem, of in problems.items()
    ]
    sentences += asked_differently(list(first.values()))
    sentences += budgets_that_wait({method: run.compute for method, run in first.items()})
    if sentences:
        raise UserError(*sentences)
    stages = {fingerprint for run in runs for fingerprint in run.fingerprints.values()}
    plan = StudyPlan(study.name, study.parallel, runs, plans, len(stages))
    if offline or plan_only:
        return plan
    lacking = check_folder(out, needed_bytes=max(0, plan.disk_bytes - bytes_in(out)))
    if plan.memory_bytes > FAR * (there := memory_here()) and not os.environ.get("RAY_ADDRESS"):
        lacking.append(
            f"about {size(plan.memory_bytes)} of memory are needed by {plan.parallel} runs at a time, and this machine "
            f"has {size(there)}; lower `parallel`, or see the plan alone with `mopd check --plan-only`"
        )
    if lacking:
        raise UserError(*lacking)
    return plan


def budgets_that_wait(methods: Mapping[str, ComputeRecipe | None]) -> list[str]:
    """Methods whose budget is that of a method that is not there, or waits for their own."""
    waits = {name: compute.equal_to for name, compute in methods.items() if compute is not None}
    problems: list[str] = []
    for name, other in waits.items():
        where = f"`methods.{name}.run.compute.equal_to`"
        if other is not None and other not in methods:
            problems.append(f"{where}: no method is called {other!r}; {guess(other, methods)}")
        path = [name]
        while (before := waits.get(path[-1])) is not None and path.count(before) == 0:
            path.append(before)
        if before == name:
            circle = " waits for ".join([*path, name])
            problems.append(f"{where} leads back to itself: {circle}; one of them must have a budget of its own")
    return problems


def asked_differently(runs: Sequence[StudyRun]) -> list[str]:
    """Methods that could not be compared with the first one: other domains, tasks or questions."""
    first, *others = runs
    problems: list[str] = []
    for other in others:
        keys = dict.fromkeys([*first.questions, *other.questions])
        differing = [key for key in keys if first.questions.get(key) != other.questions.get(key)]
        if differing:
            problems.append(
                f"`methods.{other.method}` has another {', '.join(f'`{key}`' for key in differing)} than "
                f"`methods.{first.method}`: runs of a study are compared, so all must be asked the same questions "
                "(`evaluate_only: true` measures a domain without training on it)"
            )
    return problems


def refuse_changed_runs(runs: Sequence[StudyRun], out: Path) -> None:
    """Refuse a study of which a run was begun with another recipe. Another method or seed is a new run, and welcome.

    Raises:
        UserError: with what differs, for every such run.
    """
    problems: list[str] = []
    for run in runs:
        try:
            refuse_changed_recipe(run.resolved.recipe, out / run.name)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def print_study_plan(plan: StudyPlan, console: Console, there: Room) -> None:
    """Print what runs there are and what they take."""
    seeds: dict[str, list[str]] = {}
    for run in plan.runs:
        seeds.setdefault(run.method, []).append(str(run.seed))
    trials = {run.method: run.trials for run in plan.runs}
    table = Table(title=f"{plan.name}: {len(plan.runs)} runs", title_justify="left", title_style="bold")
    for column in ("method", "seeds", "tried", "steps", "FLOP each, stages too", "memory", "disk"):
        table.add_column(column, justify="left" if column in ("method", "seeds") else "right")
    for method, of_run in plan.of_method.items():
        cells = [str(trials[method] or "–"), str(of_run.run_steps), f"{of_run.flops:.1e}"]
        sizes = [size(of_run.memory_bytes), size(of_run.disk_bytes)]
        table.add_row(Text(method), ", ".join(seeds[method]), *cells, *sizes)
    console.print(Fitted(table))
    memory = out_of(there.memory_bytes, "here")
    console.print(
        f"stages: {plan.stages}, each made once for all runs that share it\n"
        f"memory: about {size(plan.memory_bytes)} for {plan.parallel} at a time{memory}\n"
        f"disk: at most about {size(plan.disk_bytes)}{out_of(there.disk_bytes, 'free')}\n"
        "time: `mopd check --deep` measures it here; a study under way says how long it will take",
        highlight=False,
    )
    if there.memory_bytes is not None and plan.memory_bytes > there.memory_bytes:
        console.print("That is more memory than this machine has: a lower `parallel` takes less.", style="yellow")
    for method, of_run in plan.of_method.items():
        print_aligned(of_run.aligned, console, where=f" of {method}")
    print_warnings((warning for of_run in plan.of_method.values() for warning in of_run.warnings), console)
