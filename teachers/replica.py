"""A teacher's process as the driver sees it: whose weights it holds, what it has to answer, how it was lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from mopd.teachers.actor import Loaded, TeacherGroup, TeacherProcess


@dataclass(slots=True, eq=False)
class Job:
    """A question that is asked until it is answered.

    Attributes:
        who: is asked, as a message names it.
        teacher: is who it is counted for.
        what: was lost, where it was lost.
        ask: hands it to an actor; returns a reference to the answer.
        only: the process that has to answer; None where any may that holds the household.
        lost: how often it was.
    """

    who: str
    teacher: str
    teacher_group: TeacherGroup
    what: str
    ask: Callable[[Any], Any]
    only: Replica | None = None
    lost: int = 0
    answer: Future[Any] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class Replica:
    """A process.

    Attributes:
        holds: whose weights it has, or is loading.
        compared: whether loadings are compared; see :meth:`teachers.actor.TeacherProcess.load`.
        start_seconds: that it may take to load.
        jobs: what it alone has to answer.
        lost: how many times in a row it was.
        loadings: how many were begun.
    """

    holds: TeacherGroup
    compared: bool
    start_seconds: float
    jobs: deque[Job] = field(default_factory=deque)
    lost: int = 0
    loadings: int = 0
    actor: Any = None
    _loading: Any = None
    _late: float = 0.0

    def start(self) -> None:
        """Begin a new process, which loads what this one holds."""
        spec, make = self.holds.spec, ray.remote(TeacherProcess)
        taken: dict[str, Any] = {"num_cpus": 0, "num_gpus": spec.gpus, "resources": dict(spec.resources)}
        self.actor = make.options(**taken, max_concurrency=1).remote()
        self.load(self.holds)

    def load(self, teacher_group: TeacherGroup) -> None:
        """Begin to load a household in the place of what is held."""
        self.holds = teacher_group
        self.loadings += 1
        self._loading = self.actor.load.remote(teacher_group, self.compared)
        self._late = time.monotonic() + self.start_seconds

    def settle(self) -> None:
        """Wait until it has loaded, failed to, or is late."""
        ray.wait([self._loading], timeout=self.start_seconds)

    def loaded(self) -> Loaded | None:
        """What it says of the weights that it has loaded, once they are there; None where it has said so.

        Raises:
            RayError: they could not be loaded, or it is late.
        """
        if self._loading is None:
            return None
        return ray.get(self._loading, timeout=max(0.0, self._late - time.monotonic()))

    def ready(self) -> None:
        """Its weights are there, and are right."""
        self._loading = None

    def kill(self) -> None:
        """End the process, whatever it does: it may hang, and its memory is needed."""
        ray.kill(self.actor)


def told(error: ray.exceptions.RayError, limit: float) -> str:
    """What happened to a process that has ``limit`` seconds to answer, as a predicate."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"did not answer within {limit:g} s"
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"failed: {type(error.cause).__name__}: {error.cause}"
    first = str(error).strip().splitlines()[0]
    return f"died: {first}" if isinstance(error, ray.exceptions.RayActorError) else f"was lost: {first}"
