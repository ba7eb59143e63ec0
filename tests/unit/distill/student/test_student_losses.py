"""Every estimator through the engine, under a temperature: one step of SGD is that of plain torch."""

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
from torch import Tensor
from transformers import AutoModelForCausalLM

from mopd.distill.loss.registry import LOSSES
from mopd.distill.recipe import ESTIMATORS, StaleRecipe
from mopd.distill.types import Float32, Full, PayloadName, Sampled, ScoredRollout, TeacherScore, TopK, align_logits
from mopd.teachers.retokenized import as_chunks

SETTINGS: dict[str, dict[str, Any]] = {
    "full_reverse_kl": {},
    "weighted_reverse_kl": {"by": "entropy", "power": 0.5},
    "forward_kl": {},
    "jsd": {"beta": 0.3},
    "skewed_kl": {"skew": 0.2},
    "topk_reverse_kl": {"k": 5},
    "chunked_reverse_kl": {"k": 5},
    "policy_gradient": {"advantage_clip": 2.0, "gate": (1e-9, 1e9)},
    "k2": {"advantage_clip": 1e9, "gate": (1e-9, 1e9)},
}


def two_teachers() -> list[ScoredRollout]:
    """Domain math has two teachers, the others one."""
    other = make_batch(seed=8)
    batch = []
    for scored, second in zip(make_batch(seed=7), other, strict=True):
        ((_, first_score),), ((_, second_score),) = scored.scores, second.scores
        n = len(scored.rollout.token_ids)
        assert isinstance(second_score.payload, Full)
        rows = np.resize(second_score.payload.logprobs_TV, (n, second_score.payload.logprobs_TV.shape[1]))
        both = ((0.25, first_score), (0.75, TeacherScore("second", Full(rows))))
        batch.append(replace(scored, scores=both) if scored.rollout.domain == "math" else scored)
    return batch


def shipped(scored: ScoredRollout, payload: PayloadName | None) -> ScoredRollout:
    """The same rollout, its teachers' whole distributions cut down to what the estimator asks for."""
    ids = scored.rollout.token_ids

    def cut(score: TeacherScore) -> TeacherScore:
        full_TV = whole(score)
        if payload in ("topk", "chunked"):
            likely = np.argsort(-full_TV, axis=-1)[:, :5].astype(np.int32)
            kept = np.take_along_axis(full_TV, likely, -1)
            rest = np.log(1 - np.exp(kept.astype(np.float64)).sum(-1)).astype(np.float32)
            topk = TopK(likely, kept, rest, full_TV[np.arange(len(ids)), ids])
            return replace(
                score, payload=topk if payload == "topk" else as_chunks(topk, np.resize(topk.ids_TK[:, 0], len(ids)))
            )
        return score if payload == "full" else replace(score, payload=Sampled(full_TV[np.arange(len(ids)), ids]))

    return replace(scored, scores=tuple((w, cut(score)) for w, score in scored.scores))


def whole(score: TeacherScore) -> Float32:
    assert isinstance(score.payload, Full)
    return score.payload.logprobs_TV


def reference(name: str, logp_TV: Tensor, logq_TV: Tensor, ids_T: Tensor, sampler_T: Tensor) -> Tensor:
    """One teacher's loss of each token, from the definitions, with autograd; nothing is detached but what must be."""
    p_TV, q_TV = logp_TV.exp(), logq_TV.exp()
    if name in ("full_reverse_kl", "weighted_reverse_kl"):
        return (p_TV * (logp_TV - logq_TV)).sum(-1)
    if name == "forward_kl":
        return (q_TV * (logq_TV - logp_TV)).sum(-1)
    if name == "jsd":
        m_TV = 0.3 * q_TV + 0.7 * p_TV
        return 0.3 * (q_TV * (q_TV / m_TV).log()).sum(-1) + 0.7 * (p_TV * (p_TV / m_TV).log()).sum(-1)
    if name == "skewed_kl":
        return (p_TV * (p_TV / (0.2 * p_TV + 0.8 * q_TV)).log()).sum(-1)
    if name in ("topk_reverse_kl", "chunked_reverse_kl"):  # every token is a chunk, all of which is compared
        likely_TV = q_TV >= q_TV.topk(5).values.amin(-1, keepdim=True)
        return ((p_TV * (logp_TV - logq_TV) - p_TV + q_TV) * likely_TV).sum(-1)
    logp_T, logq_T = (x.gather(-1, ids_T[:, None])[:, 0] for x in (logp_TV, logq_TV))
    weight_T = (logp_T - sampler_T).detach().exp()
    gap_T = logq_T - logp_T
    return weight_T * gap_T**2 / 2 if name == "k2" else -weight_T * gap_T.detach().clamp(-2, 2) * logp_T


def plain_step(name: str, model: Any, batch: list[ScoredRollout]) -> float:
    """One step of SGD on a loop over rollouts and teachers; returns the loss before it."""
    tokens = {d: sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d) for d in DOMAINS}
    loss = torch.zeros((), dtype=torch.float64)
    for scored in batch:
        rollout = scored.rollout
        ids_T, mask_T = torch.from_numpy(rollout.token_ids).long(), torch.from_numpy(rollout.loss_mask)
        logits_TV = align_logits(model(ids_T[None]).logits)[0].double() / TEMPERATURE
        weight = SHARES[rollout.domain] / sum(SHARES.values()) / tokens[rollout.domain]
        teachers = [(w, torch.from_numpy(whole(score)).double()) for w, score in scored.scores]
        if LOSSES[name].payload == "sampled":  # the clip is on the combined gap, so these meet the teachers' mean
            mean_TV = teachers[0][0] * teachers[0][1]
            for w, logq_TV in teachers[1:]:
                mean_TV = mean_TV + w * logq_TV
            teachers = [(1.0, mean_TV)]
        sampler_T = torch.from_numpy(rollout.sampler_logprobs)
        for w, logq_TV in teachers:
            loss_T = reference(name, logits_TV.log_softmax(-1), logq_TV, ids_T, sampler_T)
            if name == "weighted_reverse_kl":
                root_T = torch.special.entr(logits_TV.detach().softmax(-1)).sum(-1).sqrt()
                loss_T = loss_T * root_T / root_T[mask_T].mean()
            loss = loss + weight * w * loss_T[mask_T].sum()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= STEP.lr * parameter.grad
    return loss.item()


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.payload is not None])
def test_an_update_is_plain_torch_whatever_the_estimator(
    models: Path, tmp_path: Path, one: ProcessRanks, name: str
) -> None:
    settings: Any = ESTIMATORS[name].model_validate({"estimator": name, **SETTINGS[name]})
    spec = make_spec(make_model(models, "llama"), tmp_path, loss=settings, temperature=TEMPERATURE, optimizer=STEP)
    learner = student(one.start(spec), spec)
    batch = two_teachers()
    metrics = learner.update([shipped(scored, LOSSES[name].payload) for scored in batch], step=0)
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss = plain_step(name, model, batch)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    after = dict(learner.weights().state_dict())
    assert furthest(after, dict(model.state_dict())) < 1e-6
    assert furthest(after, before) > 1e-3


def test_an_update_leaves_out_what_is_stale_and_weighs_the_rest_as_before(
    models: Path, tmp_path: Path, one: ProcessRanks
) -> None:
    """Updates of SGD add up: what is left out, and what is left in, together move the weights as all does."""
    rule = StaleRecipe(ratio=(1e-6, 1e6))

    def change(stale: StaleRecipe | None, shift: float, places: slice) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What an update changes where the sampler's log-probabilities of some rollouts are ``shift`` nats off."""
        spec = make_spec(make_model(models, "llama"), tmp_path, optimizer=STEP, stale=stale)
        learner = student(one.start(spec), spec)
        before = {name: weight.clone() for name, weight in learner.weights().state_dict().items()}
        batch = make_batch(seed=7)
        for i in range(len(batch))[places]:
            rollout = batch[i].rollout
            batch[i] = replace(batch[i], rollout=replace(rollout, sampler_logprobs=rollout.sampler_logprobs + shift))
        metrics = learner.update(batch, step=0)
        return {name: weight - before[name] for name, weight in learner.weights().state_dict().items()}, metrics

    some, others = slice(0, 4), slice(4, None)
    whole, _ = change(None, 40.0, some)
    kept, metrics = change(rule, 40.0, some)
    tokens = [(i < 4, s.rollout.domain, s.rollout.trained_tokens) for i, s in enumerate(make_batch(seed=7))]
    for domain in DOMAINS:
        of_domain = [(stale, n) for stale, name, n in tokens if name == domain]
        part = sum(n for stale, n in of_domain if stale) / sum(n for _, n in of_domain)
        assert metrics[f"stale/{domain}"] == pytest.approx(part)
    assert furthest(change(rule, -40.0, some)[0], kept) == 0, "by the upper bound"
    rest, _ = change(rule, 40.0, others)
    assert furthest({name: kept[name] + rest[name] for name in whole}, whole) < 1e-6
    assert furthest(kept, whole) > 1e-4
