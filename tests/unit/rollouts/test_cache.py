"""The cache of a generation: what is written with it is what transformers' own gives, and how many bytes it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from mopd.rollouts.engines import generate as generation
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.cache import WindowLayer, held_bytes, window_cache
from mopd.rollouts.engines.generate import Completion, generate

WINDOW, HEADS, WIDTH = 9, 2, 4
END = 3


def sliding_model(family: str = "mimo_v2_flash", **changes: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": WIDTH,
        "num_key_value_heads": HEADS, "intermediate_size": 16, "sliding_window": WINDOW, "initializer_range": 0.3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "max_position_embeddings": 512,
    }  # fmt: skip
    if family == "mimo_v2_flash":
        settings |= {"v_head_dim": WIDTH, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    if family == "gpt_oss":
        settings |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    if family == "qwen3":
        settings |= {"use_sliding_window": True}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings | changes)).eval()


def written(model: Any, monkeypatch: Any, make_cache: Any) -> list[Completion]:
    """Eight rows with prompts below, at and above the window, most of which end before the last does."""
    monkeypatch.setattr(generation, "window_cache", make_cache)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(4, 24, n).tolist() for n in (1, 3, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 30, 2)]
    decoding = Decoding(
        max_new_tokens=60, temperature=1.0, greedy=False, seed=4, step=0, end_token_ids=(END,), pad_token_id=0
    )
    return generate(model, prompts, list(range(len(prompts))), decoding)


@pytest.mark.parametrize("family", ["mimo_v2_flash", "gpt_oss", "qwen3"])
def test_a_generation_is_bitwise_that_of_transformers_own_cache(family: str, monkeypatch: Any) -> None:
    model = sliding_model(family)
    own = written(model, monkeypatch, window_cache)
    reference = written(model, monkeypatch, lambda config: DynamicCache(config=config))
    lengths = {len(completion.token_ids) for completion in reference}
    assert len(lengths) > 3  # rows ended at different times, so the batch was compacted
    assert max(lengths) > 3 * WINDOW
    for completion, expected in zip(own, reference, strict=True):
        assert completion.token_ids.tolist() == expected.token_ids.tolist()
        assert completion.logprobs.tobytes() == expected.logprobs.tobytes()


def test_no_more_than_a_window_and_a_quarter_is_held() -> None:
    """After the prompt as after every token; transformers' own holds the whole prompt until the next token."""
    layers, rows, prompt = 2, 3, 100
    model = sliding_model(num_hidden_layers=layers, layer_types=["sliding_attention"] * layers)
    config, heads = model.config, 2 * HEADS  # MiMo has twice as many in sliding layers
    bound = layers * rows * heads * 2 * WIDTH * 4 * (WINDOW - 1 + WINDOW // 4)  # keys and values in float32
    held: dict[str, list[int]] = {"own": [], "transformers": []}
    for name, cache in (("own", window_cache(config)), ("transformers", DynamicCache(config=config))):
        for inputs in (torch.randint(4, 24, (rows, prompt)), *torch.randint(4, 24, (40, rows, 1))):
            with torch.no_grad():
                model(input_ids=inputs, past_key_values=cache, use_cache=True)
            held[name].append(held_bytes(cache))
    assert set(held["own"]) == {bound}
    assert held["transformers"][0] >= layers * rows * heads * 2 * WIDTH * 4 * prompt


def test_several_tokens_at_once_see_what_single_ones_do() -> None:
    """Chunks of every size up to three buffers, against a list of all keys."""
    generator = torch.Generator().manual_seed(0)
    for chunk in range(1, 3 * WINDOW):
        layer, all_keys = WindowLayer(WINDOW), torch.empty(2, 1, 0, 3)
        for _ in range(7):
            new = torch.randn(2, 1, chunk, 3, generator=generator)
            seen_keys, seen_values = layer.update(new, new + 1)
            before = min(all_keys.shape[2], WINDOW - 1)
            all_keys = torch.cat([all_keys, new], dim=2)
            assert torch.equal(seen_keys, all_keys[:, :, all_keys.shape[2] - chunk - before :])
            assert torch.equal(seen_values, seen_keys + 1)
            assert layer.get_seq_length() == all_keys.shape[2]
            kept = min(WINDOW - 1, all_keys.shape[2])
            assert layer.keys is not None
            assert torch.equal(layer.keys, all_keys[:, :, all_keys.shape[2] - kept :])
            length, offset = layer.get_mask_sizes(chunk)
            assert (length, offset) == (kept + chunk, all_keys.shape[2] - kept)


def test_rows_that_are_dropped_take_their_memory_with_them() -> None:
    layer = WindowLayer(WINDOW)
    keys = torch.randn(4, 1, 20, 3)
    layer.update(keys, keys)
    layer.reorder_cache(torch.tensor([3, 1]))  # pyright: ignore[reportArgumentType]
    assert layer.keys is not None
    assert torch.equal(layer.keys, keys[[3, 1], :, 20 - (WINDOW - 1) :])
    assert layer.keys.untyped_storage().nbytes() == 2 * (WINDOW - 1 + WINDOW // 4) * 3 * 4


def test_a_short_generation_takes_no_whole_window() -> None:
    """Of a window of 4,096 tokens a generation of 40 holds less than twice its own."""
    layer = WindowLayer(4096)
    all_keys = torch.randn(1, 1, 40, 3)
    for keys in all_keys.split([10, *[1] * 30], dim=2):
        layer.update(keys, keys)
    assert torch.equal(layer.keys, all_keys)  # pyright: ignore[reportArgumentType]
    assert layer.keys is not None
    assert layer.keys.untyped_storage().nbytes() <= 2 * 40 * 3 * 4
