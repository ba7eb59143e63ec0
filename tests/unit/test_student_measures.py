"""What the student measures of an update, and what it does about the load of its experts; oracles are loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from student_kit import DOMAINS, SGD, SHARES, ProcessRanks, engine_of, make_batch, make_model, make_spec, student, train
from transformers import AutoModelForCausalLM

from distill.types import Full, align_logits


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
