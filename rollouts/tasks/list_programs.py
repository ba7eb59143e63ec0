"""Small list programs: ``code over 2, evens, plus 3, sort=`` -> a Python expression of the list ``x``.

An answer is executed, in the sandbox, on lists drawn from the prompt's own id, which the prompt does not show; any
expression with the right values is right. The reference values come from plain Python functions, not from the gold
expression. Easy: one operation and a reducer; hard: four operations and a reducer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mopd.distill.types import Prompt
from mopd.rollouts.sandbox.run import evaluate_expressions
from mopd.rollouts.tasks.base import Example, content_hash, draw_in_split

ARGUMENTS = range(1, 10)
HIDDEN_LISTS = 6


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the little language: what it means, and how it is written in Python.

    Attributes:
        template: the expression, with ``X`` for the list it works on and ``N`` for its argument.
        meaning: the same as a function of (list, argument); the reference that answers are compared with.
    """

    template: str
    meaning: Callable[[list[int], int], object]

    @property
    def takes_argument(self) -> bool:
        """Whether the word is followed by a number."""
        return "N" in self.template


OPERATIONS: dict[str, Word] = {
    "over": Word("[v for v in X if v>N]", lambda x, n: [v for v in x if v > n]),
    "under": Word("[v for v in X if v<N]", lambda x, n: [v for v in x if v < n]),
    "plus": Word("[v+N for v in X]", lambda x, n: [v + n for v in x]),
    "minus": Word("[v-N for v in X]", lambda x, n: [v - n for v in x]),
    "times": Word("[v*N for v in X]", lambda x, n: [v * n for v in x]),
    "evens": Word("[v for v in X if v%2==0]", lambda x, n: [v for v in x if not v & 1]),
    "odds": Word("[v for v in X if v%2==1]", lambda x, n: [v for v in x if v & 1]),
    "reverse": Word("X[::-1]", lambda x, n: list(reversed(x))),
    "take": Word("X[:N]", lambda x, n: [v for i, v in enumerate(x) if i < n]),
    "skip": Word("X[N:]", lambda x, n: [v for i, v in enumerate(x) if i >= n]),
}
REDUCERS: dict[str, Word] = {
    "list": Word("X", lambda x, n: x),
    "sort": Word("sorted(X)", lambda x, n: sorted(x)),
    "sum": Word("sum(X)", lambda x, n: sum(x)),
    "count": Word("len(X)", lambda x, n: len(x)),
    "unique": Word("len(set(X))", lambda x, n: len(set(x))),
    "max": Word("max(X+[0])", lambda x, n: max([0, *x])),
    "min": Word("min(X+[0])", lambda x, n: min([0, *x])),
}
WORDS = OPERATIONS | REDUCERS
Program = list[tuple[str, int]]


def parse(text: str) -> Program:
    """The words of a prompt with their arguments (0 where there is none)."""
    parts = text.removeprefix("code ").removesuffix("=").split(", ")
    return [(name, int(argument or 0)) for name, _, argument in (part.partition(" ") for part in parts)]


def run_reference(program: Program, x: list[int]) -> object:
    """The value of a program on the list ``x``, by the words' meanings."""
    value: object = x
    for name, argument in program:
        assert isinstance(value, list)  # only the last word, a reducer, makes something else
        value = WORDS[name].meaning(value, argument)
    return value


def expression(program: Program) -> str:
    """The gold Python expression of a program: each word's template around the one before."""
    inner = "x"
    for name, argument in program:
        inner = WORDS[name].template.replace("N", str(argument)).replace("X", inner)
    return inner


def draw_lists(key: str, count: int) -> list[list[int]]:
    """Lists of integers that depend on ``key`` alone; long enough that ``skip 9`` leaves something."""
    rng = random.Random(key)
    return [[rng.randint(-15, 25) for _ in range(rng.randint(11, 15))] for _ in range(count)]


PROBES = draw_lists("probes", 3)
"""Lists on which a program's behaviour is told, to decide its split; not the lists that answers are verified on."""


class ListPrograms:
    """Chains of list operations. Programs that behave alike are one problem: ``over 1, over 2`` is ``over 2``."""

    def __init__(self, operations: int = 4) -> None:
        self.operations = operations

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """See :class:`rollouts.tasks.base.Task`."""
        names = list(OPERATIONS)

        def draw(rng: random.Random) -> tuple[str, str, str] | None:
            chain = [rng.choice(names) for _ in range(1 if easy else self.operations)] + [rng.choice(list(REDUCERS))]
            program = [(name, rng.choice(ARGUMENTS) if WORDS[name].takes_argument else 0) for name in chain]
            behaviour = [repr(run_reference(program, x)) for x in PROBES]
            if len(set(behaviour)) == 1:  # a constant could answer it
                return None
            words = ", ".join(f"{name} {argument}" if argument else name for name, argument in program)
            return f"code {words}=", expression(program), "|".join(behaviour)

        return draw_in_split(draw, task="list_programs", seed=seed, split=split, index=index, easy=easy)

    def verify(self, prompt: Prompt, text: str) -> float:
        """1 if the expression has the program's value on every hidden list."""
        return self.verify_many([prompt], [text])[0]

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """See :class:`rollouts.tasks.base.Task`. All expressions go to the sandbox in one batch."""
        inputs = [hidden_lists(prompt) for prompt in prompts]
        values = evaluate_expressions(list(zip(texts, inputs, strict=True)))
        verdicts = []
        for prompt, lists, got in zip(prompts, inputs, values, strict=True):
            program = parse(prompt.text)
            # repr tells True from 1 and 2.0 from 2, which == does not.
            verdicts.append(float(got is not None and repr(got) == repr([run_reference(program, x) for x in lists])))
        return verdicts

    def wrong_answer(self, example: Example) -> str:
        """The gold value inside one more list."""
        return f"[{example.answer}]"


def hidden_lists(prompt: Prompt) -> list[list[int]]:
    """The lists that answers to ``prompt`` are executed on: a function of its id, never of what it shows."""
    return draw_lists(content_hash(prompt.id), HIDDEN_LISTS)
