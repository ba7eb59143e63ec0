"""The table of docs/families.md: every family teaches and is taught, with real tiny models; each cell is run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from student_kit import DENSE, DOMAINS, FAMILIES, VOCABULARY, ProcessRanks, engine_of, make_model, make_spec, student
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.recipe import AdamW
from mopd.distill.student.engine import check_engine
from mopd.distill.types import Prompt, Rollout, ScoredRollout, TeacherScore, UserError, align_logits
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.scorer import Conditions

TABLE = Path(__file__).parents[4] / "docs" / "families.md"
ROLES = ("teacher", "student", "student, experts spread")
DECODING = Decoding(
    max_new_tokens=12, temperature=0.7, greedy=False, seed=5, step=0, end_token_ids=(1,), pad_token_id=0
)


def cells() -> dict[tuple[str, str], str]:
    """What the documentation says of each family in each role."""
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in TABLE.read_text().splitlines()]
    table = [row for row in rows if len(row) == 2 + len(ROLES)]
    assert tuple(table[0][2:]) == ROLES  # the head; a ruler follows
    bodies = [
        (re.sub("`", "", row[1]), row[2:]) for row in table if row[1].startswith("`") and row[1] != "`model_type`"
    ]
    return {(family, role): cell for family, said in bodies for role, cell in zip(ROLES, said, strict=True)}


def prompts() -> list[Prompt]:
    """Of unequal lengths, longer and shorter than the sliding window."""
    rng = np.random.default_rng(3)
    drawn = [tuple(rng.integers(2, VOCABULARY, int(rng.integers(1, 12))).tolist()) for _ in range(12)]
    return [Prompt(DOMAINS[i % 3], f"{DOMAINS[i % 3]}/{i}", ids, "question", "answer") for i, ids in enumerate(drawn)]


def written(sampler: StudentSampler, step: int) -> list[Rollout]:
    return [rollout for microbatch in sampler.sample(prompts(), step=step) for rollout in microbatch]


def teacher_of(path: str | Path) -> TeacherModel:
    """As a teacher's process opens it."""
    conditions = Conditions(temperature=DECODING.temperature, microbatch_tokens=64)
    return Checkpoint(str(path), "cpu", "float32").open(conditions, [])


def test_the_table_names_every_family_in_every_role() -> None:
    expected = {
        (family, role): "refused" if role == ROLES[2] and family in DENSE else "yes"
        for family in FAMILIES
        for role in ROLES
    }
    assert cells() == expected


@pytest.mark.parametrize("family", sorted({family for (family, role), said in cells().items() if role == ROLES[0]}))
def test_a_family_teaches(models: Path, family: str) -> None:
    """Padded microbatches in float32 against each rollout alone, in float64."""
    path = make_model(models, family)
    sampler = StudentSampler(DECODING, samples_per_prompt=1, batch_size=12)
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float64}
    model = AutoModelForCausalLM.from_pretrained(path, **plainly).eval()
    sampler.load_weights(InProcess(AutoModelForCausalLM.from_pretrained(path).eval()), version=0)
    rollouts = written(sampler, 0)
    for rollout, payload in zip(
        rollouts, teacher_of(path).score([r.token_ids for r in rollouts], "sampled"), strict=True
    ):
        ids_T = torch.from_numpy(rollout.token_ids).long()
        with torch.no_grad():
            logits_TV = align_logits(model(ids_T[None]).logits)[0] / DECODING.temperature
        expected_T = logits_TV.log_softmax(-1).gather(-1, ids_T[:, None])[:, 0].numpy()
        mask_T = rollout.loss_mask
        np.testing.assert_allclose(payload.logprobs_T[mask_T], expected_T[mask_T], rtol=0, atol=2e-5)  # pyright: ignore


@pytest.mark.parametrize(("family", "role"), sorted(cell for cell in cells() if cell[1] != ROLES[0]))
def test_a_family_is_taught(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, family: str, role: str
) -> None:
    spread = role == ROLES[2]
    engine = engine_of(2, expert_parallel=2) if spread else engine_of(1)
    optimizer = AdamW(lr=1e-2, warmup_steps=0, schedule="constant")
    if cells()[family, role] == "refused":
        with pytest.raises(UserError, match=f"{family} has no experts; set it to 1"):
            check_engine(AutoConfig.from_pretrained(make_model(models, family)), engine, optimizer, device="cpu")
        return
    spec = make_spec(
        make_model(models, family), tmp_path, temperature=DECODING.temperature, engine=engine, optimizer=optimizer
    )
    learner = student((two if spread else one).start(spec), spec)
    sampler = StudentSampler(replace(DECODING, lockstep=spread), samples_per_prompt=1, batch_size=12)
    sampler.load_weights(learner.weights(), version=0)
    rollouts = written(sampler, 0)
    scores = teacher_of(make_model(models, family, seed=1)).score([r.token_ids for r in rollouts], "full")
    batch = [
        ScoredRollout(rollout, ((1.0, TeacherScore("t", score)),))
        for rollout, score in zip(rollouts, scores, strict=True)
    ]
    losses = [learner.update(batch, step=step)["loss"] for step in range(4)]
    assert losses[-1] < 0.8 * losses[0], losses

    sampler.load_weights(learner.weights(), version=4)
    rollouts = written(sampler, 4)
    learner.export(str(tmp_path / "student"))
    exported = teacher_of(tmp_path / "student").score([r.token_ids for r in rollouts], "sampled")
    for rollout, payload in zip(rollouts, exported, strict=True):
        mask = rollout.loss_mask
        np.testing.assert_allclose(rollout.sampler_logprobs[mask], payload.logprobs_T[mask], rtol=0, atol=2e-5)  # pyright: ignore
