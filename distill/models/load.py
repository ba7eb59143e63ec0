"""Loads a causal language model of transformers, whole or not at all: the one place that says how."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mopd.distill.models.adapters import merged
from mopd.distill.models.attention import AttnImplementation, set_attention
from mopd.distill.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 3
"""How many wrong weights a message names."""


def load_model(
    path: str | Path,
    *,
    device: str,
    dtype: str,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    attention: AttnImplementation = "auto",
) -> PreTrainedModel:
    """A frozen checkpoint, in eval mode.

    Args:
        path: a Hugging Face checkpoint's folder, or a Hub id.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"float32"`` or ``"bfloat16"``.
        adapter: folder of a LoRA adapter that is added into its weights.
        trust_remote_code: whether Python code that lies in its folder may run.
        attention: how attention is computed; see :func:`distill.models.attention.set_attention`.

    Raises:
        OSError: there is no checkpoint, or it cannot be read.
        UserError: it lacks weights, or has some of other shapes; or the adapter does; or it has no such attention.
    """
    how: Any = {"trust_remote_code": trust_remote_code, "attention": attention}
    model: Any = load_whole(path, dtype=getattr(torch, dtype), **how)
    if adapter is not None:
        model = merged(model, adapter)
    return model.to(device).eval()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout and the like off while the block lasts; then the mode is what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def load_whole(
    path: str | Path,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    attention: AttnImplementation = "auto",
) -> PreTrainedModel:
    """A checkpoint as transformers loads it; with Python code that lies in its folder only where that is trusted.

    Weights in FP8 are unpacked into ``dtype``, on every device: which would compute with them depends on the card.

    Raises:
        OSError: there is no checkpoint, or it cannot be read.
        UserError: it lacks weights, or has some of other shapes, or has no such attention.
    """
    from transformers import AutoModelForCausalLM  # seconds that the driver, which loads no model, does not spend
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would run through the console of who asked

    settings: Any = {"dtype": dtype}
    packed = _unpacking_config(path, trust_remote_code=trust_remote_code)
    if packed is not None:
        settings["config"] = packed
    # Said even where it is no: transformers would ask whoever sits at the terminal.
    model = from_pretrained(AutoModelForCausalLM, path, named=path, trust_remote_code=trust_remote_code, **settings)
    if packed is not None:
        _unpack_into(model, dtype)
    set_attention(model, attention, named=f"checkpoint {path}")
    return model


FP8 = "fp8"
"""What transformers calls blocks of weights in eight bits, each with its scale; DeepSeek-V3 and Qwen3-FP8 have."""


def _unpacking_config(path: str | Path, *, trust_remote_code: bool) -> Any:
    """The configuration of a checkpoint in FP8 that has it unpacked as it loads; None for any other checkpoint."""
    from transformers import AutoConfig, PretrainedConfig

    packing = PretrainedConfig.get_config_dict(path)[0].get("quantization_config")
    if not isinstance(packing, dict) or packing.get("quant_method") != FP8:
        return None
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    config.quantization_config = {**packing, "dequantize": True}
    return config


def _unpack_into(model: Any, dtype: torch.dtype) -> None:
    """Give weights that were unpacked the dtype of the others: with scales in float32 they come out in that."""
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, weight in model.named_parameters():
        if not any(part in name for part in kept):
            weight.data = weight.data.to(dtype)


def from_pretrained(model_class: Any, source: str | Path | None, *, named: str | Path, **settings: Any) -> Any:
    """``model_class.from_pretrained(source, **settings)``, which alone would make up what the checkpoint lacks.

    Args:
        named: the checkpoint, as messages call it.

    Raises:
        UserError: weights are missing, or have other shapes than the configuration says.
    """
    return _loaded(model_class, source, named=named, **settings)[0]


def unused_weights(
    model_class: Any, tensors: Mapping[str, torch.Tensor], *, named: str | Path, config: Any
) -> list[str]:
    """The weights of a checkpoint that its model has no place for: draft heads, which transformers drops in silence.

    Args:
        tensors: the checkpoint's, by name, on the meta device.

    Raises:
        UserError: as :func:`from_pretrained`.
    """
    settings = {"config": config, "state_dict": dict(tensors), "device_map": "meta"}
    _, info = _loaded(model_class, None, named=named, **settings)
    silent = [re.compile(pattern) for pattern in model_class._keys_to_ignore_on_load_unexpected or ()]
    return sorted({*info["unexpected_keys"], *(key for key in tensors if any(p.search(key) for p in silent))})


def _loaded(model_class: Any, source: str | Path | None, *, named: str | Path, **settings: Any) -> tuple[Any, Any]:
    """A model, and transformers' account of its loading."""
    try:
        model, info = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except RuntimeError as error:
        if "conversion" not in str(error):
            raise
        raise UserError(
            f"checkpoint {named}: its experts cannot be put together, because some of their weights are missing or of "
            f"other shapes; take a whole checkpoint"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"checkpoint {named} lacks {len(missing)} weights of its model ({_some(missing)}), which would be random; "
            f"take a whole checkpoint"
        )
    shapes = [f"{key} is {list(there)} and not {list(needed)}" for key, there, needed in info["mismatched_keys"]]
    if shapes:
        raise UserError(
            f"checkpoint {named} has {len(shapes)} weights of other shapes than its config.json says "
            f"({_some(sorted(shapes))}); take the configuration that belongs to the weights"
        )
    return model, info


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:SHOWN])  # not per token
    return f"{shown}, ..." if len(items) > SHOWN else shown
