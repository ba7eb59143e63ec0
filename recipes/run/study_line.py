"""The line of a study on the console: runs done, what is under way, and the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Protocol

from mopd.distill.tracking.console import Progress
from mopd.recipes.report.wording import duration


class JobKind(Protocol):
    """A job, as far as its time goes: jobs of one kind take about as long."""

    @property
    def kind(self) -> str:
        """The name of a method or a stage."""
        ...


class StudyLine:
    """Shows how far a study is.

    Args:
        runs: how many there are in all.
        done: how many are finished before it begins.
        jobs: runs and stages that are to be done; a path with a ``/`` is a stage.
        parallel: jobs at a time.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        title: str,
        progress: Progress,
        *,
        runs: int,
        done: int,
        jobs: Mapping[str, JobKind],
        parallel: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs, self._parallel, self._now = jobs, parallel, now
        self._done, self._waiting, self._running = done, dict.fromkeys(jobs), dict[str, float]()
        self._took: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._task = progress.task(title, runs)
        self._task.start_at(done)

    @contextmanager
    def under_way(self, path: str) -> Iterator[None]:
        """A job runs in this context; it is done where nothing is raised."""
        with self._lock:
            self._waiting.pop(path)
            self._running[path] = self._now()
            self._show()
        try:
            yield
        except BaseException:
            with self._lock:
                self._running.pop(path)
                self._show()
            raise
        with self._lock:
            self._took.setdefault(self._jobs[path].kind, []).append(self._now() - self._running.pop(path))
            self._done += "/" not in path
            self._show()

    def close(self) -> None:
        """Nothing more will happen."""
        self._task.close()

    def _show(self) -> None:
        left = seconds_left(
            [self._jobs[path].kind for path in self._waiting],
            [(self._jobs[path].kind, self._now() - began) for path, began in self._running.items()],
            self._took,
            parallel=self._parallel,
        )
        time_left = "time left not known yet" if left is None else f"about {duration(left)} left"
        self._task.advance(self._done, {}, note=f"{len(self._running)} under way, {time_left}")


def seconds_left(
    waiting: Sequence[str],
    running: Sequence[tuple[str, float]],
    took: Mapping[str, Sequence[float]],
    *,
    parallel: int,
) -> float | None:
    """How long jobs will take: each what others of its kind took, or the mean over kinds; None before any is done.

    Args:
        waiting: kinds of the jobs that have not begun.
        running: kinds of those that have, with the seconds since.
        took: seconds of those done, by kind.
        parallel: jobs at a time.
    """
    if not took:
        return None
    known = {kind: fmean(seconds) for kind, seconds in took.items()}
    typical = fmean(known.values())
    left = [known.get(kind, typical) for kind in waiting]
    left += [max(0.0, known.get(kind, typical) - seconds) for kind, seconds in running]
    return max([sum(left) / parallel, *left], default=0.0)
