"""The data of a run: its tasks, and the prompts that are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import DomainRecipe
from mopd.rollouts.prompts import PromptSource, Supply
from mopd.rollouts.tasks import Task, make_task


def tasks_of(domains: Mapping[str, DomainRecipe], tokenizer: PreTrainedTokenizerBase) -> dict[str, Task]:
    """Every domain's task."""
    return {name: make_task(domain.task, domain=name, tokenizer=tokenizer) for name, domain in domains.items()}


def prompt_source(
    domains: Mapping[str, DomainRecipe], tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PromptSource:
    """The prompts of ``domains``: those that are trained, or all of them where held-out prompts are drawn."""
    supplies = {n: Supply(tasks[n], prompts=d.prompts, easy_share=d.easy_share) for n, d in domains.items()}
    return PromptSource(supplies, tokenizer, seed=seed)
