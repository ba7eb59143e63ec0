"""Arithmetic that takes a tool: ``calc 37*48-129=``, worked out one operation after the other.

The tool does one operation of two numbers; what it gives goes into the next call. Easy: one operation; hard: two.
"""

from __future__ import annotations

import random
import re

from mopd.rollouts.environments.base import Drawn, ToolEpisode
from mopd.rollouts.environments.tools import tool

OPERATION = re.compile(r"(-?\d{1,9})([-+*])(\d{1,9})", re.ASCII)


def operate(left: int, sign: str, right: int) -> int:
    """One operation of two numbers."""
    return left * right if sign == "*" else left + right if sign == "+" else left - right


def calculator(text: str) -> str:
    """One operation of two whole numbers, such as 37*48; + - and * are known."""
    match = OPERATION.fullmatch(text)
    if match is None:
        raise ValueError(f"no operation of two numbers: {text[:40]}")
    return f"{operate(int(match[1]), match[2], int(match[3]))};"


CALCULATOR = tool(calculator)


def worked(question: str) -> list[str]:
    """The messages of a model that does it right: a call for each operation, and the result.

    Example:
        ``worked("calc 37*48-129=")`` is ``["calculator(37*48)", "calculator(1776-129)", "1647"]``.
    """
    first, *others = re.findall(r"[-+*]?\d+", question)
    value, calls = int(first), []
    for sign, number in ((other[0], other[1:]) for other in others):  # not per token
        calls.append(f"calculator({value}{sign}{number})")
        value = operate(value, sign, int(number))
    return [*calls, str(value)]


class Calculator(Drawn):
    """Chains of operations from left to right; the gold answer is the last message, the number alone."""

    name = "calculator"
    immediate = True

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str]:
        """Two or three numbers of two digits; the first operation multiplies, which is beyond a small model."""
        chain = f"{rng.randint(12, 99)}*{rng.randint(12, 99)}"
        chain += "" if easy else f"{rng.choice('+-')}{rng.randint(12, 99)}"
        question = f"calc {chain}="
        return question, worked(question)[-1], chain

    def episode(self, question: str, answer: str) -> ToolEpisode:
        """With the calculator as the only tool; an answer is right if it is the number."""
        return ToolEpisode(
            messages=[{"role": "user", "content": question}],
            tools=[CALCULATOR],
            judge=lambda text: float(text.strip() == answer),
            answer=answer,
            script=worked(question),
        )
