"""What the student measures of an update, and what it does about the load of its experts; oracles are loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from student_kit import DOMAINS, SGD, SHARES, ProcessRanks, engine_of, make_batch, make_model, make_spec, student, train
from transformers import AutoModelForCausalLM

from mopd.distill.recipe import PolicyGradient
from mopd.distill.types import Full, Sampled, ScoredRollout, TeacherScore, align_logits


def test_shares_by_loops(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    spec = make_spec(make_model(models), tmp_path, temperature=0.7)
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    batch = make_batch(seed=7)
    tokens, advantages, gradients = (dict.fromkeys(DOMAINS, 0.0) for _ in range(3))
    for scored in batch:
        rollout, d = scored.rollout, scored.rollout.domain
        ids = torch.from_numpy(rollout.token_ids).long()
        with torch.no_grad():
            logp_TV = (align_logits(model(ids[None]).logits)[0] / 0.7).log_softmax(-1)
        payload = scored.scores[0][1].payload
        assert isinstance(payload, Full)
        for t in np.flatnonzero(rollout.loss_mask):
            z = logp_TV[t].clone().requires_grad_()
            p, q = z.log_softmax(-1), torch.from_numpy(payload.logprobs_TV[t])
            kl = (p.exp() * (p - q)).sum()
            kl.backward()
            assert z.grad is not None
            tokens[d] += 1
            advantages[d] += abs(float((q - p.detach())[ids[t]]))
            gradients[d] += (
                float(z.grad.norm()) * SHARES[d] / sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d)
            )
    metrics = student(one.start(spec), spec).update(batch, step=0)
    for name, sums in {"token_share": tokens, "advantage_share": advantages, "gradient_share": gradients}.items():
        for d in DOMAINS:
            assert metrics[f"{name}/{d}"] == pytest.approx(sums[d] / sum(sums.values()), rel=1e-4), (name, d)


def test_expert_bias_follows_the_load(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """Counts by a loop over unpadded sequences; the bias moves by the rate towards the experts below the mean."""
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(1, expert_bias_rate=0.01))
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    batch = make_batch(seed=7)
    chosen: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: chosen.setdefault(name, []).extend(out[2].flatten().tolist())
            )
    for scored in batch:
        model(torch.from_numpy(scored.rollout.token_ids).long()[None])
    weights, metrics = train(one, spec, steps=1)
    tokens = sum(len(scored.rollout.token_ids) for scored in batch)
    loads = []
    assert len(chosen) == 2
    for name, experts in chosen.items():
        assert len(experts) == 2 * tokens
        mean = len(experts) / 4
        for e in range(4):
            bias = model.get_buffer(f"{name}.e_score_correction_bias")[e]
            expected = float(bias) + 0.01 * float(np.sign(mean - experts.count(e)))
            assert float(weights[f"{name}.e_score_correction_bias"][e]) == pytest.approx(expected, abs=1e-7)
            loads.append(experts.count(e) / mean)
    assert metrics[0]["router/max_load"] == pytest.approx(max(loads))
    assert metrics[0]["router/min_load"] == pytest.approx(min(loads))
    assert metrics[0]["router/dead_experts"] == loads.count(0.0)


def test_bfloat16_keeps_small_steps_of_the_bias(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    settings = engine_of(2, dtype="bfloat16", expert_parallel=2, expert_bias_rate=1e-5)
    spec = make_spec(make_model(models), tmp_path, engine=settings, optimizer=SGD)
    weights, _ = train(two, spec, steps=1)
    before = AutoModelForCausalLM.from_pretrained(spec.model).state_dict()
    biases = [name for name in weights if "e_score_correction_bias" in name]
    assert len(biases) == 2
    for name in biases:
        moved = (weights[name] - before[name]).abs()
        assert weights[name].dtype == torch.float32
        assert moved.max() == pytest.approx(1e-5, rel=0.01)


def test_bfloat16_gradients_do_not_depend_on_the_packing(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """Summed in float32 over a hundred microbatches: each is rounded once, and their sum is not."""
    norms = {}
    for microbatch_tokens in (16, 4096):
        settings = engine_of(1, dtype="bfloat16", microbatch_tokens=microbatch_tokens)
        folder = tmp_path / str(microbatch_tokens)
        spec = make_spec(make_model(models), folder, engine=settings, optimizer=SGD)
        learner = student(one.start(spec), spec)
        norms[microbatch_tokens] = learner.update(make_batch(per_domain=60, seed=7), step=0)["grad_norm"]
    assert norms[16] == pytest.approx(norms[4096], rel=3e-3)


def test_divergence_is_reported_only_where_a_teacher_graded(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """A domain that only its reward teaches has no divergence; 0 would say that it agrees with somebody."""
    loss = PolicyGradient(estimator="policy_gradient", reward_weight=1.0)
    spec = make_spec(make_model(models), tmp_path, loss=loss)
    batch = []
    for i, scored in enumerate(make_batch()):
        rollout = replace(scored.rollout, group=0)
        payload = Sampled(np.full(len(rollout.token_ids), -4.0, dtype=np.float32))
        scores = () if rollout.domain == "code" else ((1.0, TeacherScore("t", payload)),)
        batch.append(ScoredRollout(rollout, scores, reward=float(i % 2)))
    metrics = student(one.start(spec), spec).update(batch, step=0)
    assert {name for name in metrics if name.startswith("kl/")} == {"kl/math", "kl/reasoning"}
    assert {f"entropy/{d}" for d in DOMAINS} <= metrics.keys()
