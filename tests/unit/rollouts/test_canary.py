"""The canary of the sampler: right families pass, planted faults are refused, and so is what cannot be sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from check_kit import problems, tokenizer_of
from student_kit import FAMILIES, make_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.families import FAMILIES as ROWS
from mopd.distill.types import UserError
from mopd.rollouts.engines import canary, generate
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.cache import WindowLayer
from mopd.rollouts.engines.canary import check_sampler
from mopd.rollouts.engines.in_process import InProcess

DECODING = Decoding(
    max_new_tokens=12, temperature=0.8, greedy=False, seed=0, step=0, end_token_ids=(1,), pad_token_id=0
)
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.1,
    "vocab_size": 64, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_chunk_size": 16, "mamba_dt_rank": 4, "mamba_d_ssm": 64, "use_mamba_kernels": False,
}  # fmt: skip
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
CONVOLUTION: dict[str, Any] = {"layer_types": ["conv", "full_attention"] * 2}
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32
}  # fmt: skip
RECURRENT: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "falcon_h1": MAMBA,
    "falcon_mamba": {"state_size": 8},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4},
    "jamba": {**MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1},
    "lfm2": CONVOLUTION,
    "lfm2_moe": {**CONVOLUTION, **EXPERTS, "num_dense_layers": 1},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "olmo_hybrid": DELTA,
    "qwen3_5_text": DELTA,
    "qwen3_next": {**DELTA, **EXPERTS},
}
UNSAMPLED: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {"attention_window_size": 8, "lru_width": 32},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "xlstm": {"num_heads": 4},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2, "num_local_experts": 4, "block_size": 8},
    "zamba2": {
        **MAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 8, "use_mem_rope": False,
        "adapter_rank": 4,
    },
}  # fmt: skip


def built(family: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_of_the_table_pass(tmp_path: Path, family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path, family))
    assert check_sampler(InProcess(model), DECODING, named="it") < 1e-4


@pytest.mark.parametrize("family", sorted(RECURRENT))
def test_models_with_recurrent_states_pass(family: str) -> None:
    assert check_sampler(InProcess(built(family, **RECURRENT[family])), DECODING, named="it") < 2e-4
    assert family not in ROWS or ROWS[family].sampled


@pytest.mark.parametrize("family", sorted(UNSAMPLED))
def test_what_a_row_calls_unsampled_is_refused_by_the_canary(family: str) -> None:
    assert not ROWS[family].sampled
    model = built(family, **{**UNSAMPLED[family], "initializer_range": 0.3})
    with pytest.raises(UserError, match=r"the student (is sampled wrongly|cannot be sampled here)"):
        check_sampler(InProcess(model), DECODING, named="the student")


def test_a_check_names_the_family_that_cannot_be_sampled(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("arithmetic")
    model: Any = built("zamba2", **{**UNSAMPLED["zamba2"], "vocab_size": len(tokenizer)})
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    student = {"model": str(tmp_path / "model")}
    found = problems(tmp_path / "run", student=student, teachers={"math": {"model": "self"}}, stages={})
    assert any(problem.startswith("`student.model` is a zamba2, whose") for problem in found)


def wrong_cache_keyword(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_cache_argument", lambda model: "cache")


def shifted_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    run = generate._Batch.run

    def shifted(self: Any) -> Any:
        self.mask = torch.ones_like(self.mask)  # padding counts as text
        return run(self)

    monkeypatch.setattr(generate._Batch, "run", shifted)


def unkept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a row ends, the others keep the caches of the first ones."""
    from transformers.cache_utils import DynamicLayer

    def first(self: Any, index: torch.Tensor) -> None:
        self.keys, self.values = self.keys[: len(index)], self.values[: len(index)]

    monkeypatch.setattr(DynamicLayer, "reorder_cache", first)


def padded_id_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    init = generate._Batch.__init__

    def unlimited(self: Any, *args: Any) -> None:
        init(self, *args)
        self.decoding = replace(self.decoding, vocabulary=None)

    monkeypatch.setattr(generate._Batch, "__init__", unlimited)


@pytest.mark.parametrize("plant", [wrong_cache_keyword, shifted_positions, unkept_rows, padded_id_sampled])
def test_a_planted_fault_is_refused(monkeypatch: pytest.MonkeyPatch, plant: Any) -> None:
    model, decoding = built("llama", initializer_range=0.3), replace(DECODING, vocabulary=40)
    assert check_sampler(InProcess(model), decoding, named="it") < 1e-3
    plant(monkeypatch)
    with pytest.raises(UserError, match=r"it (is sampled wrongly|cannot be sampled here)"):
        check_sampler(InProcess(model), decoding, named="it")


def test_a_window_that_is_one_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler's cache keeps one position less than the model's window sees."""
    model = built("mistral", sliding_window=6, initializer_range=0.3)
    assert check_sampler(InProcess(model), DECODING, named="it") < 1e-3
    update = WindowLayer.update

    def short(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = update(self, *args, **kwargs)
        for seen in answer:
            seen[:, :, :1] = 0
        return answer

    monkeypatch.setattr(WindowLayer, "update", short)
    with pytest.raises(UserError, match="sampled wrongly"):
        check_sampler(InProcess(model), DECODING, named="it")


def test_a_model_of_a_short_context_is_asked_for_less() -> None:
    assert check_sampler(InProcess(built("llama", max_position_embeddings=14)), DECODING, named="it") < 1e-3
    assert canary.NEW_TOKENS == 12
