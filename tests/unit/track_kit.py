"""A small run to write through a Tracker, and what it must look like afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mopd.distill.recipe import NegativeLogLikelihood, Recipe
from mopd.distill.tracking.sink import TrackedRun
from mopd.distill.tracking.tracker import Tracker
from mopd.recipes.run.tracking import start_sinks

SEESAW: dict[str, Any] = {
    "format": 1,
    "domains": ["math", "code"],
    "models": {
        "base": {"math": {"score": 0.5, "low": 0.4, "high": 0.6, "n": 100}, "code": {"score": 0.25}},
        "student": {"math": {"score": 0.75}},
    },
    "metrics": {"recovery": {"math": 0.9, "code": None}, "worst_recovery": 0.9, "pareto_gap": None},
    "metrics_ci": {"worst_recovery": [0.8, 1.0], "recovery": {"math": [0.8, 1.0], "code": None}, "pareto_gap": None},
}
ROLLOUTS = [{"step": 2, "domain": "math", "prompt": "1+1=", "text": "2", "verdict": 1.0, "advantages": [0.5, -0.25]}]


def open_tracker(folder: Path, mode: str = "offline", *, stage: str | None = None) -> Tracker:
    """A Tracker with the sinks of :func:`recipe`; their troubles are printed to stderr."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    trained = None if stage is None else stage_recipe_of(recipe(mode))
    return Tracker(folder, sinks=start_sinks(recipe(mode), folder, stage=stage, trained=trained, say=say))


def stage_recipe_of(run: Recipe) -> Recipe:
    """What a supervised stage of a run trains by."""
    loss = NegativeLogLikelihood(estimator="nll")
    return run.model_copy(update={"method": "supervised", "loss": loss, "seed": 12345})


def tracked_run(folder: Path, *, say: Callable[[str], None] = print) -> TrackedRun:
    """What a sink knows of the run of :func:`recipe`."""
    return TrackedRun(
        folder=folder,
        name="tiny",
        group="tiny",
        job_type="mopd",
        tags=("mopd",),
        description="",
        config={"name": "tiny", "seed": 7},
        domains=("math", "code"),
        project="seesaws",
        entity=None,
        mode="offline",
        say=say,
    )


def recipe(mode: str = "offline") -> Recipe:
    wandb = {"project": "seesaws", "mode": mode, "tags": ["a", "b"]}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "seed": 7,
            "student": {"model": "./student"},
            "domains": {"math": {"task": "arithmetic", "reward": True}, "code": {"task": "x", "reward": True}},
            "track": {"wandb": wandb},
        }
    )


def write_run(tracker: Tracker, *, after: int = 0, steps: int = 4) -> None:
    """A run of ``steps`` steps that evaluates at 0, 2, 4; numbers need all digits of a double."""
    if after == 0:
        tracker.log("eval", 0, {"score/math": 0.5, "score/code": 0.25})
    for step in range(after + 1, steps + 1):
        spent = {"flops/update": 1e9 / step, "flops/teacher/math": 7.0, "tokens/update": 11.0, "seconds/step": 0.3}
        exams = {"flops/evaluation": 1e6}  # which are no training
        shares = {"loss": 1 / (3 * step), "kl/math": 0.1 / step, "token_share/math": 0.5}
        tracker.log("train", step, shares | spent | exams)
        if step % 2 == 0:
            tracker.log("eval", step, {"score/math": 0.7 + 0.1 / (7 * step), "score/code": 0.9 / step})


def as_history(folder: Path, *, costs: bool = True) -> list[dict[str, Any]]:
    """metrics.jsonl as W&B has to show it: one row a step, names with the kind as prefix, nulls left out.

    With ``costs``, sums of what training took, from all rows before, and scores once more for charts over these.
    """
    steps: dict[int, dict[str, Any]] = {}
    flops = tokens = seconds = 0.0
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        step, kind = row.pop("step"), row.pop("kind")
        shown = {f"{kind}/{name}": value for name, value in row.items() if value is not None}
        flops += row.get("flops/update", 0.0) + row.get("flops/teacher/math", 0.0)
        tokens += row.get("tokens/update", 0.0)
        seconds += row.get("seconds/step", 0.0)
        shown |= {"cost/flops": flops, "cost/tokens": tokens, "cost/seconds": seconds} if costs else {}
        if kind == "eval" and costs:
            shown |= {f"over_flops/{name}": value for name, value in row.items() if name.startswith("score/")}
        steps.setdefault(step, {"step": step}).update(shown)
    return list(steps.values())
