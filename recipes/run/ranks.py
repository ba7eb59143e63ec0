"""The student's ranks as Ray actors, one process each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions

from mopd.distill.student import engine
from mopd.distill.student.rank import StudentRank
from mopd.distill.student.spec import StudentSpec
from mopd.distill.types import RunError, UserError


class _Actor:
    """Lives in a rank's process; its environment was set before Python started."""

    def address(self) -> str:
        """Of the machine that it lives on."""
        return ray.util.get_node_ip_address()

    def listen(self, address: str) -> int:
        """Wait for the others at ``address``; returns the port."""
        self._listener = engine.listen(address)
        return self._listener.getsockname()[1]

    def start(self, spec: StudentSpec, address: str, port: int) -> None:
        """Join the other ranks and build the engine."""
        import os

        os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
        self._rank = StudentRank(spec, getattr(self, "_listener", None))

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Run a method of the rank."""
        return getattr(self._rank, method)(*args)


class RayRanks:
    """A student's ranks in Ray actors; satisfies :class:`distill.student.driver.Ranks`."""

    def __init__(self, spec: StudentSpec) -> None:
        self.size = spec.engine.ranks
        self._actors: list[Any] = [
            ray.remote(_Actor)
            .options(
                num_cpus=0,
                num_gpus=spec.gpus,
                runtime_env={"env_vars": engine.environment(r, self.size, address="", port=0, device=spec.device)},
            )
            .remote()
            for r in range(self.size)
        ]
        try:
            machines = self._wait([actor.address.remote() for actor in self._actors])
            address = engine.LOOPBACK if len({*machines}) == 1 else machines[0]
            port = self._wait([self._actors[0].listen.remote(address)])[0]
            self._wait([actor.start.remote(spec, address, port) for actor in self._actors])
        except BaseException:
            self.close()  # nobody else can: the caller never gets this object
            raise

    def call(self, method: str, per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run a method of :class:`StudentRank` on all ranks at the same time; returns the results by rank.

        Raises:
            RunError: a rank died; the message says which.
        """
        return self._wait([actor.call.remote(method, args) for actor, args in zip(self._actors, per_rank, strict=True)])

    def close(self) -> None:
        """End the processes."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _wait(self, references: list[Any]) -> list[Any]:
        """The results by rank. After a failure the others are given 5 s: they may wait for the dead one for ever."""
        waiting, failed = list(references), dict[int, Exception]()
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=5.0 if failed else None)
            if not done:
                break
            for reference in done:
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    failed[references.index(reference)] = error
        if failed:
            raise _cause(failed)
        return ray.get(references)


def _cause(failed: dict[int, Exception]) -> Exception:
    """Which of the failures is the cause: a dead rank breaks the connections of the living."""
    for rank, error in failed.items():
        if isinstance(error, ray.exceptions.RayActorError):
            return RunError(f"rank {rank} of the student died: {error}. The last checkpoint resumes the run.")
    rank, error = min(failed.items())
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError | RunError):
        return cause
    return RunError(f"rank {rank} of the student failed: {error}")
