"""The student's engine: the same training as plain torch, on one rank, on several, and with experts spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inline_ranks import InlineRanks
from student_kit import (
    ADAMW,
    DENSE,
    DOMAINS,
    FAMILIES,
    SGD,
    SHARES,
    VOCABULARY,
    ProcessRanks,
    engine_of,
    furthest,
    make_batch,
    make_model,
    make_spec,
    student,
    train,
)
from transformers import AutoModelForCausalLM

from mopd.distill.recipe import NegativeLogLikelihood, Optimizer, PolicyGradient
from mopd.distill.student import engine
from mopd.distill.types import Full, Sampled, ScoredRollout, TeacherScore, align_logits


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
        assert metrics[k]["loss"] == pytest.approx(loss.item(), abs=1e-6)
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


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mimo_v2_flash"])
def test_other_families(models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, family: str) -> None:
    spec = make_spec(make_model(models, family), tmp_path / "1", optimizer=SGD)
    reference, first = train(one, spec, steps=2)
    for expert_parallel in (1,) if family in DENSE else (1, 2):
        settings = engine_of(2, expert_parallel=expert_parallel)
        weights, metrics = train(two, replace(spec, engine=settings, run_dir=str(tmp_path / "2")), steps=2)
        assert furthest(weights, reference) < 1e-6
        assert metrics[-1] == pytest.approx(first[-1], rel=1e-4, abs=1e-5)
    assert ("router/max_load" in first[-1]) == (family not in DENSE)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "expert_parallel": 2},
        {"zero_stage": 3},
        {"zero_stage": 3, "expert_parallel": 2},
        {"gradient_checkpointing": True, "expert_parallel": 2},
        {"microbatch_tokens": 24},
        {"packing": True, "microbatch_tokens": 40},
        {"packing": True, "zero_stage": 3, "expert_parallel": 2, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_every_way_to_spread_trains_alike(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, changes: dict[str, Any]
) -> None:
    spec = make_spec(make_model(models), tmp_path / "1", optimizer=SGD)
    reference, first = train(one, spec, steps=2)
    weights, metrics = train(two, replace(spec, engine=engine_of(2, **changes), run_dir=str(tmp_path / "2")), steps=2)
    assert furthest(weights, reference) < 1e-6
    assert metrics[-1] == pytest.approx(first[-1], rel=1e-4, abs=1e-5)


def test_other_losses_and_several_updates(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    """Two updates of a batch take two optimizer steps; one rank with one microbatch less runs a dummy."""
    spec = make_spec(
        make_model(models),
        tmp_path,
        loss=PolicyGradient(estimator="policy_gradient", reward_weight=0.5, gate=(1e-9, 1e9)),
        engine=engine_of(2, expert_parallel=2, microbatch_tokens=16),
    )
    batch = [sampled(scored, reward=float(i % 4 == 0)) for i, scored in enumerate(make_batch(per_domain=3))]
    metrics = student(two.start(spec), spec, updates=3).update(batch, step=0)
    assert metrics["lr"] == pytest.approx((0.5 + 1 + 1) / 3 * 1e-2, rel=0.02)
    assert {f"gate_dropped/{d}" for d in DOMAINS} <= metrics.keys()
    spec = replace(spec, loss=NegativeLogLikelihood(estimator="nll"))
    learner = student(two.start(spec), spec)
    losses = [learner.update(batch, step=step)["loss"] for step in range(8)]
    assert losses[0] == pytest.approx(np.log(VOCABULARY), rel=0.05)
    assert losses[-1] < losses[0] - 0.3


def sampled(scored: ScoredRollout, *, reward: float) -> ScoredRollout:
    payload = Sampled(np.full(len(scored.rollout.token_ids), -4.0, dtype=np.float32))
    return ScoredRollout(replace(scored.rollout, group=0), scores=((1.0, TeacherScore("t", payload)),), reward=reward)


def generate(module: Any, ids: list[list[int]]) -> list[list[int]]:
    module.eval()
    with torch.no_grad():
        return module.generate(torch.tensor(ids), max_new_tokens=6, do_sample=False).tolist()


@pytest.mark.parametrize("settings", [{"expert_parallel": 2}, {"zero_stage": 3}], ids=str)
def test_generation_through_the_door(models: Path, tmp_path: Path, two: ProcessRanks, settings: dict[str, Any]) -> None:
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, **settings))
    weights = student(two.start(spec), spec).weights()
    prompts = [[2, 3, 4], [9, 8, 7]]
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    assert weights.on_ranks(generate, [([p],) for p in prompts]) == [generate(model, [p]) for p in prompts]


def test_inline_rank(models: Path, tmp_path: Path, one: ProcessRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(make_model(models), tmp_path)
    for name, value in engine.environment(0, 1, address="127.0.0.1", port=1, device="cpu").items():
        monkeypatch.setenv(name, value)  # the inline rank sets them too; here they are taken back
    ranks = InlineRanks(spec)
    metrics = student(ranks, spec).update(make_batch(seed=7), step=0)
    ranks.close()
    assert metrics == train(one, spec, steps=1)[1][0]


def test_an_odd_parameter_moves_no_expert_off_its_address() -> None:
    """A GPU's grouped product takes experts that begin at units of 16 bytes; ZeRO lays parameters end to end."""
    odd = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    even = [torch.nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for size in (8, 24, 16)]
    begins, offset = {}, 0
    for parameter in engine.aligned([even[0], odd, *even[1:]]):
        begins[id(parameter)] = offset
        offset += parameter.numel() * parameter.element_size()
    assert [begins[id(parameter)] for parameter in even] == [0, 16, 64]
