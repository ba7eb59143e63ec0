"""Checks of a study before anything is spent: each method's recipe, whether they can be compared, one plan for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mopd.distill.recipe.study import Child, Study
from mopd.distill.types import UserError
from mopd.recipes.check.plan import Plan
from mopd.recipes.check.plan_view import Room, out_of, size
from mopd.recipes.check.static import check
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.run_folder import check_folder, refuse_changed_recipe
from mopd.recipes.resolve.stages import stage_fingerprint


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study will take; bytes and FLOPs are estimates.

    Attributes:
        of_method: the plan of one run of each method.
        stages: stages that are made in all, each once a seed for all runs that share it.
    """

    study: Study
    of_method: Mapping[str, Plan]
    stages: int

    @property
    def memory_bytes(self) -> float:
        """Of as many of the largest runs as run at a time."""
        each = [self.of_method[child.method].memory_bytes for child in self.study.children]
        return sum(sorted(each, reverse=True)[: self.study.parallel])

    @property
    def disk_bytes(self) -> float:
        """Of all runs, as if none shared a stage."""
        return sum(self.of_method[child.method].disk_bytes for child in self.study.children)


def check_study(study: Study, out: Path, *, offline: bool = False) -> StudyPlan:
    """Check the recipe of every method, on the first seed: on others it differs in nothing that is checked.

    Raises:
        UserError: with every problem that was found; those that not every method has are told with the method.
    """
    first = {child.method: child for child in reversed(study.children)}
    first = {method: first[method] for method in dict.fromkeys(child.method for child in study.children)}
    plans: dict[str, Plan] = {}
    problems: dict[str, list[str]] = {}
    for method, child in first.items():
        try:
            plans[method] = check(resolve(child.recipe), out / child.name, offline=offline)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(method)
    told = [
        problem if len(of) == len(first) else f"{', '.join(f'`methods.{name}`' for name in of)}: {problem}"
        for problem, of in problems.items()
    ]
    told += asked_differently(list(first.values()))
    if told:
        raise UserError(*told)
    stages = {stage_fingerprint(child.recipe, name) for child in study.children for name in child.recipe.stages}
    plan = StudyPlan(study, plans, len(stages))
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.is_dir() else 0
    if lacking := check_folder(out, needed_bytes=max(0, plan.disk_bytes - there)):
        raise UserError(*lacking)
    return plan


def asked_differently(children: Sequence[Child]) -> list[str]:
    """Methods that could not be compared with the first one: other domains, tasks or questions."""

    def asked(child: Child) -> dict[str, object]:
        tasks = {f"domains.{name}.task": domain.task for name, domain in child.recipe.domains.items()}
        return {"evaluate": child.recipe.evaluate, **tasks}

    one, *others = children
    wanted = asked(one)
    problems: list[str] = []
    for other in others:
        mine = asked(other)
        differing = [key for key in dict.fromkeys([*wanted, *mine]) if wanted.get(key) != mine.get(key)]
        if differing:
            problems.append(
                f"`methods.{other.method}` has another {', '.join(f'`{key}`' for key in differing)} than "
                f"`methods.{one.method}`: runs of a study are compared, so all must be asked the same questions "
                "(`evaluate_only: true` measures a domain without training on it)"
            )
    return problems


def refuse_changed_runs(study: Study, out: Path) -> None:
    """Refuse a study of which a run was begun with another recipe. Another method or seed is a new run, and welcome.

    Raises:
        UserError: with what differs, for every such run.
    """
    problems: list[str] = []
    for child in study.children:
        try:
            refuse_changed_recipe(child.recipe, out / child.name)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def print_study_plan(plan: StudyPlan, console: Console, there: Room) -> None:
    """Print what runs there are and what they take."""
    study = plan.study
    seeds = {child.method: [c.seed for c in study.children if c.method == child.method] for child in study.children}
    table = Table(title=f"{study.name}: {len(study.children)} runs", title_justify="left", title_style="bold")
    for column in ("method", "seeds", "tried", "steps", "FLOP each, stages too", "memory", "disk"):
        table.add_column(column, justify="left" if column in ("method", "seeds") else "right")
    for child in {c.method: c for c in study.children}.values():
        one = plan.of_method[child.method]
        cells = [str(child.recipe.trials or "–"), str(child.recipe.run.steps), f"{one.flops:.1e}"]
        sizes = [size(one.memory_bytes), size(one.disk_bytes)]
        table.add_row(Text(child.method), ", ".join(map(str, seeds[child.method])), *cells, *sizes)
    console.print(table)
    memory = out_of(there.memory_bytes, "here")
    console.print(
        f"stages: {plan.stages}, each made once for all runs that share it\n"
        f"memory: about {size(plan.memory_bytes)} for {study.parallel} at a time{memory}\n"
        f"disk: at most about {size(plan.disk_bytes)}{out_of(there.disk_bytes, 'free')}\n"
        "time: not known beforehand; a study under way says how long it will take",
        highlight=False,
    )
    if there.memory_bytes is not None and plan.memory_bytes > there.memory_bytes:
        console.print("That is more memory than this machine has: a lower `parallel` takes less.", style="yellow")
