"""Where a model comes from: a stage is followed back to the architecture, path or Hub id that it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mopd.distill.recipe import Architecture, ModelReference, StageRecipe, StudentRecipe, TeacherRecipe
from mopd.distill.recipe.model_names import SELF, is_path, stage_name
from mopd.teachers.kinds import kind_of


@dataclass(frozen=True, slots=True)
class Origin:
    """The end of a model's chain of ``from``.

    Attributes:
        where: the leaf of the recipe that names it, for example ``stages.base.from``.
        source: an architecture that is initialised here, a path, or a Hub id; never a stage.
        stage: the stage whose ``from`` it is; None where student or teacher name it themselves.
    """

    where: str
    source: ModelReference
    stage: str | None


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that the recipe names.

    Attributes:
        leaf: that names it: ``student.model``, ``teachers.NAME.model`` or ``stages.NAME.from``.
        source: as it is named; the student's where a teacher's model is ``self``.
        origin: the end of its chain; None where it leads to no end (an undeclared stage, or a cycle).
        stages: the declared stages that it stands on, nearest first.
        trust_leaf: the leaf that lets the code in its folder run; that of the student for a teacher that is ``self``.
        trusted: whether that code may run.
        has_weights: whether its weights have to be here; else a server holds them.
    """

    leaf: str
    source: ModelReference
    origin: Origin | None
    stages: tuple[str, ...]
    trust_leaf: str
    trusted: bool
    has_weights: bool = True


def tokenizer_origin(
    stages: Mapping[str, StageRecipe], end: Origin
) -> tuple[Architecture | str, str | None, list[Architecture]] | None:
    """Where the tokenizer of a model comes from: an architecture that trains one (with its stage), a path, or a Hub id;
    and the architectures that take it over, the last of which is asked. None where that leads nowhere.
    """
    source, stage, takers = end.source, end.stage, list[Architecture]()
    while isinstance(source, Architecture) and source.tokenizer is not None:
        if len(takers) > len(stages):
            return None  # a circle
        takers.append(source)
        following = origin(stages, "", source.tokenizer)
        if following is None:
            return None
        source, stage = following.source, following.stage
    return source, stage, takers[::-1]


def chain(stages: Mapping[str, StageRecipe], source: ModelReference) -> Iterator[str]:
    """The declared stages that a source stands on, nearest first; a cycle is walked once."""
    seen: set[str] = set()
    name = stage_name(source)
    while name is not None and name in stages and name not in seen:
        seen.add(name)
        yield name
        name = stage_name(stages[name].from_)


def origin(stages: Mapping[str, StageRecipe], where: str, source: ModelReference) -> Origin | None:
    """The end of a source's chain; None where the chain leads to no end (an undeclared stage, or a cycle)."""
    stage = None
    for stage in chain(stages, source):
        where = f"stages.{stage}.from"
        source = stages[stage].from_
    return None if stage_name(source) is not None else Origin(where, source, stage)


def links(stages: Mapping[str, StageRecipe], student: ModelReference) -> list[str]:
    """The stages of a cascade, first to last: the student's chain, without the one that initialises the base."""
    names = list(chain(stages, student))[::-1]
    return names[1:] if names and isinstance(stages[names[0]].from_, Architecture) else names  # not per token


def model_sources(
    student: StudentRecipe, teachers: Mapping[str, TeacherRecipe], stages: Mapping[str, StageRecipe]
) -> dict[str, ModelSource]:
    """Every model of a recipe by the leaf that names it: student, teachers, stages."""

    def model(leaf: str, source: ModelReference, trust: str, trusted: bool, *, has_weights: bool = True) -> ModelSource:
        on = tuple(chain(stages, source))
        return ModelSource(leaf, source, origin(stages, leaf, source), on, trust, trusted, has_weights)

    models = [model("student.model", student.model, "student.trust_remote_code", student.trust_remote_code)]
    for name, teacher in teachers.items():
        leaf, section = f"teachers.{name}.model", f"teachers.{name}"
        weights = kind_of(teacher, teacher=name).has_weights
        if teacher.model == SELF:
            trust, trusted = "student.trust_remote_code", student.trust_remote_code
            models.append(model(leaf, student.model, trust, trusted, has_weights=weights))
        else:
            trust, trusted = f"{section}.trust_remote_code", teacher.trust_remote_code
            models.append(model(leaf, teacher.model, trust, trusted, has_weights=weights))
    for name, stage in stages.items():
        section = f"stages.{name}"
        models.append(model(f"{section}.from", stage.from_, f"{section}.trust_remote_code", stage.trust_remote_code))
    return {source.leaf: source for source in models}


def named_base(source: ModelReference, folder: str) -> str:
    """What an adapter over a model names as its base: its Hub id, or the folder of its checkpoint."""
    on_hub = isinstance(source, str) and stage_name(source) is None and not is_path(source)
    return source if isinstance(source, str) and on_hub else folder


def trusted_leaves(models: Iterable[ModelSource]) -> frozenset[str]:
    """The leaves of all models whose code may run."""
    return frozenset(model.leaf for model in models if model.trusted)
