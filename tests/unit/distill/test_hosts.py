"""Processes of a run that are handed on: who gets which, what `ps` shows, and what memory a reuse leaves behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import ray
import ray.cloudpickle
import ray.exceptions
from deadline_kit import Deadline

from mopd.distill.hosts import Hosts, death

pytestmark = pytest.mark.usefixtures("cluster", "classes_of_this_file")

MEGABYTE = 1 << 20


class Ballast:
    """Holds so many megabytes."""

    def __init__(self, megabytes: int) -> None:
        self.data = bytearray(megabytes * MEGABYTE)

    def process(self) -> int:
        return os.getpid()

    def title(self) -> str:
        return " ".join(psutil.Process().cmdline()).strip()


class Pieces(Ballast):
    """Holds so many megabytes in pieces, the last of which outlives it and keeps the heap from shrinking at its end."""

    def __init__(self, megabytes: int) -> None:
        self.pieces = [bytearray(MEGABYTE // 16) for _ in range(16 * megabytes)]
        sys.last_piece = self.pieces[-1]  # a class of this file is freed with its object


@pytest.fixture(scope="module")
def classes_of_this_file() -> Iterator[None]:
    """Processes of the cluster cannot import it."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def held(host: Any, method: str) -> Any:
    return ray.get(host.ask.remote(method, ()))


def test_a_process_is_handed_on_and_shows_what_it_holds() -> None:
    hosts = Hosts()
    first = hosts.take()
    first.hold.remote(Ballast, (1,))
    pid = held(first, "process")
    assert held(first, "title") == "ray::Ballast.title"
    deadline = Deadline(30)
    while psutil.Process(pid).cmdline()[0].strip() != "ray::Ballast" and deadline.waits():
        pass
    assert psutil.Process(pid).cmdline()[0].strip() == "ray::Ballast"
    hosts.give_back(first, reusable=True)
    second = hosts.take()
    second.hold.remote(Ballast, (1,))
    assert held(second, "process") == pid
    hosts.give_back(second, reusable=False)
    third = hosts.take()
    third.hold.remote(Ballast, (1,))
    assert held(third, "process") != pid
    ray.kill(third)


def test_a_death_is_a_sentence() -> None:
    """Ray says it in paragraphs, of clusters and their switches."""
    host = Hosts().take()
    host.hold.remote(Ballast, (1,))
    pid = held(host, "process")
    slow = host.ask.remote("process", ())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get([slow, host.ask.remote("process", ())])
    assert "Worker exit" in str(caught.value)
    assert "\n" not in death(caught.value)
    assert "Worker exit" not in death(caught.value)
    assert "killed" in death(caught.value)


def test_what_is_left_for_later_is_started_once() -> None:
    hosts = Hosts()
    hosts.prepare(1, len, "", later=2)
    assert len(hosts._fresh) == 1
    hosts.prepare_later()
    hosts.prepare_later()
    assert len(hosts._fresh) == 3
    hosts.clear()
    hosts.prepare_later()
    assert not hosts._fresh


def test_a_dropped_object_leaves_no_memory() -> None:
    hosts = Hosts()
    host = hosts.take()
    sizes = []
    for _ in range(10):
        host.hold.remote(Ballast, (64,))
        pid = held(host, "process")
        hosts.give_back(host, reusable=True)
        host = hosts.take()
        sizes.append(psutil.Process(pid).memory_info().rss / MEGABYTE)
    ray.kill(host)
    assert sizes[-1] < sizes[0] + 32


def test_freed_pieces_go_back_to_the_system() -> None:
    host = Hosts().take()
    host.hold.remote(Pieces, (256,))
    process = psutil.Process(held(host, "process"))
    full = process.memory_info().rss / MEGABYTE
    ray.get(host.drop.remote())
    left = process.memory_info().rss / MEGABYTE
    ray.kill(host)
    assert left < full - 200
