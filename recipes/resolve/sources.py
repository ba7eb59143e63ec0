"""Where a model comes from: a stage is followed back to the architecture, path or Hub id that it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from mopd.distill.models.mtp import is_head_tensor
from mopd.distill.recipe import Architecture, ModelReference, StageRecipe, StudentRecipe, TeacherRecipe
from mopd.distill.recipe.model_names import SELF, hub_name, is_hub_id, stage_name
from mopd.distill.storage import write_atomic
from mopd.distill.types import UserError
from mopd.recipes.resolve.checkpoints import commit_of, commit_on_hub, downloaded, dropped_weights, local_folder
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
    while isinstance(source, Architecture) and source.tokenizer_reference is not None:
        if len(takers) > len(stages):
            return None  # a circle
        takers.append(source)
        following = origin(stages, "", source.tokenizer_reference)
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
        source = stages[stage].reference
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

    models = [model("student.model", student.reference, "student.trust_remote_code", student.trust_remote_code)]
    for name, teacher in teachers.items():
        leaf, section = f"teachers.{name}.model", f"teachers.{name}"
        weights = kind_of(teacher, teacher=name).has_weights
        if teacher.model == SELF:
            trust, trusted = "student.trust_remote_code", student.trust_remote_code
            models.append(model(leaf, student.reference, trust, trusted, has_weights=weights))
        else:
            trust, trusted = f"{section}.trust_remote_code", teacher.trust_remote_code
            models.append(model(leaf, teacher.reference, trust, trusted, has_weights=weights))
    for name, stage in stages.items():
        section = f"stages.{name}"
        models.append(
            model(f"{section}.from", stage.reference, f"{section}.trust_remote_code", stage.trust_remote_code)
        )
    return {source.leaf: source for source in models}


def left_out_weights(models: Mapping[str, ModelSource], leaf: str, *, keeps_heads: bool) -> list[str]:
    """Weights of the checkpoint at the beginning of a model's chain that have no place in the model, by name.

    Args:
        keeps_heads: whether its draft heads are taken along.
    """
    origin = models[leaf].origin
    if origin is None or isinstance(origin.source, Architecture):
        return []
    folder, trusted = downloaded(local_folder(origin.source)), models[origin.where].trusted
    names = dropped_weights(folder, trust_remote_code=trusted)
    if not (names and keeps_heads):
        return names
    text = AutoConfig.from_pretrained(folder, trust_remote_code=trusted).get_text_config()
    return [name for name in names if not is_head_tensor(name, text)]


def named_base(source: ModelReference, folder: str) -> str:
    """What an adapter over a model names as its base: its Hub id, or the folder of its checkpoint."""
    return hub_name(source)[0] if isinstance(source, str) and is_hub_id(source) else folder


def trusted_leaves(models: Iterable[ModelSource]) -> frozenset[str]:
    """The leaves of all models whose code may run."""
    return frozenset(model.leaf for model in models if model.trusted)


MODELS = "models.json"
"""Every model of the Hub that a run names, by its leaf, with the commit that it was at when the run began."""


def hub_models(models: Iterable[ModelSource]) -> dict[str, str]:
    """What a recipe names of the Hub, with its revision, by the leaf: models, and tokenizers of models from scratch."""
    named: dict[str, str] = {}
    for model in models:
        source, leaf = model.source, model.leaf
        if isinstance(source, Architecture):
            source, leaf = source.tokenizer_reference, f"{leaf}.tokenizer"
        if isinstance(source, str) and is_hub_id(source):
            named[leaf] = source
    return named


def note_models(models: Iterable[ModelSource], path: Path) -> list[str]:
    """Write down the commits of the Hub's models; where they are noted already, refuse others.

    Returns:
        What branches have moved since, where the run goes on with the commits that it began with, each a sentence.

    Raises:
        UserError: a model would be another commit's than when the run began.
    """
    named = hub_models(models)
    sentences = _moved(named, path)
    noted = _noted(path)
    for leaf, source in named.items():
        if noted.get(leaf, {}).get("commit") is None:
            name, revision = hub_name(source)
            noted[leaf] = {"model": name, "revision": revision, "commit": commit_of(source)}
    if noted:
        write_atomic(path, json.dumps(noted, indent=2) + "\n")
    return sentences


def moved_models(models: Iterable[ModelSource], path: Path) -> list[str]:
    """As :func:`note_models`, without writing."""
    return _moved(hub_models(models), path)


def _noted(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _moved(named: Mapping[str, str], path: Path) -> list[str]:
    problems: list[str] = []
    sentences: list[str] = []
    for leaf, noted in _noted(path).items():
        source, was = named.get(leaf), noted["commit"]
        if source is None or was is None or (now := commit_of(source)) is None:
            continue
        name, revision = hub_name(source)
        branch = f"{revision or 'main'} of {name}"
        if now != was:
            problems.append(
                f"`{leaf}`: {branch} was at commit {was} when the run began, and is at {now} now; give it back by "
                f"`{_revision_leaf(leaf)}: {was}`, give another folder with --out, or start from scratch with --restart"
            )
        elif revision != was and (latest := commit_on_hub(source)) not in (None, was):
            sentences.append(
                f"`{leaf}`: {branch} has moved to commit {latest}; the run goes on with {was}, which it began with and "
                "which is on this machine"
            )
    if problems:
        raise UserError(*problems)
    return sentences


def _revision_leaf(leaf: str) -> str:
    section, _, last = leaf.rpartition(".")
    return f"{section}.tokenizer_revision" if last == "tokenizer" else f"{section}.revision"
