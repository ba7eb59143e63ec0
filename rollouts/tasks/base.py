"""What every task is made of: examples, and splits that are disjoint by construction.

A split is a property of what an example *says*, not of how it was drawn: the hash of its canonical content decides,
and a generator redraws until it lands in the split that was asked for. Two ways of writing one problem share their
canonical content, so a paraphrase of a test problem cannot be trained on.
"""

from __future__ import annotations

import functools
import hashlib
import random
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

from mopd.distill.types import Prompt, UserError

TaskSplit: TypeAlias = Literal["train", "validation", "test"]
MAX_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Example:
    """A problem and its gold answer, as text.

    Attributes:
        id: ``task/split/seed-index-hash``, where the hash is that of the prompt text.
        text: the prompt, as the model is given it.
        answer: a gold answer; the verifier may accept others.
        letters: parts of the text, as (start, end), whose control tokens are written as the letters they are.
    """

    id: str
    text: str
    answer: str
    letters: tuple[tuple[int, int], ...] = ()


class Task(Protocol):
    """A source of prompts together with the one who knows whether an answer is right."""

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """The ``index``-th problem of a split: a pure function of its arguments.

        Raises:
            UserError: ``split`` is not one of train, validation and test.
        """
        ...

    def verify(self, prompt: Prompt, text: str) -> float:
        """How right ``text`` is as an answer to ``prompt``, in 0..1; never raises on what a model may write."""
        ...

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """:meth:`verify` of many answers at once, which is faster where verifying means executing."""
        ...

    def wrong_answer(self, example: Example) -> str:
        """A well-formed answer that the verifier must refuse: what a static check proves the verifier with."""
        ...


class Named:
    """What problems are drawn by.

    Attributes:
        name: part of the key of the randomness and of every id; the class' own name unless it says another.
    """

    name = ""

    def __init_subclass__(cls) -> None:
        """A subclass that gives no name has that of its class."""
        cls.name = cls.__dict__.get("name") or cls.__name__


class Generated(Named):
    """A task whose problems are drawn: a subclass gives ``draw``, and ``verify`` if more than one answer is right."""

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str] | None:
        """A problem as (prompt text, gold answer, canonical content), or None for a draw that makes no problem.

        What two problems share that are one in other words is their canonical content: it decides the split.
        """
        raise NotImplementedError(f"task {self.name} has no `draw(self, rng, easy)`")

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """See :class:`Task`."""

        def draw(rng: random.Random) -> tuple[str, str, str] | None:
            return self.draw(rng, easy)

        return draw_in_split(draw, task=self.name, seed=seed, split=split, index=index, easy=easy)

    def verify(self, prompt: Prompt, text: str) -> float:
        """1 if the text is the gold answer, to the character."""
        return float(text == prompt.answer)

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """See :class:`Task`."""
        return [self.verify(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def wrong_answer(self, example: Example) -> str:
        """The gold answer twice."""
        return 2 * example.answer


def split_of(canonical: str) -> TaskSplit:
    """The split that a canonical content belongs to: 70% train, 10% validation, 20% test, by hash."""
    bucket = hashlib.sha256(canonical.encode()).digest()[0] % 10
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def deal_in_order(canonicals: Collection[str]) -> dict[str, TaskSplit]:
    """The split of each of a few canonical contents, in the order of their hashes: 20% test, 10% validation, the others
    train, and no split without one where there are three. Unlike :func:`split_of` it depends on all of them.
    """
    ordered = sorted(canonicals, key=lambda canonical: hashlib.sha256(canonical.encode()).digest())
    tests, validations = max(1, len(ordered) // 5), max(1, len(ordered) // 10)
    return {
        canonical: "test" if n < tests else "validation" if n < tests + validations else "train"
        for n, canonical in enumerate(ordered)
    }


def content_hash(text: str) -> str:
    """The first 64 bits of a text's SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw_in_split(
    draw: Callable[[random.Random], tuple[str, str, str] | None],
    *,
    task: str,
    seed: int,
    split: str,
    index: int,
    easy: bool,
) -> Example:
    """Draw problems until one belongs to ``split``.

    Args:
        draw: returns (prompt text, answer, canonical content), or None for a draw that makes no problem.
        task, seed, split, index, easy: the key of the randomness; the same key draws the same problem.

    Raises:
        UserError: ``split`` is unknown.
        RuntimeError: no draw landed in the split, which says that the task's space is too small.
    """
    refuse_unknown_split(f"task {task!r}", split)
    rng = random.Random(f"{task}/{seed}/{split}/{index}/{easy}")
    for _ in range(MAX_DRAWS):
        drawn = draw(rng)
        if drawn is not None and split_of(drawn[2]) == split:
            text, answer, _ = drawn
            return Example(f"{task}/{split}/{seed}-{index}-{content_hash(text)}", text, answer)
    raise RuntimeError(f"task {task!r}: no problem of split {split!r} in {MAX_DRAWS} draws; its space is too small")


def refuse_unknown_split(what: str, split: str) -> None:
    """Nothing of one that there is.

    Raises:
        UserError: ``split`` is not one of train, validation and test.
    """
    if split not in get_args(TaskSplit):
        raise UserError(f"{what} has no split {split!r}; it has {', '.join(get_args(TaskSplit))}")


def place_in_turn(key: str, split: str, index: int, count: int) -> int | None:
    """Which of ``count`` rows of a split is its ``index``-th; None where there are not so many.

    In training all come, shuffled, before any comes again; one that is held out comes once.

    Args:
        key: of the order, besides the split.
    """
    epoch, place = divmod(index, max(1, count))
    if not count or (epoch and split != "train"):
        return None
    return row_order(f"{key}/{split}/{epoch}", count)[place]


@functools.lru_cache(maxsize=16)
def row_order(key: str, count: int) -> array[int]:
    """A permutation of ``range(count)`` that depends on nothing but ``key``."""
    order = array("q", range(count))
    random.Random(key).shuffle(order)
    return order
