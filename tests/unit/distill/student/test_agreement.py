"""Sampler, training engine and teacher give the same log-probability to the same token under the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from student_kit import (
    DOMAINS,
    VOCABULARY,
    ProcessRanks,
    engine_of,
    make_batch,
    make_model,
    make_spec,
    student,
)

from mopd.distill.types import Prompt, ScoredRollout, TeacherScore
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import StudentSampler
from mopd.rollouts.tokenizer import build_tokenizer
from mopd.teachers.kinds.checkpoint import TeacherModel

DECODING = Decoding(
    max_new_tokens=14, temperature=0.7, greedy=False, seed=5, step=0, end_token_ids=(1,), pad_token_id=0
)


def prompts(n: int) -> list[Prompt]:
    """Prompts of unequal lengths, longer and shorter than the sliding window."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(n):
        ids = tuple(rng.integers(2, VOCABULARY, int(rng.integers(1, 12))).tolist())
        found.append(Prompt(DOMAINS[i % len(DOMAINS)], f"{DOMAINS[i % len(DOMAINS)]}/{i}", ids, "question", "answer"))
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"expert_parallel": 2}, {"zero_stage": 3}], ids=["zero2", "expert_parallel", "zero3"]
)
def test_three_ways_to_one_logprob(tmp_path: Path, two: ProcessRanks, settings: dict[str, Any]) -> None:
    """After an update, so that it is the live weights that are asked, and not the file that they came from."""
    model = make_model(tmp_path)
    build_tokenizer([], vocabulary=VOCABULARY).save_pretrained(model)
    spec = make_spec(model, tmp_path, temperature=DECODING.temperature, engine=engine_of(2, **settings))
    learner = student(two.start(spec), spec)
    learner.update(make_batch(), step=0)
    sampler = StudentSampler(replace(DECODING, lockstep=bool(settings)), samples_per_prompt=1, batch_size=4)
    sampler.load_weights(learner.weights(), version=1)
    rollouts = [rollout for microbatch in sampler.sample(prompts(12), step=1) for rollout in microbatch]
    assert len(rollouts) == 12

    learner.export(str(tmp_path / "student"))
    teacher = TeacherModel(
        tmp_path / "student", device="cpu", dtype="float32", temperature=DECODING.temperature, microbatch_tokens=64
    )
    payloads = teacher.score([rollout.token_ids for rollout in rollouts], "full")
    sampled = teacher.score([rollout.token_ids for rollout in rollouts], "sampled")
    for rollout, full, one in zip(rollouts, payloads, sampled, strict=True):
        mask = rollout.loss_mask
        drawn = np.take_along_axis(full.logprobs_TV, rollout.token_ids[:, None].astype(np.int64), 1)[:, 0]
        np.testing.assert_allclose(rollout.sampler_logprobs[mask], drawn[mask], rtol=0, atol=2e-5)
        np.testing.assert_array_equal(one.logprobs_T, drawn)

    # The engine's own forward: the ratio of policy to sampler is 1, and the divergence from the teacher 0.
    batch = [
        ScoredRollout(rollout, ((1.0, TeacherScore("itself", payload)),))
        for rollout, payload in zip(rollouts, payloads, strict=True)
    ]
    metrics = learner.update(batch, step=1)
    for domain in DOMAINS:
        assert metrics[f"ratio/{domain}"] == pytest.approx(1.0, abs=2e-5)
        assert abs(metrics[f"kl/{domain}"]) < 1e-6
    assert metrics["grad_norm"] < 1e-5
