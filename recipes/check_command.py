"""What `mopd check` shows: the plan of a recipe or a study, whether teachers can teach, and what was left unchecked."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.study import Study
from mopd.distill.types import UserError
from mopd.recipes.check.offline import unchecked
from mopd.recipes.check.plan.room import room
from mopd.recipes.check.plan.view import print_plan
from mopd.recipes.check.samples import print_samples
from mopd.recipes.check.static import check
from mopd.recipes.check.study import check_study, print_study_plan, refuse_changed_runs
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.run_folder import refuse_changed_recipe
from mopd.recipes.resolve.study import study_runs


def show(recipe: Recipe | Study, out: Path, console: Console, *, deep: bool, offline: bool, plan_only: bool) -> None:
    """Check a recipe or a study for the folder ``out`` and print what it would take.

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
        left = _show_study(recipe, out, console, deep=deep, offline=offline, plan_only=plan_only)
    else:
        left = _show_recipe(recipe, out, console, deep=deep, offline=offline, plan_only=plan_only)
    if left:
        console.print(Text("\n- ".join(["left unchecked, without a network:", *left])), style="yellow")
    console.print(Text(f"{recipe.name}: every {'other ' * bool(left)}check passed"), style="green")


def _show_recipe(
    recipe: Recipe, out: Path, console: Console, *, deep: bool, offline: bool, plan_only: bool
) -> list[str]:
    resolved = resolve(recipe)
    plan = check(resolved, out, offline=offline, plan_only=plan_only)
    refuse_changed_recipe(recipe, out)
    left = unchecked(resolved) if offline else []
    # Models of the Hub are planned for other machines than the one that a plan is read on.
    print_samples(plan.questions, console)
    print_plan(plan, console, room(out, card_gib=recipe.run.card_gib, elsewhere=bool(left)))
    if deep:
        from mopd.recipes.run.check_deep import deep_findings  # loads what runs models
        from mopd.recipes.run.preflight import findings_table, refuse_unusable

        findings = deep_findings(resolved, out)
        console.print(findings_table(findings))
        refuse_unusable(findings)
    return left


def _show_study(study: Study, out: Path, console: Console, *, deep: bool, offline: bool, plan_only: bool) -> list[str]:
    if deep:
        raise UserError(
            f"--deep: {study.name} is a study, and models are loaded for one run at a time; check one of its runs, "
            f"whose recipe `mopd run` writes to {out}/METHOD-SEED/recipe.yaml"
        )
    runs = study_runs(study)
    plan = check_study(study, runs, out, offline=offline, plan_only=plan_only)
    refuse_changed_runs(runs, out)
    left = list(dict.fromkeys(sentence for run in runs for sentence in unchecked(run.resolved))) if offline else []
    for of_method in list(plan.of_method.values())[:1]:  # all are asked the same
        print_samples(of_method.questions, console)
    print_study_plan(plan, console, room(out, elsewhere=bool(left)))
    return left
