"""Runs what environments do, and guards against it: what raises, hangs, floods or answers nonsense fails one episode.

Steps of all episodes run side by side on an event loop of a thread. One that does not end in time is given up; where it
holds the loop itself, the loop is left behind, and all that were on it are opened again, one after the other. What is
dear to ask for one episode alone, as a process is, is asked for many :class:`Together`.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from mopd.rollouts.environments.base import Step, Unusable, plain_step

BEAT_SECONDS = 2.0
"""A loop that does not answer for longer is held by a step that never waits."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why an episode failed: in a word, by which it is counted, and in a sentence."""

    reason: str
    why: str


HELD = Failed("interrupted", "was interrupted: a step that never waits held the event loop")
"""Of all whose answers were owed then: which of them held it shows when each is asked alone."""
AskStep: TypeAlias = Callable[[], Awaitable[Step] | Any]
T = TypeVar("T")
Job = TypeVar("Job")


class Together(Generic[Job, T]):
    """Answers many episodes in one call: what is asked while a batch is under way is the next batch.

    Args:
        answer_many: answers to jobs, in order, each as if it had been asked alone. It runs in a thread of its own.

    Example:
        ``value = await Together(evaluate_expressions)(("sum(x)", [[1, 2]]))``
    """

    def __init__(self, answer_many: Callable[[Sequence[Job]], Sequence[T]]) -> None:
        self._answer_many = answer_many
        self._waiting = WeakKeyDictionary[asyncio.AbstractEventLoop, list[tuple[Job, asyncio.Future[T]]]]()
        self._workers = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]]()

    async def __call__(self, job: Job) -> T:
        """The answer to a job. Raises what the call for its batch raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting.setdefault(loop, []).append((job, answer))
        if loop not in self._workers:
            self._workers[loop] = loop.create_task(self._work(loop))
        return await answer

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await asyncio.sleep(0)  # all whose steps begin now are in the first batch
            while batch := self._waiting.pop(loop, None):
                jobs = [job for job, _ in batch]
                try:
                    answers = await loop.run_in_executor(None, self._answer_many, jobs)
                except Exception as error:
                    for _, answer in batch:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for (_, answer), value in zip(batch, answers, strict=True):
                    if not answer.done():  # its episode may have been given up
                        answer.set_result(value)
        finally:
            del self._workers[loop]


class _Loop:
    """An event loop in a thread of its own, which dies with the program."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="environment")
        self._thread.start()

    def submit(self, ask: Callable[[], Any], read: Callable[[Any], T], seconds: float) -> Future[T]:
        async def answer() -> T:
            try:
                given = ask()
                # Read here as well: what an environment's own objects do when they are read may hold a thread.
                return read(await asyncio.wait_for(given, seconds) if inspect.isawaitable(given) else given)
            except (SystemExit, KeyboardInterrupt) as error:  # these would end the loop, and its neighbours with it
                raise RuntimeError(type(error).__name__) from error

        return asyncio.run_coroutine_threadsafe(answer(), self._loop)

    def beats(self) -> bool:
        """Whether it answers."""
        beat = threading.Event()
        self._loop.call_soon_threadsafe(beat.set)
        return beat.wait(BEAT_SECONDS)

    def leave(self) -> None:
        """Give it up: what runs in it is interrupted where Python can, and left alone elsewhere."""
        identity = self._thread.ident
        if identity is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity), ctypes.py_object(SystemExit))
        self._loop.call_soon_threadsafe(self._loop.stop)


class Runner:
    """Asks episodes for their steps.

    Args:
        seconds: that a step may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: _Loop | None = None

    def steps(self, asks: Sequence[AskStep]) -> list[Step | Failed]:
        """The answers, in order; side by side. A step is a coroutine, so those that wait hold nobody."""
        return self.ask(asks, plain_step)

    def ask(self, asks: Sequence[Callable[[], Any]], read: Callable[[Any], T]) -> list[T | Failed]:
        """What each gives, or its awaitable does, as ``read`` makes it of that; or why there is nothing."""
        if not asks:
            return []
        self._loop = self._loop or _Loop()
        futures = [self._loop.submit(ask, read, self._seconds) for ask in asks]
        wait(futures, timeout=self._seconds + BEAT_SECONDS)
        if all(future.done() for future in futures) or self._loop.beats():
            return [self._answer(future) for future in futures]
        self._loop.leave()
        self._loop = None
        return [self._answer(future) if future.done() else HELD for future in futures]

    def close(self, episodes: Sequence[Any]) -> None:
        """Tell episodes that nothing more is asked of them, where they want to know; what that raises is nothing."""
        closes = [close for episode in episodes if callable(close := getattr(episode, "close", None))]
        self.ask(closes, lambda closed: None)

    def _answer(self, future: Future[T]) -> T | Failed:
        if not future.done():
            future.cancel()
            return Failed("timeout", f"did not answer within {self._seconds:g} s")
        try:
            error = future.exception()
        except BaseException as raised:  # cancelled, or left
            error = raised
        if isinstance(error, TimeoutError):
            return Failed("timeout", f"did not answer within {self._seconds:g} s")
        if isinstance(error, Unusable):
            return Failed("answer", str(error))
        return future.result() if error is None else Failed("raised", f"raised {type(error).__name__}: {_said(error)}")


def _said(error: BaseException) -> str:
    """What an exception says of itself, where that does not raise as well."""
    try:
        return f"{error!s:.200}"
    except BaseException:  # it is a user's own
        return "(it cannot be shown)"
