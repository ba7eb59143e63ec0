"""The student's ranks, a process of Ray's each."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions
from ray.experimental import internal_kv

from mopd.distill.hosts import HOSTS, death
from mopd.distill.recipe import FaultRecipe
from mopd.distill.recipe.plugins import is_plugin
from mopd.distill.student import engine
from mopd.distill.student.rank import StudentRank
from mopd.distill.student.spec import StudentSpec
from mopd.distill.types import RunError, UserError

BEAT_SECONDS = 1.0
"""How often a rank says that it works, and how often it is looked at."""
FAILED_SECONDS = 5.0
"""How long the others are waited for once a rank has failed: they may wait for it for ever."""


class _Progress:
    """In a rank's process: publishes how many calls it has begun and microbatches been through, the latter at most once
    in BEAT_SECONDS.

    An actor is of one thread and does not answer while it works, so the count goes through Ray's key-value store.
    """

    def __init__(self, key: str) -> None:
        self._key, self._count, self._next = key, 0, 0.0

    def __call__(self, *, at_once: bool = False) -> None:
        self._count += 1
        if at_once or time.monotonic() >= self._next:
            internal_kv._internal_kv_put(self._key, str(self._count))
            self._next = time.monotonic() + BEAT_SECONDS


class RankProcess:
    """Lives in a rank's process. Of a GPU, or of several ranks, its environment was set before Python started."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)

    def address(self) -> str:
        """Of the machine that it lives on."""
        return ray.util.get_node_ip_address()

    def listen(self, address: str) -> int:
        """Wait for the others at ``address``; returns the port."""
        self._listener = engine.listen(address)
        return self._listener.getsockname()[1]

    def start(self, spec: StudentSpec, address: str, port: int, key: str) -> None:
        """Join the other ranks and build the engine; its progress is published under ``key``."""
        os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
        self._rank = StudentRank(spec, getattr(self, "_listener", None))
        self._rank.progressed = self._progressed = _Progress(key)

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Run a method of the rank."""
        self._progressed(at_once=True)
        return getattr(self._rank, method)(*args)


class RayRanks:
    """A student's ranks in Ray actors; satisfies :class:`distill.student.driver.Ranks`."""

    def __init__(self, spec: StudentSpec, faults: FaultRecipe) -> None:
        """``faults``: how long the ranks may start, and work without progress; see the recipe's leaves.

        Raises:
            RunError: a rank died, or hangs.
        """
        self.size = spec.engine.ranks
        self._faults = faults
        self._keys = [f"mopd-progress-{uuid.uuid4().hex}-{rank}" for rank in range(self.size)]
        own_code = spec.trust_remote_code or is_plugin(spec.loss.estimator)
        # Several ranks are a process group, whose size and places are for life.
        self._reusable = self.size == 1 and spec.device == "cpu" and not spec.gpus and not own_code
        environments = [
            engine.environment(rank, self.size, address="", port=0, device=spec.device) for rank in range(self.size)
        ]
        self._one_call = threading.Lock()  # two threads' calls must reach all ranks in one order: they are collective
        self._hosts = [HOSTS.take(gpus=spec.gpus, environment=None if self._reusable else env) for env in environments]
        try:
            limit = faults.start_seconds
            made = zip(self._hosts, environments, strict=True)
            self._wait("start", [host.hold.remote(RankProcess, (environment,)) for host, environment in made], limit)
            machines = self._ask("address", [()] * self.size, limit)
            address = engine.LOOPBACK if len({*machines}) == 1 else machines[0]
            port = self._wait("start", [self._hosts[0].ask.remote("listen", (address,))], limit)[0]
            self._ask("start", [(spec, address, port, key) for key in self._keys], limit)
        except BaseException:
            self.close()  # nobody else can: the caller never gets this object
            raise

    def call(self, method: str, per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run a method of :class:`StudentRank` on all ranks at the same time; returns the results by rank.

        Raises:
            RunError: a rank died, or hangs; the message says which.
        """
        with self._one_call:
            return self._ask("call", [(method, args) for args in per_rank], self._faults.rank_seconds)

    def close(self) -> None:
        """End the processes, or keep them for the next stage."""
        for host in self._hosts:
            HOSTS.give_back(host, reusable=self._reusable)
        self._hosts = []

    def _ask(self, method: str, per_rank: Sequence[tuple[Any, ...]], limit: float) -> list[Any]:
        pairs = zip(self._hosts, per_rank, strict=True)
        name = str(per_rank[0][0]) if method == "call" else method
        return self._wait(name, [host.ask.remote(method, args) for host, args in pairs], limit)

    def _wait(self, method: str, references: list[Any], limit: float) -> list[Any]:
        """The results by rank of one call, which may take ``limit`` seconds, and as long again after any progress."""
        waiting, failed = list(references), dict[int, Exception]()
        counts, late = list[int](), time.monotonic() + limit
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=FAILED_SECONDS if failed else BEAT_SECONDS)
            for reference in done:
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    failed[references.index(reference)] = error
            if done:
                late = time.monotonic() + limit
            elif failed:
                break
            elif (now := self._counts()) != counts:
                counts, late = now, time.monotonic() + limit
            elif time.monotonic() > late:
                self._reusable = False
                raise self._hung(method, [references.index(reference) for reference in waiting], counts, limit)
        if failed:
            self._reusable = False
            raise _cause(failed, writing=method in ("save", "export"))
        return ray.get(references)

    def _counts(self) -> list[int]:
        """How far each rank is, as it was heard last."""
        return [int(internal_kv._internal_kv_get(key) or 0) for key in self._keys]

    def _hung(self, method: str, silent: list[int], counts: list[int], limit: float) -> RunError:
        """Which rank hangs: of those without an answer the one that is furthest behind, for which the others wait."""
        behind = [rank for rank in silent if counts[rank] == min(counts[other] for other in silent)]
        leaf = "start_seconds" if method in ("start", "address") else "rank_seconds"
        who = f"rank {behind[0]} of the student hangs" if len(behind) == 1 else "the student's ranks hang"
        return RunError(
            f"{who}: `{method}` made no progress on rank {', '.join(map(str, silent))} for {limit:g} s, and "
            f"`faults.{leaf}` is {limit:g}. The last checkpoint resumes the run; raise the limit if it was only slow"
        )


def _cause(failed: dict[int, Exception], *, writing: bool) -> Exception:
    """Which of the failures is the cause: a dead rank breaks the connections of the living. Where files
    were being written (``writing``), the disk is at fault and the place in the code of no interest."""
    for rank, error in failed.items():
        if isinstance(error, ray.exceptions.RayActorError):
            return RunError(f"rank {rank} of the student died: {death(error)}. The last checkpoint resumes the run.")
    rank, error = min(failed.items())
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError | RunError):
        return cause
    if writing and cause is not None:
        first = (str(cause).strip().splitlines() or [""])[0]
        return RunError(f"rank {rank} of the student could not write its files ({type(cause).__name__}: {first})")
    return RunError(f"rank {rank} of the student failed: {error}")
