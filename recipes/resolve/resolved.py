"""What a recipe means on this machine: worked out once, before anything is checked; check, plan and run ask it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mopd.distill.loss.registry import BoundLoss, bind
from mopd.distill.recipe import DomainRecipe, ModelReference, Recipe
from mopd.recipes.resolve.methods import MadeMethod, Method, method_of
from mopd.recipes.resolve.sources import ModelSource, links, model_sources
from mopd.recipes.resolve.teachers import (
    Device,
    ResolvedTeacher,
    resolve_dtype,
    resolve_teacher,
    teacher_groups,
    turn_takers,
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe on this machine. It may still be unsound: what is wrong with it, `recipes/check` says.

    Attributes:
        recipe: as it is written, every default filled in.
        device: of the student, never auto.
        dtype: of the student, never auto.
        method: its row.
        loss: bound to its settings.
        models: every model that the recipe names, by the leaf that names it.
        teachers: by name.
        on_student: teachers that are the student without the adapter that it trains: its own ranks score for them.
        groups: teachers that share processes: those of one base and placement; not those on the student.
        turn_takers: the groups that share the processes of ``run.resident_teachers``; none where that is not set.
        routes: who is asked about each trained domain's rollouts, see :func:`routes`.
        teachers_write: whether teachers write any of what the student learns from.
        writers: the teachers with a process that writes: for the student to learn from, or to go on with.
        links: the stages of a cascade, first to last.
        start: what the student is before distillation, which results call the base: a cascade's is where it begins.
        niceness: of the run's processes.
        rank_gpus, sampler_gpus: part of a GPU that each of the student's ranks takes of its node, and each process that
            holds a model to sample; 0 on a CPU.
    """

    recipe: Recipe
    device: Device
    dtype: str
    method: Method | MadeMethod
    loss: BoundLoss
    models: Mapping[str, ModelSource]
    teachers: Mapping[str, ResolvedTeacher]
    on_student: tuple[str, ...]
    groups: list[list[str]]
    turn_takers: list[list[str]]
    routes: Mapping[str, Mapping[str, float]]
    teachers_write: bool
    writers: tuple[str, ...]
    links: list[str]
    start: ModelReference
    niceness: int
    rank_gpus: float
    sampler_gpus: float


def resolve(recipe: Recipe) -> Resolved:
    """Work out what a recipe means here. Nothing is started, downloaded or loaded, but the user's own Python files.

    Raises:
        UserError: a file of the user's own that the recipe names cannot be read, so that nothing more can be said.
    """
    device = resolve_device(recipe.device)
    dtype = resolve_dtype(recipe.student.engine.dtype, device)
    models = model_sources(recipe.student, recipe.teachers, recipe.stages)
    teachers = {
        name: resolve_teacher(
            name,
            settings,
            models[f"teachers.{name}.model"],
            device=device,
            dtype=dtype,
            faults=recipe.faults,
        )
        for name, settings in recipe.teachers.items()
    }
    method = method_of(recipe.method)
    adapted = recipe.student.lora is not None and method.trains
    how = device, dtype, recipe.student.engine.attn_implementation
    on_student = tuple(name for name, teacher in teachers.items() if adapted and teacher.is_base(*how))
    groups = teacher_groups({name: teacher for name, teacher in teachers.items() if name not in on_student})
    loss = bind(recipe.loss)
    teachers_write = method.teachers_write or recipe.rollout.off_policy > 0
    cascade = links(recipe.stages, recipe.student.model)
    return Resolved(
        recipe=recipe,
        device=device,
        dtype=dtype,
        method=method,
        loss=loss,
        models=models,
        teachers=teachers,
        on_student=on_student,
        groups=groups,
        turn_takers=[] if recipe.run.resident_teachers is None else turn_takers(groups, teachers),
        routes=routes(recipe.trained_domains, loss.reference),
        teachers_write=teachers_write,
        writers=tuple(recipe.teachers) if teachers_write else players(recipe.trained_domains, recipe.teachers),
        links=cascade,
        start=recipe.stages[cascade[0]].reference
        if recipe.method == "cascade" and cascade
        else recipe.student.reference,
        niceness=recipe.run.niceness,
        rank_gpus=recipe.student.engine.gpus if device == "cuda" else 0.0,
        sampler_gpus=recipe.rollout.gpus if device == "cuda" else 0.0,
    )


def players(trained: Mapping[str, DomainRecipe], teachers: Iterable[str]) -> tuple[str, ...]:
    """The teachers that begin episodes for the student to go on with, in the order of ``teachers``."""
    begun = [domain for domain in trained.values() if "teacher" in domain.prefix_parts]
    named = {name for domain in begun for name in domain.teacher_weights}
    return tuple(name for name in teachers if name in named)


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> Device:
    """``auto`` takes a GPU where there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def routes(trained: Mapping[str, DomainRecipe], reference: str | None) -> dict[str, dict[str, float]]:
    """Who is asked about each trained domain's rollouts: its teachers, with weights that sum to 1 (nobody where its
    reward alone teaches); beside them the loss' reference, with weight 0 where it is no teacher of the domain."""
    taught = {name: domain.teacher_weights for name, domain in trained.items()}
    if reference is None:
        return taught
    return {name: weights and {reference: 0.0} | weights for name, weights in taught.items()}
