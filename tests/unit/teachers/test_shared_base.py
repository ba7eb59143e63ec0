"""The student's own base as a teacher: the ranks score as its checkpoint does, while an adapter over it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import DOMAINS, SGD, ProcessRanks, engine_of, make_batch, make_model, make_rollout, make_spec, student

from mopd.distill.recipe import FaultRecipe, FullReverseKL, LoRA
from mopd.distill.types import Full, Hidden, PayloadName, Rollout
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions

CONDITIONS = Conditions(1.0, 96)


@pytest.fixture(scope="module")
def two() -> Iterator[ProcessRanks]:
    ranks = ProcessRanks(2)
    yield ranks
    ranks.close()


def rollouts() -> list[list[Rollout]]:
    rng = np.random.default_rng(3)
    batch = [
        make_rollout(rng, i, DOMAINS[i % len(DOMAINS)], prompt=3, completion=int(rng.integers(1, 20)))
        for i in range(13)
    ]
    return [batch[:5], batch[5:6], batch[6:]]


def pool_of(model: str, learner: Any, payload: PayloadName, conditions: Conditions = CONDITIONS) -> TeacherPool:
    spec = TeacherSpec(Checkpoint(model, "cpu", "float32"), conditions, 0.0, 1)
    return TeacherPool(
        {"anchor": spec},
        routes={domain: {"anchor": 1.0} for domain in DOMAINS},
        payload=payload,
        faults=FaultRecipe(),
        say=print,
        on_student=["anchor"],
        student=learner.weights,
    )


@pytest.mark.parametrize(("zero_stage", "packing"), [(2, False), (3, False), (3, True)])
def test_ranks_score_as_the_checkpoint_while_the_adapter_moves(
    tmp_path: Path, two: ProcessRanks, zero_stage: int, packing: bool
) -> None:
    model = make_model(tmp_path, "qwen3")
    spec = make_spec(
        model, tmp_path / "run", lora=LoRA(rank=2), optimizer=SGD,
        engine=engine_of(2, zero_stage=zero_stage, packing=packing),
        loss=FullReverseKL(estimator="full_reverse_kl"),
    )  # fmt: skip
    learner = student(two.start(spec), spec)
    pool = pool_of(model, learner, "full", replace(CONDITIONS, packing=packing))
    assert pool.wait_until_ready() == {"anchor": 64}
    expected = TeacherModel(model, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=96)
    began = dict(learner.weights().adapter_state())
    for step in range(2):
        scored = pool.score(iter(rollouts()))
        assert [s.rollout.index for s in scored] == list(range(13))
        alone = expected.score([s.rollout.token_ids for s in scored], "full")
        for one, payload in zip(scored, alone, strict=True):
            (weight, score), other = one.scores[0], payload.at(one.rollout.loss_mask)
            assert weight == 1.0
            assert isinstance(score.payload, Full)
            assert isinstance(other, Full)
            assert np.abs(score.payload.logprobs_TV - other.logprobs_TV).max() < 1e-5
        if step == 0:
            metrics = learner.update(scored, step=0)
            assert all(abs(metrics[f"kl/{domain}"]) < 1e-6 for domain in DOMAINS)
            learner.update(make_batch(seed=7), step=1)  # of random teachers: away from the base
    now = dict(learner.weights().adapter_state())
    assert any(not torch.equal(now[name], tensor) for name, tensor in began.items())
    moved = learner.update(pool.score(iter(rollouts())), step=2)
    assert all(moved[f"kl/{domain}"] > 1e-4 for domain in DOMAINS)
    assert pool.metrics()["teacher_retries/anchor"] == 0
    assert pool.metrics()["seconds/teacher/anchor"] == 0
    trial = pool.dry_run("anchor", rollouts()[0])
    assert len(trial.answers) == 4  # twice of each rank
    assert trial.reference is not None
    largest = np.abs(trial.reference - trial.answers[0][0])[1:].max()  # not per token: the first is predicted by none
    assert largest < 1e-4
    pool.close()


def test_hidden_states_of_the_base(tmp_path: Path, two: ProcessRanks) -> None:
    model = make_model(tmp_path, "qwen3")
    spec = make_spec(model, tmp_path / "run", lora=LoRA(rank=2), engine=engine_of(2))
    learner = student(two.start(spec), spec)
    learner.update(make_batch(seed=7), step=0)
    pool = pool_of(model, learner, "hidden")
    pool.wait_until_ready()
    expected = TeacherModel(model, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=96)
    scored = pool.score(iter(rollouts()))
    alone = expected.score([s.rollout.token_ids for s in scored], "hidden")
    for one, payload in zip(scored, alone, strict=True):
        hidden = one.scores[0][1].payload
        assert isinstance(hidden, Hidden)
        assert isinstance(payload, Hidden)
        assert hidden.head == payload.head
        assert np.abs(hidden.hidden_TH - payload.hidden_TH[one.rollout.loss_mask]).max() < 1e-5
