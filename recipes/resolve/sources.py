"""Where a model comes from: a stage is followed back to the architecture, path or Hub id that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mopd.distill.loss.registry import loss_spec
from mopd.distill.models.heads import HeadSource
from mopd.distill.recipe import Architecture, Recipe, TeacherRecipe
from mopd.recipes.resolve.stages import PREFIX
from mopd.teachers.kinds import kind_of

Source = str | Architecture
SELF = "self"
"""A teacher's model: the student as it starts, frozen. It holds a domain that has no expert where it is."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The end of a model's chain of ``from``.

    Attributes:
        where: the leaf of the recipe that names it, for example ``stages.base.from``.
        source: an architecture made from nothing, a path, or a Hub id; never a stage.
        stage: the stage whose ``from`` it is; None where student or teacher name it themselves.
    """

    where: str
    source: Source
    stage: str | None


def stage_name(source: Source) -> str | None:
    """The stage that a source names, if it names one."""
    return source.removeprefix(PREFIX) if isinstance(source, str) and source.startswith(PREFIX) else None


def is_path(source: str) -> bool:
    """Whether a source is a path; any other text that names no stage is a Hub id."""
    return source.startswith(("./", "../", "/"))


def chain(recipe: Recipe, source: Source) -> Iterator[str]:
    """The declared stages that a source stands on, nearest first; a cycle is walked once."""
    seen: set[str] = set()
    name = stage_name(source)
    while name is not None and name in recipe.stages and name not in seen:
        seen.add(name)
        yield name
        name = stage_name(recipe.stages[name].from_)


def origin(recipe: Recipe, where: str, source: Source) -> Origin | None:
    """The end of a source's chain; None where the chain leads to no end (an undeclared stage, or a cycle)."""
    stage = None
    for stage in chain(recipe, source):
        where, source = f"stages.{stage}.from", recipe.stages[stage].from_
    return None if stage_name(source) is not None else Origin(where, source, stage)


def links(recipe: Recipe) -> list[str]:
    """The stages of a cascade, first to last: the student's chain, without the one that makes the base from nothing."""
    found = list(chain(recipe, recipe.student.model))[::-1]
    return found[1:] if found and isinstance(recipe.stages[found[0]].from_, Architecture) else found  # not per token


def start(recipe: Recipe) -> Source:
    """What the student is before distillation, which results call the base: a cascade's is where its chain begins."""
    return recipe.stages[links(recipe)[0]].from_ if recipe.method == "cascade" else recipe.student.model


def teacher_source(recipe: Recipe, name: str) -> Source:
    """What a teacher is made from; the student's own source where its model is ``self``."""
    model = recipe.teachers[name].model
    return recipe.student.model if model == SELF else model


def trust_leaf(recipe: Recipe, where: str) -> str:
    """The leaf that lets the code in a model's folder run, by the leaf that names the model; an anchor's is the
    student's."""
    section = where.rpartition(".")[0]
    kind, _, name = section.partition(".")
    anchor = kind == "teachers" and recipe.teachers[name].model == SELF
    return "student.trust_remote_code" if anchor else f"{section}.trust_remote_code"


def trusted(recipe: Recipe, where: str) -> bool:
    """Whether the code in the folder of the model that the leaf ``where`` names may run."""
    kind, _, name = trust_leaf(recipe, where).rpartition(".")[0].partition(".")
    if kind == "student":
        return recipe.student.trust_remote_code
    return (recipe.teachers if kind == "teachers" else recipe.stages)[name].trust_remote_code


def trusted_models(recipe: Recipe) -> frozenset[str]:
    """The leaves of all models whose code may run."""
    return frozenset(where for where in sources(recipe) if trusted(recipe, where))


def head_sources(recipe: Recipe, folders: Mapping[str, str], dtype: Callable[[str], str]) -> tuple[HeadSource, ...]:
    """Where the student reads its teachers' output heads, if the loss needs them; ``folders`` and ``dtype`` by name."""
    if loss_spec(recipe.loss).payload != "hidden":
        return ()
    return tuple(HeadSource(folders[n], dtype(n), trusted(recipe, f"teachers.{n}.model")) for n in folders)


def adapter_folders(recipe: Recipe) -> dict[str, str]:
    """The adapter of every teacher that has one, wherever a process' working folder is."""
    return {name: str(Path(t.adapter).resolve()) for name, t in recipe.teachers.items() if t.adapter is not None}


def teacher_groups(recipe: Recipe) -> list[list[str]]:
    """The teachers that share processes: those of one base, dtype and placement, whatever their adapters."""
    together: dict[tuple[object, ...], list[str]] = {}
    for name, teacher in recipe.teachers.items():
        source = teacher_source(recipe, name)
        base = source if isinstance(source, str) else SELF
        together.setdefault((base, *kind(teacher), *placement(teacher).values()), []).append(name)
    return list(together.values())


def turn_takers(recipe: Recipe) -> list[list[str]]:
    """The households that share ``run.resident_teachers`` processes: all that hold weights; none where it isn't set."""
    if recipe.run.resident_teachers is None:
        return []
    return [names for names in teacher_groups(recipe) if kind_of(recipe.teachers[names[0]]).has_weights]


def kind(teacher: TeacherRecipe) -> tuple[object, ...]:
    """What scores, besides the base that teachers have in common: those that differ in it never share a process."""
    settings = tuple(sorted(teacher.settings.items()))
    scores = (teacher.kind_name, settings, teacher.scorer, teacher.endpoint, teacher.served_model, teacher.api_key_env)
    return (teacher.dtype, *scores)


def described(teacher: TeacherRecipe) -> str:
    """What a teacher is, in words: its model, and what scores if that is not all of it."""
    told = "self: the student as it starts" if teacher.model == SELF else teacher.model
    told += f", with adapter {teacher.adapter}" if teacher.adapter is not None else ""
    return told + kind_of(teacher).describe(teacher)


def weightless(recipe: Recipe, where: str) -> bool:
    """Whether the weights of the model that the leaf ``where`` names lie elsewhere: a server holds them."""
    kind, _, name = where.removesuffix(".model").partition(".")
    return kind == "teachers" and not kind_of(recipe.teachers[name]).has_weights


def placement(teacher: TeacherRecipe) -> dict[str, object]:
    """How many processes a teacher has, and where they are: leaves that teachers over one base share."""
    return {
        "replicas": teacher.replicas,
        "device": teacher.device,
        "gpus": teacher.gpus,
        "resources": tuple(sorted(teacher.resources.items())),
    }


def sources(recipe: Recipe) -> dict[str, Source]:
    """Every source of a model in the recipe, by the leaf that names it: student, teachers, stages."""
    return (
        {"student.model": recipe.student.model}
        | {f"teachers.{name}.model": teacher_source(recipe, name) for name in recipe.teachers}
        | {f"stages.{name}.from": stage.from_ for name, stage in recipe.stages.items()}
    )
