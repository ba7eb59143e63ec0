"""What an environment is: it opens episodes, and an episode answers the model's messages until it is over.

Messages are plain mappings as chat templates take them: ``{"role": "user", "content": "2+2=?"}``. An assistant's
message may carry ``tool_calls``, each ``{"function": {"name": ..., "arguments": {...}}}``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from mopd.rollouts.environments.tools import Tool, run_calls
from mopd.rollouts.tasks.base import Named, draw_in_split

Turn: TypeAlias = Mapping[str, Any]
ROLES = ("user", "tool", "system")
"""Of messages that an environment may write."""
SPEAKERS = (*ROLES, "assistant")
"""Of messages that a conversation may begin with."""
MESSAGES = 1024
"""That an environment may write at once."""


@dataclass(frozen=True, slots=True)
class Step:
    """What an environment answers to a message of the model.

    Attributes:
        messages: what the model reads next; empty where the episode is over.
        done: whether it is over.
        reward: 0..1, of the whole episode, where it is over.
        failed: whether the answer tells the model that what it did failed, as a test that does not pass; counted.
        restart: whether the messages are the whole conversation from here on, in the place of what was said so far.
        tools: with ``restart``, what the model may call from here on.

    Example:
        ``Step(({"role": "tool", "content": "1776"},))``, and at the end ``Step(done=True, reward=1.0)``.
    """

    messages: tuple[Turn, ...] = ()
    done: bool = False
    reward: float | None = None
    failed: bool = False
    restart: bool = False
    tools: tuple[Tool, ...] = ()


class Episode(Protocol):
    """One conversation under way. It is opened again, and told the same messages, where something went wrong in it.

    Four more attributes are read where an episode has them: ``answer``, a right last message; ``script``, the messages
    of a model that does it right, which the supervised method learns from; ``later_tools``, which its script calls and
    which are offered after its start (:attr:`Step.tools`); and ``close()``, called once nothing more is asked of an
    episode that was stepped.
    """

    messages: Sequence[Turn]
    tools: Sequence[Tool]

    async def step(self, message: Turn) -> Step:
        """Answer the assistant's ``message``. What it raises fails the episode."""
        ...


class Environment(Protocol):
    """Opens episodes.

    One whose ``immediate`` is true opens them by a little arithmetic, which neither waits nor fails: it is asked
    without the guards of :mod:`rollouts.environments.runner`, whose threads would take longer than it.
    """

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Episode:
        """The ``index``-th episode of a split, at its start: a pure function of its arguments.

        Raises:
            UserError: ``split`` is not one of train, validation and test.
        """
        ...


@dataclass(slots=True)
class ToolEpisode:
    """An episode in which the model may call tools, and its first message without a call is its answer.

    Attributes:
        messages: what it is given at the start.
        tools: what it may call.
        judge: how right its last message is, 0..1; may be a coroutine function.
        answer: a right last message.
        script: the messages of a model that does it right; the last is ``answer``.
    """

    messages: Sequence[Turn]
    tools: Sequence[Tool]
    judge: Callable[[str], float | Awaitable[float]]
    answer: str = ""
    script: Sequence[str] = ()

    async def step(self, message: Turn) -> Step:
        """Run the calls of a message; without one, judge it."""
        calls = message.get("tool_calls")
        if not calls:
            verdict = self.judge(message["content"])
            return Step(done=True, reward=await verdict if isinstance(verdict, Awaitable) else verdict)
        results = [result async for result in run_calls(self.tools, calls)]
        return Step(tuple(result.message for result in results), failed=any(result.failed for result in results))


class Drawn(Named):
    """An environment whose episodes are drawn: a subclass gives ``draw`` and ``episode``."""

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str] | None:
        """A problem as (question, gold answer, canonical content), as :meth:`rollouts.tasks.base.Generated.draw`."""
        raise NotImplementedError(f"environment {self.name} has no `draw(self, rng, easy)`")

    def episode(self, question: str, answer: str) -> Episode:
        """The episode of a problem, at its start."""
        raise NotImplementedError(f"environment {self.name} has no `episode(self, question, answer)`")

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Episode:
        """See :class:`Environment`."""
        example = draw_in_split(
            lambda rng: self.draw(rng, easy), task=self.name, seed=seed, split=split, index=index, easy=easy
        )
        return self.episode(example.text, example.answer)


class Unusable(Exception):
    """What an environment gave cannot be used; the message is a predicate, ``has no messages``."""


def plain_step(step: object) -> Step:
    """What an episode answered, made of plain values: an environment is a user's own, and its objects may be anything.

    Raises:
        Unusable: it is no step, or holds what no model can be given.
    """
    if not isinstance(step, Step):
        raise Unusable(f"answered {type(step).__name__}, and a mopd.Step is needed")
    if step.done:
        reward = step.reward
        if not isinstance(reward, int | float) or isinstance(reward, bool) or not math.isfinite(reward):
            raise Unusable(f"ended with the reward {reward!r}, and a number from 0 to 1 is needed")
        if not 0 <= reward <= 1:
            raise Unusable(f"ended with the reward {reward:g}, and a number from 0 to 1 is needed")
        return Step(done=True, reward=float(reward))
    messages = plain_messages(step.messages, SPEAKERS if step.restart else ROLES)
    if not messages:
        raise Unusable("answered nothing and is not done")
    return Step(messages, failed=bool(step.failed), restart=bool(step.restart), tools=plain_tools(step.tools))


def plain_messages(messages: object, roles: Sequence[str]) -> tuple[Turn, ...]:
    """Messages of an environment as plain mappings of plain text.

    Args:
        roles: that they may have.

    Raises:
        Unusable: they are no messages.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise Unusable(f"has messages of {type(messages).__name__}, and a list of mappings is needed")
    if len(messages) > MESSAGES:
        raise Unusable(f"has {len(messages)} messages at once, and {MESSAGES} at most are read")
    plain = []
    for place in range(len(messages)):
        message = messages[place]
        if not isinstance(message, Mapping):
            raise Unusable(
                f"has {type(message).__name__} as message {place}, and a mapping of role and content is needed"
            )
        role, content = message.get("role"), message.get("content")
        if role not in roles:
            raise Unusable(f"has the role {role!r:.40} in message {place}; it may be one of {', '.join(roles)}")
        if not isinstance(content, str):
            raise Unusable(f"has {type(content).__name__} as the content of message {place}, and text is needed")
        assert isinstance(role, str)
        more = {key: message[key] for key in ("name", "tool_calls") if message.get(key)}
        plain.append({"role": str.__str__(role), "content": str.__str__(content), **more})
    return tuple(plain)


def plain_tools(tools: object) -> tuple[Tool, ...]:
    """Tools of an environment.

    Raises:
        Unusable: they are none.
    """
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Tool) for tool in tools):
        raise Unusable("has tools that are no list of mopd tools; make each with `mopd.tool(function)`")
    return tuple(tools)
