"""Orderings from clues: ``rank D>M,K>D,M>C 1=`` -> ``KDMC;K``.

``A>B`` says that A stands before B. The clues compare neighbours, in shuffled order. The answer is the whole order,
then the item at the place that was asked for. Easy: three items; hard: four.

Clues point one way on purpose: with ``B<A`` as well, small models stay for long at telling the first two items by a
coin's toss, and neither a specialist nor a student gets past it smoothly.
"""

from __future__ import annotations

import random

from mopd.rollouts.tasks.base import Example, Generated

LETTERS = "ABCDEFGHIJKLMNOP"


class Ordering(Generated):
    """Orders of single letters. One hidden order is one problem, whatever clues or place are shown.

    Only the whole answer is right: the last letter alone would leave a quarter to chance.
    """

    name = "ordering"

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str]:
        """An order, clues of all its neighbours, and a place in it."""
        order = rng.sample(LETTERS, 3 if easy else 4)
        place = rng.randint(1, len(order))
        clues = [f"{order[i]}>{order[i + 1]}" for i in range(len(order) - 1)]
        rng.shuffle(clues)
        whole = "".join(order)
        return f"rank {','.join(clues)} {place}=", f"{whole};{order[place - 1]}", whole

    def wrong_answer(self, example: Example) -> str:
        """The order backwards, with the letter that was asked for."""
        order, _, item = example.answer.partition(";")
        return f"{order[::-1]};{item}"
