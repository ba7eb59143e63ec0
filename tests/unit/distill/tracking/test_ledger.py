"""The ledger through metrics.jsonl and back, and FLOPs against torch's own counter on real tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from mopd.distill.models.flops import AttentionShape, ModelCost, model_cost
from mopd.distill.tracking.ledger import Ledger, Spent, ledger_from_rows, read_ledger


def test_amounts_add_up_by_role() -> None:
    ledger = Ledger()
    ledger.add("generation", tokens=10, seconds=0.5)
    ledger.add("teacher/math", tokens=7, flops=1e9, seconds=2.0)
    ledger.add("generation", tokens=5, flops=2e9, seconds=0.25)
    assert dict(ledger.spent) == {"generation": Spent(15, 2e9, 0.75), "teacher/math": Spent(7, 1e9, 2.0)}
    assert ledger.record() == {
        "format": 1,
        "roles": {
            "generation": {"tokens": 15, "flops": 2e9, "seconds": 0.75},
            "teacher/math": {"tokens": 7, "flops": 1e9, "seconds": 2.0},
        },
        # The teacher worked in its own process meanwhile.
        "total": {"flops": 3e9, "seconds": 0.75},
    }


@pytest.mark.parametrize("role", ["", "genration", "step", "stage/base", "stage/base/step", "teacher/a/b", "update "])
def test_a_role_that_is_none_is_refused(role: str) -> None:
    with pytest.raises(ValueError, match="no role of the ledger; roles are publish, generation"):
        Ledger().add(role, tokens=1)


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("unit", ["tokens", "flops", "seconds"])
def test_an_amount_that_is_none_is_refused(unit: str, amount: float) -> None:
    with pytest.raises(ValueError, match=f"update spent {amount} {unit}"):
        Ledger().add("update", **{unit: amount})


def test_a_ledger_rebuilt_from_rows_cut_at_a_checkpoint_counts_every_step_once() -> None:
    """Three steps, killed, back to the checkpoint after step 2, step 3 again: as if never killed."""

    def row(step: int) -> dict[str, Any]:
        spent = {"tokens/generation": 100 * step, "seconds/generation": 1.0}
        evaluation = {"tokens/evaluation": 50, "flops/evaluation": 5e6} if step == 2 else {}
        return {"step": step, "kind": "train", "loss": 0.5, "seconds/step": 9.0, **spent, **evaluation}

    rows = [row(1), row(2), row(3)]
    resumed = ledger_from_rows([kept for kept in rows if kept["step"] <= 2] + [row(3)])
    assert resumed.spent == {"generation": Spent(600, 0, 3.0), "evaluation": Spent(50, 5e6, 0)}
    assert resumed.spent == ledger_from_rows(rows).spent


def test_rounding_below_zero_and_null_count_as_nothing() -> None:
    rows = [{"seconds/other": -1e-9, "tokens/update": None}, {"seconds/other": 2.0, "tokens/update": 3}]
    assert ledger_from_rows(rows).spent == {"other": Spent(0, 0, 2.0), "update": Spent(3, 0, 0)}


def test_ledger_json_and_back(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.add("stage/base/update", tokens=3, flops=1e12, seconds=1.5)
    ledger.write(tmp_path / "ledger.json")
    assert read_ledger(tmp_path / "ledger.json").spent == ledger.spent
    assert json.loads((tmp_path / "ledger.json").read_text())["total"] == {"flops": 1e12, "seconds": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]


def test_a_stage_is_included_under_its_name() -> None:
    base, run = Ledger(), Ledger()
    base.add("update", tokens=3, seconds=1.0)
    base.add("teacher/math", seconds=5.0)
    run.add("update", tokens=4)
    run.include(base, stage="base")
    assert run.spent["stage/base/update"] == Spent(3, 0, 1.0)
    assert run.spent["update"] == Spent(4, 0, 0)
    assert run.record()["total"]["seconds"] == 1.0


TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 2, "intermediate_size": 64},
    "llama-tied": {"num_attention_heads": 2, "intermediate_size": 64, "tie_word_embeddings": True},
    "qwen3_moe": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    "mimo_v2_flash": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "v_head_dim": 8,
        "intermediate_size": 64,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        "sliding_window": 4,
    },
}


def tiny(name: str, **more: Any) -> torch.nn.Module:
    config = AutoConfig.for_model(
        name.partition("-")[0], vocab_size=50, hidden_size=32, num_hidden_layers=2, **TINY[name]
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", **more)


@pytest.mark.parametrize("name", TINY)
def test_forward_and_training_flops_are_those_torch_counts(name: str) -> None:
    torch.manual_seed(0)
    model = tiny(name, experts_implementation="eager") if "mo" in name else tiny(name)
    length, cost = 12, model_cost(model)
    ids = torch.randint(0, 50, (1, length))
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, use_cache=False).logits
    # Eager attention computes the whole square and masks it; the ledger counts what a causal one needs.
    square = sum(2 * shape.heads * (shape.query_dim + shape.value_dim) * length**2 for shape in cost.attention)
    assert counter.get_total_flops() == 2 * cost.matmul_parameters * length + square
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert backward.get_total_flops() == 2 * counter.get_total_flops()
    causal = sum(shape.forward_flops(length) for shape in cost.attention)
    assert cost.forward([length]) == counter.get_total_flops() - square + causal
    assert cost.train([length]) == 3 * cost.forward([length])


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 3), (7, 7), (3, 100), (0, 4)])
def test_attention_sees_what_lies_before_it_within_its_window(length: int, window: int | None) -> None:
    seen = sum(1 for t in range(length) for s in range(length) if s <= t and (window is None or t - s < window))
    shape = AttentionShape(heads=3, query_dim=5, value_dim=2, window=window)
    # Each pair costs a product of 5 and an update of 2, per head, two operations an entry.
    assert shape.forward_flops(length) == 2 * 3 * (5 + 2) * seen


def test_windows_of_the_model_are_taken_from_its_layers() -> None:
    assert [shape.window for shape in model_cost(tiny("mimo_v2_flash")).attention] == [None, 4]
    assert [shape.window for shape in model_cost(tiny("llama")).attention] == [None, None]


def test_parameters_total_and_active() -> None:
    model = tiny("mimo_v2_flash")
    cost = model_cost(model)
    assert cost.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    # One sparse layer, 2 of 4 experts rest: gate and up 2 x 24 x 32, down 32 x 24.
    assert cost.total_parameters - cost.active_parameters == 2 * (2 * 24 * 32 + 32 * 24)


def test_generation_feeds_every_token_but_the_last() -> None:
    cost = ModelCost(10, 10, 10, (AttentionShape(heads=1, query_dim=1, value_dim=1, window=None),))
    # 2 * 10 a token, 4 for each of the pairs seen: 1 + 2 (three tokens), then 1.
    assert cost.forward([3]) == 60 + 4 * 6
    assert cost.generate([3, 2]) == (40 + 4 * 3) + (20 + 4 * 1)


def test_experts_without_a_number_are_refused() -> None:
    model = torch.nn.Module()
    model.experts = torch.nn.Linear(2, 2)
    model.config = PretrainedConfig(num_experts=4, tie_word_embeddings=False)
    model.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match=r"unheard_of: experts\.weight belongs to experts"):
        model_cost(model)
