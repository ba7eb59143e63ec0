"""One question of each domain as the student is given it, and what its verifier says of the gold in other clothes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import DomainRecipe, EnvironmentSource, GymSource, Source
from mopd.distill.recipe.source import RUNS_PROGRAMS
from mopd.distill.types import Prompt
from mopd.recipes.check.tasks import as_written, has_gold_answers
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.tasks import Example, Task
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tokenizer import control_texts, to_prompt
from mopd.rollouts.verifiers import chosen_letter, last_number

SHOWN_CHARS = 4000
"""Of a prompt, of which the middle is left out where it is longer."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What a recipe asks: its domains with the tasks that could be made, and the student's tokenizer."""

    domains: Mapping[str, DomainRecipe] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    seed: int | None = None

    @property
    def sandboxes(self) -> dict[str, str]:
        """By domain, where programs are run that answers hold, for those that hold any."""
        datasets = {name: task for name, task in self.tasks.items() if isinstance(task, DatasetTask)}
        return {name: task.sandbox for name, task in datasets.items() if task.sandbox is not None}


@dataclass(frozen=True, slots=True)
class Sample:
    """One training prompt of a domain.

    Attributes:
        tokens: of the prompt; None where the student's tokenizer is not known.
        gold: the gold answer; None where the domain has none.
        verdicts: answers with what the verifier says of each; the last is a wrong one, where there is any.
        tools: that may be called, by name; of an environment.
    """

    domain: str
    prompt: str
    tokens: int | None
    gold: str | None
    verdicts: tuple[tuple[str, float], ...]
    tools: tuple[str, ...] = ()


def samples(questions: Questions) -> Iterable[Sample]:
    """The first training prompt of every domain.

    Raises:
        UserError: the sandbox that a verifier needs can't be had.
    """
    for name, task in questions.tasks.items():
        example = task.example(seed=questions.seed or 0, split="train", index=0)
        source = questions.domains[name].task
        gold = example.answer if has_gold_answers(source) else None
        prompt, tokens = Prompt(name, example.id, (0,), example.text, example.answer), None
        if questions.tokenizer is not None:
            prompt = to_prompt(questions.tokenizer, domain=name, example=example)
            tokens = len(prompt.token_ids)
        answers = clothes(source, gold, task.wrong_answer(example), example)
        prompts = [prompt] * len(answers)
        scores = task.verify_many(prompts, as_written(task, prompts, answers))
        tools = task.tool_names(prompt) if isinstance(task, EnvironmentTask) else ()
        yield Sample(name, example.text, tokens, gold, tuple(zip(answers, scores, strict=True)), tools)


def clothes(
    source: str | Source | GymSource | EnvironmentSource, gold: str | None, wrong: str, example: Example
) -> list[str]:
    """The gold answer as it is and in the forms that models write it in, and a wrong answer."""
    verifier = source.verifier if isinstance(source, Source) else None
    answers = [] if gold is None else [gold]
    if verifier == "number" and (value := last_number(example.answer)) is not None:
        text = str(value)
        answers += [text, rf"The answer is \boxed{{{text}}}.", f"**{text}**"]
    elif verifier == "choice" and (letter := chosen_letter(example.answer)) is not None:
        answers += [f"({letter})", f"The answer is {letter}.", rf"\boxed{{{letter}}}"]
    elif verifier == "math":
        answers += [f"The answer is ${example.answer}$.", rf"\boxed{{{example.answer}}}"]
    elif verifier in RUNS_PROGRAMS and gold is not None:
        answers += [f"```python\n{gold}\n```"]
    elif verifier == "exact":
        answers += [f" {example.answer}\n", f"The answer is {example.answer}."]
    return list(dict.fromkeys([*answers, wrong]))


def print_samples(questions: Questions, console: Console) -> None:
    """Print a prompt of each domain with its special tokens set apart, its gold, and the verifier's word on it."""
    marks = () if questions.tokenizer is None else control_texts(questions.tokenizer)
    for sample in samples(questions):
        size = "" if sample.tokens is None else f", {sample.tokens} tokens"
        console.print(Text(f"a prompt of {sample.domain}{size}", style="bold"))
        console.print(_marked(_shortened(sample.prompt), marks), soft_wrap=True)
        if sample.tools:
            console.print(Text(f"tools: {', '.join(sample.tools)}"), soft_wrap=True)
        gold = "none; its verifier alone says what is right" if sample.gold is None else _shown(sample.gold)
        console.print(Text(f"gold: {gold}"), soft_wrap=True)
        sandbox = questions.sandboxes.get(sample.domain)
        console.print(f"its verifier says, of answers{'' if sandbox is None else f' run in sandbox {sandbox}'}:")
        for answer, score in sample.verdicts:
            console.print(Text(f"  {score:g}  {_shown(answer)}"), soft_wrap=True)


def _marked(prompt: str, marks: tuple[str, ...]) -> Text:
    text = Text(prompt)
    if marks:
        text.highlight_regex("|".join(map(re.escape, marks)), "bold magenta")
    return text


def _shortened(prompt: str) -> str:
    if len(prompt) <= SHOWN_CHARS:
        return prompt
    head, tail = prompt[: SHOWN_CHARS // 2], prompt[len(prompt) - SHOWN_CHARS // 2 :]
    return f"{head}\n[... {len(prompt) - SHOWN_CHARS} characters ...]\n{tail}"


def _shown(answer: str) -> str:
    text = repr(answer)
    return text if len(text) <= 200 else f"{text[:120]}... (of {len(answer)} characters)"
