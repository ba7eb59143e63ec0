"""Bytes by role: what autograd saves, and what a cache holds, are counted on real models; the rest is done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from mopd.distill.models.memory import (
    Held,
    activation_bytes,
    cache_bytes,
    gathered_bytes,
    layer_values,
    loss_bytes,
    scored_bytes,
    shape_of,
    training_bytes,
)

B, T = 2, 48
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "mistral": {},
    "qwen2": {},
}


def model_of(family: str, layers: int, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], "num_hidden_layers": layers, **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def saved_bytes(model: Any) -> int:
    """What autograd saves for the backward pass of the layers, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids_BT = torch.ones(B, T, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=ids_BT, attention_mask=ids_BT, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_autograd_saves(family: str, dtype: torch.dtype) -> None:
    one, three = model_of(family, 1, dtype), model_of(family, 3, dtype)
    measured = (saved_bytes(three) - saved_bytes(one)) / 2
    shape = shape_of(three.config)
    planned = B * T * layer_values(shape, dtype.itemsize, T) * dtype.itemsize
    assert planned == pytest.approx(measured, rel=0.15)
    whole = activation_bytes(shape, tokens=B * T, width=T, itemsize=dtype.itemsize, recomputed=False)
    assert whole == 3 * planned
    assert activation_bytes(shape, tokens=B * T, width=T, itemsize=dtype.itemsize, recomputed=True) == (
        planned + 3 * B * T * 64 * dtype.itemsize
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_attention_keeps_its_maps(dtype: torch.dtype) -> None:
    one, three = (model_of("llama", layers, dtype, attn_implementation="eager") for layers in (1, 3))
    shape = shape_of(three.config)
    assert shape.keeps_maps
    measured = (saved_bytes(three) - saved_bytes(one)) / 2
    assert B * T * layer_values(shape, dtype.itemsize, T) * dtype.itemsize == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_cache_holds_the_keys_and_values_of_its_rows(family: str) -> None:
    model = model_of(family, 4)
    cache = DynamicCache(config=model.config)
    ids_BT = torch.ones(B, T, dtype=torch.long)
    with torch.no_grad():
        model(input_ids=ids_BT, past_key_values=cache, use_cache=True)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert cache_bytes(shape_of(model.config), rows=B, length=T, itemsize=4) == held * (1 + 1 / 4)  # one layer grows


def test_a_sliding_layer_keeps_its_window() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    config = AutoConfig.for_model(
        "qwen3",
        **{**SIZES, "num_hidden_layers": 4, "sliding_window": 8, "use_sliding_window": True, "layer_types": kinds},
    )
    shape = shape_of(config)
    assert (shape.window, shape.sliding) == (8, 3)
    assert cache_bytes(shape, rows=1, length=T, itemsize=4) == 2 * 32 * 4 * (T + 3 * 8) * 1.25


def test_training_by_hand() -> None:
    """A billion weights in bfloat16 under Adam: 2 a weight, 12 of the optimizer, 4 of gradients, and their buffer."""
    dense, experts = Held(6e8, 6e8, 4), Held(4e8, 4e8, 2)
    stage_2 = training_bytes((dense, experts), zero_stage=2, itemsize=2, states=8, on_card=True)
    assert stage_2 == {"weights": 2e9, "gradients": 6e8 + 8e8 + 1e9, "optimizer": 3 * (6e8 + 8e8)}
    stage_3 = training_bytes((dense, experts), zero_stage=3, itemsize=2, states=8, on_card=True)
    assert stage_3["weights"] == 3e8 + 4e8
    assert gathered_bytes((dense, experts), zero_stage=3, itemsize=2, writing=True) == 9e8 + 4e8
    assert gathered_bytes((dense, experts), zero_stage=2, itemsize=2, writing=True) == 0
    adapter = training_bytes((Held(1e9, 1e7, 1),), zero_stage=2, itemsize=2, states=8, on_card=False)
    assert adapter == {"weights": 2e9, "gradients": 4e7 + 2e7, "optimizer": 12e7}
    sgd = training_bytes((Held(1e9, 1e9, 1),), zero_stage=0, itemsize=4, states=0, on_card=False)
    assert sgd == {"weights": 4e9, "gradients": 4e9, "optimizer": 0}


def test_a_loss_by_hand() -> None:
    shape = shape_of(AutoConfig.for_model("llama", **{**SIZES, "vocab_size": 1000, "num_hidden_layers": 1}))
    assert loss_bytes(shape, trained=50, itemsize=2, rows=4) == 1000 * 50 * 18
    assert loss_bytes(shape, trained=50, itemsize=4, rows=8) == 1000 * 50 * 36
    assert scored_bytes(shape, trained=50, itemsize=2) == 1000 * 50 * 10
