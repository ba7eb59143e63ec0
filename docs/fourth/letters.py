"""Sorting letters: ``sort DKBAPF=`` -> ``ABDFKP``. A task of one's own, which docs/fourth/fourth.yaml names."""

import random

from rollouts.tasks.base import Generated

LETTERS = "ABCDEFGHIJKLMNOP"


class Letters(Generated):
    """Letters into alphabetical order. One set of letters is one problem, however they are shuffled.

    Easy: four letters; hard: eight.
    """

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str]:
        """The prompt, the gold answer, and what decides whether it is for training, validation or test."""
        shown = rng.sample(LETTERS, 4 if easy else 8)
        ordered = "".join(sorted(shown))
        return f"sort {''.join(shown)}=", ordered, ordered
