"""A teacher that gives text alone, behind a chat API: it answers a domain's training prompts, and plays its episodes.

What it writes becomes conversations, with the verdict of the domain's own verifier. It cannot say how likely tokens
are, so it grades nobody; its text is learnt from as gold (method supervised on ``{conversations: FILE}``), or is what
stands before a turn that the student writes and another teacher grades (``prefix: dataset``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mopd.distill.endpoint import Endpoint, EndpointRefused, asked_again
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Prompt, UserError
from mopd.rollouts.environments.base import Step, Turn
from mopd.rollouts.environments.runner import Failed, Runner
from mopd.rollouts.environments.task import EnvironmentTask, Opened
from mopd.rollouts.tasks import Task
from mopd.rollouts.tasks.base import Example
from mopd.rollouts.tasks.dataset import DatasetTask

Ended = Literal["answered", "cut", "empty", "turns", "failed", "refused"]
"""How a conversation ended: with an answer; with a message cut at the limit of tokens, or an empty one; without an end
after all its turns; because the environment broke; because the server refused to go on with it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation that is to be written: which training prompt, and which of its samples."""

    index: int
    sample: int


@dataclass(frozen=True, slots=True)
class WrittenConversation:
    """What was written.

    Attributes:
        prompt: the id of the prompt.
        messages: all of them, the prompt's too.
        reward: the verdict, 0..1; 0 where it did not end with an answer.
        why: what broke, or what the server said; empty where nothing did.
        tokens: that the server says it has read and written.
    """

    asked: Asked
    prompt: str
    messages: tuple[Turn, ...]
    reward: float
    ended: Ended
    why: str = ""
    tokens: int = 0


class ChatTeacher:
    """Writes conversations of one domain.

    Args:
        settings: of the chat API, such as temperature and max_tokens.
        faults: how long a request may take, and how often, after what pause, one that was lost is made again.
    """

    def __init__(self, endpoint: Endpoint, settings: Mapping[str, Any], faults: FaultRecipe) -> None:
        self._endpoint, self._settings, self._faults = endpoint, dict(settings), faults
        self._task = threading.Lock()  # tasks draw and judge for one thread at a time; the server is what is waited for

    def answer(self, messages: Sequence[Turn], sample: int) -> dict[str, Any]:
        """The choice that the server makes.

        Raises:
            EndpointLost: it was away for as long as the policy waits.
            EndpointRefused: it will not.
        """
        return asked_again(
            lambda: self._endpoint.chat(
                messages, seconds=self._faults.microbatch_seconds, seed=sample, **self._settings
            ),
            retries=self._faults.retries,
            backoff_seconds=self._faults.backoff_seconds,
        )

    def write(self, task: Task, domain: str, seed: int, asked: Asked) -> WrittenConversation:
        """One conversation: an answer to a prompt, or an episode to its end. Threads may call it side by side.

        Raises:
            EndpointLost: see :meth:`answer`. What the server refuses ends this conversation alone.
            UserError: the domain's prompts are none that a chat model can be asked with.
        """
        with self._task:
            example = task.example(seed=seed, split="train", index=asked.index)
        if isinstance(task, EnvironmentTask):
            with self._task:
                opened = task.open(seed=seed, split="train", index=asked.index, easy=False)
            if opened.tools or opened.later_tools:
                raise UserError(
                    f"domain {domain!r} is an environment with tools, whose calls are no text; a teacher behind a chat "
                    "API writes answers and turns without any in this version"
                )
            runner = Runner(task.limits.seconds)
            try:
                return self._played(task, opened, runner, example, asked)
            finally:
                runner.close([opened.episode])
        prompt = Prompt(domain, example.id, (0,), example.text, example.answer)  # whose tokens no verifier reads
        asks = task.messages(prompt) if isinstance(task, DatasetTask) else [{"role": "user", "content": example.text}]

        def judge(text: str) -> Step:
            with self._task:
                return Step(done=True, reward=float(task.verify(prompt, text)))

        return self._told(example, asked, asks, lambda message: judge(message["content"]), turns=1)

    def _played(
        self, task: EnvironmentTask, opened: Opened, runner: Runner, example: Example, asked: Asked
    ) -> WrittenConversation:
        def step(message: Turn) -> Step | Failed:
            (answer,) = runner.steps([lambda: opened.step(message)])
            return Failed("answer", "begins another conversation") if _restarts(answer) else answer

        return self._told(example, asked, opened.messages, step, turns=task.limits.turns)

    def _told(
        self,
        example: Example,
        asked: Asked,
        opening: Sequence[Turn],
        step: Callable[[Turn], Step | Failed],
        *,
        turns: int,
    ) -> WrittenConversation:
        messages, tokens = [*opening], 0

        def ended(how: Ended, reward: float = 0.0, why: str = "") -> WrittenConversation:
            return WrittenConversation(asked, example.id, tuple(messages), reward, how, why, tokens)

        for _ in range(turns):
            try:
                choice = self.answer(messages, asked.sample)
            except EndpointRefused as error:
                return ended("refused", why=str(error))
            tokens += int(choice["usage"].get("total_tokens") or 0)
            content = choice["message"].get("content")
            if not isinstance(content, str) or not content.strip():
                return ended("empty")
            messages.append({"role": "assistant", "content": content})
            if choice.get("finish_reason") == "length":
                return ended("cut")
            answer = step(messages[-1])
            if isinstance(answer, Failed):
                return ended("failed", why=answer.why)
            if answer.done:
                return ended("answered", reward=float(answer.reward or 0.0))
            messages += answer.messages
        return ended("turns")


def _restarts(answer: Step | Failed) -> bool:
    return isinstance(answer, Step) and answer.restart
