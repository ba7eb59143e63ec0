"""The prompts of a step: a pure function of (seed, step), whatever ran before."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mopd.distill.types import Prompt, Prompts
from mopd.rollouts.mixture import Mixture
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import to_prompt


@dataclass(frozen=True, slots=True)
class Supply:
    """One domain's prompts: its task, and the share of the training ones in the task's easy form."""

    task: Task
    easy_share: float = 0.0


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Draws prompts of several domains, domain after domain in the recipe's order.

    Which numbers of its task's endless training split a step takes is the mixture's word. Held-out prompts have a seed
    of their own, so that runs of different seeds are measured on the same questions.
    """

    supplies: Mapping[str, Supply]
    tokenizer: PreTrainedTokenizerBase
    seed: int
    mixture: Mixture

    def __call__(self, step: int) -> list[Prompt]:
        """The training prompts of ``step``."""
        return [
            self._prompt(domain, seed=self.seed, split="train", index=index)
            for domain, places in self.mixture.places(step).items()
            for index in places
        ]

    def held_out(self, split: str, n: int, *, seed: int) -> dict[str, list[Prompt]]:
        """``n`` prompts a domain of the ``validation`` or ``test`` split, all in the hard form."""
        return {
            domain: [self._prompt(domain, seed=seed, split=split, index=i) for i in range(n)]
            for domain in self.supplies
        }

    def _prompt(self, domain: str, *, seed: int, split: str, index: int) -> Prompt:
        supply = self.supplies[domain]
        easy = split == "train" and easy_coin(domain, seed=seed, index=index) < supply.easy_share
        example = supply.task.example(seed=seed, split=split, index=index, easy=easy)
        return to_prompt(self.tokenizer, domain=domain, example=example)


def easy_coin(domain: str, *, seed: int, index: int) -> float:
    """A number in 0..1, keyed by (seed, domain, index); below the domain's easy share, prompt ``index`` is easy.

    The domain is part of the key, or else prompt i would be easy in every domain or in none. The hash is another than
    that of the token noise, which is keyed by numbers only.
    """
    return random.Random(f"easy/{domain}/{seed}/{index}").random()


class Prefetched:
    """A prompt source that draws the next step's prompts in a thread, while the others work on this step's.

    Drawing took 4% of a step of the quickstart, in which both cores waited. What is drawn does not change: prompts are
    a pure function of the step.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
        self._next: tuple[int, Future[Sequence[Prompt]]] | None = None

    def __call__(self, step: int) -> Sequence[Prompt]:
        """The prompts of ``step``; any step may be asked for, the one after the last is there already."""
        drawn = self._next[1].result() if self._next and self._next[0] == step else self._prompts(step)
        self._next = step + 1, self._thread.submit(self._prompts, step + 1)
        return drawn

    def close(self) -> None:
        """End the thread; what it had not begun is not drawn."""
        self._thread.shutdown(wait=True, cancel_futures=True)
