"""LoRA adapters of random numbers, and what models weigh with them, for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.adapters import with_adapters
from mopd.distill.models.load import load_model

RANK, ALPHA = 2, 3.0
WIDE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "head_dim": 128,
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
"""Two layers of Qwen3-0.6B; without its vocabulary, beside which adapters would weigh less."""


def make_adapter(base: str, folder: Path, *, seed: int, rank: int = RANK) -> str:
    """Save a random adapter of a base's queries and outputs; peft's own would begin at zero."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_model(base, device="cpu", dtype="float32"), settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3)
    model.save_pretrained(str(folder))
    return str(folder)


def parameter_bytes(model: Any) -> int:
    """Bytes of a model's parameters; what is shared counts once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def wide_bytes(folder: Path, *, rank: int, adapters: int = 4) -> tuple[int, int]:
    """Parameter bytes in bfloat16 of :data:`WIDE` alone, and with adapters on all matrices of its layers."""
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **WIDE), dtype=torch.bfloat16)
    alone = parameter_bytes(base)
    settings = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(base, settings, autocast_adapter_dtype=False)
    folders = [str(folder / str(i)) for i in range(adapters)]
    for one in folders:
        tuned.save_pretrained(one)
    return alone, parameter_bytes(with_adapters(tuned.unload(), folders, device="cpu"))
