"""Teachers, rewards and references together through the engine: two updates of a step are two of plain torch.

Advantages and ratios are taken with the weights of each update, reward groups over the whole step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import (
    DOMAINS,
    SHARES,
    STEP,
    TEMPERATURE,
    ProcessRanks,
    furthest,
    make_batch,
    make_model,
    make_spec,
    student,
)
from transformers import AutoModelForCausalLM

from mopd.distill.recipe import K2, PolicyGradient
from mopd.distill.types import Full, Sampled, ScoredRollout, TeacherScore, align_logits

GATE, CLIP, ALPHA = (0.8, 1.25), 1.0, 0.5
MIXED = PolicyGradient(estimator="policy_gradient", gate=GATE, advantage_clip=CLIP, reward_weight=ALPHA)
TAUGHT = MIXED.model_copy(update={"reward_weight": 0.0})
BEYOND = K2(estimator="k2", gate=GATE, advantage_clip=CLIP, extrapolation=1.25, reference="anchor")


def policy(model: Any, ids_T: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token under the temperature, ``(T,)``."""
    logp_TV = (align_logits(model(ids_T[None]).logits)[0].double() / TEMPERATURE).log_softmax(-1)
    return logp_TV.gather(-1, ids_T[:, None])[:, 0]


def make_mixture(model: Any, *, teachers: str) -> list[ScoredRollout]:
    """Pairs of rollouts are a group. The sampler is near the policy; ``teachers``: one, none, or mixed by domain."""
    rng, batch = np.random.default_rng(5), []
    for scored in make_batch(seed=7):
        rollout, ids = scored.rollout, scored.rollout.token_ids
        with torch.no_grad():
            logp_T = policy(model, torch.from_numpy(ids).long()).numpy()
        sampler = (logp_T + rng.normal(0, 0.15, len(ids))).astype(np.float32)
        group = rollout.index % 3 + 3 * (rollout.index // 6)
        rollout = replace(rollout, sampler_logprobs=sampler, group=group)
        ((_, score),) = scored.scores
        assert isinstance(score.payload, Full)
        said = [score.payload.logprobs_TV[np.arange(len(ids)), ids], rng.normal(-3, 1, len(ids)).astype(np.float32)]
        first, second = (TeacherScore(f"t{k}", Sampled(logprobs)) for k, logprobs in enumerate(said))
        anchor = TeacherScore("anchor", Sampled((logp_T - 0.3 * rng.normal(size=len(ids))).astype(np.float32)))
        scores: tuple[tuple[float, TeacherScore], ...] = ((0.0, anchor), (0.25, first), (0.75, second))
        if teachers == "none" or (teachers == "mixed" and rollout.domain == "code"):
            scores = ()
        batch.append(ScoredRollout(rollout, scores, reward=float(rng.random() < 0.5)))
    return batch


def reward_advantages(batch: list[ScoredRollout]) -> dict[int, float]:
    found = {}
    for scored in batch:
        own = [s.reward or 0.0 for s in batch if s.rollout.group == scored.rollout.group]
        mean = sum(own) / len(own)
        std = (sum((r - mean) ** 2 for r in own) / len(own)) ** 0.5
        found[scored.rollout.index] = ((scored.reward or 0.0) - mean) / (std + 1e-4)
    return found


def plain(model: Any, batch: list[ScoredRollout], loss: Any, *, stale: bool = False) -> list[float]:
    """Two steps of SGD; ``stale``: with the advantages and ratios of the first weights. Returns the losses."""
    rewards = reward_advantages(batch)
    with torch.no_grad():
        before = {s.rollout.index: policy(model, torch.from_numpy(s.rollout.token_ids).long()) for s in batch}
    losses = []
    for u in range(2):
        part = [s for d in DOMAINS for s in [s for s in batch if s.rollout.domain == d][u::2]]
        total = torch.zeros((), dtype=torch.float64)
        for scored in part:
            rollout = scored.rollout
            logp_T = policy(model, torch.from_numpy(rollout.token_ids).long())
            then_T = before[rollout.index] if stale else logp_T.detach()
            ratio_T = (then_T - torch.from_numpy(rollout.sampler_logprobs)).exp()
            weight_T = torch.where((ratio_T >= GATE[0]) & (ratio_T <= GATE[1]), ratio_T, 0.0)
            advantage_T = torch.zeros_like(then_T)
            if scored.scores:
                said = {s.teacher: torch.from_numpy(s.payload.logprobs_T).double() for _, s in scored.scores}  # type: ignore[union-attr]
                teacher_T = 0.25 * said["t0"] + 0.75 * said["t1"]
                further_T = (loss.extrapolation - 1) * (teacher_T - said["anchor"])
                advantage_T = (teacher_T - then_T + further_T).clamp(-CLIP, CLIP)
            if getattr(loss, "reward_weight", 0):
                advantage_T = advantage_T + ALPHA * rewards[rollout.index]
            tokens = sum(s.rollout.trained_tokens for s in part if s.rollout.domain == rollout.domain)
            share = SHARES[rollout.domain] / sum(SHARES.values()) / tokens
            loss_T = -weight_T * advantage_T * logp_T  # the gradient of k2, too, is this one's
            total = total + share * loss_T[torch.from_numpy(rollout.loss_mask)].sum()
        total.backward()
        losses.append(total.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= STEP.lr * parameter.grad
                parameter.grad = None
    return losses


@pytest.mark.parametrize(
    ("loss", "teachers"),
    [(TAUGHT, "one"), (MIXED, "one"), (MIXED, "mixed"), (MIXED, "none"), (BEYOND, "one")],
    ids=["teachers", "teachers and reward", "a domain by reward alone", "reward alone", "k2 beyond the teachers"],
)
def test_two_updates_are_two_steps_of_plain_torch_with_fresh_advantages(
    models: Path, tmp_path: Path, one: ProcessRanks, loss: Any, teachers: str
) -> None:
    spec = make_spec(make_model(models, "llama"), tmp_path, loss=loss, temperature=TEMPERATURE, optimizer=STEP)
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    batch = make_mixture(model, teachers=teachers)
    learner = student(one.start(spec), spec, updates=2)
    metrics = learner.update(batch, step=0)
    losses = plain(model, batch, loss)
    after = dict(learner.weights().state_dict())
    assert furthest(after, dict(model.state_dict())) < 1e-6
    if loss is not BEYOND:
        assert metrics["loss"] == pytest.approx(sum(losses) / 2, abs=1e-6)
    assert any(0 < metrics[f"gate_dropped/{d}"] < 1 for d in DOMAINS), "the gate has work to do"
    assert any(0 < metrics[f"clipped/{d}"] < 1 for d in DOMAINS) == (teachers != "none")
    other = AutoModelForCausalLM.from_pretrained(spec.model)
    plain(other, batch, loss, stale=True)
    assert furthest(after, dict(other.state_dict())) > 1e-5, "advantages and ratios of old weights would show"


def test_without_weight_rewards_leave_pure_distillation_bit_by_bit(
    models: Path, tmp_path: Path, one: ProcessRanks
) -> None:
    spec = make_spec(make_model(models, "llama"), tmp_path, loss=TAUGHT, temperature=TEMPERATURE, optimizer=STEP)
    batch = make_mixture(AutoModelForCausalLM.from_pretrained(spec.model), teachers="one")
    found = []
    for rewarded in (True, False):
        learner = student(one.start(spec), spec, updates=2)
        learner.update([s if rewarded else replace(s, reward=None) for s in batch], step=0)
        found.append(dict(learner.weights().state_dict()))
    assert furthest(*found) == 0.0
