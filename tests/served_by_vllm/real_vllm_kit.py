"""What tests with a real vLLM share: its Python, its surroundings, and tiny models that its kernels take."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]
for kits in ("unit", "integration"):
    sys.path.append(str(REPOSITORY / "tests" / kits))

from check_kit import save_model, tokenizer_of  # noqa: E402

PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "initializer_range": 0.3}  # vLLM's kernels want heads of 64


def environment() -> dict[str, str]:
    """Of a process of vLLM on a CPU that others share; nothing leads it to the packages of this one."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }


def tiny_models(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Folders of tiny llamas by name: one tokenizer, other weights."""
    tokenizer, made = tokenizer_of("arithmetic", "list_programs", "ordering"), {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        made[name] = save_model(folder / name, tokenizer, **SIZES)
    return made
