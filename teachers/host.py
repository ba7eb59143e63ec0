"""Processes of teachers: each takes a microbatch at a time, is restarted where it is lost, and may swap its teacher."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from mopd.distill.endpoint import EndpointLost
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Float32, GradingFailed, Int32
from mopd.teachers.actor import Loaded, ScoreRequest, ScoreResponse, TeacherGroup
from mopd.teachers.replica import Job, Replica, told


class WorkerPool:
    """Processes, all alike, that hold one household each: a microbatch is answered the same by each that holds it.

    With one household, all hold it: a microbatch goes to whichever is free, and one that was lost to another that is
    free, while the process that lost it is restarted. With more households than processes they take turns: a process
    that is out of work, once all was asked, loads a household that has work and that nobody holds, in the place of its
    own. So each is loaded at most once until more is asked.

    Every process has a thread of the driver that waits for it, whatever the driver does meanwhile.

    Args:
        teacher_groups: those that live here. All take the same of a node.
        processes: how many; no more than households, unless there is only one.
        faults: how long to wait, and what to do with a process that died, hangs or fails.
        say: tells a person of every restart.
    """

    def __init__(
        self, teacher_groups: Sequence[TeacherGroup], processes: int, *, faults: FaultRecipe, say: Callable[[str], None]
    ) -> None:
        self._of = {name: teacher_group for teacher_group in teacher_groups for name in teacher_group.adapters}
        self._faults, self._say = faults, say
        self._turn, self._over = threading.Condition(), threading.Event()  # all below is read and written in turn
        self._asking = False
        self._jobs: dict[TeacherGroup, deque[Job]] = {teacher_group: deque() for teacher_group in teacher_groups}
        self._first: dict[TeacherGroup, Loaded] = {}
        self._retries, self._swaps = Counter[str](), Counter[str]()
        compared, limit = len(teacher_groups) > processes, faults.start_seconds
        self._replicas = [Replica(teacher_groups[i % len(teacher_groups)], compared, limit) for i in range(processes)]
        for replica in self._replicas:
            replica.start()
        self._threads = [threading.Thread(target=self._live, args=[one], daemon=True) for one in self._replicas]
        for thread in self._threads:
            thread.start()

    @property
    def swaps(self) -> bool:
        """Whether there are more households than processes."""
        return len(self._jobs) > len(self._replicas)

    def vocabulary(self, teacher: str) -> int:
        """The size of a teacher's output, in tokens; 0 before it was loaded."""
        first = self._first.get(self._of[teacher])
        return 0 if first is None else first.vocabulary

    def wait_until_ready(self) -> dict[str, int]:
        """Wait until all have been loaded; returns the size of each teacher's output vocabulary.

        Raises:
            GradingFailed: one could not load its checkpoint, or was lost more often than the policy bears.
        """
        started: list[Future[ScoreResponse]] = []
        for home in self._jobs:
            names = list(home.adapters)
            started += self._ask_everywhere(", ".join(names), names[0], ScoreRequest([], "sampled"))
        for answer in started:
            answer.result()
        return {teacher: self.vocabulary(teacher) for teacher in self._of}

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

    def ask(self, teacher: str, asked: ScoreRequest) -> Future[ScoreResponse]:
        """A teacher's answer to come to one microbatch, asked whole, and whole again where its process was lost.

        The future raises GradingFailed where the fault policy ends.
        """
        return self._submit(self._job(teacher, teacher, asked))

    def ask_all(self, teacher: str, asked: ScoreRequest) -> list[ScoreResponse]:
        """The answers to one microbatch of every process that may hold the teacher; of one where they take turns.

        Raises:
            GradingFailed: where the fault policy ends.
        """
        return [answer.result() for answer in self._ask_everywhere(teacher, teacher, asked)]

    def reference(self, teacher: str, ids_T: Int32) -> Float32 | None:
        """What the scores of a rollout's tokens must equal, ``(T,)``; None where the teacher's kind cannot say.

        Raises:
            GradingFailed: where the fault policy ends.
        """
        home = self._of[teacher]
        folder = home.adapters[teacher]
        job = Job(teacher, teacher, home, "its reference was lost", lambda actor: actor.reference.remote(ids_T, folder))
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
        for job in [job for jobs in [*self._jobs.values(), *(one.jobs for one in self._replicas)] for job in jobs]:
            job.answer.cancel()

    def _job(self, who: str, teacher: str, asked: ScoreRequest, only: Replica | None = None) -> Job:
        home = self._of[teacher]
        n, folder = len(asked.token_ids), home.adapters[teacher]
        what = f"a microbatch of {n} rollouts was lost" if n else "it was started"
        return Job(who, teacher, home, what, lambda actor: actor.score.remote(asked, folder), only)

    def _ask_everywhere(self, who: str, teacher: str, asked: ScoreRequest) -> list[Future[ScoreResponse]]:
        askers: Sequence[Replica | None] = [None] if self.swaps else self._replicas
        return [self._submit(self._job(who, teacher, asked, only)) for only in askers]

    def _submit(self, job: Job, *, again: bool = False) -> Future[Any]:
        """Put a job into its queue, at the front if it is asked again."""
        with self._turn:
            queue = self._jobs[job.teacher_group] if job.only is None else job.only.jobs
            queue.appendleft(job) if again else queue.append(job)
            self._turn.notify_all()
        return job.answer

    def _live(self, replica: Replica) -> None:
        while (job := self._next(replica)) is not None:
            try:
                self._attempt(replica, job)
            except Exception as error:  # whoever asked hears of it
                job.answer.set_exception(error)

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
        """Begin to load a household that has work and that nobody holds, if there is one."""
        held = {one.holds for one in self._replicas}
        home = next((home for home, jobs in self._jobs.items() if jobs and home not in held), None)
        if home is not None:
            self._swaps[self._jobs[home][0].teacher] += 1
            replica.load(home)

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
            job.answer.set_result(ray.get(job.ask(replica.actor), timeout=limit))
            replica.lost = 0
        except ray.exceptions.RayError as error:
            cause, happened = getattr(error, "cause", None), told(error, limit)
            if isinstance(cause, GradingFailed):
                raise GradingFailed(f"teacher {job.who!r}: {cause}") from error  # would be so again
            job.lost += 1
            # What never loaded would fail the same way again.
            unusable = replica.holds not in self._first and isinstance(error, ray.exceptions.RayTaskError)
            if unusable or job.lost > self._faults.retries:
                raise GradingFailed(
                    f"teacher {job.who!r} {happened}; {job.what} {job.lost} times, and `faults.retries` is "
                    f"{self._faults.retries}. The weights have not moved: mend the teacher or the limit, and resume"
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
        home, scores = replica.holds, self.swaps or replica.loadings > 1  # until then a preflight compares processes
        with self._turn:
            change = self._first.setdefault(home, now).change(now, scores=scores)
        if change is not None:
            raise GradingFailed(
                f"teacher {', '.join(home.adapters)!r} {change}: {home.spec.source} was changed during the run, or the "
                "process is not sound; put the old one back and resume"
            )
