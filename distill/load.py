"""Loads a causal language model of transformers: the one place that says how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(path: str | Path, *, device: str, dtype: str) -> PreTrainedModel:
    """A frozen checkpoint, in eval mode.

    Args:
        path: a Hugging Face checkpoint's folder, or a Hub id.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"`` or ``"bfloat16"``.

    Raises:
        OSError: there is no checkpoint, or it cannot be read.
    """
    from transformers import AutoModelForCausalLM  # seconds that the driver, which loads no model, does not spend

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    return model.to(device).eval()
