"""Ranks as Ray actors: they train, a user's mistake and a bad number come through as such, a death is named."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

UNIT = Path(__file__).parent.parent / "unit"
sys.path.append(str(UNIT))

import ray_kit  # noqa: E402
from deadline_kit import patience  # noqa: E402
from store_kit import stored  # noqa: E402
from student_kit import DOMAINS, make_batch, make_model, make_spec  # noqa: E402

from mopd.distill.recipe import Engine, FaultRecipe  # noqa: E402
from mopd.distill.student.driver import DeepSpeedStudent  # noqa: E402
from mopd.distill.types import Full, NonFinite, RunError, ScoredRollout, UserError  # noqa: E402
from mopd.recipes.run.cluster import locked_doors  # noqa: E402
from mopd.recipes.run.ranks import RayRanks  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    path = os.pathsep.join([str(UNIT), str(Path(__file__).parent)])
    with locked_doors():
        ray_kit.begin(runtime_env={"env_vars": {"PYTHONPATH": path}})
        yield
        ray.shutdown()


def process_id(module: Any) -> int:
    return os.getpid()


def slow_down(module: Any, seconds: float) -> None:
    """In a rank: every forward pass takes so much longer."""
    module.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def listens_at(module: Any) -> list[str]:
    """In a rank: the addresses at which its process can be reached."""
    sockets = psutil.Process().net_connections(kind="tcp")
    return [socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == psutil.CONN_LISTEN]


def views(module: Any, batch: list[ScoredRollout]) -> list[bool]:
    """In a rank: whether teachers' distributions are views of the object store, and nobody could write into them."""
    payloads = [score.payload for one in batch for _, score in one.scores]
    rows = [payload.logprobs_TV for payload in payloads if isinstance(payload, Full)]
    return [stored(one) and not one.flags.writeable and not one.flags.owndata for one in rows]


def note(module: Any, name: str) -> list[str]:
    """In a rank: all names that it was given, in their order."""
    module.noted = [*getattr(module, "noted", []), name]
    return module.noted


def notes_of_two_threads(ranks: RayRanks) -> list[list[str]]:
    """What each rank notes of two threads that call at the same time, one of which may be interrupted anywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda name: [ranks.call("call", [(note, (name,))] * 2) for _ in range(40)], "ab"))
    finally:
        sys.setswitchinterval(interval)
    return ranks.call("call", [(note, ("last",))] * 2)


def test_two_ranks_from_start_to_death(cluster: None, tmp_path: Path) -> None:
    spec = make_spec(make_model(tmp_path), tmp_path / "run", engine=Engine(ranks=2, expert_parallel=2))
    ranks = RayRanks(spec, FaultRecipe())
    student = DeepSpeedStudent(
        ranks, spec, shares=dict.fromkeys(DOMAINS, 1.0), steps=lambda: 10, updates_per_step=1, share_rule="explicit"
    )
    losses = [student.update(make_batch(), step=step)["loss"] for step in range(3)]
    assert losses[-1] < losses[0]
    reached = student.weights().on_ranks(listens_at, [(), ()])
    assert [{*addresses} for addresses in reached] == [{"127.0.0.1"}] * 2  # Ray, the store, gloo
    assert len(reached[0]) > len(reached[1]) > 1  # rank 0 has the store
    shipped = make_batch(per_domain=16)
    assert student.weights().on_ranks(views, [(shipped,), (shipped,)]) == [[True] * 48] * 2
    batch = make_batch()
    payload = batch[0].scores[0][1].payload
    assert isinstance(payload, Full)
    payload.logprobs_TV[:] = np.inf
    with pytest.raises(NonFinite, match="domain code"):
        student.update(batch, step=3)
    first, second = notes_of_two_threads(ranks)
    assert first == second, "collectives of two calls would wait for each other"
    assert sorted(first) == ["a"] * 40 + ["b"] * 40 + ["last"]
    pids = student.weights().on_ranks(process_id, [(), ()])
    assert len({*pids, os.getpid()}) == 3
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(RunError, match="rank 1 of the student died"):
        student.update(make_batch(), step=3)
    ranks.close()


def test_a_rank_that_hangs_is_named_and_one_that_is_only_slow_is_not(cluster: None, tmp_path: Path) -> None:
    """Rank 0 waits in a reduction for rank 1. A limit far below what the step takes hurts nobody who works."""
    spec = make_spec(make_model(tmp_path), tmp_path / "run", engine=Engine(ranks=2, microbatch_tokens=32))
    limit = patience(3.0)
    ranks = RayRanks(spec, FaultRecipe(rank_seconds=limit))
    student = DeepSpeedStudent(
        ranks, spec, shares=dict.fromkeys(DOMAINS, 1.0), steps=lambda: 10, updates_per_step=1, share_rule="explicit"
    )
    student.weights().on_ranks(slow_down, [(limit / 3,)] * 2)
    start = time.monotonic()
    student.update(make_batch(per_domain=4), step=0)
    assert time.monotonic() - start > limit, "else it shows nothing"
    pids = student.weights().on_ranks(process_id, [(), ()])
    os.kill(pids[1], signal.SIGSTOP)
    try:
        with pytest.raises(RunError, match="rank 1 of the student hangs: `update` made no progress"):
            student.update(make_batch(), step=1)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    ranks.close()


def test_a_users_mistake_comes_through(cluster: None, tmp_path: Path) -> None:
    spec = make_spec(make_model(tmp_path), tmp_path / "run", engine=Engine(ranks=1))
    with pytest.raises(UserError, match="does not divide"):
        RayRanks(replace(spec, engine=Engine(ranks=1, expert_parallel=2)), FaultRecipe())
