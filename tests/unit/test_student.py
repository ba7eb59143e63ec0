"""The student's engine: the same training on one rank and on several, exact resume, and nothing moved by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import (
    DOMAINS,
    FAMILIES,
    VOCABULARY,
    ProcessRanks,
    make_batch,
    make_model,
    make_spec,
)
from transformers import AutoModelForCausalLM

from distill import checkpoint
from distill.rank import StudentSpec
from distill.recipe import Engine, NegativeLogLikelihood, Optimizer, PolicyGradient
from distill.student import DeepSpeedStudent, Ranks
from distill.types import Full, NonFinite, Sampled, ScoredRollout, TeacherScore, UserError, WorldError, align_logits

SGD = Optimizer(name="sgd", lr=0.5, warmup_steps=2, clip=0.05)
ADAMW = Optimizer(name="adamw", lr=1e-2, warmup_steps=2, clip=0.05)
SHARES = {"code": 1.0, "math": 2.0, "reasoning": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def one() -> Iterator[ProcessRanks]:
    ranks = ProcessRanks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two() -> Iterator[ProcessRanks]:
    ranks = ProcessRanks(2)
    yield ranks
    ranks.close()


def student(ranks: Ranks, spec: StudentSpec, *, updates: int = 1, shares: dict[str, float] = SHARES) -> Any:
    return DeepSpeedStudent(ranks, spec, shares=shares, updates_per_step=updates)


def engine_of(ranks: int, **changes: Any) -> Engine:
    return Engine(**{"ranks": ranks, "microbatch_tokens": 96, "expert_bias_rate": 1e-3, **changes})


def train(
    ranks: ProcessRanks, spec: StudentSpec, steps: int = 5
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    learner = student(ranks.start(spec), spec)
    metrics = [learner.update(make_batch(seed=7), step=step) for step in range(steps)]
    return dict(learner.weights().state_dict()), metrics


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_update_is_plain_torch(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """One rank against a loop over rollouts with autograd's own KL, torch's clip and torch's SGD."""
    model_path = make_model(models, "mimo_v2_flash")
    spec = make_spec(model_path, tmp_path, optimizer=SGD, engine=engine_of(1, expert_bias_rate=0))
    engine_weights, metrics = train(one, spec, steps=2)
    model = AutoModelForCausalLM.from_pretrained(model_path)
    batch = make_batch(seed=7)
    tokens = {d: sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d) for d in DOMAINS}
    for k, lr in enumerate([0.25, 0.5]):  # warm-up of two steps
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        loss = torch.zeros((), dtype=torch.float64)
        for scored in batch:
            rollout = scored.rollout
            logits = align_logits(model(torch.from_numpy(rollout.token_ids).long()[None]).logits)[0]
            logp = logits.double().log_softmax(-1)
            payload = scored.scores[0][1].payload
            assert isinstance(payload, Full)
            kl_T = (logp.exp() * (logp - torch.from_numpy(payload.logprobs_TV).double())).sum(-1)
            weight = SHARES[rollout.domain] / sum(SHARES.values()) / tokens[rollout.domain]
            loss = loss + weight * kl_T[torch.from_numpy(rollout.loss_mask)].sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), SGD.clip)
        optimizer.step()
        assert metrics[k]["loss"] == pytest.approx(float(loss), abs=1e-6)
        assert metrics[k]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        assert metrics[k]["grad_norm"] > SGD.clip  # the clip is at work
        assert metrics[k]["lr"] == lr
    assert furthest(engine_weights, dict(model.state_dict())) < 1e-6


@pytest.mark.parametrize(("optimizer", "tolerance"), [(SGD, 1e-6), (ADAMW, 1e-5)], ids=["sgd", "adamw"])
def test_ranks_and_expert_parallel_train_alike(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, optimizer: Optimizer, tolerance: float
) -> None:
    spec = make_spec(make_model(models), tmp_path / "1", optimizer=optimizer)
    reference, first = train(one, spec)
    start = AutoModelForCausalLM.from_pretrained(spec.model).state_dict()
    assert furthest(reference, dict(start)) > 1e-3
    for expert_parallel in (1, 2):
        other = make_spec(
            spec.model,
            tmp_path / f"2-{expert_parallel}",
            optimizer=optimizer,
            engine=engine_of(2, expert_parallel=expert_parallel),
        )
        weights, metrics = train(two, other)
        assert furthest(weights, reference) < tolerance
        for ours, theirs in zip(metrics, first, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
