"""Programs that have to be mended: ``debug plus ?, sort= 3 -1 4 -> 0 5 6``, where a number of the program is hidden.

The model runs a program on a visible list and reads ``ok``, or the first value that is wrong and by how much; it
corrects the number and runs it again, and what it answers at last is judged on lists that it never sees.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from mopd.rollouts.environments.base import Drawn, Step, ToolEpisode, Turn
from mopd.rollouts.environments.runner import Together
from mopd.rollouts.environments.tools import tool
from mopd.rollouts.sandbox.run import evaluate_expressions
from mopd.rollouts.tasks.base import content_hash
from mopd.rollouts.tasks.list_programs import draw_lists

GUESS = 5
"""What a model that knows nothing better tries first."""
LISTS = 4
ENDS = {"sort": "sorted({})", "list": "{}", "reverse": "{}[::-1]"}
PROMPT = re.compile(r"debug (plus|minus) \?, (\w+)=", re.ASCII)


def program(operation: str, number: int, end: str) -> str:
    """The Python expression of a program over ``x``."""
    return ENDS[end].format(f"[v{'+' if operation == 'plus' else '-'}{number} for v in x]")


def wanted_values(operation: str, number: int, end: str, x: list[int]) -> list[int]:
    """What a program gives on ``x``, by its meaning and not by its expression."""
    moved = [value + number if operation == "plus" else value - number for value in x]
    return sorted(moved) if end == "sort" else moved[::-1] if end == "reverse" else moved  # not per token


VALUES = Together(evaluate_expressions)
"""What an expression gives on every list, in the sandbox; None where it is refused, fails or takes too long."""


@dataclass(slots=True)
class DebugEpisode(ToolEpisode):
    """A :class:`ToolEpisode` that counts a run which does not fit as a failure."""

    async def step(self, message: Turn) -> Step:
        """See :class:`ToolEpisode`."""
        answer = await ToolEpisode.step(self, message)
        return answer if answer.done else Step(answer.messages, failed="ok" not in answer.messages[-1]["content"])


class Debug(Drawn):
    """A program of one operation with a hidden number, and how its values are put at the end."""

    name = "debug"
    immediate = True

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str]:
        """Easy: the hidden number is what a model guesses first; hard: it is any from 1 to 9."""
        operation, end = rng.choice(("plus", "minus")), rng.choice(list(ENDS))
        number = GUESS if easy else rng.randint(1, 9)
        visible = [rng.randint(-9, 30) for _ in range(3)]
        question = f"debug {operation} ?, {end}={','.join(map(str, visible))};"
        return question, program(operation, number, end), f"{operation}|{number}|{end}|{visible}"

    def episode(self, question: str, answer: str) -> DebugEpisode:
        """With ``run`` as the only tool, which runs a program on the visible list."""
        match = PROMPT.match(question)
        assert match is not None
        visible = [int(number) for number in question.partition("=")[2].removesuffix(";").split(",")]
        hidden = draw_lists(content_hash(question), LISTS)
        number = next(n for n in range(10) if program(match[1], n, match[2]) == answer)
        wanted = wanted_values(match[1], number, match[2], visible)

        async def run(text: str) -> str:
            """Run a program on the visible list: ok, or the first value that is wrong, and by how much."""
            got = await VALUES((text, [visible]))
            if got is None:
                raise ValueError("the program cannot be run")
            return f"{compared(got[0], wanted)};"

        async def judge(text: str) -> float:
            got = await VALUES((text, hidden))
            return float(repr(got) == repr([wanted_values(match[1], number, match[2], x) for x in hidden]))

        first = program(match[1], GUESS, match[2])
        tries = [first] if first == answer else [first, answer]
        script = [*(f"run({each})" for each in tries), answer]
        return DebugEpisode([{"role": "user", "content": question}], [tool(run)], judge, answer, script)


def compared(got: object, wanted: object) -> str:
    """``ok``, or the first value that is wrong, and by how much.

    Example:
        ``compared([8, 4], [6, 2])`` is ``"got 8, 2 too high"``.
    """
    if repr(got) == repr(wanted):
        return "ok"
    if not isinstance(got, list) or not isinstance(wanted, list) or len(got) != len(wanted):
        return "not the wanted length"
    first, right = next((g, w) for g, w in zip(got, wanted, strict=True) if repr(g) != repr(w))
    if type(first) is not int:
        return f"got {first!s:.20}, no whole number"
    return f"got {first!s:.20}, {abs(first - right)!s:.20} too {'high' if first > right else 'low'}"
