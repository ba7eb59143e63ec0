"""Teachers score and ship the rows of trained tokens alone: the same numbers, from a head that sees no prompt."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import VOCABULARY, make_rollout
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.payload_rows import PAYLOADS
from mopd.distill.payloads import Support
from mopd.distill.types import Full, Sampled
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.retokenized import asked_payload
from mopd.teachers.views import ScoreRequest, TeacherText, score_views, view_of

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
}
"""Three of them scale or cap their logits behind the head."""


def teacher(folder: Path, family: str, **changes: Any) -> TeacherModel:
    path = folder / family
    if not path.exists():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **FAMILIES[family]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(path)
    support = Support(3, forced=(1,), whose="union")
    settings = {"temperature": 0.8, "microbatch_tokens": 4096, "support": support, **changes}
    return TeacherModel(path, device="cpu", dtype="float32", **settings)


def work(run: Any) -> tuple[Any, int]:
    counter = FlopCounterMode(display=False)
    with counter:
        result = run()
    return result, counter.get_total_flops()


@pytest.mark.parametrize("payload", [name for name in PAYLOADS if asked_payload(name) == name])
@pytest.mark.parametrize("family", [*FAMILIES])
def test_the_rows_are_those_of_the_whole(models: Path, family: str, payload: str) -> None:
    if payload == "hidden" and family != "llama":
        pytest.skip("hidden states do not tell the distribution of this family")
    scorer = teacher(models, family)
    rng = np.random.default_rng(0)
    rollouts = [
        make_rollout(rng, i, "math", prompt=p, completion=n) for i, (p, n) in enumerate([(9, 2), (1, 5), (4, 9)])
    ]
    ids, masks = [r.token_ids for r in rollouts], [r.loss_mask for r in rollouts]
    masks[2] = masks[2] & (np.arange(13) % 3 != 0)  # a tool's answer in the midst of it
    given = [np.stack([rng.permutation(60)[:4] for _ in row]).astype(np.int32) for row in ids]
    whole, all_flops = work(lambda: scorer.score(ids, payload, None, given))
    request = ScoreRequest(ids, payload, given, masks=masks)
    rows, flops = work(lambda: score_views(scorer, request, None))
    head = 2 * SIZES["hidden_size"] * VOCABULARY
    if payload != "hidden":  # which has no head to run
        assert all_flops - flops == head * (3 * 13 - 3 * max(int(mask.sum()) for mask in masks))
    for row, one, mask_T in zip(rows, whole, masks, strict=True):
        for name, array in row.arrays().items():
            assert array.shape == (int(mask_T.sum()), *getattr(one, name).shape[1:])
            np.testing.assert_allclose(array, getattr(one, name)[mask_T], atol=1e-6)


@pytest.mark.parametrize(
    ("family", "payload"),
    [
        *(("llama", name) for name in PAYLOADS if asked_payload(name) == name),
        *((family, "topk") for family in FAMILIES if family != "llama"),
    ],
)
def test_packed_rollouts_are_scored_as_padded_ones_with_less_work(models: Path, family: str, payload: str) -> None:
    rng = np.random.default_rng(0)
    sizes = [(9, 2), (1, 5), (14, 19), (4, 9)]
    rollouts = [make_rollout(rng, i, "math", prompt=p, completion=n) for i, (p, n) in enumerate(sizes)]
    ids, masks = [r.token_ids for r in rollouts], [r.loss_mask for r in rollouts]
    given = [np.stack([rng.permutation(60)[:4] for _ in row]).astype(np.int32) for row in ids]
    ways = [teacher(models, family, packing=packing) for packing in (False, True)]
    for asked in (None, masks):
        (padded, more), (packed, flops) = (work(partial(t.score, ids, payload, None, given, asked)) for t in ways)
        assert flops < 0.8 * more
        for one, other in zip(padded, packed, strict=True):
            assert one.arrays().keys() == other.arrays().keys()
            first = 1 if asked is None else 0  # a first token's row says nothing
            for name, array in other.arrays().items():
                np.testing.assert_allclose(array[first:], one.arrays()[name][first:], atol=1e-5)


def test_a_scorer_that_knows_no_masks_ships_no_more() -> None:
    class Flat:
        vocabulary = 2

        def score(self, token_ids: Any, payload: str, adapter: Any = None, given: Any = None) -> list[Any]:
            return [Sampled(np.arange(len(ids), dtype=np.float32)) for ids in token_ids] + self.more

        def __init__(self) -> None:
            self.more: list[Any] = []

    ids = [np.arange(5, dtype=np.int32), np.arange(3, dtype=np.int32)]
    masks = [np.array([False, False, True, True, False]), np.array([False, True, True])]
    scorer = Flat()
    first, second = score_views(scorer, ScoreRequest(ids, "sampled", masks=masks), None)
    assert first.logprobs_T.tolist() == [2.0, 3.0]  # pyright: ignore[reportAttributeAccessIssue]
    assert second.logprobs_T.tolist() == [1.0, 2.0]  # pyright: ignore[reportAttributeAccessIssue]
    scorer.more = [Full(np.zeros((7, 2), np.float32))]  # what is wrong, the pool sees as it is
    assert len(score_views(scorer, ScoreRequest(ids, "sampled", masks=masks), None)) == 3


@pytest.mark.parametrize("knows_masks", [True, False])
def test_rows_of_a_teacher_that_reads_another_prompt(
    models: Path, knows_masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = teacher(models, "llama")
    rng = np.random.default_rng(1)
    rollouts = [make_rollout(rng, i, "math", prompt=p, completion=n) for i, (p, n) in enumerate([(5, 3), (2, 6)])]
    texts = [TeacherText("own", (7, 8, 9)), None]
    views = [view_of(rollout, text) for rollout, text in zip(rollouts, texts, strict=True)]
    ids, masks = [r.token_ids for r in rollouts], [r.loss_mask for r in rollouts]
    whole = score_views(scorer, ScoreRequest(ids, "full", None, views), None)
    monkeypatch.setattr(TeacherModel, "answers_masks", knows_masks)
    rows = score_views(scorer, ScoreRequest(ids, "full", None, views, masks), None)
    for row, one, mask_T in zip(rows, whole, masks, strict=True):
        assert isinstance(row, Full)
        assert isinstance(one, Full)
        np.testing.assert_allclose(row.logprobs_TV, one.logprobs_TV[mask_T], atol=1e-6)
