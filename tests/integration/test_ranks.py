"""Ranks as Ray actors: they train, a user's mistake and a bad number come through as such, a death is named."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
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
from store_kit import stored  # noqa: E402
from student_kit import DOMAINS, make_batch, make_model, make_spec  # noqa: E402

from mopd.distill.recipe import Engine  # noqa: E402
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


def listens_at(module: Any) -> list[str]:
    """In a rank: the addresses at which its process can be reached."""
    sockets = psutil.Process().net_connections(kind="tcp")
    return [socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == psutil.CONN_LISTEN]


def views(module: Any, batch: list[ScoredRollout]) -> list[bool]:
    """In a rank: whether teachers' distributions are views of the object store, and nobody could write into them."""
    payloads = [score.payload for one in batch for _, score in one.scores]
    rows = [payload.logprobs_TV for payload in payloads if isinstance(payload, Full)]
    return [stored(one) and not one.flags.writeable and not one.flags.owndata for one in rows]


def test_two_ranks_from_start_to_death(cluster: None, tmp_path: Path) -> None:
    spec = make_spec(make_model(tmp_path), tmp_path / "run", engine=Engine(ranks=2, expert_parallel=2))
    ranks = RayRanks(spec)
    student = DeepSpeedStudent(
        ranks, spec, shares=dict.fromkeys(DOMAINS, 1.0), updates_per_step=1, share_rule="explicit"
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
    pids = student.weights().on_ranks(process_id, [(), ()])
    assert len({*pids, os.getpid()}) == 3
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(RunError, match="rank 1 of the student died"):
        student.update(make_batch(), step=3)
    ranks.close()


def test_a_users_mistake_comes_through(cluster: None, tmp_path: Path) -> None:
    spec = make_spec(make_model(tmp_path), tmp_path / "run", engine=Engine(ranks=1))
    with pytest.raises(UserError, match="does not divide"):
        RayRanks(replace(spec, engine=Engine(ranks=1, expert_parallel=2)))
