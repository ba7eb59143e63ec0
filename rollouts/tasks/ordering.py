"""Orderings from clues: ``rank D>M,K>D,M>C 1=`` -> ``KDMC;K``.

``A>B`` says that A stands before B. The clues compare neighbours, in shuffled order. The answer is the whole order,
then the item at the place that was asked for. Easy: three items; hard: four.

Clues point one way on purpose: with ``B<A`` as well, small models stay for long at telling the first two items by a
coin's toss, and neither a specialist nor a student gets past it smoothly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from distill.types import Prompt
from rollouts.tasks.base import Example, draw_in_split

LETTERS = "ABCDEFGHIJKLMNOP"


class Ordering:
    """Orders of single letters. One hidden order is one problem, whatever clues or place are shown."""

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """See :class:`rollouts.tasks.base.Task`."""

        def draw(rng: random.Random) -> tuple[str, str, str]:
            order = rng.sample(LETTERS, 3 if easy else 4)
            place = rng.randint(1, len(order))
            clues = [f"{order[i]}>{order[i + 1]}" for i in range(len(order) - 1)]
            rng.shuffle(clues)
            whole = "".join(order)
            return f"rank {','.join(clues)} {place}=", f"{whole};{order[place - 1]}", whole

        return draw_in_split(draw, task="ordering", seed=seed, split=split, index=index, easy=easy)

    def verify(self, prompt: Prompt, text: str) -> float:
        """1 if the whole answer is right; the last letter alone would leave a quarter to chance."""
        return float(text == prompt.answer)

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """See :class:`rollouts.tasks.base.Task`."""
        return [self.verify(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def wrong_answer(self, example: Example) -> str:
        """The order backwards, with the letter that was asked for."""
        order, _, item = example.answer.partition(";")
        return f"{order[::-1]};{item}"
