"""What may be spread over ranks, and what DeepSpeed would get wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from mopd.distill.models.families import FAMILIES, Family, experts_of
from mopd.distill.models.flops import model_cost
from mopd.distill.recipe import AdamW, Engine
from mopd.distill.student.engine import check_engine
from mopd.distill.student.moe import check_expert_parallel
from mopd.distill.types import UserError


def config(family: str, **keys: Any) -> Any:
    return AutoConfig.for_model(family, **keys)


def test_experts_are_counted_in_every_family() -> None:
    assert experts_of(config("mimo_v2_flash", n_routed_experts=6)) == 6
    assert experts_of(config("qwen3_moe", num_experts=8)) == 8
    assert experts_of(config("mixtral", num_local_experts=4)) == 4
    assert experts_of(config("llama")) == 0


def test_a_family_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of its own attributes, its experts counted and spread, its FLOPs those of its chosen experts."""
    toy = SimpleNamespace(
        model_type="toy", toy_experts=6, toys_per_token=2, tie_word_embeddings=False, num_hidden_layers=1,
        num_attention_heads=2, head_dim=4, toy_width=3,
    )  # fmt: skip
    toy.get_text_config = lambda: toy
    with pytest.raises(UserError, match="no experts"):
        check_expert_parallel(toy, 2, 2)
    row = Family(("toy_experts",), experts_per_token="toys_per_token", value_width="toy_width", can_spread=True)
    monkeypatch.setitem(FAMILIES, "toy", row)
    assert experts_of(toy) == 6
    check_expert_parallel(toy, 2, 2)
    model = torch.nn.ModuleDict({"experts": torch.nn.ParameterDict({"w": torch.zeros(6, 5, 5)})})
    model.config = toy  # type: ignore[assignment]
    cost = model_cost(model)
    assert cost.active_parameters == 2 * 25
    assert [(layer.query_dim, layer.value_dim) for layer in cost.attention] == [(4, 3)]


@pytest.mark.parametrize(
    ("family", "keys", "ranks", "expert_parallel", "message"),
    [
        ("mimo_v2_flash", {"n_routed_experts": 6}, 4, 4, "does not divide the 6 experts.*one of 1, 2, 3, 6"),
        ("mimo_v2_flash", {"n_routed_experts": 6}, 4, 3, "does not divide the engine's 4 ranks.*multiple of 3"),
        ("llama", {}, 2, 2, "llama has no experts; set it to 1"),
        ("gpt_oss", {"num_local_experts": 4}, 2, 2, "experts of gpt_oss cannot be spread.*mimo_v2_flash"),
    ],
)
def test_what_cannot_be_spread_is_refused(
    family: str, keys: dict[str, Any], ranks: int, expert_parallel: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_expert_parallel(config(family, **keys), ranks, expert_parallel)


@pytest.mark.parametrize(("ranks", "expert_parallel"), [(1, 1), (5, 1), (2, 2), (6, 3), (6, 6)])
def test_what_can_be_spread_passes(ranks: int, expert_parallel: int) -> None:
    check_expert_parallel(config("mimo_v2_flash", n_routed_experts=6), ranks, expert_parallel)


def test_wrong_combinations_are_refused_together() -> None:
    settings = Engine(ranks=2, expert_parallel=2, zero_stage=0, dtype="bfloat16")
    with pytest.raises(UserError) as caught:
        check_engine(config("mimo_v2_flash", n_routed_experts=3), settings, AdamW(), device="cpu")
    assert len(caught.value.problems) == 3
