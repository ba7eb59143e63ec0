"""Checks of tasks with prompts drawn from them: verifiers, lengths of prompts and of gold answers."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import cast

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import DomainRecipe, EnvironmentSource, EvaluateRecipe, GymSource, Source
from mopd.distill.recipe.plugins import is_plugin, own_code
from mopd.distill.recipe.source import ELSEWHERE, RUNS_PROGRAMS, SCRIPTED
from mopd.distill.types import Prompt, RunError, UserError
from mopd.recipes.check.plugins import HOSTILE, check_own_task
from mopd.rollouts.environments import domain_task
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.tasks import Example, Task
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.verifiers import unreadable_golds

SAMPLED_PROMPTS = 32
"""Prompts of each domain that are drawn for the checks."""
PLAYED_PROMPTS = 4
"""Of these, those that a wrong answer is tried on where a verdict takes an episode of another package or program."""
CALLS_SECONDS = 300.0
"""That all calls of a task of a user's own may take in a check, which are about 7,000."""
UNLIKELY = 0.01
"""Refused gold answers are too many where `drop_refused` would give so many of the sampled ones with a lower chance."""
CREDIT = 0.5
"""That verifiers of reasoning-gym may give a wrong answer: many give some for its form."""
READ_GOLDS = 5000
"""Rows of a training split whose gold answers are read: a parser of LaTeX takes milliseconds for each."""
LISTED_GOLDS = 5
BATCH = 1000
"""Rows of a dataset that are tokenised at a time."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a domain's prompts and gold answers, EOS included.

    The longest ones of a dataset are those of all its rows; all else is of the prompts that were sampled.

    Attributes:
        longest_pair: the longest training prompt with its gold answer.
        assumed: nothing is known of them, and these are generous.
    """

    longest_prompt: int
    longest_answer: int
    longest_pair: int
    mean_prompt: float
    mean_answer: float
    assumed: bool = False


class WatchedTask:
    """A task of a user's own, of which every call ends; all calls of a check have :data:`CALLS_SECONDS` together.

    Raises:
        UserError: by every method: it raises, ends the process, or takes too long.
    """

    def __init__(self, task: Task, where: str) -> None:
        self._task, self._where, self._left = task, where, CALLS_SECONDS

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """See :class:`rollouts.tasks.base.Task`."""
        with self._watched(f"example(seed={seed}, split={split!r}, index={index}, easy={easy})"):
            return self._task.example(seed=seed, split=split, index=index, easy=easy)

    def verify(self, prompt: Prompt, text: str) -> float:
        """See :class:`rollouts.tasks.base.Task`."""
        with self._watched(f"the verifier, which may never raise, on the answer {text[:20]!r}"):
            return self._task.verify(prompt, text)

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """See :class:`rollouts.tasks.base.Task`."""
        with self._watched(f"the verifier, which may never raise, on {len(texts)} answers"):
            return self._task.verify_many(prompts, texts)

    def wrong_answer(self, example: Example) -> str:
        """See :class:`rollouts.tasks.base.Task`."""
        with self._watched("wrong_answer"):
            return self._task.wrong_answer(example)

    @contextmanager
    def _watched(self, call: str) -> Iterator[None]:
        begun = time.monotonic()
        remedy = f"all of a check's calls have {CALLS_SECONDS:g} seconds together"
        try:
            with own_code(f"{self._where}: {call}", seconds=max(0.01, self._left), remedy=remedy):
                yield
        finally:
            self._left -= time.monotonic() - begun


@dataclass(frozen=True, slots=True)
class TaskChecks:
    """What the checks of one task have to say; no lengths without the student's tokenizer."""

    lengths: Lengths | None
    problems: list[str]
    warnings: list[str]


def make_tasks(
    domains: Mapping[str, DomainRecipe],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seed: int,
    without: frozenset[str] = frozenset(),
) -> tuple[dict[str, Task], list[str]]:
    """Every domain's task that can be made, and what is wrong with the others.

    A task that is not shipped under its name is left to :func:`recipes.check.routes.check_routes`.
    """
    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for name, domain in domains.items():
        if name in without:
            continue
        own = isinstance(domain.task, str) and is_plugin(domain.task)
        try:
            task = domain_task(domain.task, domain=name, tokenizer=tokenizer)
            if own:
                task = WatchedTask(task, f"`domains.{name}.task`: {domain.task}")
                broken = [f"`domains.{name}.task`: {problem}" for problem in check_own_task(task, seed=seed)]
                if broken:
                    raise UserError(*broken)
        except UserError as error:
            if own:
                problems += error.problems
            elif not isinstance(domain.task, str):
                problems += [f"`domains.{name}.task`: {problem}" for problem in error.problems]
            continue
        tasks[name] = task
    return tasks, problems


def check_tasks(
    domains: Mapping[str, DomainRecipe],
    tasks: Mapping[str, Task],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    seed: int,
    evaluate: EvaluateRecipe,
    max_new_tokens: int,
    shared: MutableMapping[Hashable, TaskChecks] | None = None,
) -> tuple[dict[str, Lengths], list[str], list[str]]:
    """Draw prompts of every domain and ask its verifier; returns lengths, problems and warnings, each a sentence.

    Args:
        tokenizer: the student's; without one, nothing is known of lengths.
        shared: what was found of tasks already, for recipes that ask the same of them; it grows.
    """
    shared = {} if shared is None else shared
    lengths: dict[str, Lengths] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for name, task in tasks.items():
        source = domains[name].task
        depends_on = (name, repr(source), id(tokenizer), seed, repr(evaluate), max_new_tokens)
        if depends_on not in shared:
            shared[depends_on] = _check_task(name, task, source, tokenizer, seed, evaluate, max_new_tokens)
        checks = shared[depends_on]
        problems += checks.problems
        warnings += checks.warnings
        if checks.lengths is not None:
            lengths[name] = checks.lengths
    # Tasks share the sandbox: what it lacks is told once.
    return lengths, list(dict.fromkeys(problems)), [*warnings, *left_out(tasks)]


def _check_task(
    name: str,
    task: Task,
    source: str | Source | GymSource | EnvironmentSource,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
    evaluate: EvaluateRecipe,
    max_new_tokens: int,
) -> TaskChecks:
    lengths: Lengths | None = None
    problems: list[str] = []
    warnings: list[str] = []
    try:
        examples = [task.example(seed=seed, split="train", index=i) for i in range(SAMPLED_PROMPTS)]
        problems += [f"`domains.{name}`: {problem}" for problem in _held_out(evaluate, task)]
        gold = has_gold_answers(source)
        own = isinstance(source, Source) and is_plugin(source.verifier)
        prompts = [Prompt(name, example.id, (0,), example.text, example.answer) for example in examples]
        credit = CREDIT if isinstance(source, GymSource) else 0.0
        judged = PLAYED_PROMPTS if is_elsewhere(source) else SAMPLED_PROMPTS
        wrong = (
            _own_verifier(task, prompts, examples)
            if own
            else _verifier(task, prompts[:judged], examples[:judged], credit)  # not per token
        )
        problems += [f"`domains.{name}`: {problem}" for problem in wrong]
        refused = _refused_golds(task, prompts) if gold else []
        if refused:
            allowed = source.drop_refused if isinstance(source, Source) else None
            bearable = allowed is not None and chance_of(len(refused), len(prompts), allowed) >= UNLIKELY
            (warnings if bearable else problems).append(f"`domains.{name}`: {_about_golds(refused, len(prompts))}")
        if isinstance(task, DatasetTask) and isinstance(source, Source) and source.verifier == "math":
            warnings += [f"`domains.{name}.task`: {sentence}" for sentence in _unreadable(task)]
        if tokenizer is not None:
            lengths = _lengths(tokenizer, task, examples)
            problems += _cap(max_new_tokens, source, name, lengths)
    except UserError as error:
        problems += [f"`domains.{name}`: {problem}" for problem in error.problems]
    except RunError as error:  # of a verifier of a user's own
        problems.append(f"`domains.{name}`: {error}")
    return TaskChecks(lengths, problems, warnings)


def chance_of(count: int, drawn: int, part: float) -> float:
    """The probability that of ``drawn`` things ``count`` or more are of a kind that makes up ``part`` of all."""
    return sum(math.comb(drawn, k) * part**k * (1 - part) ** (drawn - k) for k in range(count, drawn + 1))


def _held_out(evaluate: EvaluateRecipe, task: Task) -> Iterator[str]:
    """Whether there are as many held-out problems as are to be asked: a dataset may have fewer."""
    asked = {"validation": evaluate.validation_prompts, "test": evaluate.test_prompts}
    for split, count in asked.items():
        try:
            task.example(seed=evaluate.seed, split=split, index=count - 1)
        except UserError as error:
            yield from error.problems


def has_gold_answers(task: str | Source | GymSource | EnvironmentSource) -> bool:
    """Whether a task says what a right answer is; a dataset of unit tests alone doesn't, nor does another's program."""
    if is_elsewhere(task):
        return False
    return not isinstance(task, Source) or (
        task.answer is not None and (task.verifier not in RUNS_PROGRAMS or task.tests is not None)
    )


def is_elsewhere(task: str | Source | GymSource | EnvironmentSource) -> bool:
    """Whether a task is an environment of another package or program, each answer to which is an episode played."""
    return isinstance(task, EnvironmentSource) and task.environment.startswith(ELSEWHERE)


def has_scripts(task: str | Source | GymSource | EnvironmentSource) -> bool:
    """Whether a task is an environment of another package that says which messages are right."""
    return isinstance(task, EnvironmentSource) and task.environment.startswith(SCRIPTED)


def left_out(tasks: Mapping[str, Task]) -> Iterator[str]:
    """A warning for every split of a dataset of which rows are left out, and for every environment of which cases are,
    with how many, and which."""
    for name, task in tasks.items():
        if isinstance(task, DatasetTask | EnvironmentTask):
            yield from (f"`domains.{name}`: {sentence}" for sentence in task.left_out)


def as_written(task: Task, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[str]:
    """What a model would write that gives these answers: after its thought, where the prompt opens one."""
    if not isinstance(task, DatasetTask):
        return list(answers)
    return [task.completion(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _refused_golds(task: Task, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts whose gold answer the verifier refuses."""
    accepted = task.verify_many(prompts, as_written(task, prompts, [prompt.answer for prompt in prompts]))
    return [prompt for prompt, score in zip(prompts, accepted, strict=True) if score != 1.0]


def _unreadable(task: DatasetTask) -> Iterator[str]:
    """Which gold answers ``math`` can't read; the other verifiers refuse such rows as they are read."""
    rows = Counter(gold for _, gold in islice(task.texts("train"), READ_GOLDS))
    if unread := unreadable_golds("math", rows):
        listed = ", ".join(f"{gold!r:.60} ({rows[gold]} row{'s' * (rows[gold] > 1)})" for gold in unread[:LISTED_GOLDS])
        more = f" and {len(unread) - LISTED_GOLDS} more" if len(unread) > LISTED_GOLDS else ""
        yield (
            f"{sum(rows[gold] for gold in unread)} of {sum(rows.values())} gold answers can't be read as mathematics, "
            f"so nothing but their own text is right: {listed}{more}; fix them, or leave their rows out"
        )


def _about_golds(refused: list[Prompt], drawn: int) -> str:
    return (
        f"the verifier refuses {len(refused)} of {drawn} gold answers, for example {refused[0].answer!r} to "
        f"{refused[0].text!r}; fix the answers, or take a verifier that fits them"
    )


def _verifier(task: Task, prompts: list[Prompt], examples: list[Example], credit: float) -> Iterator[str]:
    """Whether the verifier gives a wrong answer to each prompt no more than ``credit``."""
    wrong = [task.wrong_answer(example) for example in examples]
    scores = task.verify_many(prompts, as_written(task, prompts, wrong))
    passed = [(e, answer) for e, answer, score in zip(examples, wrong, scores, strict=True) if score > credit]
    if passed:
        example, answer = passed[0]
        yield (
            f"the verifier accepts {len(passed)} of {len(examples)} wrong answers, for example {answer!r} to "
            f"{example.text!r} (gold: {example.answer!r}); take a verifier that tells them apart"
        )


def _own_verifier(task: Task, prompts: list[Prompt], examples: list[Example]) -> Iterator[str]:
    """Whether a dataset's verifier of a user's own repeats, raises on nothing, and tells any answers apart."""
    of_text = {text: task.verify_many(prompts, [text] * len(prompts)) for text in HOSTILE}
    again = {text: task.verify_many(prompts, [text] * len(prompts)) for text in HOSTILE}
    if of_text != again:
        yield "the verifier gives one answer to one prompt two scores; it must depend on nothing but its arguments"
    if all(score > 0.0 for scores in of_text.values() for score in scores):
        yield (
            f"the verifier accepts every text, an empty one too, to all of {len(examples)} prompts; it must tell right "
            "answers from others"
        )


def check_gold_answers(
    domains: Mapping[str, DomainRecipe], trained: Mapping[str, Sequence[str]], tasks: Mapping[str, Task]
) -> Iterator[str]:
    """Supervised training writes gold answers, so each of its domains must have them; so must a `prefix` of them.

    Args:
        trained: the domains of each supervised training, by the leaf that says so.
        tasks: those that could be made.
    """
    scripts = {f"domains.{name}.prefix": [name] for name, domain in domains.items() if "dataset" in domain.prefix_parts}
    for where, names in {**trained, **scripts}.items():
        for name in names:
            if isinstance(task := tasks.get(name), EnvironmentTask) and not is_elsewhere(domains[name].task):
                yield from (f"`{where}`: {problem}" for problem in _lacks_script(task, name))
            if name in domains and not (has_gold_answers(domains[name].task) or has_scripts(domains[name].task)):
                lacking = (
                    "whose environment has none; learn it by reward"
                    if is_elsewhere(domains[name].task)
                    else "whose dataset has unit tests alone; name a column of right programs as `answer` and that of "
                    "the tests as `tests`"
                )
                yield f"`{where}` trains on the gold answers of domain {name!r}, {lacking}, or leave it out"


def _lacks_script(task: EnvironmentTask, name: str) -> list[str]:
    try:
        opening = task.example(seed=0, split="train", index=0)
        task.script(Prompt(name, opening.id, (0,), opening.text, opening.answer))
    except UserError as error:
        return list(error.problems)
    return []


def _lengths(tokenizer: PreTrainedTokenizerBase, task: Task, examples: list[Example]) -> Lengths:
    sampled = list(_pairs(tokenizer, ((example.text, example.answer) for example in examples)))
    trained, measured = sampled, sampled
    if isinstance(task, DatasetTask):
        trained = list(_pairs(tokenizer, task.texts("train")))
        held_out = chain.from_iterable(task.texts(split) for split in ("validation", "test"))
        measured = [*trained, *_pairs(tokenizer, held_out)]
    return Lengths(
        longest_prompt=max(prompt for prompt, _ in measured),
        longest_answer=max(answer for _, answer in trained),
        longest_pair=max(prompt + answer for prompt, answer in trained),
        mean_prompt=sum(prompt for prompt, _ in sampled) / len(sampled),
        mean_answer=sum(answer for _, answer in sampled) / len(sampled),
    )


def _pairs(tokenizer: PreTrainedTokenizerBase, texts: Iterable[tuple[str, str]]) -> Iterator[tuple[int, int]]:
    """Tokens of prompts and of their answers, EOS included; many texts at a time, which is several times faster."""
    rows = iter(texts)
    while batch := list(islice(rows, BATCH)):
        both = tokenizer([text for row in batch for text in row], add_special_tokens=False, verbose=False)["input_ids"]
        sizes = [len(ids) for ids in cast(list[list[int]], both)]
        yield from ((prompt, answer + 1) for prompt, answer in zip(sizes[::2], sizes[1::2], strict=True))


def _cap(cap: int, task: str | Source | GymSource | EnvironmentSource, name: str, lengths: Lengths) -> Iterator[str]:
    # A dataset's gold answer may be the number at the end of what a model has to write; that of others is all of it.
    leaf = "rollout.max_new_tokens"
    if isinstance(task, EnvironmentSource):
        leaf, cap = f"domains.{name}.max_tokens_turn", task.max_tokens_turn
    if not isinstance(task, Source) and lengths.longest_answer > cap:
        yield (
            f"`{leaf}` is {cap}, and a gold answer of domain {name!r} has {lengths.longest_answer} "
            f"tokens: the cap would lower every score; raise it to {lengths.longest_answer} or more"
        )
