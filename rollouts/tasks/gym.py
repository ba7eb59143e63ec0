"""Tasks of reasoning-gym: its generators draw the problems, its own verifiers say what is right.

A problem is drawn by a number that is keyed like every task's randomness, and its question decides the split.
"""

from __future__ import annotations

import functools
import inspect
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import GymSource, Source
from mopd.distill.recipe.messages import guess
from mopd.distill.types import Prompt, UserError
from mopd.rollouts.tasks.base import Example, draw_in_split
from mopd.rollouts.tasks.rendering import Renderer, Reworded, Written
from mopd.rollouts.tasks.row_meaning import Problem

EXTRA = "pip install 'mopd[reasoning-gym]'"
_RUNS_TEXT = re.compile(r"\b(eval|exec|parse_expr|sympify)\((?!entry)")
"""Calls of a verifier that run text as Python: sympy's parsers do."""
KEPT_PROBLEMS = 4096
"""Problems of a process whose entries are kept for their verifier; others are drawn again."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One problem: its example, and the generator's entry, which its verifier reads."""

    example: Example
    entry: dict[str, Any]


class GymTask:
    """Problems of one generator; see :class:`rollouts.tasks.base.Task`.

    Args:
        source: the generator, its settings, and how a question is put.
        tokenizer: the student's, whose chat template writes the turns; see :class:`rollouts.tasks.dataset.DatasetTask`.

    Raises:
        UserError: the package is not installed, it has no such generator or setting, the generator gives no gold
            answer, or its verifier would run what a model writes.
    """

    def __init__(self, source: GymSource, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.name = f"reasoning_gym:{source.reasoning_gym}"
        self._generators = {False: _generator(source.reasoning_gym, source.config)}
        self._generators[True] = self._generators[False]
        if source.easy:
            self._generators[True] = _generator(source.reasoning_gym, {**source.config, **source.easy})
        self._system = source.system
        rendered = Source(
            path=self.name,
            suffix=source.suffix,
            template=source.template,
            template_arguments=source.template_arguments,
        )
        self._renderer = Renderer(rendered, tokenizer, ())
        self._drawn = functools.lru_cache(maxsize=KEPT_PROBLEMS)(self._draw)
        # What is refused, is refused before a problem is asked for.
        self._renderer.check(self._problem(self._generators[False].entry(0)))

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """See :class:`rollouts.tasks.base.Task`.

        Raises:
            UserError: the split is unknown, or the settings leave no problem of it.
        """
        return self._drawn(seed, split, index, easy).example

    def verify(self, prompt: Prompt, text: str) -> float:
        """The generator's own score of an answer, 0..1; 0 where its verifier raises, or gives no number."""
        generator, entry = self._entry(prompt)
        return generator.score(text.strip(), entry)

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """See :class:`rollouts.tasks.base.Task`."""
        return [self.verify(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def wrong_answer(self, example: Example) -> str:
        """The answer to another problem, or a text that is none: what the verifier thinks least of."""
        generator, entry = self._entry(Prompt("", example.id, (0,), example.text, example.answer))
        others = [str(generator.entry(number)["answer"]) for number in range(4)]
        return min([*others, f"{example.answer}?", "?"], key=lambda answer: generator.score(answer, entry))

    def reworded(self, prompt: Prompt, how: Reworded) -> Written:
        """See :meth:`rollouts.tasks.dataset.DatasetTask.reworded`.

        Raises:
            UserError: the chat template refuses it.
        """
        try:
            return self._renderer.reworded(self._problem(self._entry(prompt)[1]), how)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from error

    def _entry(self, prompt: Prompt) -> tuple[_Generator, dict[str, Any]]:
        """The entry that a prompt was made from: drawn again by the key in its id."""
        name, split, key = prompt.id.rsplit("/", 2)
        seed, index, _ = key.split("-")
        for easy, generator in self._generators.items():
            drawn = self._drawn(int(seed), split, int(index), easy)
            if drawn.example.id == prompt.id:
                return generator, drawn.entry
        raise UserError(f"{self.name} has no problem {prompt.id} (of {name}); its settings have changed since")

    def _draw(self, seed: int, split: str, index: int, easy: bool) -> _Drawn:
        entries: dict[str, dict[str, Any]] = {}
        generator = self._generators[easy]

        def draw(rng: random.Random) -> tuple[str, str, str]:
            entry = generator.entry(rng.getrandbits(31))
            problem = self._problem(entry)
            entries["last"] = entry
            return self._renderer.written(problem).text, problem.answer, problem.canonical

        try:
            example = draw_in_split(draw, task=self.name, seed=seed, split=split, index=index, easy=easy)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.name}: {error}") from error
        return _Drawn(example, entries["last"])

    def _problem(self, entry: dict[str, Any]) -> Problem:
        return Problem(entry["question"].strip(), (str(entry["answer"]),), system=self._system)


class _Generator:
    """A generator with its settings: entries by number, and its verifier."""

    def __init__(self, name: str, settings: dict[str, Any], make: Any) -> None:
        self.name, self._settings, self._make = name, settings, make
        self._dataset = make(seed=0, size=1)

    def entry(self, number: int) -> dict[str, Any]:
        """The problem of a number: ``question``, ``answer``, and what the verifier reads as ``metadata``."""
        try:
            return self._dataset[number]
        except IndexError:  # some hold no more than their size; the first of another seed is the same problem
            return self._make(seed=number, size=1)[0]

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """0..1, and 0 for what the verifier raises on."""
        try:
            score = float(self._dataset.score_answer(text, entry))
        except Exception:  # a verifier reads what a model writes, and raises what it likes
            return 0.0
        return score if 0.0 <= score <= 1.0 else 0.0


@functools.lru_cache(maxsize=64)
def _generator_of(name: str, settings: str) -> _Generator:
    factory = _factory()
    if name == "composite" or name not in factory.DATASETS:
        known = sorted(factory.DATASETS.keys() - {"composite"})
        raise UserError(f"reasoning_gym has no generator {name!r}; {guess(name, known)}")
    dataset_class, config_class = factory.DATASETS[name]
    if called := _RUNS_TEXT.search(inspect.getsource(dataset_class.score_answer)):
        raise UserError(
            f"the verifier of reasoning_gym:{name} runs what a model writes as Python (`{called[1]}`), outside of any "
            "sandbox; take another generator, or a task of your own"
        )
    given = json.loads(settings)
    known = config_class.__dataclass_fields__.keys() - {"seed", "size"}
    if unknown := [key for key in given if key not in known]:
        raise UserError(
            *(f"reasoning_gym:{name} has no setting {key!r}; {guess(key, sorted(known))}" for key in unknown)
        )

    def make(**keys: int) -> Any:
        return factory.create_dataset(name, **given, **keys)

    try:
        generator = _Generator(name, given, make)
        answer = generator.entry(0)["answer"]
    except Exception as error:  # each generator checks its settings in its own way
        raise UserError(
            f"reasoning_gym:{name} refuses its settings {given}: {error or type(error).__name__}"
        ) from error
    if not isinstance(answer, str):
        raise UserError(f"reasoning_gym:{name} gives no gold answer that could be learnt or shown; take another")
    return generator


def _generator(name: str, settings: dict[str, Any]) -> _Generator:
    return _generator_of(name, json.dumps(settings, sort_keys=True))


def _factory() -> Any:
    """The package's registry of generators.

    Raises:
        UserError: it is not installed.
    """
    try:
        import reasoning_gym.factory
    except ImportError as error:
        raise UserError(f"tasks of reasoning-gym need its package ({error}); install it: {EXTRA}") from error
    return reasoning_gym.factory
