"""Processes of teachers: each takes a microbatch at a time, is restarted where it is lost, and may swap its teacher."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from mopd.distill.endpoint import EndpointLost
from mopd.distill.hosts import HOSTS
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Float32, GradingFailed
from mopd.teachers.actor import Loaded, ScoreResponse, TeacherGroup, TeacherProcess
from mopd.teachers.views import ScoreRequest


@dataclass(slots=True, eq=False)
class Job:
    """A question that is asked until it is answered.

    Attributes:
        who: is asked, as a message names it.
        teacher: is who it is counted for.
        what: was lost, where it was lost.
        ask: hands it to an actor; returns a reference to the answer.
        only: the process that has to answer; None where any may that holds the group.
        lost: how often it was.
    """

    who: str
    teacher: str
    group: TeacherGroup
    what: str
    ask: Callable[[Any], Any]
    only: Replica | None = None
    lost: int = 0
    response: Future[Any] = field(default_factory=Future)


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
        spec = self.holds.spec
        self.actor = HOSTS.take(gpus=spec.gpus, resources=dict(spec.resources))
        self.actor.hold.remote(TeacherProcess, ())
        self.load(self.holds)

    def load(self, group: TeacherGroup) -> None:
        """Begin to load a group in the place of what is held."""
        self.holds = group
        self.loadings += 1
        self._loading = ask(self.actor, "load", group, self.compared)
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


def ask(actor: Any, method: str, *args: Any) -> Any:
    """A reference to what a method of the teacher's process that an actor holds answers."""
    return actor.ask.remote(method, args)


class WorkerPool:
    """Processes, all alike, that hold a group of teachers each: all that hold it answer a microbatch the same.

    With one group, all hold it: a microbatch goes to whichever is free, and one that was lost to another that is
    free, while the process that lost it is restarted. With more groups than processes they take turns: a process
    that is out of work, once all was asked, loads a group that has work and that nobody holds, in the place of its own.
    So each is loaded at most once until more is asked.

    Every process has a thread of the driver that waits for it, whatever the driver does meanwhile.

    Args:
        teacher_groups: those that live here. All take the same of a node.
        processes: how many; no more than groups, unless there is only one.
        faults: how long to wait, and what to do with a process that died, hangs or fails.
        say: tells a person of every restart.
    """

    def __init__(
        self, teacher_groups: Sequence[TeacherGroup], processes: int, *, faults: FaultRecipe, say: Callable[[str], None]
    ) -> None:
        self._group_of = {name: group for group in teacher_groups for name in group.adapters}
        self._faults = faults
        self._say = say
        self._over = threading.Event()
        self._turn = threading.Condition()  # all below is read and written in turn
        self._asking = False
        self._jobs: dict[TeacherGroup, deque[Job]] = {group: deque() for group in teacher_groups}
        self._first: dict[TeacherGroup, Loaded] = {}
        self._retries = Counter[str]()
        self._swaps = Counter[str]()
        compared = len(teacher_groups) > processes
        self._replicas = [
            Replica(teacher_groups[i % len(teacher_groups)], compared, faults.start_seconds) for i in range(processes)
        ]
        for replica in self._replicas:
            replica.start()
        self._threads = [threading.Thread(target=self._live, args=[replica], daemon=True) for replica in self._replicas]
        for thread in self._threads:
            thread.start()

    @property
    def processes(self) -> int:
        """How many there are."""
        return len(self._replicas)

    @property
    def swaps(self) -> bool:
        """Whether there are more groups than processes."""
        return len(self._jobs) > len(self._replicas)

    def vocabulary(self, teacher: str) -> int:
        """The size of a teacher's output, in tokens; 0 before it was loaded."""
        first = self._first.get(self._group_of[teacher])
        return 0 if first is None else first.vocabulary

    def wait_until_ready(self) -> dict[str, int]:
        """Wait until all have been loaded; returns the size of each teacher's output vocabulary.

        Raises:
            GradingFailed: one could not load its checkpoint, or was lost more often than the policy bears.
        """
        started: list[Future[ScoreResponse]] = []
        for group in self._jobs:
            names = list(group.adapters)
            started += self._ask_everywhere(", ".join(names), names[0], ScoreRequest([], "sampled"))
        for response in started:
            response.result()
        return {teacher: self.vocabulary(teacher) for teacher in self._group_of}

    @contextmanager
    def asking(self) -> Iterator[None]:
        """More may be asked of every teacher while the block lasts: until then none is unloaded."""
        with self._turn:
            self._asking = True
        try:
            yield
        finally:
            with self._turn:
                self._asking = False
                self._turn.notify_all()

    def ask(self, teacher: str, request: ScoreRequest) -> Future[ScoreResponse]:
        """A teacher's answer to come to one microbatch, asked whole, and whole again where its process was lost.

        The future raises GradingFailed where the fault policy ends.
        """
        return self._submit(self._job(teacher, teacher, request))

    def ask_all(self, teacher: str, request: ScoreRequest) -> list[ScoreResponse]:
        """The answers to one microbatch of every process that may hold the teacher; of one where they take turns.

        Raises:
            GradingFailed: where the fault policy ends.
        """
        return [response.result() for response in self._ask_everywhere(teacher, teacher, request)]

    def reference(self, teacher: str, request: ScoreRequest) -> Float32 | None:
        """What the scores of the first rollout's tokens must equal, ``(T,)``; None where its kind cannot say.

        Raises:
            GradingFailed: where the fault policy ends.
        """
        group = self._group_of[teacher]
        folder = group.adapters[teacher]
        job = Job(
            teacher, teacher, group, "its reference was lost", lambda actor: ask(actor, "reference", request, folder)
        )
        return self._submit(job).result()

    def take_retries(self, teacher: str) -> int:
        """How many of a teacher's microbatches were lost and asked again since the last call."""
        with self._turn:
            return self._retries.pop(teacher, 0)

    def take_swaps(self, teacher: str) -> int:
        """How often a teacher was loaded in the place of another since the last call."""
        with self._turn:
            return self._swaps.pop(teacher, 0)

    def close(self) -> None:
        """End the processes; what they were asked is not answered any more."""
        with self._turn:
            self._over.set()
            for replica in self._replicas:
                replica.kill()
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()
        for job in [
            job for jobs in [*self._jobs.values(), *(replica.jobs for replica in self._replicas)] for job in jobs
        ]:
            job.response.cancel()

    def _job(self, who: str, teacher: str, request: ScoreRequest, only: Replica | None = None) -> Job:
        group = self._group_of[teacher]
        n = len(request.token_ids)
        folder = group.adapters[teacher]
        what = f"a microbatch of {n} rollouts was lost" if n else "it was started"
        return Job(who, teacher, group, what, lambda actor: ask(actor, "score", request, folder), only)

    def _ask_everywhere(self, who: str, teacher: str, request: ScoreRequest) -> list[Future[ScoreResponse]]:
        replicas: Sequence[Replica | None] = [None] if self.swaps else self._replicas
        return [self._submit(self._job(who, teacher, request, only)) for only in replicas]

    def _submit(self, job: Job, *, again: bool = False) -> Future[Any]:
        """Put a job into its queue, at the front if it is asked again."""
        with self._turn:
            queue = self._jobs[job.group] if job.only is None else job.only.jobs
            queue.appendleft(job) if again else queue.append(job)
            self._turn.notify_all()
        return job.response

    def _live(self, replica: Replica) -> None:
        while (job := self._next(replica)) is not None:
            try:
                self._attempt(replica, job)
            except Exception as error:  # whoever asked hears of it
                job.response.set_exception(error)

    def _next(self, replica: Replica) -> Job | None:
        """What a process does next, once there is something; None where the end is."""
        with self._turn:
            while not self._over.is_set():
                if not (replica.jobs or self._jobs[replica.holds] or self._asking):
                    self._change(replica)
                queue = replica.jobs or self._jobs[replica.holds]
                if queue:
                    return queue.popleft()
                self._turn.wait()
        return None

    def _change(self, replica: Replica) -> None:
        """Begin to load a group that has work and that nobody holds, if there is one."""
        held = {replica.holds for replica in self._replicas}
        group = next((group for group, jobs in self._jobs.items() if jobs and group not in held), None)
        if group is not None:
            self._swaps[self._jobs[group][0].teacher] += 1
            replica.load(group)

    def _attempt(self, replica: Replica, job: Job) -> None:
        """Answer a job, or give it back and restart the process that lost it.

        Raises:
            GradingFailed: the fault policy ends; the teacher came back as another.
        """
        limit = self._faults.start_seconds
        try:
            if (loaded := replica.loaded()) is not None:
                self._compare(replica, loaded)
                replica.ready()
            limit = self._faults.microbatch_seconds
            job.response.set_result(ray.get(job.ask(replica.actor), timeout=limit))
            replica.lost = 0
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            happened = what_happened(error, limit)
            if isinstance(cause, GradingFailed):
                raise GradingFailed(f"teacher {job.who!r}: {cause}") from error  # would be so again
            job.lost += 1
            # What never loaded would fail the same way again.
            unusable = replica.holds not in self._first and isinstance(error, ray.exceptions.RayTaskError)
            if unusable or job.lost > self._faults.retries:
                raise GradingFailed(
                    f"teacher {job.who!r} {happened}; {job.what} {job.lost} times, and `faults.retries` is "
                    f"{self._faults.retries}. The weights have not moved: correct the teacher or the limit, and resume"
                ) from error
            self._retry(replica, job, happened, well=isinstance(cause, EndpointLost))

    def _retry(self, replica: Replica, job: Job, happened: str, *, well: bool) -> None:
        """Let the job be asked again: by whoever is free, while another process takes the place of the lost one; where
        it is ``well``, for a server was away, after the wait that the policy names.

        Raises:
            GradingFailed: nobody waits for the answer any more.
        """
        with self._turn:
            if self._over.is_set():
                raise GradingFailed(f"teacher {job.who!r} {happened}, and the run is ending")
            self._retries[job.teacher] += 1
            if not well:
                replica.kill()
        again = f"{'' if well else 'restarting it from its checkpoint and '}asking again"
        self._say(f"teacher {job.who!r} {happened}; {again} ({job.lost} of {self._faults.retries})")
        if well:
            self._over.wait(self._faults.backoff_seconds * 2 ** (job.lost - 1))
            self._submit(job, again=True)
            return
        self._submit(job, again=True)
        replica.lost += 1
        self._over.wait(self._faults.backoff_seconds * 2 ** (replica.lost - 1))
        with self._turn:
            if self._over.is_set():
                return
            replica.start()
        replica.settle()  # it takes work once its weights are there

    def _compare(self, replica: Replica, now: Loaded) -> None:
        group = replica.holds
        scores = self.swaps or replica.loadings > 1  # until then a preflight compares processes
        with self._turn:
            change = self._first.setdefault(group, now).change(now, scores=scores)
        if change is not None:
            raise GradingFailed(
                f"teacher {', '.join(group.adapters)!r} {change}: {group.spec.source} was changed during the run, or "
                "the process is not sound; put the old one back and resume"
            )


def what_happened(error: ray.exceptions.RayError, limit: float) -> str:
    """What happened to a process that has ``limit`` seconds to answer, as a predicate."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"did not answer within {limit:g} s"
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"failed: {type(error.cause).__name__}: {error.cause}"
    first = str(error).strip().splitlines()[0]
    return f"died: {first}" if isinstance(error, ray.exceptions.RayActorError) else f"was lost: {first}"
