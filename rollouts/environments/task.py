"""An environment where a task is asked for: its episodes' first messages are the prompts, its verdicts the scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.types import Prompt, UserError
from mopd.rollouts.environments.base import (
    SPEAKERS,
    Environment,
    Episode,
    Turn,
    Unusable,
    plain_messages,
    plain_tools,
)
from mopd.rollouts.environments.runner import Failed, Runner
from mopd.rollouts.environments.tools import Tool
from mopd.rollouts.environments.turns import Turns
from mopd.rollouts.tasks.base import Example, content_hash
from mopd.rollouts.tasks.dataset_rows import RowsReport
from mopd.rollouts.tokenizer import context_of, encode, to_prompt

PLACE = re.compile(r"/(train|validation|test)/(\d+)-(\d+)-([eh])-[0-9a-f]{16}")
"""In the id of a prompt, which episode it opens: split, seed, index, easy or hard."""
OTHERS = 1_000_000_000
"""Episodes that take the place of failed ones have indices from here on, which no step of a run reaches."""


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """What an episode may take.

    Attributes:
        turns: messages of the model.
        turn_tokens: of a message, the closing token included.
        tokens: of the whole episode after its prompt.
        seconds: of the environment, for an answer.
    """

    turns: int
    turn_tokens: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Opened:
    """An episode at its start, and what it had then; see :class:`base.Episode`."""

    episode: Episode
    messages: tuple[Turn, ...]
    tools: tuple[Tool, ...]
    answer: str = ""
    script: tuple[str, ...] = ()
    later_tools: tuple[Tool, ...] = ()

    def step(self, message: Turn) -> Any:
        """See :class:`base.Episode`."""
        return self.episode.step(message)


class EnvironmentTask:
    """Satisfies :class:`rollouts.tasks.base.Task`.

    Args:
        environment: opens the episodes.
        domain: the recipe's name, part of every id.
        turns: how the student's conversations are written.
    """

    def __init__(self, environment: Environment, *, domain: str, turns: Turns, limits: EpisodeLimits) -> None:
        self._environment, self._domain = environment, domain
        self.turns, self.limits = turns, limits
        self._runner = Runner(limits.seconds)

    def open(self, *, seed: int, split: str, index: int, easy: bool) -> Opened:
        """An episode at its start.

        Raises:
            UserError: it cannot be opened, has no messages, or such as no model can be given.
        """

        def reset() -> Any:
            try:
                return self._environment.reset(seed=seed, split=split, index=index, easy=easy)
            except UserError as error:
                return error

        if getattr(self._environment, "immediate", False):
            opened = _opened(reset())
        else:
            (opened,) = self._runner.ask([reset], _opened)
        if isinstance(opened, Failed):
            raise UserError(f"the environment of domain {self._domain!r}: episode {split}/{seed}-{index} {opened.why}")
        if isinstance(opened, UserError):
            raise opened
        return opened

    def fit(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Have an environment leave out what the tokenizer's model cannot read, where it is one of limited episodes.

        Raises:
            UserError: the chat template cannot write one of them.
        """
        fit = getattr(self._environment, "fit", None)
        context = context_of(tokenizer)
        if fit is None or context is None:
            return

        def tokens(messages: Sequence[Turn], tools: Sequence[Tool]) -> int:
            return len(encode(tokenizer, self.turns.prompt(messages, tools)))

        try:
            fit(tokens, context - self.limits.tokens)
        except ValueError as error:
            raise UserError(f"the environment of domain {self._domain!r}: {error}") from error

    @property
    def left_out(self) -> Sequence[str]:
        """In sentences, what :meth:`fit` left out."""
        return tuple(getattr(self._environment, "left_out", ()))

    @property
    def reports(self) -> Sequence[RowsReport]:
        """What was read of a dataset, where the environment is one."""
        return tuple(getattr(self._environment, "reports", ()))

    def restart(self, prompt: Prompt) -> Opened:
        """The episode that a prompt opens, at its start.

        Raises:
            UserError: as :meth:`open`.
        """
        split, seed, index, easy = _place(prompt.id)
        return self.open(seed=seed, split=split, index=index, easy=easy)

    def tool_names(self, prompt: Prompt) -> tuple[str, ...]:
        """What may be called in the episode that a prompt opens."""
        return tuple(tool.name for tool in self.restart(prompt).tools)

    def another(self, prompt: Prompt, number: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """The prompt of the episode that takes the place of another: the ``number``-th in turn."""
        split, seed, index, easy = _place(prompt.id)
        example = self.example(seed=seed, split=split, index=index % OTHERS + number * OTHERS, easy=easy)
        return to_prompt(tokenizer, domain=prompt.domain, example=example)

    def script(self, prompt: Prompt) -> Sequence[str]:
        """The messages of a model that does it right, with calls as its chat template's family writes them.

        Raises:
            UserError: the environment has none.
        """
        opened = self.restart(prompt)
        script = [self.turns.written(text, (*opened.tools, *opened.later_tools)) for text in opened.script]
        if not script:
            raise UserError(
                f"the environment of domain {self._domain!r} has no `script`, so nothing can be learnt from gold "
                "answers; give its episodes one, or learn by reward (method mix_rl or expert_iteration)"
            )
        return script

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """See :class:`rollouts.tasks.base.Task`; the text is the prompt as the student is given it."""
        episode = self.open(seed=seed, split=split, index=index, easy=easy)
        try:
            text = self.turns.prompt(episode.messages, episode.tools)
        except ValueError as error:
            raise UserError(f"the environment of domain {self._domain!r}: {error}") from error
        name = f"{self._domain}/{split}/{seed}-{index}-{'e' if easy else 'h'}-{content_hash(text)}"
        return Example(name, text, episode.answer)

    def texts(self, *, seed: int, index: int, easy: bool) -> Iterator[str]:
        """What a model that does it right writes and reads in a training episode, for a tokenizer to be trained on."""
        episode = self.open(seed=seed, split="train", index=index, easy=easy)
        try:
            for text in episode.script:
                yield text
                message = self.turns.read(text, episode.tools)
                (answer,) = self._runner.steps([lambda message=message: episode.step(message)])
                if isinstance(answer, Failed) or answer.done:
                    return
                yield from (str(message["content"]) for message in answer.messages)
        finally:
            self.close([episode])

    def verify(self, prompt: Prompt, text: str) -> float:
        """The verdict on an episode whose only message is ``text``; 0 where that does not end it."""
        return self.verify_many([prompt], [text])[0]

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """See :class:`rollouts.tasks.base.Task`."""
        asks, opened = [], list[Opened]()
        for prompt, text in zip(prompts, texts, strict=True):
            episode = self.restart(prompt)
            opened.append(episode)
            message = self.turns.read(text, episode.tools)
            asks.append(lambda episode=episode, message=message: episode.step(message))
        answers = self._runner.steps(asks)
        self.close(opened)
        return [0.0 if isinstance(a, Failed) or not a.done else float(a.reward or 0.0) for a in answers]

    @property
    def stored(self) -> bool:
        """Whether what it answers cannot be had again, so that rollouts are kept before anything is learnt of them."""
        return bool(getattr(self._environment, "stored", False))

    @property
    def costly(self) -> bool:
        """Whether a prompt alone takes the start of a program."""
        return bool(getattr(self._environment, "costly", False))

    def close(self, opened: Sequence[Opened]) -> None:
        """Tell episodes that nothing more is asked of them."""
        self._runner.close([each.episode for each in opened])

    def wrong_answer(self, example: Example) -> str:
        """A message that is no answer to anything."""
        return f"not {example.answer}"


def _opened(episode: Any) -> Opened | UserError:
    """An episode that was just opened, read once; a refusal stays one.

    Raises:
        Unusable: it cannot be used.
    """
    if isinstance(episode, UserError):
        return episode
    messages = getattr(episode, "messages", None)
    if not messages:
        raise Unusable("has no messages at its start")
    if not callable(getattr(episode, "step", None)):
        raise Unusable("has no `step`")
    answer = getattr(episode, "answer", "")
    return Opened(
        episode,
        plain_messages(messages, SPEAKERS),
        plain_tools(getattr(episode, "tools", ())),
        str.__str__(answer) if isinstance(answer, str) else str(answer),
        tuple(getattr(episode, "script", ())),
        plain_tools(getattr(episode, "later_tools", ())),
    )


def _place(name: str) -> tuple[str, int, int, bool]:
    match = PLACE.search(name)
    if match is None:
        raise ValueError(f"{name!r} is the id of no episode")
    return match[1], int(match[2]), int(match[3]), match[4] == "e"
