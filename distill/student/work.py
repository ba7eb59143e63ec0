"""How long a rank computes: the time inside what it is asked, less what it waits there for the other ranks.

A collective of gloo blocks until all ranks are there, and that is seen. One of NCCL is put into a stream and returns:
on a GPU a rank that waits inside a collective counts as one that works, and only what lies between calls is seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


class WorkClock:
    """Counts the seconds that this process works as a rank; one in a process."""

    def __init__(self) -> None:
        self._worked_seconds = 0.0
        self._running = False
        _watch_collectives()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The block is work, but for its waits; a block within a block counts once."""
        if self._running:
            yield
            return
        self._running, start, waited = True, time.perf_counter(), _waited_seconds[0]
        try:
            yield
        finally:
            self._running = False
            self._worked_seconds += time.perf_counter() - start - (_waited_seconds[0] - waited)

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self._worked_seconds = self._worked_seconds, 0.0
        return seconds


_waited_seconds = [0.0]
_blocking_wait = dist.Work.wait if dist.is_available() else None


def _watch_collectives() -> None:
    """Have every wait for a collective of this process add to what was waited."""
    if _blocking_wait is None or dist.Work.wait is not _blocking_wait:
        return
    blocking = _blocking_wait

    def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return blocking(work, *args, **kwargs)
        finally:
            _waited_seconds[0] += time.perf_counter() - start

    dist.Work.wait = wait  # pyright: ignore[reportAttributeAccessIssue]
