"""`track`: what is written beside metrics.jsonl."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mopd.distill.recipe.base import CountOrNone, ShippedOrPlugin, Strict


class WandbRecipe(Strict):
    """Weights & Biases; offline unless logged in."""

    project: str = Field(default="mopd", description="W&B project")
    entity: str | None = Field(default=None, description="W&B team or user")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online where logged in, else offline"
    )
    tags: tuple[str, ...] = Field(default=(), description="W&B tags")


SHIPPED_SINKS = ("tensorboard", "trackio", "mlflow", "aim", "comet_ml", "clearml", "swanlab", "dvclive")
"""Of distill/tracking/sinks.py, by name."""


class TrackRecipe(Strict):
    """What is written besides metrics.jsonl."""

    wandb: WandbRecipe = WandbRecipe()
    sinks: tuple[Annotated[str, ShippedOrPlugin(*SHIPPED_SINKS)], ...] = Field(
        default=(),
        description="who is given every row beside W&B: trackers of the package accelerate, or ./file.py:NAME of your "
        "own; docs/files.md",
    )
    rollouts_per_domain: CountOrNone = Field(default=3, description="rollouts kept at each evaluation")
