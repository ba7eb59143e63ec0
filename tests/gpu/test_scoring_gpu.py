"""Sampling and scoring on a GPU in bfloat16, beside the same weights on the CPU in float32. No Ray, no W&B."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "unit"))

from student_kit import VOCABULARY, make_model

from mopd.distill.models.load import load_model
from mopd.distill.types import Prompt, Rollout
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.teachers.kinds.checkpoint import TeacherModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # nats; bfloat16 has 8 bits, and the logits are of size 1


def sample(path: str, dtype: str, *, greedy: bool = False) -> list[Rollout]:
    """Rollouts of a model on the GPU."""
    rng = np.random.default_rng(0)
    prompts = [
        Prompt("math", f"math/{i}", tuple(rng.integers(2, VOCABULARY, 2 + i).tolist()), "question", "answer")
        for i in range(12)
    ]
    decoding = Decoding(
        max_new_tokens=24, temperature=1.0, greedy=False, seed=0, step=0, end_token_ids=(1,), pad_token_id=0
    )
    sampler = StudentSampler(decoding, samples_per_prompt=1, batch_size=5)
    sampler.load_weights(InProcess(load_model(path, device="cuda", dtype=dtype)), version=0)
    return [rollout for microbatch in sampler.sample(prompts, step=0, greedy=greedy) for rollout in microbatch]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mimo_v2_flash", "llama"])
def test_sampler_and_teacher_agree(tmp_path: Path, family: str, dtype: str) -> None:
    path = make_model(tmp_path, family)
    rollouts = sample(path, dtype)
    asked = [rollout.token_ids for rollout in rollouts]
    here = TeacherModel(path, device="cuda", dtype=dtype, temperature=1.0, microbatch_tokens=128).score(asked, "full")
    exact = TeacherModel(path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=128)
    for rollout, gpu, cpu in zip(rollouts, here, exact.score(asked, "sampled"), strict=True):
        mask = rollout.loss_mask
        drawn = np.take_along_axis(gpu.logprobs_TV, rollout.token_ids[:, None].astype(np.int64), 1)[:, 0]
        np.testing.assert_allclose(rollout.sampler_logprobs[mask], drawn[mask], rtol=0, atol=TOLERANCE[dtype])
        np.testing.assert_allclose(drawn[mask], cpu.logprobs_T[mask], rtol=0, atol=TOLERANCE[dtype])


def test_rollouts_repeat(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    first, second = sample(path, "bfloat16"), sample(path, "bfloat16")
    assert [r.token_ids.tolist() for r in first] == [r.token_ids.tolist() for r in second]
    assert all(np.isfinite(r.sampler_logprobs).all() for r in first)
    greedy = sample(path, "bfloat16", greedy=True)
    assert [r.token_ids.tolist() for r in greedy] != [r.token_ids.tolist() for r in first]
