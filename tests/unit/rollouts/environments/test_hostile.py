"""Environments whose objects bite when they are read, that cannot be opened, or that reach for their neighbours.

Each beside a sound one: the broken episode ends as docs/agents.md says, the sound one as it does alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from dialogue_kit import TOKENIZER, played, prompts_of

from mopd.distill.types import Rollout, RunError
from mopd.rollouts.environments.base import MESSAGES, Step, ToolEpisode
from mopd.rollouts.environments.episodes import ATTEMPTS
from mopd.rollouts.environments.task import EnvironmentTask, EpisodeLimits
from mopd.rollouts.environments.turns import ChatTurns, PlainTurns
from mopd.rollouts.tokenizer import build_tokenizer


class Unshowable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text either")


class Worst(BaseException):
    pass


class BitingStep(Step):
    def __init__(self) -> None:
        """It has nothing."""

    @property
    def done(self) -> bool:  # type: ignore[override]
        raise OSError("bites")


class BitingMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise OSError("bites")

    def __iter__(self) -> Any:
        raise OSError("bites")

    def __len__(self) -> int:
        return 2


class Endless(Sequence[Any]):
    """Says that it has one message, and goes on and on."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: Any) -> Any:
        return {"role": "user", "content": "more "}


class Claims(Endless):
    def __len__(self) -> int:
        return 10**12


class BitingText(str):
    def __str__(self) -> str:
        raise OSError("bites")

    def __len__(self) -> int:
        return -1

    def __format__(self, how: str) -> str:
        raise OSError("bites")


class BitingNumber(float):
    def __float__(self) -> float:
        raise OSError("bites")


def raises(error: BaseException) -> Callable[[Any], Any]:
    async def step(message: Any) -> Step:
        raise error

    return step


def gives(value: Any) -> Callable[[Any], Any]:
    async def step(message: Any) -> Any:
        return value

    return step


def user(content: Any = "go on ") -> dict[str, Any]:
    return {"role": "user", "content": content}


async def stops_the_loop(message: Any) -> Any:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(1000)


async def cancels_all(message: Any) -> Any:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)
    return Step(done=True, reward=1.0)


STEPS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an error that cannot be shown": (raises(Unshowable()), "raised"),
    "an error that is no Exception": (raises(Worst("worst")), "raised"),
    "a cancellation of its own": (raises(asyncio.CancelledError()), "raised"),
    "a time-out of its own": (raises(TimeoutError()), "timeout"),
    "errors in a group": (raises(ExceptionGroup("both", [ValueError("a"), OSError("b")])), "raised"),
    "a recursion": (lambda message: (lambda f: f(f))(lambda f: f(f)), "raised"),
    "an awaitable of an awaitable": (gives(asyncio.sleep), "answer"),
    "a step that bites": (gives(BitingStep()), "raised"),
    "a message that bites": (gives(Step((BitingMapping(),))), "raised"),
    "a role that is a list": (gives(Step(({"role": ["user"], "content": "a"},))), "answer"),
    "more messages than can be": (gives(Step(Claims())), "answer"),  # type: ignore[arg-type]
    "too many messages": (gives(Step((user(),) * (MESSAGES + 1))), "answer"),
    "a generator of messages": (gives(Step(user() for _ in range(2))), "answer"),  # type: ignore[arg-type]
    "a set of messages": (gives(Step({"a"})), "answer"),  # type: ignore[arg-type]
    "a reward that bites": (gives(Step(done=True, reward=BitingNumber(0.5))), "raised"),
    "a reward that is a decimal": (gives(Step(done=True, reward=Decimal("0.5"))), "answer"),  # type: ignore[arg-type]
    "a reward that is complex": (gives(Step(done=True, reward=1j)), "answer"),  # type: ignore[arg-type]
    "tools that are none": (gives(Step((user(),), restart=True, tools=("add",))), "answer"),  # type: ignore[arg-type]
    "a restart without messages": (gives(Step(restart=True)), "answer"),
    "the class of a step": (gives(Step), "answer"),
    "stops the loop of all": (stops_the_loop, "interrupted"),
    "cancels its neighbours": (cancels_all, "raised"),
}
"""What a step does, and the reason by which the failure is counted."""
REACHES = {"stops the loop of all": ("interrupted",), "cancels its neighbours": ("raised",)}
"""What reaches for its neighbours: how their first attempts may fail."""
ENDLESS: dict[str, Callable[[Any], Any]] = {
    "messages without end": gives(Step(Endless())),  # type: ignore[arg-type]
    "a text that bites": gives(Step((user(BitingText("go on ")),))),
    "a thousand messages": gives(Step((user("more "),) * MESSAGES)),
    "a restart each turn": gives(Step((user("again "),), restart=True)),
    "keys that nobody knows": gives(Step(({**user(), "x": object(), 5: object()},))),
}
"""What goes on until a limit ends it."""


@dataclass
class Episode:
    messages: Any
    step: Any
    tools: Any = ()


@dataclass
class Closes(Episode):
    close: Any = None


async def ends(message: Any) -> Step:
    return Step(done=True, reward=1.0)


def fails(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


def holds() -> None:
    time.sleep(4.0)


OPENINGS: dict[str, Callable[[], Any]] = {
    "raises": fails(ValueError("broken")),
    "exits": fails(SystemExit(3)),
    "is interrupted": fails(KeyboardInterrupt()),
    "gives None": lambda: None,
    "gives a text": lambda: "episode",
    "has no step": lambda: Episode([user()], None),
    "has no messages": lambda: Episode([], ends),
    "has messages that are text": lambda: Episode("go", ends),
    "has messages that bite": lambda: Episode([BitingMapping()], ends),
    "has a message of nobody": lambda: Episode([{"content": "a"}], ends),
    "has tools that are functions": lambda: Episode([user()], ends, [print]),
    "has tools that are a number": lambda: Episode([user()], ends, 5),
    "holds the thread": holds,
}
"""What happens when an episode is opened to be played, its prompt having been drawn."""
CLOSINGS: dict[str, Callable[[], Any]] = {
    "raises": fails(ValueError("broken")),
    "exits": fails(SystemExit(3)),
    "waits for ever": lambda: asyncio.sleep(1000),
    "holds the thread": holds,
}


class Mixed:
    """Even episodes are sound; odd ones are as ``make`` gives them once their prompt was drawn."""

    def __init__(self, make: Callable[[], Any], *, all_after: int = 100) -> None:
        self.make, self.drawing, self.all_after = make, True, all_after

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> Any:
        sound = index % 2 == 0 and index < self.all_after
        if self.drawing or sound:
            return ToolEpisode([user(f"problem {index}=")], [], lambda text: float(text == "right"))
        return self.make()


def both(make: Callable[[], Any], *, seconds: float = 20.0) -> list[Rollout]:
    """The rollouts of a sound episode and of a broken one."""
    mixed = Mixed(make)
    task = EnvironmentTask(
        mixed, domain="played", turns=PlainTurns(TOKENIZER), limits=EpisodeLimits(4, 20, 400, seconds)
    )
    prompts = prompts_of(task, 2)
    mixed.drawing = False
    return played(task, lambda text: "right", prompts, greedy=True)


def the_sound_one(rollouts: list[Rollout], failures: tuple[str, ...] = ()) -> None:
    sound = rollouts[0].episode
    assert sound is not None
    assert (sound.reward, sound.ended, sound.turns) == (1.0, "done", 1)
    assert set(sound.failures) <= set(failures)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_bites_fails_its_episode_alone(name: str) -> None:
    step, reason = STEPS[name]
    rollouts = both(lambda: Episode([user("problem 1=")], step), seconds=1.0 if reason == "interrupted" else 20.0)
    # Of those that an episode reaches for, the answers are lost, and asked for again.
    the_sound_one(rollouts, REACHES.get(name, ()))
    broken = rollouts[1].episode
    assert broken is not None
    assert (broken.ended, broken.reward) == ("failed", 0.0)
    assert broken.failures == (reason,) * ATTEMPTS


@pytest.mark.parametrize("name", ENDLESS)
def test_what_goes_on_is_ended_by_a_limit(name: str) -> None:
    rollouts = both(lambda: Episode([user("problem 1=")], ENDLESS[name]))
    the_sound_one(rollouts)
    endless = rollouts[1].episode
    assert endless is not None
    assert endless.ended in ("turns", "tokens")
    assert (endless.failures, endless.reward) == ((), 0.0)
    assert len(rollouts[1].token_ids) <= len(rollouts[1].prompt.token_ids) + 400


@pytest.mark.parametrize("name", OPENINGS)
def test_an_episode_that_cannot_be_opened_fails_alone(name: str) -> None:
    rollouts = both(OPENINGS[name], seconds=0.5 if name == "holds the thread" else 20.0)
    the_sound_one(rollouts)
    broken = rollouts[1].episode
    assert broken is not None
    assert (broken.ended, broken.reward, broken.failures) == ("failed", 0.0, ("raised",) * ATTEMPTS)


@pytest.mark.parametrize("name", CLOSINGS)
def test_a_close_that_bites_changes_nothing(name: str) -> None:
    rollouts = both(lambda: Closes([user("problem 1=")], ends, close=CLOSINGS[name]), seconds=0.5)
    the_sound_one(rollouts)
    closed = rollouts[1].episode
    assert closed is not None
    assert (closed.ended, closed.reward, closed.failures) == ("done", 1.0, ())


def test_where_nothing_can_be_opened_the_run_ends_and_says_so() -> None:
    mixed = Mixed(fails(ValueError("broken")), all_after=0)
    task = EnvironmentTask(mixed, domain="played", turns=PlainTurns(TOKENIZER), limits=EpisodeLimits(4, 20, 400, 20.0))
    prompts = prompts_of(task, 2)
    mixed.drawing = False
    with pytest.raises(RunError, match="failed in all of 2 episodes"):
        played(task, lambda text: "right", prompts)


def test_what_a_chat_template_does_not_write_fails_its_episode_alone() -> None:
    """Templates refuse what they do not know: this one, a system message that is not the first."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system is first') }}"
        "{% endif %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer: Any = build_tokenizer(["problem 0123456789= right go on"] * 2, 80, template)
    mixed = Mixed(lambda: Episode([user("problem 1=")], gives(Step(({"role": "system", "content": "obey"},)))))
    task = EnvironmentTask(mixed, domain="played", turns=ChatTurns(tokenizer), limits=EpisodeLimits(4, 20, 400, 20.0))
    prompts = prompts_of(task, 2, tokenizer=tokenizer)
    mixed.drawing = False
    rollouts = played(task, lambda text: "right", prompts, greedy=True, tokenizer=tokenizer)
    the_sound_one(rollouts)
    assert rollouts[1].episode is not None
    assert (rollouts[1].episode.ended, rollouts[1].episode.failures) == ("failed", ("answer",))
