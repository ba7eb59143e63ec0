"""CPU seconds of a forward by blocks beside the eager one, and how both grow with the number of tokens.

The two take turns, on one thread, and the median of their CPU seconds counts, so that other work on the machine changes
little. The model has the quickstart's kinds of layers, five sliding to one global, with a window of 128.
Beyond 2048 tokens the eager one is left out: it takes a minute.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.attention import BlockMask, block_attention, set_attention

WINDOW = 128
LENGTHS = (1024, 2048, 4096, 8192)
PREFILL = 2048
ROUNDS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 192,
    "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "v_head_dim": 16, "sliding_window": WINDOW,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"], "max_position_embeddings": 16384,
}  # fmt: skip


def cpu_seconds(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each way, which take turns; the first round is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}  # not per token


def model(implementation: Any, **changes: Any) -> Any:
    """The benchmark's model, the same weights every time."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model("mimo_v2_flash", **SIZES | changes)).eval()
    set_attention(made, implementation, named="the benchmark's model")
    return made


@torch.no_grad()
def prefill(models: Mapping[str, Any], tokens: int) -> dict[str, float]:
    """CPU seconds of a prompt's forward, with a cache and the last token's logits alone."""
    ids = torch.randint(SIZES["vocab_size"], (1, tokens), generator=torch.Generator().manual_seed(1))
    return cpu_seconds(
        {name: lambda m=m: m(input_ids=ids, use_cache=True, logits_to_keep=1) for name, m in models.items()}, ROUNDS
    )


def update(models: Mapping[str, Any], tokens: int) -> dict[str, float]:
    """CPU seconds of a forward and a backward over one sequence."""
    ids = torch.randint(SIZES["vocab_size"], (1, tokens), generator=torch.Generator().manual_seed(1))
    return cpu_seconds(
        {name: lambda m=m: m(input_ids=ids, use_cache=False).logits.sum().backward() for name, m in models.items()}, 3
    )


def sliding_layer(tokens: int) -> float:
    """CPU seconds of one sliding layer's attention, mask included: scores, softmax and values, without projections."""
    heads, key_heads, width = SIZES["num_attention_heads"], 2 * SIZES["num_key_value_heads"], SIZES["head_dim"]
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(1, heads, tokens, width, generator=generator)
    k, v = (torch.randn(1, key_heads, tokens, width, generator=generator) for _ in range(2))
    sinks = torch.randn(heads, generator=generator)

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (key > query - WINDOW)

    def once() -> object:
        mask = BlockMask(visible, 1, tokens, tokens, 0, 0, WINDOW, q.device)
        return block_attention(q, k, v, mask=mask, scaling=0.25, sinks=sinks)

    return cpu_seconds({"once": once}, ROUNDS)["once"]


def measure() -> dict[str, Any]:
    """Seconds by length of a sliding layer, of the whole model's prefill and of an update; ratios of the two ways."""
    models = {name: model(name) for name in ("banded", "eager")}
    everywhere = ["full_attention"] * SIZES["num_hidden_layers"]
    models["eager_all_global"] = model("eager", layer_types=everywhere)
    layers = {tokens: sliding_layer(tokens) for tokens in LENGTHS}
    prefills = {
        tokens: prefill(models if tokens <= PREFILL else {"banded": models["banded"]}, tokens) for tokens in LENGTHS
    }
    updates = update({name: models[name] for name in ("banded", "eager")}, PREFILL // 2)
    return {
        "window": WINDOW,
        "sliding_layer_seconds": layers,
        "sliding_layer_growth_by_doubling": [layers[b] / layers[a] for a, b in itertools.pairwise(LENGTHS)],
        "prefill_seconds": prefills,
        "prefill_growth_by_doubling": [
            prefills[b]["banded"] / prefills[a]["banded"] for a, b in itertools.pairwise(LENGTHS)
        ],
        "prefill_eager_over_banded": prefills[PREFILL]["eager"] / prefills[PREFILL]["banded"],
        "update_seconds": updates,
        "update_eager_over_banded": updates["eager"] / updates["banded"],
    }


def table(figures: Mapping[str, Any]) -> Table:
    """The figures for a console."""
    shown = Table("tokens", "sliding layer", "prefill by blocks", "prefill eager", "eager, all global",
                  title=f"CPU seconds, window {figures['window']}")  # fmt: skip
    for tokens in LENGTHS:
        row = figures["prefill_seconds"][tokens]
        cells = [f"{row[name]:.3f}" if name in row else "" for name in ("banded", "eager", "eager_all_global")]
        shown.add_row(f"{tokens:,}", f"{figures['sliding_layer_seconds'][tokens]:.4f}", *cells)
    return shown


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(), indent=2))
