"""`mopd compare-architectures` and the pictures: numbers of the public models, and of live caches of tiny ones."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import torch
from cli_kit import mopd
from house_kit import REPOSITORY
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.errors import UserError
from mopd.recipes.architectures_command import COMPARED, architecture_row, config_of, rows_of
from mopd.recipes.pictures import blocks_picture, cache_picture, pipeline_picture
from mopd.rollouts.engines.cache import held_bytes, window_cache

TINY: dict[str, dict[str, Any]] = {
    "mimo_v2_flash": {"head_dim": 8, "v_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
                      "moe_intermediate_size": 8, "sliding_window": 9,
                      "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    "llama": {"head_dim": 8},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "deepseek_v3": {"kv_lora_rank": 12, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
                    "v_head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
                    "moe_intermediate_size": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4},
}  # fmt: skip
"""A tiny model of the family of each architecture that is compared."""


def tiny_config(family: str) -> Any:
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 16}  # fmt: skip
    return AutoConfig.for_model(family, **sizes | TINY[family])


def test_every_compared_family_has_a_tiny_model_here() -> None:
    assert {config_of(name).model_type for name in COMPARED} == set(TINY)


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 50])
@pytest.mark.parametrize("family", TINY)
def test_computed_bytes_are_those_of_a_live_cache(family: str, tokens: int) -> None:
    """Of the keys and values that it has for the next token; what it allocates is at most a quarter more."""
    torch.manual_seed(0)
    config = tiny_config(family)
    cache = window_cache(config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        model(input_ids=torch.randint(1, 32, (1, tokens)), past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    live = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    computed = architecture_row(family, config, [tokens]).cached_bytes[tokens]
    assert computed == live
    assert live <= held_bytes(cache) <= 1.25 * live + 4 * config.hidden_size * config.num_hidden_layers


def test_decode_and_prefill_add_up() -> None:
    """Of a sequence of n tokens, against a loop over tokens and layers."""
    config = tiny_config("mimo_v2_flash")
    row = architecture_row("tiny", config, [5, 20])
    model = AutoModelForCausalLM.from_config(config)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    plain = sum(p.numel() for n, p in model.named_parameters() if p.ndim >= 2 and ".experts." not in n)
    matmul = plain - model.get_input_embeddings().weight.numel() + experts // 2  # two of four experts

    def of_token(t: int) -> int:
        seen = sum(min(t + 1, 9) if kind == "sliding_attention" else t + 1 for kind in config.layer_types)
        return 2 * matmul + 2 * 4 * (8 + 4) * seen

    assert row.prefill_flops[20] * 20 == sum(map(of_token, range(20)))
    assert row.decode_flops == {5: of_token(5), 20: of_token(20)}


def test_numbers_of_the_public_models() -> None:
    """What their reports and model cards say, in billions: MiMo-V2-Flash arXiv 2601.02780, DeepSeek-V3 2412.19437,
    Qwen3 2505.09388; and DeepSeek's 70 KB of latents a token."""
    rows = {row.name: row for row in rows_of([])}
    billions = {name: (round(row.total / 1e9, 1), round(row.active / 1e9, 1)) for name, row in rows.items()}
    assert billions == {
        "XiaomiMiMo/MiMo-V2-Flash": (308.8, 15.4),
        "meta-llama/Llama-3.2-1B": (1.2, 1.2),
        "Qwen/Qwen3-32B": (32.8, 32.8),
        "Qwen/Qwen3-30B-A3B": (30.5, 3.4),
        "deepseek-ai/DeepSeek-V3": (671.0, 37.6),
    }
    assert rows["deepseek-ai/DeepSeek-V3"].cached_bytes[4096] == 61 * (512 + 64) * 2 * 4096
    mimo = rows["XiaomiMiMo/MiMo-V2-Flash"]
    # 9 global layers with 4 key heads, 39 sliding ones with 8 that keep 128 tokens; keys 192 wide, values 128.
    assert mimo.cached_bytes[262144] == 2 * (192 + 128) * (9 * 4 * 262144 + 39 * 8 * 128)
    assert mimo.layers == "39 sliding (128 before a token), 9 global"


def test_the_command_shows_a_table_and_json_and_takes_a_configuration_of_ones_own(tmp_path: Any) -> None:
    tiny_config("qwen3").save_pretrained(tmp_path)
    result = mopd("compare-architectures", str(tmp_path), "Qwen/Qwen3-32B", "--json")
    assert result.exit_code == 0, result.output
    own, public = json.loads(result.output)
    assert own["name"] == str(tmp_path)
    assert public["cached_bytes"]["4096"] == 64 * 2 * 8 * 128 * 2 * 4096
    table = mopd("compare-architectures")
    assert table.exit_code == 0
    assert "DeepSeek-V3" in table.output
    assert mopd("compare-architectures", "Qwen/Qwen3-33B").exit_code == 2
    with pytest.raises(UserError, match="no configuration at"):
        config_of(str(tmp_path / "nowhere"))


PICTURES = {
    "architecture-cache.svg": lambda: cache_picture(rows_of([])),
    "architecture-blocks.svg": lambda: blocks_picture(config_of(COMPARED[0]), "MiMo-V2-Flash"),
    "pipeline.svg": pipeline_picture,
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_the_pages_are_what_the_code_draws(name: str) -> None:
    drawn = PICTURES[name]()
    ElementTree.fromstring(drawn)
    assert (REPOSITORY / "docs" / name).read_text() == drawn


def test_a_picture_shows_the_configurations_own_numbers() -> None:
    config = config_of(COMPARED[0])
    config.sliding_window, config.num_attention_heads = 33, 32
    picture = blocks_picture(config, "another")
    assert "32 tokens before and itself" in picture
    assert "32 query heads of 192" in picture
    assert "39 of 48" in picture
