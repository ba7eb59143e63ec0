"""Output heads with more rows than the tokenizer has ids, as models of one family have in different numbers.

The oracle is the same model without those rows. They are likely: a distribution with them is far off.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import STEP, VOCABULARY, ProcessRanks, furthest, make_batch, make_model, make_spec, student
from transformers import AutoModelForCausalLM

from mopd.distill.models.heads import HeadSource
from mopd.distill.payloads import Support
from mopd.distill.recipe import FullReverseKL, PolicyGradient, TopKReverseKL
from mopd.distill.types import Payload, PayloadName, ScoredRollout, TeacherScore
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.generate import generate
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.scorer import Conditions

DECODING = Decoding(
    max_new_tokens=10, temperature=1.0, greedy=False, seed=3, step=0, end_token_ids=(1,), pad_token_id=0
)
SUPPORT = Support(5, (1, 2), "teacher")


def padded(path: str, folder: Path, rows: int) -> str:
    """A checkpoint's copy with ``rows`` rows in its embeddings and its head; those beyond are likely."""
    model = AutoModelForCausalLM.from_pretrained(path)
    torch.manual_seed(rows)
    for name in ("embed_tokens", "lm_head"):
        module = model.lm_head if name == "lm_head" else model.model.embed_tokens
        more = 2.0 * torch.randn(rows - VOCABULARY, module.weight.shape[1])
        module.weight = torch.nn.Parameter(torch.cat([module.weight.data, more]))
    model.config.vocab_size = rows
    model.save_pretrained(folder / f"padded-{rows}")
    return str(folder / f"padded-{rows}")


def opened(path: str, vocabulary: int | None) -> TeacherModel:
    return Checkpoint(path, "cpu", "float32").open(Conditions(0.8, 64, SUPPORT, vocabulary), [])


def test_ids_that_the_tokenizer_lacks_are_never_written(tmp_path: Path) -> None:
    path = make_model(tmp_path, "llama")
    plain, wide = (
        AutoModelForCausalLM.from_pretrained(p).eval() for p in (path, padded(path, tmp_path, VOCABULARY + 32))
    )
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12]] * 4
    expected = generate(plain, prompts, range(12), DECODING)
    within = generate(wide, prompts, range(12), replace(DECODING, vocabulary=VOCABULARY))
    for ours, theirs in zip(within, expected, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)
    assert any((c.token_ids >= VOCABULARY).any() for c in generate(wide, prompts, range(12), DECODING))


@pytest.mark.parametrize("payload", ["sampled", "topk", "full"])
def test_a_teacher_of_another_padding_says_the_same(tmp_path: Path, payload: PayloadName) -> None:
    path = make_model(tmp_path, "llama")
    wide = padded(path, tmp_path, VOCABULARY + 48)
    ids = [scored.rollout.token_ids for scored in make_batch(seed=2)]
    teacher = opened(wide, VOCABULARY)
    assert teacher.vocabulary == VOCABULARY
    pairs = zip(teacher.score(ids, payload), opened(path, None).score(ids, payload), strict=True)
    for ours, theirs in pairs:
        for name, expected in theirs.arrays().items():
            np.testing.assert_allclose(ours.arrays()[name][1:], expected[1:], atol=1e-5)
    np.testing.assert_allclose(teacher.reference(ids[0]), opened(path, None).reference(ids[0]), atol=1e-5)
    unlimited = opened(wide, None).score(ids[:1], "sampled")[0].sampled_logprobs(ids[0])
    limited = teacher.score(ids[:1], "sampled")[0].sampled_logprobs(ids[0])
    assert np.abs(unlimited - limited)[1:].max() > 0.1


LOSSES: dict[PayloadName, Any] = {
    "sampled": PolicyGradient(),
    "topk": TopKReverseKL(k=5, support="teacher"),
    "full": FullReverseKL(),
    "hidden": FullReverseKL(payload="hidden"),
}


@pytest.mark.parametrize("payload", LOSSES)
def test_a_student_with_a_padded_head_is_trained_as_without(
    tmp_path: Path, one: ProcessRanks, payload: PayloadName
) -> None:
    """Student and teacher are padded, each in its own way; rows beyond the tokenizer's are left as they were."""
    start, teacher = make_model(tmp_path, "llama"), make_model(tmp_path, "llama", seed=1)
    wide_start, wide_teacher = (
        padded(start, tmp_path, VOCABULARY + 32),
        padded(teacher, tmp_path, VOCABULARY + 48),
    )
    weights, metrics = [], []
    for model, asked in ((start, teacher), (wide_start, wide_teacher)):
        batch = _graded(opened(asked, VOCABULARY), payload)
        spec = make_spec(
            model,
            tmp_path / f"{payload}-{len(weights)}",
            optimizer=STEP,
            loss=LOSSES[payload],
            heads=(HeadSource(asked, "float32"),) if payload == "hidden" else (),
            vocabulary=VOCABULARY,
        )
        learner = student(one.start(spec), spec)
        metrics.append([learner.update(batch, step=step) for step in range(2)])
        weights.append(dict(learner.weights().state_dict()))
    before = AutoModelForCausalLM.from_pretrained(wide_start).state_dict()
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(weights[1][name][VOCABULARY:], before[name][VOCABULARY:])
        weights[1][name] = weights[1][name][:VOCABULARY]
    assert furthest(weights[0], weights[1]) < 1e-6
    assert furthest(weights[0], dict(AutoModelForCausalLM.from_pretrained(start).state_dict())) > 1e-3
    for plain, wide in zip(*metrics, strict=True):
        assert wide == pytest.approx(plain, rel=1e-5, abs=1e-6)


def _graded(teacher: TeacherModel, payload: PayloadName) -> list[ScoredRollout]:
    def grade(scored: ScoredRollout) -> ScoredRollout:
        answer: Payload = teacher.score([scored.rollout.token_ids], payload)[0]
        return replace(scored, scores=((1.0, TeacherScore("t", answer)),))

    return [grade(scored) for scored in make_batch(seed=7)]
