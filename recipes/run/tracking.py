"""What the sinks of a run are told of it and of its models, and which sinks a recipe asks for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mopd.distill.recipe import Architecture, ModelReference, Recipe, TrackRecipe
from mopd.distill.recipe.model_names import stage_name
from mopd.distill.storage import MANIFEST, SEAL, seal_of
from mopd.distill.tracking.sink import Artifact, TrackedRun
from mopd.distill.tracking.sinks import SinkThread, open_sinks
from mopd.recipes.resolve.run_folder import DATA, environment
from mopd.recipes.resolve.teachers import ResolvedTeacher

_TAG, _NAME = 64, 128  # characters of a W&B tag and of an artifact's name, at most


def sink_names(track: TrackRecipe) -> list[str]:
    """W&B unless it is disabled, then the recipe's own sinks."""
    return ([] if track.wandb.mode == "disabled" else ["wandb"]) + list(track.sinks)


def start_sinks(
    recipe: Recipe,
    folder: Path,
    *,
    stage: str | None = None,
    trained: Recipe | None = None,
    say: Callable[[str], None],
) -> list[SinkThread]:
    """Start the sinks of a run, or of one of its stages.

    Args:
        recipe: the whole run's, also where a stage is shown.
        folder: of the run, or of the stage.
        stage: the stage's name, if this is one.
        trained: the stage's own recipe then, whose method, estimator and settings are shown.
        say: prints one line for people; the sinks' troubles go there.
    """
    shows = recipe if trained is None else trained
    estimator = shows.loss.estimator.rpartition("/")[2]
    tags = (shows.method, estimator[:_TAG], f"seed-{recipe.seed}", *recipe.track.wandb.tags)  # not per token
    shown = TrackedRun(
        folder=folder,
        name=recipe.name if stage is None else f"{recipe.name}/{stage}",
        group=recipe.name,
        job_type=recipe.method if stage is None else "stage",
        tags=tuple(dict.fromkeys(tags)),
        description=recipe.description,
        config={**shows.model_dump(mode="json", by_alias=True), "stage": stage, "environment": environment()},
        domains=tuple(recipe.domains),
        project=recipe.track.wandb.project,
        entity=recipe.track.wandb.entity,
        mode=recipe.track.wandb.mode,
        say=say,
    )
    return open_sinks(sink_names(recipe.track), shown)


def artifacts_of(
    recipe: str,
    folder: Path,
    *,
    domains: Collection[str],
    start: tuple[str, ModelReference, str],
    teachers: Mapping[str, tuple[ResolvedTeacher, str]],
    tasks: Mapping[str, Any] | None = None,
    stage: str | None = None,
) -> Iterator[Artifact]:
    """What a finished run, or one of its stages, began with and has made.

    A stage's result has the name and the content that it has where the run begins with it: sinks see who made what.
    It is RECIPE-STAGE; what has another ending has it after a dot, which no stage's name holds: a stage may be called
    ``student`` or ``math-data``.

    Args:
        recipe: the name of the whole run's, also where a stage is shown.
        folder: of the run, or of the stage.
        domains: of the run, or of the stage.
        start: what was trained: its role, how the recipe names it, and its folder.
        teachers: by name, with the folder of the weights or of the tokenizer.
        tasks: the fingerprints of the questions, as seesaw.json has them.
        stage: the stage's name, if this is one.
    """
    role, source, path = start
    own = recipe if stage is None else f"{recipe}-{stage}"
    yield _model(_model_name(source, recipe, own), role, path, used=True)
    for name, (teacher, weights) in teachers.items():
        yield _model(_model_name(teacher.model.source, recipe, own), f"teacher-{name}", weights, used=True)
        if teacher.adapter is not None:
            named = _model_name(teacher.settings.adapter or "", recipe, own)
            of_stage = ".adapter" if stage_name(teacher.settings.adapter) is not None else ""
            yield _model(named + of_stage, f"adapter-{name}", teacher.adapter, used=True)
    noted = {DATA: folder / DATA} if (folder / DATA).is_file() else {}
    texts = {"tasks.json": json.dumps(tasks, indent=2)} if tasks else {}
    if noted or texts:
        about = {"domains": list(domains)}
        yield Artifact(
            name=_letters(f"{own}.data"), kind="dataset", role="data", used=True, files=noted | texts, metadata=about
        )
    for made, ending in (("student", ".student" if stage is None else ""), ("adapter", ".adapter")):
        if (folder / made).is_dir():
            yield _model(f"{own}{ending}", made, str(folder / made), used=False)
    answers = {path.relative_to(folder / "answers").as_posix(): path for path in folder.glob("answers/**/*.parquet")}
    if answers:
        name = _letters(f"{own}.answers")
        yield Artifact(name=name, kind="answers", role="answers", used=False, files=answers, metadata={})


def _model(name: str, role: str, folder: str, *, used: bool) -> Artifact:
    """Of a folder that is sealed the list of its digests, of another its files' sizes."""
    path = Path(folder).resolve()
    files: dict[str, Path | str] = {name: path / name for name in (MANIFEST, SEAL) if (path / name).is_file()}
    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    about = {"folder": str(path), "seal": seal_of(path)}
    return Artifact(
        name=_letters(name),
        kind="model",
        role=_letters(role),
        used=used,
        files=files or {"files.json": json.dumps(sizes, indent=2)},
        metadata=about,
    )


def _model_name(source: ModelReference, recipe: str, own: str) -> str:
    """A stage's by the stage's name, a made one by what was made from it, a path or Hub id by its own."""
    if isinstance(source, Architecture):
        return f"{own}.initial"
    stage = stage_name(source)
    if stage is not None:
        return f"{recipe}-{stage}"
    return Path(source).name if source.startswith((".", "/")) else source


def _letters(name: str) -> str:
    """A name that W&B takes; one that is cut ends with a digest of all of it, so that two stay two."""
    taken = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")
    if len(taken) <= _NAME:
        return taken
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{taken[: _NAME - 9]}-{digest[:8]}"  # not per token
