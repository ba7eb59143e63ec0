"""The prompts of a step: a pure function of (seed, step), whatever ran before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from distill.types import Prompt
from rollouts.generate import keyed_uniforms
from rollouts.tasks import Task
from rollouts.tokenizer import to_prompt


@dataclass(frozen=True, slots=True)
class Supply:
    """One domain's prompts: its task, how many a step, and the share of them in the task's easy form."""

    task: Task
    prompts: int
    easy_share: float = 0.0


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Draws prompts of several domains, domain after domain in the recipe's order.

    Training prompt ``i`` of step ``s`` is number ``s * prompts + i`` of its task's endless training split. Held-out
    prompts have a seed of their own, so that runs of different seeds are measured on the same questions.
    """

    supplies: Mapping[str, Supply]
    tokenizer: PreTrainedTokenizerBase
    seed: int

    def __call__(self, step: int) -> list[Prompt]:
        """The training prompts of ``step``."""
        return [
            self._prompt(domain, seed=self.seed, split="train", index=step * supply.prompts + i)
            for domain, supply in self.supplies.items()
            for i in range(supply.prompts)
        ]

    def held_out(self, split: str, n: int, *, seed: int) -> dict[str, list[Prompt]]:
        """``n`` prompts a domain of the ``validation`` or ``test`` split, all in the hard form."""
        return {
            domain: [self._prompt(domain, seed=seed, split=split, index=i) for i in range(n)]
            for domain in self.supplies
        }

    def _prompt(self, domain: str, *, seed: int, split: str, index: int) -> Prompt:
        supply = self.supplies[domain]
        easy = split == "train" and bool(keyed_uniforms(seed=seed, step=index, rollout=0, n=1)[0] < supply.easy_share)
        example = supply.task.example(seed=seed, split=split, index=index, easy=easy)
        return to_prompt(self.tokenizer, domain=domain, example=example)
