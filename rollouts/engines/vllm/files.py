"""What a vLLM process reads of a student: checkpoints in files whose configuration says what vLLM takes it to say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mopd.distill.models.adapters import CONFIG as ADAPTER_CONFIG
from mopd.distill.models.adapters import WEIGHTS as ADAPTER_WEIGHTS
from mopd.distill.models.families import experts_of
from mopd.distill.models.mtp import is_head_tensor
from mopd.distill.recipe import LoRA
from mopd.distill.recipe.schema.vllm import Transport

CONFIG = "config.json"


def transport_of(asked: Transport, config: Any, *, lora: LoRA | None, device: str) -> Transport:
    """How weights reach a server, by the name that is not auto.

    Args:
        config: of the student.
        lora: the adapter that it trains; None: all of its weights change.
        device: of the servers.
    """
    if asked != "auto":
        return asked
    if mixture_on_cpu(config, device):  # it takes a reload on wrongly, and does not start with adapters
        return "restart"
    return "reload" if lora is None or unheld_part(lora) is not None else "adapter"


def mixture_on_cpu(config: Any, device: str) -> bool:
    """Whether a model has experts and is served from the CPU, where vLLM can neither reload nor adapt it."""
    return bool(experts_of(config.get_text_config())) and device == "cpu"


def unheld_part(lora: LoRA) -> str | None:
    """The leaf of an adapter's part that vLLM holds in no adapter; None where it holds all of it."""
    return "experts" if lora.experts else "embeddings" if lora.embeddings else None


def own_keys(config: Any) -> dict[str, Any]:
    """Keys of config.json that vLLM reads and transformers does not write, of a family that has any.

    MiMo-V2-Flash: transformers writes its layers, rotary bases and window under its own names, and counts the query
    into the window where it reads the hub's `sliding_window_size`; vLLM reads the hub's names, and there the query
    counts. One config.json cannot serve both.
    """
    if config.model_type != "mimo_v2_flash":
        return {}
    rotary = config.rope_parameters
    full, sliding = rotary["full_attention"], rotary["sliding_attention"]
    return {
        "hybrid_layer_pattern": [int(kind == "sliding_attention") for kind in config.layer_types],
        "moe_layer_freq": [int(kind == "sparse") for kind in config.mlp_layer_types],
        "layernorm_epsilon": config.rms_norm_eps,
        "sliding_window_size": config.sliding_window,
        "swa_head_dim": config.head_dim,
        "swa_v_head_dim": config.v_head_dim,
        "swa_num_attention_heads": config.num_attention_heads,
        "swa_num_key_value_heads": 2 * config.num_key_value_heads,
        "swa_rope_theta": sliding["rope_theta"],
        "rope_theta": full["rope_theta"],
        "partial_rotary_factor": full.get("partial_rotary_factor", 1.0),
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def served_folder(source: str, config: Any, folder: Path) -> str:
    """The checkpoint in ``source`` as vLLM reads it: itself, or links to its files and a configuration of its own."""
    keys = own_keys(config)
    if not keys:
        return source
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(source).absolute().iterdir():
        if file.name != CONFIG and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    _write_config(Path(source), keys, folder)
    return str(folder)


def write_model(
    state: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    source: str,
    config: Any,
    trust_remote_code: bool,
    heads: bool = False,
) -> None:
    """Write a checkpoint as vLLM reads it.

    Args:
        state: weights of a model of transformers, by its names, and of draft heads beside it.
        source: the checkpoint that the model began with, whose other files it keeps.
        config: of the model.
        heads: vLLM drafts with them; else they are left out.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    weights = {name: tensor for name, tensor in state.items() if heads or not is_head_tensor(name, text)}
    shell.save_pretrained(folder, state_dict=weights)  # by the names of files, which a mixture's layers have not
    _write_config(Path(source), own_keys(config), folder)


def write_adapter(state: Mapping[str, torch.Tensor], folder: Path, *, lora: LoRA) -> None:
    """Write an adapter as peft does.

    Args:
        state: its weights by peft's names.
    """
    folder.mkdir(parents=True)
    layers = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in state})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": layers,
        "bias": "none",
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / ADAPTER_WEIGHTS[0])


def _write_config(source: Path, keys: Mapping[str, Any], folder: Path) -> None:
    """``config.json`` of the checkpoint that a model began with, and further keys."""
    content = json.loads((source / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | dict(keys), indent=2))
