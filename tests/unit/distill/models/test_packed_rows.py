"""Packed rows: logits and gradients are those of padded ones, whatever computes attention; families that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from student_kit import _COMMON, FAMILIES, VOCABULARY, make_model
from transformers import AutoConfig

from mopd.distill.models import attention as blocks
from mopd.distill.models import packing
from mopd.distill.models.adapters import with_trained_adapter
from mopd.distill.models.attention import AttnImplementation
from mopd.distill.models.families import FAMILIES as ROWS
from mopd.distill.models.families import family_of
from mopd.distill.models.load import load_model
from mopd.distill.models.packing import PackedRows, differs_packed, forward_rows, packing_problem
from mopd.distill.recipe import LoRA

LENGTHS = (3, 20, 11, 20, 1)
"""In no order, and longer than the window of 6."""
OTHERS: dict[str, dict[str, Any]] = {"qwen2": {}, "gpt_oss": {"num_local_experts": 4, "layer_types": None}}
"""Families of which ``packs`` is said and of which no other test makes a model."""
MIXING: dict[str, dict[str, Any]] = {
    "mamba": {},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "bloom": {"n_head": 4},
}
"""Families with layers that carry something from one row into the next, or whose attention knows no positions."""


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three groups, one of them with padding."""
    monkeypatch.setattr(packing, "SIMILAR", 0.5)
    monkeypatch.setattr(packing, "SHORT", 2)


def batch(vocabulary: int = VOCABULARY) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(vocabulary, (len(LENGTHS), max(LENGTHS)), generator=generator)
    return {"ids_BT": ids_BT, "lengths": LENGTHS, "weights_BT": torch.rand(ids_BT.shape, generator=generator)}


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("mimo_v2_flash", "eager"),
        ("mimo_v2_flash", "banded"),
        ("qwen3", "eager"),
        ("qwen3", "sdpa"),
        ("qwen3", "banded"),
    ],
)
def test_logits_and_gradients_are_those_of_padded_rows(
    tmp_path: Path, family: str, attention: AttnImplementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sinks and a window that is smaller than most rows, and without; rows of several blocks."""
    monkeypatch.setattr(blocks, "BLOCK", 4)
    monkeypatch.setattr(blocks, "GLOBAL_BLOCK", 8)
    model = load_model(make_model(tmp_path, family), device="cpu", dtype="float32", attention=attention)
    assert differs_packed(model, **batch()) is None


def test_an_adapter_learns_the_same_from_packed_rows(tmp_path: Path) -> None:
    path = make_model(tmp_path, "qwen3")
    model = with_trained_adapter(load_model(path, device="cpu", dtype="float32"), LoRA(rank=2), base=path).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    assert differs_packed(model, **batch()) is None


def test_recomputed_activations_are_those_of_packed_rows(tmp_path: Path) -> None:
    model = load_model(make_model(tmp_path), device="cpu", dtype="float32")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert differs_packed(model, **batch()) is None


@pytest.mark.parametrize("family", sorted({**FAMILIES, **OTHERS}))
def test_families_of_which_it_is_said_pack(family: str) -> None:
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILIES.get(family, {}), **OTHERS.get(family, {})})
    assert packing_problem(config) is None
    assert family_of(config).packs


def test_every_family_of_which_it_is_said_is_tried() -> None:
    assert {name for name, row in ROWS.items() if row.packs} == {*FAMILIES, *OTHERS}


@pytest.mark.parametrize("family", MIXING)
def test_a_family_whose_rows_meet_is_found_out(family: str) -> None:
    config = AutoConfig.for_model(family, **{**_COMMON, **MIXING[family]})
    assert packing_problem(config) is not None
    assert not family_of(config).packs


def test_a_mask_that_lets_rows_meet_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows as one: the comparison is not blind."""
    model = load_model(make_model(tmp_path, "qwen3"), device="cpu", dtype="float32")
    real = packing._groups
    monkeypatch.setattr(packing, "_groups", lambda lengths, device: real([sum(lengths)], device))
    assert "differ by" in str(differs_packed(model, **batch()))


def test_what_is_packed_is_laid_back_where_it_was() -> None:
    ids_BT, lengths = batch()["ids_BT"], torch.tensor(LENGTHS)
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths.unsqueeze(1)).long()
    rows = PackedRows.of(ids_BT, mask_BT)
    assert rows.inputs["input_ids"].shape == (1, sum(LENGTHS))
    assert torch.equal(rows.padded(rows.inputs["input_ids"]) * mask_BT, ids_BT * mask_BT)
    places_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    before_BT = rows.aligned(rows.inputs["input_ids"], places_BT * mask_BT)
    for b, length in enumerate(LENGTHS):
        for t in range(1, length):
            assert before_BT[b, t] == ids_BT[b, t - 1]
    values = torch.randn(1, 2, sum(LENGTHS), 4)
    laid = [group.one_after_another(group.side_by_side(values).transpose(1, 2)) for group in rows.groups]
    assert torch.equal(torch.cat(laid), values[0].transpose(0, 1))
    assert [(group.rows, group.width) for group in rows.groups] == [(3, 20), (1, 3), (1, 1)]


def test_rows_of_a_forward_are_counted_with_padding_or_without() -> None:
    lengths = [40, 30, 20, 10, 5]
    assert [forward_rows(lengths, tokens, packing=False) for tokens in (10, 80, 119, 120)] == [1, 2, 2, 3]
    assert [forward_rows(lengths, tokens, packing=True) for tokens in (10, 69, 70, 90, 100, 1000)] == [1, 1, 2, 3, 4, 5]
