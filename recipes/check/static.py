"""Everything that can be known of a recipe before anything is spent, and the plan of what it will take."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mopd.distill.recipe import Recipe, RunRecipe, StageRecipe
from mopd.distill.tracking.sinks import sink_problems
from mopd.distill.types import UserError
from mopd.recipes.check.model_info import ModelInfo, read_model_infos
from mopd.recipes.check.models import check_lengths, check_models, model_warnings
from mopd.recipes.check.offline import assumed_lengths, on_hub
from mopd.recipes.check.plan.room import (
    Asker,
    card_here,
    find_asker,
    lacks_cards,
    lacks_disk,
    lacks_memory,
    memory_here,
)
from mopd.recipes.check.plan.totals import Plan, make_plan
from mopd.recipes.check.plugins import check_engine, check_own_loss, engine_warnings
from mopd.recipes.check.routes import check_routes
from mopd.recipes.check.samples import Questions
from mopd.recipes.check.settings import idle_leaves
from mopd.recipes.check.tasks import Lengths, TaskChecks, check_gold_answers, check_tasks, make_tasks
from mopd.recipes.check.teachers import (
    align_golds,
    check_texts,
    reach_teachers,
    teacher_warnings,
)
from mopd.recipes.resolve.placement import check_device
from mopd.recipes.resolve.resolved import Resolved, resolve
from mopd.recipes.resolve.run_folder import BUDGET, check_folder
from mopd.recipes.resolve.stages import stage_domains
from mopd.rollouts.tasks import TASKS


@dataclass(frozen=True, slots=True)
class SharedChecks:
    """What the checks of several recipes have found so far, by all that it depends on: the runs of a study look at a
    model or a task that they share once."""

    models: dict[Hashable, ModelInfo] = field(default_factory=dict)
    tasks: dict[Hashable, TaskChecks] = field(default_factory=dict)


def check(
    resolved: Resolved,
    out: Path,
    *,
    offline: bool = False,
    plan_only: bool = False,
    shared: SharedChecks | None = None,
) -> Plan:
    """Check a recipe statically: routes, stages, models, tokenizers, verifiers, lengths, the run's folder.

    No weight is loaded and no process is started, but for the sandbox's, in which gold answers are executed.

    Args:
        shared: of recipes that were checked before this one.
        plan_only: whether this machine has the memory and the disk does not matter.
        offline: ask nothing of the Hub; see :func:`recipes.check.offline.unchecked` for what that leaves open.

    Returns:
        What the run will take.

    Raises:
        UserError: with every problem that was found.
    """
    recipe = resolved.recipe
    shared, lonely = (SharedChecks(), _lacks_budget(recipe.run, out)) if shared is None else (shared, [])
    if broken := list(check_own_loss(recipe.loss, judged=recipe.run.stale is not None)):
        raise UserError(*broken)  # all else asks the loss what it needs
    problems, elsewhere = check_routes(resolved, tasks=TASKS), offline or "RAY_ADDRESS" in os.environ
    problems += check_engine(recipe.rollout, resolved.loss, recipe.evaluate, elsewhere=elsewhere)
    far = frozenset(name for name, domain in recipe.domains.items() if offline and on_hub(domain.task))
    tasks, unusable = make_tasks(recipe.domains, None, seed=recipe.seed, without=far)
    model_infos, unreadable = read_model_infos(resolved, tasks, offline=offline, shared=shared.models)
    tokenizer = student.tokenizer if (student := model_infos.get("student.model")) is not None else None
    if tokenizer is not None:  # once more with the student's, which renders a dataset's chat messages
        tasks, unusable = make_tasks(recipe.domains, tokenizer, seed=recipe.seed, without=far)
    cap, on_domains = recipe.rollout.max_new_tokens, recipe.trained_domains
    lengths, unsound, doubtful = check_tasks(
        recipe.domains, tasks, tokenizer, seed=recipe.seed, evaluate=recipe.evaluate, max_new_tokens=cap,
        shared=shared.tasks,
    )  # fmt: skip
    lengths = assumed_lengths(recipe.domains, cap, lengths) if offline else lengths
    trained = _supervised(recipe.method, tuple(on_domains), recipe.stages)
    problems += [*unusable, *unreadable, *unsound, *check_gold_answers(recipe.domains, trained, tasks)]
    problems += [*sink_problems(recipe.track.sinks), *check_models(resolved, model_infos)]
    problems += check_lengths(model_infos, lengths, trained=trained, max_new_tokens=cap)
    problems += check_texts(resolved.teachers, on_domains, tasks, tokenizer, model_infos, cap, recipe.seed)
    problems += [*lonely, *([] if offline else check_device(resolved))]
    if not (problems or offline):  # last: it asks others, and needs a sound recipe
        problems += reach_teachers(resolved, tasks, tokenizer, lengths, model_infos)
    if problems:  # the plan would need sound routes; the folder can be asked about without one
        raise UserError(*problems, *check_folder(out, needed_bytes=0))
    doubtful = (*model_warnings(resolved.models, model_infos, recipe.mtp, recipe.student, recipe.stages), *doubtful)
    hints = teacher_warnings(resolved.teachers, resolved.loss, model_infos)
    warnings = (*idle_leaves(resolved), *engine_warnings(recipe.rollout), *doubtful, *hints)
    asked = Questions(recipe.domains, tasks, tokenizer, recipe.seed)
    aligned = align_golds(resolved.teachers, on_domains, tasks, resolved.loss, model_infos, recipe.seed)
    plan = replace(make_plan(resolved, model_infos, lengths), warnings=warnings, questions=asked, aligned=aligned)
    if not plan_only and (problems := _lacks_room(resolved, plan, out, model_infos, lengths, offline=offline)):
        raise UserError(*problems)
    return plan


def _lacks_budget(run: RunRecipe, out: Path) -> list[str]:
    """Whether a run by itself spends what another one took, and no study has noted how much that is."""
    if run.compute is None or run.compute.equal_to is None or (out / BUDGET).is_file():
        return []
    return [
        f"`run.compute.equal_to` is {run.compute.equal_to}, a method of a study, and this run is in none that noted "
        "what that took; write `run: {compute: {flops: ...}}`, or run the study"
    ]


def _lacks_room(
    resolved: Resolved,
    plan: Plan,
    out: Path,
    model_infos: Mapping[str, ModelInfo],
    lengths: Mapping[str, Lengths],
    *,
    offline: bool,
) -> list[str]:
    """Whether cards, or this machine, lack the memory or the disk that a plan needs, with the leaf that asks for the
    most; ``offline``: the plan is read on another machine than it is for."""
    cards = lacks_cards(plan, card_here(resolved.recipe.run.card_gib, elsewhere=offline))
    if offline:
        return cards

    def asker(what: Literal["memory_bytes", "disk_bytes"]) -> Asker | None:
        def measure(recipe: Recipe) -> float:
            return getattr(make_plan(resolve(recipe), model_infos, lengths), what)

        return find_asker(resolved.recipe, measure)

    return [
        *cards,
        *lacks_memory(plan, lambda: asker("memory_bytes"), memory_here()),
        *lacks_disk(plan, lambda: asker("disk_bytes"), out),
    ]


def _supervised(method: str, trained: tuple[str, ...], stages: Mapping[str, StageRecipe]) -> dict[str, tuple[str, ...]]:
    """The domains of every training on gold answers, by the leaf that says so: the run's method, and its stages."""
    runs = {"method": trained} if method == "supervised" else {}
    return runs | {f"stages.{name}": stage_domains(stage, trained) for name, stage in stages.items()}
