"""Walks along the alphabet: ``walk C3594=`` -> ``FKTX``. A task of one's own, which docs/fourth/fourth.yaml names."""

import random

from mopd import Generated

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Walk(Generated):
    """From a letter so many letters on, again and again; after Z comes A. The answer is where each step ends.

    Easy: two steps; hard: six.
    """

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str]:
        """The prompt, the gold answer, and what decides whether it is for training, validation or test."""
        place = rng.randrange(len(LETTERS))
        asked, reached = LETTERS[place], ""
        for step in rng.choices(range(1, 10), k=2 if easy else 6):
            place = (place + step) % len(LETTERS)
            asked += str(step)
            reached += LETTERS[place]
        return f"walk {asked}=", reached, asked
