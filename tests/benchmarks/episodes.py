"""Turns, tool calls and solved episodes a minute, by model, as a run of the recipe `agents` measures them.

``python -m tests.benchmarks.episodes [RUN]``: of a run that there is, or of one that is made here, whose models have
learnt for a minute.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mopd.distill.recipe.files import load_recipe
from mopd.distill.tracking.tracker import read_jsonl
from mopd.distill.verdicts import PER_MINUTE
from mopd.recipes import SHIPPED
from mopd.recipes.run.launch import run

SHORT = ("steps=20", "optimizer.warmup_steps=5", "optimizer.decay_steps=5")
QUICKLY = (
    "run.steps=20",
    "run.plateau=null",
    "student.optimizer.warmup_steps=5",
    "student.optimizer.decay_steps=5",
    "evaluate.validation_prompts=20",
    "evaluate.test_prompts=200",
    "stages.first.steps=20",
    "stages.first.optimizer.warmup_steps=5",
    "stages.base.steps=100",
    *(f"stages.{name}.{leaf}" for name in ("math", "code", "reasoning") for leaf in SHORT),
    "track.wandb.mode=disabled",
)


def measure() -> dict[str, dict[str, float]]:
    """Make base, specialists and student, each of them in a few steps; see :func:`by_model`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run(load_recipe("agents", QUICKLY, shipped=SHIPPED), out)
        return by_model(out)


def by_model(out: Path) -> dict[str, dict[str, float]]:
    """What each model of a run did in a minute of its test episodes, all of them side by side."""
    exams = [row for row in read_jsonl(out / "exams.jsonl") if row["split"] == "test"]
    return {row["model"]: {name: row[name] for name in PER_MINUTE} for row in exams}


def table(figures: dict[str, dict[str, float]]) -> Table:
    """A row a model."""
    shown = Table("model", *(name.replace("_", " ") for name in PER_MINUTE), title="test episodes of `agents`")
    for model, row in figures.items():
        shown.add_row(model, *(f"{row[name]:,.0f}" for name in PER_MINUTE))
    return shown


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    measured = by_model(Path(sys.argv[1])) if len(sys.argv) > 1 else measure()
    json.dump(measured, sys.stdout)
    print()
    Console().print(table(measured))
