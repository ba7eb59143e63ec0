"""`mopd eval --harness`: a checkpoint on tasks of lm-evaluation-harness, by that package's own code and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mopd.distill.recipe.model_names import is_path
from mopd.distill.types import UserError
from mopd.recipes.resolve.resolved import resolve_device
from mopd.recipes.tables import Fitted

MISSING = "--harness runs tasks of lm-evaluation-harness, which is not installed: pip install 'mopd[harness]'"


@dataclass(frozen=True, slots=True)
class HarnessScore:
    """A number of a task.

    Attributes:
        metric: as the harness names it, with its filter after a comma.
        error: the standard error; None where the harness gives none.
    """

    task: str
    metric: str
    value: float
    error: float | None


def run_harness(
    model: str, tasks: Sequence[str], *, prompts: int | None, chat: bool, trust_remote_code: bool, runs_code: bool
) -> list[HarnessScore]:
    """Measure a checkpoint by the harness, in this process.

    Args:
        tasks: names of the harness, or paths (begin with ./ or /) of task files of one's own.
        prompts: of each task at most, the first; None: all.
        chat: put the questions as a user's turns, in the model's chat template.
        runs_code: let tasks run programs that the model writes, in this process and not in the sandbox.

    Raises:
        UserError: the harness is not installed, knows no such task, or cannot run it.
    """
    try:
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(MISSING) from error
    device = resolve_device("auto")
    files = [Path(task) for task in tasks if is_path(task)]
    names = [_name_of(Path(task)) if is_path(task) else task for task in tasks]
    settings: dict[str, Any] = {"pretrained": model, "trust_remote_code": trust_remote_code}
    settings["dtype"] = "bfloat16" if device == "cuda" else "float32"
    try:
        manager = TaskManager(include_path=[str(file.parent) for file in files] or None)
        if unknown := [name for name in names if name not in manager.all_tasks]:
            raise UserError(
                f"--harness: lm-evaluation-harness has no task {unknown[0]!r}; `lm-eval ls tasks` names all"
            )
        results = simple_evaluate(
            model="hf",
            model_args=settings,
            tasks=names,
            limit=prompts,
            device=device,
            task_manager=manager,
            apply_chat_template=chat,
            confirm_run_unsafe_code=runs_code,
            log_samples=False,
        )
    except UserError:
        raise
    except Exception as error:  # the harness, and what it loads, raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"--harness: {', '.join(names)} cannot be run: {reason}") from error
    return harness_scores(results["results"])


def _name_of(file: Path) -> str:
    """What a task file calls its task; its other lines may name functions, and are the harness' to read."""
    try:
        named = re.search(r"^task:[ ]*['\"]?([\w.-]+)", file.read_text(), re.MULTILINE)
    except OSError as error:
        raise UserError(f"--harness: {file} cannot be read: {error.strerror}; fix the path") from error
    if named is None:
        raise UserError(f"--harness: {file} is no task file: it needs a line `task: NAME`")
    return named[1]


def harness_scores(results: Mapping[str, Mapping[str, Any]]) -> list[HarnessScore]:
    """The numbers of the harness' own results, in their order."""
    scores: list[HarnessScore] = []
    for task, values in results.items():
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if metric.endswith("_stderr") or isinstance(value, str | bool) or not isinstance(value, int | float):
                continue
            if metric in ("alias", "samples", "sample_len"):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            error = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            shown = metric if filtered in ("", "none") else f"{metric},{filtered}"
            scores.append(HarnessScore(task, shown, float(value), error))
    return scores


def harness_table(model: str, scores: Sequence[HarnessScore]) -> Fitted:
    """The scores for the console."""
    table = Table("task", "metric", "value", "standard error", title=f"{model}, by lm-evaluation-harness")
    for score in scores:
        table.add_row(
            score.task, score.metric, f"{score.value:.4f}", "" if score.error is None else f"{score.error:.4f}"
        )
    return Fitted(table)
