"""An adapter that is trained: begins as its base, is counted before it is made, merged, saved and read by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from student_kit import FAMILIES, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.adapters import (
    active,
    adapter_state,
    adapter_targets,
    load_adapter_state,
    merged_state,
    parameter_counts,
    save_adapter,
    with_trained_adapter,
)
from mopd.distill.models.load import load_model
from mopd.distill.recipe import LoRA
from mopd.distill.types import UserError

IDS = torch.arange(12)[None]
MIXTURES = ("mimo_v2_flash", "qwen3_moe", "mixtral", "deepseek_v3")
SETTINGS = {
    "layers": LoRA(rank=2, alpha=6),
    "named": LoRA(rank=3, alpha=2, targets=("q_proj", "self_attn.o_proj")),
    "embeddings": LoRA(rank=2, alpha=6, embeddings=True),
    "experts": LoRA(rank=2, alpha=6, experts=True),
}


def empty(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def moved(model: Any) -> Any:
    """The model with an adapter that changes what it says."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


@pytest.mark.parametrize(
    ("family", "kind", "tied"),
    [
        *((family, "layers", False) for family in FAMILIES),
        *((family, "experts", False) for family in MIXTURES),
        ("llama", "named", True),
        *(("qwen3", "embeddings", tied) for tied in (False, True)),
    ],
)
def test_begins_as_its_base_is_merged_saved_and_read_by_peft(
    tmp_path: Path, family: str, kind: str, tied: bool
) -> None:
    config = AutoConfig.from_pretrained(make_model(tmp_path, family))
    config.tie_word_embeddings = tied
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base, lora = str(tmp_path / "base"), SETTINGS[kind]
    model = load_model(base, device="cpu", dtype="float32")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(IDS).logits
    adapted = with_trained_adapter(model, lora, base="org/name")
    assert torch.equal(adapted.eval()(IDS).logits, expected)

    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    counts = parameter_counts(empty(config), lora)
    assert (counts.trained, counts.frozen) == (trained, sum(p.numel() for p in adapted.parameters()) - trained)
    assert counts.frozen == parameter_counts(empty(config), None).trained

    said = moved(adapted)(IDS).logits
    assert (said - expected).abs().max() > 1e-2
    whole = merged_state(adapted)
    assert whole.keys() == weights.keys()
    plain = AutoModelForCausalLM.from_config(config).eval()
    plain.load_state_dict(whole)
    assert (plain(IDS).logits - said).abs().max() < 1e-5
    with active(adapted, None):
        assert torch.equal(adapted(IDS).logits, expected)  # and the base kept every bit
    assert all(p.requires_grad == ("lora_" in name) for name, p in adapted.named_parameters())

    save_adapter(adapted, tmp_path / "adapter")
    read = PeftModel.from_pretrained(load_model(base, device="cpu", dtype="float32"), str(tmp_path / "adapter")).eval()
    assert read.peft_config["default"].base_model_name_or_path == "org/name"
    assert (read(IDS).logits - said).abs().max() < 1e-5
    merged = load_model(base, device="cpu", dtype="float32", adapter=str(tmp_path / "adapter"))
    assert (merged(IDS).logits - said).abs().max() < 1e-5

    other = with_trained_adapter(load_model(base, device="cpu", dtype="float32"), lora, base="").eval()
    load_adapter_state(other, adapter_state(adapted))
    assert torch.equal(other(IDS).logits, said)
    with pytest.raises(ValueError, match="weights"):
        load_adapter_state(other, dict(list(adapter_state(adapted).items())[1:]))  # not per token


def test_experts_have_a_pair_of_matrices_each(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(make_model(tmp_path, "qwen3_moe"))
    without, with_them = (
        parameter_counts(empty(config), LoRA(rank=2, experts=experts)).trained for experts in (False, True)
    )
    hidden, width, experts, layers = 32, 32, 4, 3
    assert with_them - without == layers * experts * 2 * ((hidden + 2 * width) + (width + hidden))


def test_what_peft_reads_as_experts_is_named(tmp_path: Path) -> None:
    """DeepSeek's dense layers and shared experts have the names that its experts had in transformers 4."""
    targets = adapter_targets(empty(AutoConfig.from_pretrained(make_model(tmp_path, "deepseek_v3"))), LoRA())
    assert targets.left_out == ("down_proj", "gate_proj", "up_proj")
    assert {"q_proj", "o_proj"} <= {*targets.layers}


@pytest.mark.parametrize(
    ("family", "lora", "culprit"),
    [
        ("llama", LoRA(targets=("q_proj", "qproj")), "qproj"),
        ("llama", LoRA(targets=("input_layernorm",)), "no linear layer"),
        ("llama", LoRA(targets=("lm_head",)), "embeddings: true"),
        ("llama", LoRA(experts=True), "experts"),
        ("deepseek_v3", LoRA(targets=("q_proj", "up_proj")), "up_proj"),
    ],
)
def test_targets_that_are_none_are_named(tmp_path: Path, family: str, lora: LoRA, culprit: str) -> None:
    config = AutoConfig.from_pretrained(make_model(tmp_path, family))
    with pytest.raises(UserError, match=culprit):
        parameter_counts(empty(config), lora)
