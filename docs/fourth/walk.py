"""Walks along the alphabet: ``walk C35294=`` -> ``FKMFJ``. A task of one's own, which docs/fourth/fourth.yaml names."""

import random

from rollouts.tasks import Generated

LETTERS = "ABCDEFGHIJKLMNOP"


class Walk(Generated):
    """From a letter so many letters on, again and again; after P comes A. The answer is where each step ends.

    Easy: two steps; hard: five.
    """

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str]:
        """The prompt, the gold answer, and what decides whether it is for training, validation or test."""
        place = rng.randrange(len(LETTERS))
        steps = [rng.randint(1, 9) for _ in range(2 if easy else 5)]
        asked = LETTERS[place] + "".join(map(str, steps))
        reached = ""
        for step in steps:
            place = (place + step) % len(LETTERS)
            reached += LETTERS[place]
        return f"walk {asked}=", reached, asked
