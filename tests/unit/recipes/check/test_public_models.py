"""Models in the shapes of public releases, made small: a check takes them, the sampler is right, their keys are known.

The numbers are those of the releases' config.json, with widths, layers, experts and vocabulary divided.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from check_kit import check, recipe, tokenizer_of
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.recipe import Architecture
from mopd.distill.types import UserError
from mopd.recipes.check.model_info import architecture_config
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.canary import check_sampler
from mopd.rollouts.engines.in_process import InProcess
from mopd.rollouts.tokenizer import token_count

PUBLIC: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 12, "num_experts": 8,
        "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "num_hidden_layers": 2, "max_window_layers": 2, "use_sliding_window": False, "sliding_window": None,
        "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-06, "router_aux_loss_coef": 0.001,
        "output_router_logits": False, "attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False,
        "max_position_embeddings": 256,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 56, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 304, "num_hidden_layers": 2, "max_window_layers": 2, "sliding_window": 32768,
        "use_sliding_window": False, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06, "hidden_act": "silu",
        "tie_word_embeddings": True, "use_mrope": False, "max_position_embeddings": 256, "padding": 64,
    },
    "Llama-3.2-1B": {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 256, "num_hidden_layers": 2, "attention_bias": False, "mlp_bias": False,
        "hidden_act": "silu", "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64, "rope_type": "llama3",
        },
        "tie_word_embeddings": True, "max_position_embeddings": 1024,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "hidden_size": 36, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 16, "intermediate_size": 216, "num_hidden_layers": 8, "query_pre_attn_scalar": 16,
        "sliding_window": 8, "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_theta": 1000000,
        "rope_scaling": None, "rms_norm_eps": 1e-06, "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": False,
        "max_position_embeddings": 256,
    },
    "SmolLM2-135M": {
        "model_type": "llama", "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 192, "num_hidden_layers": 2, "rope_theta": 100000, "rope_interleaved": False,
        "rope_scaling": None, "rms_norm_eps": 1e-05, "hidden_act": "silu", "is_llama_config": True, "mlp_bias": False,
        "tie_word_embeddings": True, "max_position_embeddings": 256, "pretraining_tp": 1,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "hidden_size": 56, "num_attention_heads": 4, "num_key_value_heads": 4,
        "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "intermediate_size": 144, "moe_intermediate_size": 16, "n_routed_experts": 16, "n_shared_experts": 1,
        "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "hidden_act": "silu", "rms_norm_eps": 1e-06,
        "rope_theta": 10000, "tie_word_embeddings": False, "max_position_embeddings": 256, "attention_bias": False,
        "rope_scaling": {
            "type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
        },
    },
    "GLM-4.5": {
        "model_type": "glm4_moe", "hidden_size": 40, "num_attention_heads": 12, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 96, "moe_intermediate_size": 12, "n_routed_experts": 8,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "num_hidden_layers": 3, "use_qk_norm": True,
        "partial_rotary_factor": 0.5, "rope_theta": 1000000, "rope_scaling": None, "num_nextn_predict_layers": 1,
        "attention_bias": True, "hidden_act": "silu", "rms_norm_eps": 1e-05, "tie_word_embeddings": False,
        "max_position_embeddings": 256,
    },
}  # fmt: skip
OLDER_NAMES = ("sliding_window_pattern", "sliding_window", "partial_rotary_factor")
"""That a configuration takes over into others."""
TOKENIZER = tokenizer_of("arithmetic")


def save(folder: Path, name: str, *, padding: int) -> str:
    """A checkpoint whose config.json is written as a release has it."""
    settings = {key: value for key, value in PUBLIC[name].items() if key != "padding"}
    ids = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id, "bos_token_id": None}
    written = {**settings, **ids, "vocab_size": token_count(TOKENIZER) + padding, "torch_dtype": "float32"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(written))
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(padding)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**written, "architectures": [type(model).__name__]}))
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_shape_is_taken_as_student_and_teacher(tmp_path: Path, name: str) -> None:
    padding = PUBLIC[name].get("padding", 0)
    student = save(tmp_path / "student", name, padding=padding)
    teacher = save(tmp_path / "teacher", name, padding=2 * padding)
    made = recipe(
        student={"model": student, "lora": {"rank": 2}},
        teachers={"math": {"model": teacher}},
        stages={},
        rollout={"max_new_tokens": 32},
    )
    plan = check(made, tmp_path / "run")
    assert not any("has no place" in warning for warning in plan.warnings)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    decoding = Decoding(
        max_new_tokens=16, temperature=1.0, greedy=False, seed=0, step=0,
        end_token_ids=(TOKENIZER.eos_token_id,), pad_token_id=TOKENIZER.pad_token_id, vocabulary=token_count(TOKENIZER),
    )  # fmt: skip
    assert check_sampler(InProcess(model), decoding, named=name) < 1e-4


@pytest.mark.parametrize("name", PUBLIC)
def test_the_keys_of_a_public_shape_are_known(name: str) -> None:
    """But for those that no code of transformers reads."""
    unread = {"model_type", "padding", "use_mrope", "rope_interleaved", "is_llama_config", "moe_layer_freq",
              "topk_method", "scoring_func", "max_window_layers"}  # fmt: skip
    settings = {key: value for key, value in PUBLIC[name].items() if key not in unread}
    family = PUBLIC[name]["model_type"]
    config = architecture_config(Architecture(architecture=family, config=settings), TOKENIZER)
    for key, value in settings.items():
        if not key.startswith("rope_") and key not in OLDER_NAMES:
            assert getattr(config, key) == value, key
    with pytest.raises(UserError, match="head_dims"):
        architecture_config(Architecture(architecture=family, config={**settings, "head_dims": 8}), TOKENIZER)
