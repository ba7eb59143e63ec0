"""Ray's actors as plain objects of this process, so that a whole run takes seconds: no scheduler, no other process.

One rank of a student, teachers and samplers, each call under one lock, in the thread that makes it. Nothing can die.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import ray
import ray.util
from inline_ranks import InlineRanks

from mopd.distill.recipe import FaultRecipe
from mopd.distill.student.spec import StudentSpec
from mopd.recipes.run import job, launch

_LOCK = threading.RLock()


class _Answer:
    """What a call gave, or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        try:
            with _LOCK:
                self.value = call()
        except Exception as error:
            self.error = error

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _Method:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any, **named: Any) -> _Answer:
        values = [value.get() if isinstance(value, _Answer) else value for value in arguments]
        return _Answer(lambda: self._method(*values, **named))


class _Actor:
    def __init__(self, made: Any) -> None:
        self.made = made

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self.made, name))


class _Remote:
    def __init__(self, kind: type) -> None:
        self._kind = kind

    def options(self, *, runtime_env: Mapping[str, Mapping[str, str]] | None = None, **taken: Any) -> _Remote:
        os.environ.update((runtime_env or {}).get("env_vars", {}))
        return self

    def remote(self, *arguments: Any, **named: Any) -> _Actor:
        return _Actor(self._kind(*arguments, **named))


def _get(references: Any, *, timeout: float | None = None) -> Any:
    return [answer.get() for answer in references] if isinstance(references, list) else references.get()


def _wait(references: list[_Answer], *, num_returns: int = 1, timeout: float | None = None) -> Any:
    return references[:num_returns], references[num_returns:]


def _kill(actor: _Actor) -> None:
    """Nothing: it is no process."""


class _Ranks(InlineRanks):
    """The one rank of a student."""

    def __init__(self, spec: StudentSpec, faults: FaultRecipe) -> None:
        super().__init__(spec)

    def close(self) -> None:
        """Nothing: DeepSpeed takes up the process group where the last rank left it, and does not survive its end."""


def install() -> None:
    """Put these in Ray's place, for good: only in a process that ends after its run."""
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "memory": 1e10}}]
    stand_ins: dict[str, Any] = {
        "remote": _Remote,
        "get": _get,
        "wait": _wait,
        "kill": _kill,
        "put": lambda value: _Answer(lambda: value),
        "nodes": lambda: nodes,
        "cluster_resources": lambda: nodes[0]["Resources"],
        "init": lambda **settings: None,
        "shutdown": lambda: None,
    }
    atexit.unregister(ray.shutdown)
    for name, stand_in in stand_ins.items():
        setattr(ray, name, stand_in)
    ray.util.get_node_ip_address = lambda: "127.0.0.1"
    job.RayRanks = _Ranks
    launch.ray_cluster = lambda out, **settings: nullcontext()
