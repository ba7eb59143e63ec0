"""Checks of a user's own task: does it keep the promises that the shipped ones are tested for?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from distill.types import Prompt
from rollouts.tasks import Example, Split, Task

DRAWN = 32
"""Problems of each split and form that are drawn."""
HOSTILE = ("", "\x00", "0" * 5000, "\N{SNOWMAN}", "None")
"""Texts that a model may write and no task expects."""


def check_own_task(task: Task, *, seed: int) -> Iterator[str]:
    """Whether its problems are whole, repeatable and in one split each, and its verifier takes any text.

    That gold answers are accepted and wrong ones refused is asked of every task, in recipes/check_tasks.py.
    """
    seen: dict[str, str] = {}
    for split in get_args(Split):
        for easy in (False, True):
            for index in range(DRAWN):
                asked: dict[str, Any] = {"seed": seed, "split": split, "index": index, "easy": easy}
                shown = ", ".join(f"{key}={value!r}" for key, value in asked.items())
                try:
                    example, again = task.example(**asked), task.example(**asked)
                except Exception as error:
                    yield f"example({shown}) raises {type(error).__name__}: {error}"
                    return
                if problem := _whole(example, again, seen.setdefault(_text(example), split), split):
                    yield f"example({shown}) {problem}"
                    return
    yield from _verifier(task, task.example(seed=seed, split="train", index=0))


def _text(example: Example) -> str:
    return str(getattr(example, "text", example))


def _whole(example: Example, again: Example, first_split: str, split: str) -> str | None:
    if not isinstance(example, Example):
        return f"is {type(example).__name__} {str(example)[:60]!r}, and must be a rollouts.tasks.base.Example"
    if not all(isinstance(part, str) and part for part in (example.id, example.text, example.answer)):
        return f"is {example}: id, text and answer must be texts that are not empty"
    if example != again:
        return f"gives {example.text!r}, then {again.text!r}: it must depend on nothing but what it is asked"
    if first_split != split:
        return (
            f"is {example.text!r}, which is in split {first_split!r} too: what is trained on may not be measured; "
            f"draw through rollouts.tasks.base.draw_in_split"
        )
    return None


def _verifier(task: Task, example: Example) -> Iterator[str]:
    prompt = Prompt("any", example.id, (0,), example.text, example.answer)
    for text in (*HOSTILE, example.answer):
        try:
            score, many = task.verify(prompt, text), task.verify_many([prompt, prompt], [text, text])
        except Exception as error:
            yield f"the verifier raises {type(error).__name__}: {error} on the answer {text[:20]!r}; it may never raise"
            return
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            yield f"the verifier gives {score!r} for the answer {text[:20]!r}; it must give a number from 0 to 1"
            return
        if list(many) != [score, score]:
            yield f"verify gives {score!r} for the answer {text[:20]!r}, verify_many {many!r}; they must agree"
            return
    try:
        wrong = task.wrong_answer(example)
    except Exception as error:
        yield f"wrong_answer raises {type(error).__name__}: {error}"
        return
    if not isinstance(wrong, str):
        yield f"wrong_answer gives {wrong!r}; it must be a text"
