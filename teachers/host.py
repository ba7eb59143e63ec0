"""The processes of teachers of one base: each is asked a microbatch at a time, and restarted by the fault policy."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.exceptions

from distill.recipe import FaultRecipe
from distill.types import Float32, GradingFailed, Int32, Payload, PayloadName
from teachers.scorer import Conditions, TeacherSource


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """What a teacher's processes need, and how many there are.

    Teachers that differ in nothing but the adapter share processes, and the base in their memory.

    Attributes:
        gpus: that each process takes of its node.
        resources: of Ray, by name, that each process takes of its node besides.
    """

    source: TeacherSource
    conditions: Conditions
    gpus: float
    replicas: int
    adapter: str | None = None
    resources: tuple[tuple[str, float], ...] = ()


@dataclass(slots=True)
class _Replica:
    """A process, and the size of its vocabulary, which comes once its weights are loaded."""

    actor: Any
    loaded: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """What a process is asked of a microbatch; see :meth:`teachers.scorer.Scorer.score`."""

    token_ids: Sequence[Int32]
    payload: PayloadName
    given: Sequence[Int32] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process says of a microbatch: its payloads in order, and the seconds that it worked on them."""

    payloads: list[Payload]
    seconds: float


class _Teacher:
    """Lives in the actor: one base, one thread."""

    def load(self, spec: TeacherSpec, adapters: list[str]) -> int:
        """Load the weights; returns the size of the output's vocabulary."""
        import torch

        torch.set_num_threads(1)
        self.scorer = spec.source.open(spec.conditions, adapters)
        return self.scorer.vocabulary

    def score(self, asked: Asked, adapter: str | None) -> Answer:
        start = time.perf_counter()
        payloads = self.scorer.score(asked.token_ids, asked.payload, adapter, asked.given)
        return Answer(payloads, time.perf_counter() - start)

    def reference(self, ids_T: Int32, adapter: str | None) -> Float32 | None:
        """The tokens' log-probabilities by the scorer's own reference, ``(T,)``; None where its kind has none."""
        reference = getattr(self.scorer, "reference", None)
        if reference is None:
            return None
        return np.take_along_axis(reference(ids_T, adapter), ids_T[:, None].astype(np.int64), 1)[:, 0]


class Host:
    """Processes of one base, all alike: a microbatch goes to whichever is free, and comes back the same from each.

    Every process has a thread of the driver that waits for it, whatever the driver does meanwhile.

    Args:
        adapters: the teachers that live here by name, with the folder of each one's adapter, or None for the base.
        spec: of the base.
        faults: how long to wait, and what to do with a process that died, hangs or fails.
        say: tells a person of every restart.
    """

    def __init__(
        self,
        adapters: Mapping[str, str | None],
        spec: TeacherSpec,
        *,
        faults: FaultRecipe,
        say: Callable[[str], None],
    ) -> None:
        self._adapters = dict(adapters)
        self.vocabulary: int = 0
        self._spec, self._faults, self._say = spec, faults, say
        self._lock, self._over, self._retries = threading.Lock(), threading.Event(), Counter[str]()
        self._replicas = [_Replica(*self._start()) for _ in range(spec.replicas)]
        self._free: queue.SimpleQueue[_Replica] = queue.SimpleQueue()
        for replica in self._replicas:
            self._free.put(replica)
        self._threads = ThreadPoolExecutor(spec.replicas, thread_name_prefix="teacher")

    def wait_until_ready(self) -> int:
        """Wait until all processes have loaded; returns the size of the output vocabulary.

        Raises:
            GradingFailed: one could not load its checkpoint, or was lost more often than the policy bears.
        """
        names = ", ".join(self._adapters)
        for future in [self._threads.submit(self._serve, one, names, Asked([], "sampled")) for one in self._replicas]:
            future.result()
        return self.vocabulary

    def ask(self, teacher: str, asked: Asked) -> Future[Answer]:
        """A teacher's answer to come to one microbatch, asked whole, and whole again where its process was lost.

        The future raises GradingFailed where the fault policy ends.
        """
        return self._threads.submit(self._ask, teacher, asked)

    def ask_all(self, teacher: str, asked: Asked) -> list[Answer]:
        """Every process' answer to one microbatch; for a preflight, while nobody else asks.

        Raises:
            GradingFailed: where the fault policy ends.
        """
        asking = [self._threads.submit(self._serve, replica, teacher, asked) for replica in self._replicas]
        return [answer.result() for answer in asking]

    def reference(self, teacher: str, ids_T: Int32) -> Float32 | None:
        """What the scores of a rollout's tokens must equal, ``(T,)``; None where the teacher's kind cannot say.

        Raises:
            GradingFailed: it could not be had.
        """
        try:
            return ray.get(self._replicas[0].actor.reference.remote(ids_T, self._adapters.get(teacher)))
        except ray.exceptions.RayError as error:
            raise GradingFailed(f"teacher {teacher!r} {self._told(error, math.inf)} when it was tested") from error

    def take_retries(self, teacher: str) -> int:
        """How many of a teacher's microbatches were lost and asked again since the last call."""
        with self._lock:
            return self._retries.pop(teacher, 0)

    def close(self) -> None:
        """End the processes; what they were asked is not answered any more."""
        with self._lock:
            self._over.set()
            for replica in self._replicas:
                ray.kill(replica.actor)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> tuple[Any, Any]:
        """A process, and the size of its vocabulary, which comes once its weights are loaded."""
        make: Any = ray.remote(_Teacher)
        taken = {"num_cpus": 0, "num_gpus": self._spec.gpus, "resources": dict(self._spec.resources)}
        actor = make.options(**taken, max_concurrency=1).remote()
        return actor, actor.load.remote(self._spec, [folder for folder in self._adapters.values() if folder])

    def _ask(self, teacher: str, asked: Asked) -> Answer:
        replica = self._free.get()
        try:
            return self._serve(replica, teacher, asked)
        finally:
            self._free.put(replica)

    def _serve(self, replica: _Replica, teacher: str, asked: Asked) -> Answer:
        adapter = self._adapters.get(teacher)
        for attempt in range(self._faults.retries + 1):
            limit = self._faults.start_seconds
            try:
                self._check_vocabulary(teacher, ray.get(replica.loaded, timeout=limit))
                limit = self._faults.microbatch_seconds
                return ray.get(replica.actor.score.remote(asked, adapter), timeout=limit)
            except ray.exceptions.RayError as error:
                told = self._told(error, limit)
                if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, GradingFailed):
                    raise GradingFailed(f"teacher {teacher!r}: {error.cause}") from error  # would be so again
                # What never loaded would fail the same way again.
                unusable = self.vocabulary == 0 and isinstance(error, ray.exceptions.RayTaskError)
                if unusable or attempt == self._faults.retries:
                    n = len(asked.token_ids)
                    what = f"a microbatch of {n} rollouts was lost" if n else "it was started"
                    raise GradingFailed(
                        f"teacher {teacher!r} {told}; {what} {attempt + 1} times, and `faults.retries` is "
                        f"{self._faults.retries}. The weights have not moved: mend the teacher or the limit, and resume"
                    ) from error
                self._restart(replica, teacher, told, attempt + 1)
        raise AssertionError("the last attempt returns or raises")

    def _restart(self, replica: _Replica, teacher: str, told: str, number: int) -> None:
        """Wait as the policy says, then put a new process in the place of the lost one.

        Raises:
            GradingFailed: nobody waits for the answer any more.
        """
        again = f"asking it again ({number} of {self._faults.retries})"
        if not self._over.is_set():
            self._say(f"teacher {teacher!r} {told}; restarting it from its checkpoint and {again}")
        self._over.wait(self._faults.backoff_seconds * 2 ** (number - 1))
        with self._lock:
            if self._over.is_set():
                raise GradingFailed(f"teacher {teacher!r} {told}, and the run is ending")
            ray.kill(replica.actor)  # it may hang, and its GPU is needed
            self._retries[teacher] += 1
            replica.actor, replica.loaded = self._start()

    def _check_vocabulary(self, teacher: str, size: int) -> None:
        if self.vocabulary not in (0, size):
            raise GradingFailed(
                f"teacher {teacher!r} came back with {size} output tokens and had {self.vocabulary}: "
                f"{self._spec.source} was changed during the run; put the old one back and resume"
            )
        self.vocabulary = size

    def _told(self, error: ray.exceptions.RayError, limit: float) -> str:
        """What happened, as a predicate."""
        if isinstance(error, ray.exceptions.GetTimeoutError):
            return f"did not answer within {limit:g} s"
        if isinstance(error, ray.exceptions.RayTaskError):
            return f"failed: {type(error.cause).__name__}: {error.cause}"
        first = str(error).strip().splitlines()[0]
        return f"died: {first}" if isinstance(error, ray.exceptions.RayActorError) else f"was lost: {first}"
