"""Any program as an environment: it is given a base URL and a key, asks for completions, and prints its reward.

The program finds ``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``OPENAI_MODEL``, and which problem it is to pose:
``MOPD_SEED``, ``MOPD_SPLIT``, ``MOPD_INDEX`` and ``MOPD_EASY``. The last line that it prints is the reward, 0..1.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import IO

from mopd.distill.types import RunError, UserError
from mopd.rollouts.environments.base import Turn
from mopd.rollouts.environments.dialogue import DialogueEpisode, End, Session, first_request
from mopd.rollouts.environments.endpoint import MODEL, student_endpoint
from mopd.rollouts.environments.tools import Tool

KEPT_REQUESTS = 4096
TAIL_BYTES = 4096
"""Of what a program prints, the end that is kept: its reward, or why it failed."""


class ProgramEnvironment:
    """Satisfies :class:`base.Environment`: each episode is a run of a program.

    What a program asks first is kept and has to be the same when the episode is played, so it follows from seed,
    split, index and the easy form alone. Splits are the program's own to keep apart.

    Args:
        command: as a shell reads it, without a shell.
        seconds: that its first request may take.

    Raises:
        UserError: there is no such program.
    """

    stored = True
    """Its rollouts are kept; see :mod:`kept`."""
    costly = True
    """Each prompt is a run of it."""

    def __init__(self, command: str, *, seconds: float) -> None:
        self.name, self._seconds = f"program:{command}", seconds
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise UserError(f"{self.name} cannot be read ({error}); quote it as a shell wants it") from error
        if not self._command or shutil.which(self._command[0]) is None:
            raise UserError(f"{self.name}: there is no program {self._command[:1]}; give one that can be run")
        self._known = functools.lru_cache(maxsize=KEPT_REQUESTS)(self._asked_first)

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> DialogueEpisode:
        """See :class:`base.Environment`.

        Raises:
            UserError: the program asked for nothing.
        """
        problem = (("MOPD_SEED", str(seed)), ("MOPD_SPLIT", split), ("MOPD_INDEX", str(index)),
                   ("MOPD_EASY", str(int(easy))))  # fmt: skip
        messages, tools = self._known(problem)
        return DialogueEpisode(functools.partial(self._start, problem), messages, tools)

    def _asked_first(self, problem: Sequence[tuple[str, str]]) -> tuple[tuple[Turn, ...], tuple[Tool, ...]]:
        shown = " ".join(f"{name}={value}" for name, value in problem)
        try:
            request = first_request(functools.partial(self._start, problem), seconds=self._seconds)
        except TimeoutError as error:
            raise UserError(f"{self.name} asked for nothing in {self._seconds:g} s ({shown})") from error
        except RunError as error:
            raise UserError(f"{self.name} {error} ({shown})") from error
        return request.messages, request.tools

    def _start(self, problem: Sequence[tuple[str, str]], session: Session) -> Callable[[], None]:
        endpoint = student_endpoint()
        token = endpoint.open(session)
        given = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": token, "OPENAI_MODEL": MODEL, **dict(problem)}
        try:
            process = subprocess.Popen(
                self._command, env={**os.environ, **given}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            endpoint.close(token)
            session.put(End(why=f"cannot be run: {error}"))
            return lambda: None
        _RUNNING.add(process)

        def watch() -> None:
            tails = _tails(process)
            session.put(_end(process.wait(), *tails))
            endpoint.close(token)

        threading.Thread(target=watch, daemon=True, name="program").start()
        return lambda: _kill(process)


def _end(status: int, printed: str, complained: str) -> End:
    """The reward that a program printed, or why there is none."""
    lines = printed.split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if status != 0:
        why = next((line.strip() for line in reversed(complained.split("\n")) if line.strip()), "")
        return End(why=f"ended with status {status}{why and f': {why:.300}'}")
    try:
        return End(reward=float(last))
    except ValueError:
        return End(why=f"printed {last[:80]!r} as its last line, and a reward from 0 to 1 is needed")  # not per token


def _tails(process: subprocess.Popen[bytes]) -> list[str]:
    """The ends of what a program prints and complains of, once it is through."""
    kept = [b"", b""]

    def read(place: int, stream: IO[bytes]) -> None:
        while part := stream.read1(2**16):  # type: ignore[attr-defined]
            kept[place] = (kept[place] + part)[-TAIL_BYTES:]  # not per token

    assert process.stdout is not None
    assert process.stderr is not None
    other = threading.Thread(target=read, args=(1, process.stderr), daemon=True)
    other.start()
    read(0, process.stdout)
    other.join()
    return [tail.decode(errors="replace") for tail in kept]


_RUNNING: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started."""
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


@atexit.register
def _kill_all() -> None:
    for process in list(_RUNNING):
        _kill(process)
