"""Deadlines of tests: seconds of a machine that has nothing else to do, so that other work makes no test fail.

Use :func:`patience` wherever a test would wait ``timeout=N``, and :class:`Deadline` in a loop that polls. Nothing here
is to be asserted on: a deadline only ends a test that hangs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_timeout import timeout_sigalrm

SAMPLE_SECONDS = 0.2
BUSY = Path("/proc/loadavg")
LONGEST = 40.0
"""A machine more crowded than this is not waited for; the test then says how crowded it was."""


def crowding() -> float:
    """How many times longer a process takes now than it would on a quiet machine; 1 where a core is free for each.

    It is the number of runnable threads a core, or the load average of a minute where that is higher (who sleeps may
    wake up), times what a niceness of ours costs beside others: a weight of 1.25 a step (sched(7)).
    """
    try:
        minute, _, _, threads, _ = BUSY.read_text().split()
    except OSError:  # no Linux
        return 1.0
    runnable = max(float(minute), float(threads.split("/")[0]))
    share = runnable / len(os.sched_getaffinity(0))
    return min(LONGEST, share * 1.25 ** max(0, os.nice(0))) if share > 1 else 1.0


class QuietClock:
    """Seconds that a quiet machine would have taken for what this one did: wall seconds over their crowding.

    A thread samples it, so that it is right whenever it is read; a forked child begins a clock of its own.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, crowded: Callable[[], float] = crowding) -> None:
        self._now, self._crowded = now, crowded
        self._lock = threading.RLock()  # a signal's handler may read it, too
        self._read, self._quiet = now(), 0.0
        self._sampled_by: int | None = None

    def seconds(self) -> float:
        """Quiet seconds since the clock was made."""
        self._keep_sampling()
        with self._lock:
            now = self._now()
            self._quiet += (now - self._read) / self._crowded()
            self._read = now
            return self._quiet

    def _keep_sampling(self) -> None:
        if self._now is time.monotonic and self._sampled_by != os.getpid():
            self._sampled_by = os.getpid()
            threading.Thread(target=self._sample, daemon=True, name="quiet-clock").start()

    def _sample(self) -> None:
        while True:
            time.sleep(SAMPLE_SECONDS)
            self.seconds()


CLOCK = QuietClock()
os.register_at_fork(after_in_child=lambda: CLOCK.__init__())  # its lock may have been held


class Deadline:
    """Is over once a quiet machine would have had ``seconds``.

    >>> deadline = Deadline(10)
    >>> while not ready() and deadline.waits():
    ...     pass
    """

    def __init__(self, seconds: float, clock: QuietClock = CLOCK) -> None:
        self.seconds, self._clock = seconds, clock
        self._began = clock.seconds()

    def left(self) -> float:
        """Quiet seconds until it is over; 0 afterwards."""
        return max(0.0, self.seconds - (self._clock.seconds() - self._began))

    def waits(self, pause: float = 0.02) -> bool:
        """Sleep a moment; whether there is time left."""
        time.sleep(pause)
        return self.left() > 0


def patience(seconds: float) -> float:
    """Wall seconds for a ``timeout=`` that cannot poll: ``seconds`` times the crowding of now."""
    return seconds * crowding()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: Any, settings: Any) -> bool | None:
    """pytest-timeout's own timer, but that it counts quiet seconds; tests/conftest.py takes it on."""
    if settings.method != "signal":
        return None  # the plugin's
    deadline = Deadline(settings.timeout)

    def ring(*_: Any) -> None:
        if (left := deadline.left()) > 0:
            signal.setitimer(signal.ITIMER_REAL, max(1.0, left))
        else:
            timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """So many processes that do nothing but compute, for a test of the above."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
