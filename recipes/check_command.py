"""What `mopd check` shows: the plan of a recipe or a study, whether teachers can teach, and what was left unchecked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.study import Study
from mopd.distill.types import UserError
from mopd.recipes.check.offline import unchecked
from mopd.recipes.check.plan.room import room
from mopd.recipes.check.plan.totals import Plan, TriedModel
from mopd.recipes.check.plan.view import print_plan
from mopd.recipes.check.plan.work import Part
from mopd.recipes.check.samples import print_samples
from mopd.recipes.check.static import check
from mopd.recipes.check.study import check_study, print_study_plan, refuse_changed_runs
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.run_folder import refuse_changed_recipe
from mopd.recipes.resolve.sources import MODELS, moved_models
from mopd.recipes.resolve.study import study_runs


def show(
    recipe: Recipe | Study, out: Path, console: Console, *, deep: bool, offline: bool, plan_only: bool
) -> dict[str, Any]:
    """Check a recipe or a study for the folder ``out`` and print what it would take; returns it as plain values.

    Args:
        deep: load student and teachers, too.
        offline: ask nothing of the Hub.
        plan_only: whether this machine has the memory and the disk does not matter.

    Raises:
        UserError: with every problem that was found.
    """
    if deep and plan_only:
        raise UserError("--deep loads the models that --plan-only only counts; give one of them")
    if deep and offline:
        raise UserError("--deep loads the models that --offline does without; give one of them")
    if isinstance(recipe, Study):
        left, shown = _show_study(recipe, out, console, deep=deep, offline=offline, plan_only=plan_only)
    else:
        left, shown = _show_recipe(recipe, out, console, deep=deep, offline=offline, plan_only=plan_only)
    if left:
        console.print(Text("\n- ".join(["left unchecked, without a network:", *left])), style="yellow")
    console.print(Text(f"{recipe.name}: every {'other ' * bool(left)}check passed"), style="green")
    return {"format": 1, "name": recipe.name, **shown, "unchecked": left}


def _show_recipe(
    recipe: Recipe, out: Path, console: Console, *, deep: bool, offline: bool, plan_only: bool
) -> tuple[list[str], dict[str, Any]]:
    resolved = resolve(recipe)
    plan = check(resolved, out, offline=offline, plan_only=plan_only)
    spread = refuse_changed_recipe(recipe, out)
    moved = [] if offline else moved_models(resolved.models.values(), out / MODELS)
    for sentence in (*spread, *moved):
        console.print(Text(sentence, style="yellow"))
    left = unchecked(resolved) if offline else []
    # Models of the Hub are planned for other machines than the one that a plan is read on.
    print_samples(plan.questions, console)
    print_plan(plan, console, room(out, card_gib=recipe.run.card_gib, elsewhere=bool(left)))
    shown = {"plan": plan_record(plan), "sandboxes": plan.questions.sandboxes, "findings": []}
    if deep:
        from mopd.recipes.run.check_deep import deep_findings  # loads what runs models
        from mopd.recipes.run.preflight import findings_table, refuse_unusable

        findings = deep_findings(resolved, out)
        console.print(findings_table(findings))
        refuse_unusable(findings)
        shown["findings"] = [_plain(finding) for finding in findings]
        shown["pace"] = _show_pace(plan.measured, plan.work, console)
    return left, shown


def _show_pace(asked: TriedModel, work: Sequence[Part], console: Console, *, runs: int = 1) -> dict[str, Any]:
    """Measure how fast this machine is and print how long so much work would take; returns both as plain values."""
    from mopd.recipes.check.pace import measure_pace, sentences  # loads what runs models

    pace = measure_pace(asked)
    for sentence in sentences(pace, work, runs=runs):
        console.print(Text(sentence), soft_wrap=True)
    return {**_plain(pace), "seconds": pace.seconds(work, runs=runs)}


def _show_study(
    study: Study, out: Path, console: Console, *, deep: bool, offline: bool, plan_only: bool
) -> tuple[list[str], dict[str, Any]]:
    runs = study_runs(study)
    plan = check_study(study, runs, out, offline=offline, plan_only=plan_only)
    refuse_changed_runs(runs, out)
    left = list(dict.fromkeys(sentence for run in runs for sentence in unchecked(run.resolved))) if offline else []
    for of_method in list(plan.of_method.values())[:1]:  # all are asked the same
        print_samples(of_method.questions, console)
    print_study_plan(plan, console, room(out, elsewhere=bool(left)))
    of_method = {method: plan_record(each) for method, each in plan.of_method.items()}
    shown: dict[str, Any] = {"plans": of_method, "runs": len(plan.runs), "stages": plan.stages}
    if deep:
        first, *_ = plan.of_method.values()
        shown["pace"] = _show_pace(first.measured, plan.work, console, runs=plan.parallel)
        where = f"{out}/METHOD-SEED/recipe.yaml"
        console.print(Text(f"teachers are asked of one run at a time: each run does, or `mopd check {where} --deep`"))
    return left, shown


def plan_record(plan: Plan) -> dict[str, Any]:
    """A plan as plain values: every field but the questions, which are shown, and what is measured of it."""
    left_out = ("questions", "measured")
    values = {each.name: getattr(plan, each.name) for each in fields(plan) if each.name not in left_out}
    return {name: _plain(value) for name, value in values.items()} | {
        "flops": plan.flops,
        "memory_bytes": plan.memory_bytes,
        "card_bytes": plan.card_bytes,
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float) or value is None:
        return value
    assert isinstance(value, Sequence)
    return [_plain(item) for item in value]
