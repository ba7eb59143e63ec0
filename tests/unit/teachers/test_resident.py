"""More teachers than are held at a time: they take turns, change no bit, and are told where they come back changed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.cloudpickle
from adapter_kit import make_adapter
from student_kit import make_model, make_rollout

from mopd.distill.endpoint import Endpoint
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import (
    Float32,
    Full,
    GradingFailed,
    Int32,
    Payload,
    PayloadName,
    Rollout,
    Sampled,
    ScoredRollout,
)
from mopd.teachers.actor import Loaded, TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint
from mopd.teachers.kinds.served import Served
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

CONDITIONS = Conditions(0.8, 40)
NAMES = ("a", "b", "c", "d")


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import this file


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TeacherSpec]:
    """Three bases; one of them is two teachers, of which one is an adapter."""
    folder = tmp_path_factory.mktemp("teachers")
    paths = [make_model(folder, family, seed=i) for i, family in enumerate(("llama", "qwen3_moe", "llama"))]
    adapter = make_adapter(paths[0], folder / "adapter", seed=9)
    return {name: spec(path) for name, path in zip("abc", paths, strict=True)} | {"d": spec(paths[0], adapter)}


def spec(path: str, adapter: str | None = None) -> TeacherSpec:
    return TeacherSpec(Checkpoint(path, "cpu", "float32"), CONDITIONS, 0.0, 1, adapter=adapter)


def make_pool(specs: dict[str, TeacherSpec], resident: int | None, payload: PayloadName = "full") -> TeacherPool:
    """Every teacher has a domain of its name; the domain `all` has them all."""
    routes = {name: {name: 1.0} for name in specs} | {"all": dict.fromkeys(specs, 1 / len(specs))}
    faults = FaultRecipe(backoff_seconds=0.0, retries=2)
    return TeacherPool(specs, routes=routes, payload=payload, faults=faults, say=print, resident=resident)


def microbatches(domains: Sequence[str], n: int = 16) -> list[list[Rollout]]:
    rng = np.random.default_rng(5)
    batch = [
        make_rollout(rng, i, domains[i % len(domains)], prompt=3, completion=int(rng.integers(1, 9))) for i in range(n)
    ]
    return [batch[:5], batch[5:6], batch[6:]]


def bits(scored: Sequence[ScoredRollout]) -> list[tuple[str, bytes]]:
    payloads = [(score.teacher, score.payload) for rollout in scored for _, score in rollout.scores]
    return [(name, payload.logprobs_TV.tobytes()) for name, payload in payloads if isinstance(payload, Full)]


def swaps(pool: TeacherPool) -> dict[str, float]:
    """By teacher, since they were read; those of none left out."""
    counts = {name.split("/")[1]: n for name, n in pool.metrics().items() if name.startswith("teacher_swaps/")}
    return {name: n for name, n in counts.items() if n}


@pytest.fixture(scope="module")
def expected(cluster: None, specs: dict[str, TeacherSpec]) -> list[tuple[str, bytes]]:
    """Scores by teachers that are all held."""
    pool = make_pool(specs, None)
    scored = bits(pool.score(microbatches(["a", "all", "b"])))
    assert not any(name.startswith("teacher_swaps") for name in pool.metrics())
    pool.close()
    return scored


@pytest.fixture(scope="module")
def one_at_a_time(cluster: None, specs: dict[str, TeacherSpec]) -> Iterator[TeacherPool]:
    pool = make_pool(specs, 1)
    assert list(pool.wait_until_ready()) == list(NAMES)
    yield pool
    pool.close()


def check_turns(pool: TeacherPool, expected: list[tuple[str, bytes]], resident: int) -> None:
    pool.metrics()
    for _ in range(3):
        assert bits(pool.score(microbatches(["a", "all", "b"]))) == expected
        came = swaps(pool)
        # The adapter comes with its base; who was there at the step's beginning need not come.
        assert set(came.values()) == {1}
        assert sum(came.values()) == 3 - resident


def test_teachers_that_take_turns_change_no_bit_and_come_once_a_step(
    expected: list[tuple[str, bytes]], one_at_a_time: TeacherPool
) -> None:
    check_turns(one_at_a_time, expected, 1)


def test_two_processes_share_three_bases(expected: list[tuple[str, bytes]], specs: dict[str, TeacherSpec]) -> None:
    pool = make_pool(specs, 2)
    pool.wait_until_ready()
    check_turns(pool, expected, 2)
    pool.close()


def test_what_is_held_is_scored_before_all_is_written_and_nobody_is_unloaded_until_then(
    one_at_a_time: TeacherPool,
) -> None:
    pool, worker_pool = one_at_a_time, one_at_a_time._worker_pools["a"]
    pool.score(microbatches(["a"]))  # so that a's base is there
    pool.metrics()
    waiting: list[int] = []

    def written() -> Iterator[list[Rollout]]:
        first, *others = microbatches(["b", "a"])
        yield first
        while worker_pool._jobs[worker_pool._group_of["a"]]:
            time.sleep(0.01)
        waiting.append(len(worker_pool._jobs[worker_pool._group_of["b"]]))  # who came first
        assert swaps(pool) == {}
        yield from others

    pool.score(written())
    assert waiting[0] > 0
    assert swaps(pool) == {"b": 1}


def test_a_killed_process_comes_back_with_the_teacher_that_it_held(
    expected: list[tuple[str, bytes]], one_at_a_time: TeacherPool
) -> None:
    pool = one_at_a_time
    pool.metrics()

    def killed() -> Iterator[list[Rollout]]:
        for i, microbatch in enumerate(microbatches(["a", "all", "b"])):
            if i == 1:
                actor = pool._worker_pools["a"]._replicas[0].actor
                os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
            yield microbatch

    assert bits(pool.score(killed())) == expected
    metrics = pool.metrics()
    assert sum(n for name, n in metrics.items() if name.startswith("teacher_retries/")) == 1
    assert sum(n for name, n in metrics.items() if name.startswith("teacher_swaps/")) == 2


@dataclass(frozen=True, slots=True)
class Drifting:
    """A kind without a hash of its weights: what it scores is written in a file."""

    path: str

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> Any:
        return DriftingScorer(float(Path(self.path).read_text()))


class DriftingScorer:
    vocabulary = 50

    def __init__(self, logprob: float) -> None:
        self.logprob = np.float32(logprob)

    def score(self, token_ids: Sequence[Int32], payload: PayloadName, *_: Any) -> list[Payload]:
        return [Sampled(np.full(len(ids), self.logprob)) for ids in token_ids]


def test_a_restarted_process_that_scores_otherwise_ends_the_run_by_name(cluster: None, tmp_path: Path) -> None:
    drifting = tmp_path / "logprob"
    drifting.write_text("-1.0")
    pool = make_pool({"a": TeacherSpec(Drifting(str(drifting)), CONDITIONS, 0.0, 1)}, None, "sampled")
    pool.wait_until_ready()
    drifting.write_text("-1.5")
    actor = pool._worker_pools["a"]._replicas[0].actor
    os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
    with pytest.raises(GradingFailed, match=r"teacher 'a' came back, and as 'a' scores the same tokens 0\.5 nats"):
        pool.score(microbatches(["a"]))
    pool.close()


def test_a_teacher_that_comes_back_as_another_ends_the_run_by_name(cluster: None, tmp_path: Path) -> None:
    folder, drifting = make_model(tmp_path), tmp_path / "logprob"
    drifting.write_text("-1.0")
    two = TeacherSpec(Drifting(str(drifting)), CONDITIONS, 0.0, 1)
    away = TeacherSpec(
        Served(Endpoint("http://nowhere:1/v1", "away"), 50), Conditions(1.0, 40), 0.0, 1, has_weights=False
    )
    pool = make_pool({"one": spec(folder), "two": two, "away": away}, 1, "sampled")
    assert pool._worker_pools["one"] is pool._worker_pools["two"] is not pool._worker_pools["away"], (
        "a server holds its weights itself"
    )
    pool.wait_until_ready()
    pool.score(microbatches(["one", "two"]))
    pool.score(microbatches(["one"]))
    drifting.write_text("-1.5")
    with pytest.raises(GradingFailed, match=r"teacher 'two' came back, and as 'two' scores the same tokens 0\.5 nats"):
        pool.score(microbatches(["two"]))
    shutil.rmtree(folder)
    shutil.copytree(make_model(tmp_path, seed=7), folder)
    with pytest.raises(GradingFailed, match=r"teacher 'one' came back with other weights \(sha256 \w+, it was \w+\)"):
        pool.score(microbatches(["one"]))
    pool.close()


def test_what_differs_between_two_loadings_is_named() -> None:
    def loaded(vocabulary: int = 4, weights: str | None = "x", at: float = -1.0) -> Loaded:
        canary: Float32 = np.array([0.0, at, np.nan], np.float32)
        return Loaded(vocabulary, weights, {"t": canary}, tolerance=1e-3)

    assert loaded().change(loaded(at=-1.0005)) is None
    assert loaded().change(loaded(at=-1.002)) == (
        "came back, and as 't' scores the same tokens 0.002 nats from where it did"
    )
    assert loaded().change(loaded(weights="y")) == "came back with other weights (sha256 y, it was x)"
    assert loaded().change(loaded(vocabulary=5, weights="y")) == "came back with 5 output tokens and had 4"
