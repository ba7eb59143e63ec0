"""Leaves of a recipe that were set and would change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mopd.distill.recipe import Recipe, Source
from mopd.recipes.resolve.methods import METHODS, method_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.stages import stage_domains


def check_idle(resolved: Resolved) -> Iterator[str]:
    """A sentence for every leaf that was set and would change nothing: a silent no is worse than a loud one."""
    recipe, method = resolved.recipe, resolved.method
    yield from _samples(recipe)
    yield from _untrained(recipe)
    for name, domain in recipe.domains.items():
        if domain.evaluate_only:
            yield from _set(domain, f"domains.{name}", ("prompts", "share", "easy_share"), "it is evaluate_only")
        elif isinstance(domain.task, Source):
            yield from _set(domain, f"domains.{name}", ("easy_share",), "a dataset has no easy form")
    for name, stage in recipe.stages.items():
        trained = stage_domains(stage, recipe.trained_domains)
        if all(isinstance(recipe.domains[one].task, Source) for one in trained if one in recipe.domains):
            yield from _set(stage, f"stages.{name}", ("easy_share",), "a dataset has no easy form")
    if recipe.method == "supervised":
        leaves = ("samples_per_prompt", "temperature", "workers")
        yield from _set(recipe.rollout, "rollout", leaves, "a supervised run samples nothing it trains on")
    if not recipe.teachers:
        yield from _set(recipe.faults, "faults", tuple(type(recipe.faults).model_fields), "the recipe has no teachers")
    elif recipe.faults.retries == 0:
        yield from _set(recipe.faults, "faults", ("backoff_seconds",), "a lost microbatch is never asked again")
    for name, teacher in recipe.teachers.items():
        unread = resolved.teachers[name].kind.unread_keys(teacher)
        if "gpus" not in unread and "cpu" in (teacher.device, recipe.device if teacher.device == "auto" else ""):
            unread["gpus"] = "it scores on the CPU"
        for leaf, why in unread.items():
            yield from _set(teacher, f"teachers.{name}", (leaf,), why)
        if method.teachers == "write":
            yield from _set(teacher, f"teachers.{name}", ("replicas",), f"{recipe.method} gives each writer a process")
    if method.trains and (method.teachers != "grade" or not recipe.teachers):
        yield from _set(recipe.run, "run", ("resident_teachers",), "no teacher grades")
    if not recipe.stages:
        yield from _set(recipe.run, "run", ("parallel_stages",), "the recipe has no stages")


def _untrained(recipe: Recipe) -> Iterator[str]:
    """What only a run that trains its student reads, and what only a merge does."""
    if recipe.method != "merge":
        yield from _set(recipe.merge, "merge", ("how", "strengths"), "only method merge reads it")
    elif recipe.merge.how == "average":
        yield from _set(recipe.merge, "merge", ("strengths",), "the average has one strength")
    if method_of(recipe.method).trains:
        return
    why = f"a {recipe.method} trains no student"
    run = tuple(name for name in type(recipe.run).model_fields if name != "parallel_stages")
    yield from _set(recipe.run, "run", run, why)
    yield from _set(recipe.student, "student", ("optimizer", "updates_per_step"), why)
    yield from _set(recipe.rollout, "rollout", ("samples_per_prompt", "temperature", "workers"), why)
    yield from _set(recipe, "", ("share_rule", "stop"), why)


def _samples(recipe: Recipe) -> Iterator[str]:
    if not method_of(recipe.method).selects:
        yield from _set(recipe.rollout, "rollout", ("keep_verified",), "only expert_iteration keeps some")
    for name, stage in recipe.stages.items():
        if not METHODS[stage.method].samples:
            yield from _set(stage, f"stages.{name}", ("samples_per_prompt",), "it samples nothing it trains on")
        if stage.method == "mix_rl" and stage.samples_per_prompt < 2:
            yield (
                f"`stages.{name}.samples_per_prompt` is 1: a reward is compared within the group of a prompt's "
                f"samples, so it needs at least 2"
            )
        if not METHODS[stage.method].selects:
            yield from _set(stage, f"stages.{name}", ("keep_verified",), "only expert_iteration keeps some")
        elif stage.keep_verified > stage.samples_per_prompt:
            yield _more_than_written(f"stages.{name}", stage.keep_verified, stage.samples_per_prompt)
    if method_of(recipe.method).selects and recipe.rollout.keep_verified > recipe.rollout.samples_per_prompt:
        yield _more_than_written("rollout", recipe.rollout.keep_verified, recipe.rollout.samples_per_prompt)


def _more_than_written(where: str, kept: int, written: int) -> str:
    return (
        f"`{where}.keep_verified` is {kept}, and `{where}.samples_per_prompt` is {written}: no more answers "
        f"to a prompt are kept than were written; raise the samples, or lower what is kept"
    )


def _set(section: Any, where: str, names: tuple[str, ...], why: str) -> Iterator[str]:
    for name in names:
        default = type(section).model_fields[name].get_default(call_default_factory=True)
        if getattr(section, name) != default:
            yield f"`{where}{'.' if where else ''}{name}` is set and would change nothing ({why}); take it away"
