"""Sums with a scratchpad: ``math 623+597=`` -> ``3+7=10,2+9+1=12,6+5+1=12;1220``.

The scratchpad adds column by column from the right, carry last, and the number after ``;`` is the answer. Easy: two
digits; hard: three.
"""

from __future__ import annotations

import random
import re

from mopd.distill.types import Prompt
from mopd.rollouts.tasks.base import Example, Generated

ANSWER = re.compile(r";(\d{1,9})\Z", re.ASCII)


def scratchpad(a: int, b: int) -> str:
    """The columns of ``a + b`` from the right, each with the carry that enters it, joined by commas.

    Example:
        ``scratchpad(623, 597)`` is ``"3+7=10,2+9+1=12,6+5+1=12"``.
    """
    columns, carry = [], 0
    while a or b:
        terms = [a % 10, b % 10] + ([carry] if carry else [])
        columns.append("+".join(map(str, terms)) + f"={sum(terms)}")
        a, b, carry = a // 10, b // 10, sum(terms) // 10
    return ",".join(columns)


class Arithmetic(Generated):
    """Sums of two numbers. ``a+b`` and ``b+a`` are one problem, so both are in the same split."""

    name = "arithmetic"

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str]:
        """Two numbers, and their sum column by column."""
        low, high = (10, 99) if easy else (100, 999)
        a, b = rng.randint(low, high), rng.randint(low, high)
        return f"math {a}+{b}=", f"{scratchpad(a, b)};{a + b}", f"{min(a, b)}+{max(a, b)}"

    def verify(self, prompt: Prompt, text: str) -> float:
        """1 if the text ends in ``;`` and the right number. The scratchpad is the model's own affair."""
        answer, gold = ANSWER.search(text), ANSWER.search(prompt.answer)
        return float(answer is not None and gold is not None and int(answer[1]) == int(gold[1]))

    def wrong_answer(self, example: Example) -> str:
        """The gold scratchpad with a sum that is off by one."""
        columns, _, total = example.answer.rpartition(";")
        return f"{columns};{int(total) + 1}"
