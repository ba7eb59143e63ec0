"""A Ray cluster of several nodes: teachers live where their resources are, score as here, and outlive a lost node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from check_kit import recipe, save_model, tokenizer_of
from ray.cluster_utils import Cluster
from student_kit import DOMAINS, make_model, make_rollout, make_spec, student

from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Full, Prompt, ScoredRollout, UserError
from mopd.recipes.run.cluster import stop_ray
from mopd.recipes.run.launch import run
from mopd.recipes.run.ranks import RayRanks
from mopd.rollouts.engines.base import Decoding, FrozenModel, SamplerProcesses, SamplerSettings, StudentModel
from mopd.rollouts.engines.workers import of_student
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel, microbatches
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

BUDGET = 64


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room for teachers, and a node for each of two."""
    stop_ray()  # what is shared
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for side in ("left", "right"):
        made.add_node(num_cpus=1, resources={side: 1.0})
    yield made
    ray.shutdown()
    made.shutdown()


def placed(path: str, side: str) -> TeacherSpec:
    return TeacherSpec(Checkpoint(path, "cpu", "float32"), Conditions(0.8, BUDGET), 0.0, 1, resources=((side, 1.0),))


def bits(scored: list[ScoredRollout]) -> list[tuple[str, bytes]]:
    """Every score of a batch, bit by bit."""
    payloads = [(score.teacher, score.payload) for one in scored for _, score in one.scores]
    return [(name, payload.logprobs_TV.tobytes()) for name, payload in payloads if isinstance(payload, Full)]


def node_of(pool: TeacherPool, name: str) -> str:
    actor = pool._worker_pools[name]._replicas[0].actor
    return ray.get(actor.__ray_call__.remote(lambda self: __import__("ray").get_runtime_context().get_node_id()))


def test_teachers_on_other_nodes_score_as_here_and_come_back_on_a_new_node(cluster: Cluster, tmp_path: Path) -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    paths = {"a": make_model(tmp_path, seed=1), "b": make_model(tmp_path, "qwen3_moe", seed=2)}
    sides = {"a": "left", "b": "right"}
    said: list[str] = []
    pool = TeacherPool(
        {name: placed(path, sides[name]) for name, path in paths.items()},
        routes={name: {name: 1.0} for name in paths},
        payload="full",
        faults=FaultRecipe(backoff_seconds=0.0),
        say=said.append,
    )
    rng = np.random.default_rng(0)
    batch = [make_rollout(rng, i, "ab"[i % 2], prompt=3, completion=int(rng.integers(1, 9))) for i in range(12)]
    expected: dict[int, bytes] = {}
    torch.set_num_threads(1)  # as teachers do
    for name, path in paths.items():
        settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "temperature": 0.8}
        here = TeacherModel(path, microbatch_tokens=BUDGET, **settings)
        mine = [rollout for rollout in batch if rollout.domain == name]
        for members in microbatches([len(rollout.token_ids) for rollout in mine], BUDGET):
            ids, masks = [mine[i].token_ids for i in members], [mine[i].loss_mask for i in members]
            for i, payload in zip(members, here.score(ids, "full", masks=masks), strict=True):
                assert isinstance(payload, Full)
                expected[mine[i].index] = payload.logprobs_TV.tobytes()
    scored = bits(pool.score([batch]))
    assert scored == [(rollout.domain, expected[rollout.index]) for rollout in batch]
    places = {node.node_id: node for node in cluster.list_all_nodes()}
    first = {name: node_of(pool, name) for name in paths}
    assert len({ray.get_runtime_context().get_node_id(), *first.values()}) == 3
    cluster.remove_node(places[first["a"]])
    back = cluster.add_node(num_cpus=1, resources={"left": 1.0})
    assert bits(pool.score([batch])) == scored
    assert node_of(pool, "a") == back.node_id
    assert (pool.metrics()["teacher_retries/a"] >= 1, any("teacher 'a' died" in line for line in said)) == (True, True)
    pool.close()
    ray.shutdown()


def test_a_run_joins_the_cluster_and_places_its_teachers(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("arithmetic", "ordering")
    start, one, other = (save_model(tmp_path / name, tokenizer) for name in ("start", "one", "other"))
    settings: dict[str, Any] = {
        "device": "cpu",
        "student": {"model": start, "optimizer": {"warmup_steps": 0}, "updates_per_step": 1},
        "domains": {
            "math": {"task": "arithmetic", "teacher": "one", "prompts": 2},
            "rest": {"task": "ordering", "teacher": "other", "prompts": 2},
        },
        "stages": {},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 2, "test_prompts": 2, "graded_prompts": 2},
        "run": {"steps": 2, "evaluate_every": 2, "save_every": 2},
        "track": {"wandb": {"mode": "disabled"}},
    }
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)

    def teachers(**places: str) -> dict[str, Any]:
        paths = {"one": one, "other": other}
        return {name: {"model": paths[name], "resources": {side: 1.0}} for name, side in places.items()}

    with pytest.raises(UserError, match="teacher other: each process takes 1 middle, and no node"):
        run(recipe(**settings, teachers=teachers(one="left", other="middle")), tmp_path / "nowhere")
    run(recipe(**settings, teachers=teachers(one="left", other="right")), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["tokens/teacher/one"] > 0 < row["tokens/teacher/other"] for row in steps)


def test_student_teachers_and_a_sampler_share_one_gpu(cluster: Cluster, tmp_path: Path) -> None:
    """Ray counts one GPU on a node; what is computed there is computed on the CPU."""
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    path, teachers = make_model(tmp_path), {name: make_model(tmp_path, seed=i + 1) for i, name in enumerate(DOMAINS)}
    specs = {
        name: TeacherSpec(Checkpoint(teacher, "cpu", "float32"), Conditions(1.0, BUDGET), gpus=0.15, replicas=1)
        for name, teacher in teachers.items()
    }
    routes = {name: {name: 1.0} for name in DOMAINS}
    pool = TeacherPool(specs, routes=routes, payload="full", faults=FaultRecipe(), say=print)
    spec = make_spec(path, tmp_path / "run", gpus=0.4)
    ranks = RayRanks(spec, FaultRecipe())
    with ExitStack() as closing:
        closing.callback(pool.close)
        closing.callback(ranks.close)
        learner = student(ranks, spec)
        decoding = Decoding(
            max_new_tokens=6, temperature=1.0, greedy=False, seed=0, step=0, end_token_ids=(1,), pad_token_id=0
        )
        holder = StudentModel(FrozenModel(path), SamplerProcesses(1, "cpu", "float32", gpus=0.15))
        sampler = of_student(holder, closing)(SamplerSettings(decoding, samples_per_prompt=2, batch_size=6))
        prompts = [Prompt(name, name, (5, 6, 7), "question", "answer") for name in DOMAINS]
        for step in range(2):
            sampler.load_weights(learner.weights(), version=step)
            scored = pool.score(sampler.sample(prompts, step=step))
            assert learner.update(scored, step=step)["loss"] > 0
        assert ray.available_resources().get("GPU", 0.0) == pytest.approx(0.0, abs=1e-6)
    cluster.remove_node(node)
    ray.shutdown()
