"""Processes of a run that hold one thing after another: a rank of a stage, then what samples, then a teacher.

A rank, a sampler or a teacher takes seconds of a core to import torch, transformers and DeepSpeed. A process that has
done its work, was sound to the end and ran no code of a user's own is kept for the next that is wanted, within one run.
On a GPU none is: its memory is only surely free when the process has ended.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

ANSWER_SECONDS = 20.0
"""How long an idle process may take to say that it is there."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""What must be there before torch is imported; the rest may be set later."""


class Host:
    """The actor: holds one object at a time, and passes calls on. `ps` shows the class of what it holds."""

    def __init__(self) -> None:
        self._held: Any = None

    def hold(self, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Make an object in the place of the one that is here, whose memory is freed first."""
        self._held = None
        _free()
        self._become(type(make.__name__, (Host,), {}))
        self._held = make(*args)

    def warm(self, prepare: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Import what will be wanted, while nobody waits for it."""
        prepare(*args)

    def ask(self, method: str, args: tuple[Any, ...], *stored: Any) -> Any:
        """The answer of the object that is held to ``stored``, which may lie in Ray's store, and ``args``."""
        _show(f"ray::{type(self).__name__}.{method}")
        return getattr(self._held, method)(*stored, *args)

    def drop(self) -> bool:
        """Free what is held; answers that the process is there."""
        self._held = None
        self._become(Host)
        _free()
        return True

    def _become(self, kind: type[Host]) -> None:
        """Ray shows the class of an actor between its calls."""
        this: Any = self
        this.__class__ = kind


@dataclass(slots=True)
class Hosts:
    """The processes of this process' cluster; those that are idle are waiting for the next who wants one."""

    _fresh: list[Any] = field(default_factory=list)
    _idle: list[Any] = field(default_factory=list)
    _later: tuple[int, Callable[..., Any], tuple[Any, ...]] = (0, lambda: None, ())
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(
        self,
        *,
        gpus: float = 0.0,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        """An actor of :class:`Host`: an idle one that is alive, or else a new one.

        Args:
            gpus: that it takes of its node; if any, it is new.
            resources: of Ray, that it takes of its node besides; if any, it is new.
            environment: what must be set before Python starts, besides :data:`ENVIRONMENT`; if anything, it is new.
        """
        import ray
        import ray.exceptions

        while not (gpus or resources or environment):
            with self._lock:
                host = self._idle.pop(0) if self._idle else None
                if host is None and self._fresh:
                    return self._fresh.pop(0)
            if host is None:
                break
            try:
                ray.get(host.drop.remote(), timeout=ANSWER_SECONDS)
                return host
            except ray.exceptions.RayError:  # it died, or hangs
                ray.kill(host)
        return _start(gpus=gpus, resources=resources or {}, environment=environment or {})

    def prepare(self, count: int, fn: Callable[..., Any], *args: Any, later: int = 0) -> None:
        """Start processes that call ``fn(*args)``, which imports libraries, and wait for who wants one.

        Args:
            later: how many more :meth:`prepare_later` starts: while the first ones import, they would only slow them.
        """
        self._later = (later, fn, args)
        self._warm(count, fn, args)

    def prepare_later(self) -> None:
        """Start the processes that :meth:`prepare` left for later, unless that was done."""
        (count, fn, args), self._later = self._later, (0, lambda: None, ())
        self._warm(count, fn, args)

    def _warm(self, count: int, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        for _ in range(count):
            host = _start(gpus=0.0, resources={}, environment={})
            host.warm.remote(fn, args)
            with self._lock:
                self._fresh.append(host)

    def give_back(self, host: Any, *, reusable: bool) -> None:
        """Keep a process whose work is done for the next who wants one, or end it."""
        import ray

        if not reusable:
            ray.kill(host)
            return
        host.drop.remote()
        with self._lock:
            self._idle.append(host)

    def clear(self) -> None:
        """End the idle ones: nobody will want one for long, and each holds memory."""
        import ray

        with self._lock:
            idle, self._idle[:], self._fresh[:] = [*self._idle, *self._fresh], [], []
            self._later = (0, lambda: None, ())
        for host in idle:
            ray.kill(host)


def death(error: Exception) -> str:
    """What Ray knows of a process that died: its first line; more of them guess at what may kill one."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{first.rstrip('.')} (it was killed, perhaps by the system for lack of memory, or it crashed)"


def _free() -> None:
    """Give the memory of what nobody holds any more back to the system; glibc keeps freed weights for itself."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _show(title: str) -> None:
    """Give this process a title for the time of a call; not if it is none of Ray's: tests have hosts in theirs."""
    from ray._private import worker

    if worker.global_worker.mode == worker.WORKER_MODE:
        raylet: Any = import_module("ray._raylet")  # compiled, without types
        raylet.setproctitle(title)


def _start(*, gpus: float, resources: Mapping[str, float], environment: Mapping[str, str]) -> Any:
    import ray

    variables = {**ENVIRONMENT, **environment}
    make = ray.remote(Host).options(
        num_cpus=0, num_gpus=gpus, resources=dict(resources), runtime_env={"env_vars": variables}
    )
    return make.remote()


HOSTS = Hosts()
"""Of the cluster that this process is connected to, of which there is one at a time."""
