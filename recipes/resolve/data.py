"""The data of a run: its tasks, the prompts that are drawn from them, and the record of what was read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import DomainRecipe
from mopd.distill.storage import write_atomic
from mopd.distill.types import UserError
from mopd.recipes.resolve.run_folder import FIRST_SANDBOX, noted_sandbox
from mopd.rollouts.environments import domain_task
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.mixture import MIXTURES
from mopd.rollouts.prompts import PromptSource, Supply
from mopd.rollouts.tasks import Task
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tasks.dataset_rows import RowsReport


def tasks_of(domains: Mapping[str, DomainRecipe], tokenizer: PreTrainedTokenizerBase) -> dict[str, Task]:
    """Every domain's task."""
    return {name: domain_task(domain.task, domain=name, tokenizer=tokenizer) for name, domain in domains.items()}


def prompt_source(
    domains: Mapping[str, DomainRecipe],
    tasks: Mapping[str, Task],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    rule: str = "fixed",
    lag: int = 0,
) -> PromptSource:
    """The prompts of ``domains``: those that are trained, or all of them where held-out prompts are drawn.

    Args:
        rule: a row of :data:`rollouts.mixture.MIXTURES`, for the training prompts.
        lag: `run.lag`: so many more steps are under way while the prompts of a step are drawn.
    """
    supplies = {n: Supply(tasks[n], easy_share=d.easy_share) for n, d in domains.items()}
    mixture = MIXTURES[rule]({name: domain.prompts for name, domain in domains.items()}, lag=lag)
    return PromptSource(supplies, tokenizer, seed=seed, mixture=mixture)


NOTED_ROWS = 1000
"""Rows that were left out and are named there; all are counted."""


def note_data(tasks: Mapping[str, Task], path: Path) -> None:
    """Write down what was read of the datasets; where that is noted already, refuse what has changed since.

    Raises:
        UserError: a dataset has other rows than when the run began, or its programs are run in another sandbox.
    """
    now = {
        name: [_noted(report) | _sandbox(task) for report in task.reports]
        for name, task in tasks.items()
        if isinstance(task, DatasetTask | EnvironmentTask) and task.reports
    }
    if not now:
        return
    if path.is_file():
        problems = list(_moved(json.loads(path.read_text()), now))
        if problems:
            raise UserError(*problems)
    write_atomic(path, json.dumps(now, indent=2, ensure_ascii=False) + "\n")


def _moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in before.keys() & now.keys():
        of_split = {noted["split"]: noted for noted in now[name]}
        for was in before[name]:
            is_now = of_split.get(was["split"], was)
            if any(was[key] != is_now[key] for key in ("version", "rows", "chosen")):
                yield (
                    f"`domains.{name}.task`: split {was['split']!r} was version {was['version']} with {was['rows']} "
                    f"rows when the run began, and is {is_now['version']} with {is_now['rows']} now; give the rows "
                    f"back (of a Hub dataset by `revision: {was['version']}`), another folder with --out, or start "
                    "from scratch with --restart"
                )
        yield from _other_sandbox(name, before[name], now[name])


def _other_sandbox(name: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether other programs would be right than when the run began."""
    is_now, was = noted_sandbox(now), noted_sandbox(before) or FIRST_SANDBOX
    if is_now is not None and was != is_now:
        yield (
            f"`domains.{name}.task`: programs were run in sandbox {was} when the run began, and would be in {is_now} "
            f"now, which takes others for right; set `sandbox: {was}` (docs/sandbox.md), give another folder with "
            "--out, or start from scratch with --restart"
        )


def _sandbox(task: Task) -> dict[str, Any]:
    return {"sandbox": task.sandbox} if isinstance(task, DatasetTask) and task.sandbox else {}


def _noted(report: RowsReport) -> dict[str, Any]:
    noted = {**asdict(report), "refused": len(report.refused)}
    return noted | {"refused_rows": [{"row": row, "why": why} for row, why in report.refused[:NOTED_ROWS]]}
