"""What the sinks of a run are told of it, and which sinks a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mopd.distill.recipe import Recipe, TrackRecipe
from mopd.distill.tracking.sink import TrackedRun
from mopd.distill.tracking.sinks import SinkThread, open_sinks
from mopd.recipes.resolve.run_folder import environment

_TAG = 64  # characters of a W&B tag, at most


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
