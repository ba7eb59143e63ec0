"""The plans of two shipped recipes by role and byte, against the formulas by hand; and what fits on a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_kit import check, recipe

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.files import load_recipe
from mopd.distill.types import UserError
from mopd.recipes import SHIPPED
from mopd.recipes.check.plan.processes import CONTEXT_BYTES, GIB, ProcessPlan, cards
from mopd.recipes.check.plan.room import card_here, lacks_cards
from mopd.recipes.check.plan.totals import Plan

V = 151_936


def shipped(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides, shipped=SHIPPED)


def process(plan: Plan, name: str) -> ProcessPlan:
    return next(process for process in plan.processes if process.name == name)


def test_qwen3_1gpu_by_hand(tmp_path: Path) -> None:
    plan = check(shipped("qwen3_1gpu"), tmp_path / "run", offline=True)
    base, adapter = 1_720_574_976, 34_865_152  # 28 layers, 7 targets of rank 32
    rank = process(plan, "rank of the student")
    assert rank.held == {
        "CUDA": CONTEXT_BYTES,
        "weights": 2 * (base + adapter),
        "optimizer": 12 * adapter,
        "teachers' heads": 2 * V * 2048,  # one base, so one head
    }
    layer = 8 * 2048 + 4 * 6144 + 4 * (2048 + 1024)
    assert rank.moments["learning"] == {
        "gradients": 4 * adapter + 2 * 500_000_000,
        "activations": 2 * 4096 * (28 * 2048 + layer),  # recomputed: each layer's input, and one layer
        "logits": 6 * 4 * 1024 * 8192,
        "gradient of the head": 4 * V * 2048,
    }
    assert rank.moments["writing"] == {
        "KV cache": pytest.approx(64 * 1024 * 2 * 1024 * 2 * 29),  # 8 heads of 128; 28 layers, and one as it grows
        "logits": 64 * V * (2 + 32),
        "activations": 2 * 64 * 512 * (2 * 2048 + 3 * 6144 + 2048 + 2 * 1024),
    }
    teacher = process(plan, "teacher math, code, reasoning")
    assert (teacher.gpus, teacher.held["weights"]) == (0.3, 2 * base)
    (stage,) = [process for process in plan.processes if process.phase == "stages"]
    assert stage.moments["learning"]["logits"] == V * 4096 * (2 + 16)
    run = [card for card in cards(plan.processes) if card.phase == "run"]
    assert stage.card_bytes < run[0].needed_bytes == plan.card_bytes < 24 * GIB
    assert [set(card.bytes_of) for card in run] == [{"rank of the student", "teacher math, code, reasoning"}]


def test_qwen3_8gpu_by_hand(tmp_path: Path) -> None:
    plan = check(shipped("qwen3_8gpu"), tmp_path / "run", offline=True)
    rank = process(plan, "rank of the student")
    total, experts = 30_532_122_624, 48 * 128 * 3 * 2048 * 768
    dense, half = total - experts, experts / 2  # experts: two ranks share a set, and three hold each of its halves
    shard = dense / 6 + half / 3
    assert rank.count == 6
    assert rank.held["weights"] == pytest.approx(2 * shard)
    assert rank.held["optimizer"] == pytest.approx(12 * shard)
    assert rank.held["gradients"] == pytest.approx(4 * shard + 2 * 500_000_000)
    assert rank.held["teachers' heads"] == 2 * 2 * V * 2048  # two teachers, each with its own
    assert rank.moments["writing"]["gathered weights"] == pytest.approx(2 * (dense * 5 / 6 + half * 2 / 3))
    assert rank.moments["learning"]["gathered weights"] == 2 * 1_000_000_000
    layer = (8 + 2 * 8) * 2048 + 4 * 8 * 768 + 4 * (4096 + 512)
    assert rank.moments["learning"]["activations"] == 2 * 4096 * (48 * 2048 + layer)
    assert rank.moments["writing"]["KV cache"] == pytest.approx(32 * (512 + 1024) * 2 * 512 * 2 * 49)
    of_run = [card for card in cards(plan.processes) if card.phase == "run"]
    assert len(of_run) == 8
    assert max(card.needed_bytes for card in of_run) == plan.card_bytes == rank.card_bytes
    # What lies on cards is in the host's memory while it is loaded: whole in each of six ranks and two teachers.
    assert rank.host["weights, as they are loaded"] == 2 * total
    assert 0 < plan.memory_bytes - 8 * 2 * total < 16 * GIB


def test_the_whole_student_needs_a_larger_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one card holds 24.0 GiB"):
        check(shipped("qwen3_1gpu", "student.lora=null"), tmp_path / "run", offline=True)
    plan = check(shipped("qwen3_1gpu", "student.lora=null", "run.card_gib=80"), tmp_path / "run", offline=True)
    assert 24 * GIB < plan.card_bytes < 80 * GIB


def test_the_stages_that_meet_on_a_card_are_added_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rank of stage:math 16.5 GiB, rank of stage:code 16.5 GiB"):
        check(shipped("qwen3_1gpu", "run.parallel_stages=2"), tmp_path / "run", offline=True)
    whole = shipped("qwen3_1gpu", "run.parallel_stages=2", *(f"stages.{n}.engine.gpus=1" for n in ("math", "code")))
    assert check(whole, tmp_path / "run", offline=True).card_bytes < 24 * GIB  # each has a card of its own


def test_a_card_of_the_recipe_is_held_against_only_where_there_is_none(tmp_path: Path) -> None:
    assert card_here(24, elsewhere=True) == 24 * GIB
    assert card_here(None, elsewhere=True) is None
    plan = check(shipped("qwen3_1gpu"), tmp_path / "run", offline=True)
    assert lacks_cards(plan, None) == []
    assert lacks_cards(plan, plan.card_bytes) == []
    assert len(lacks_cards(plan, plan.card_bytes / 1.2)) == 1


def test_on_a_cpu_no_card_is_needed(tmp_path: Path) -> None:
    plan = check(recipe(), tmp_path / "run")
    assert plan.fullest_card is None
    assert plan.card_bytes == 0
    assert {process.gpus for process in plan.processes} == {0.0}


SMALL = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000}  # fmt: skip


@pytest.mark.parametrize("given", [SMALL, "path"])
def test_a_models_figures_can_be_given(tmp_path: Path, given: Any) -> None:
    if given == "path":
        from transformers import AutoConfig

        AutoConfig.for_model(**SMALL).save_pretrained(tmp_path / "figures")
        given = str(tmp_path / "figures")
    made = recipe(student={"model": "lab/secret"}, architectures={"lab/secret": given}, stages={}, teachers={},
                  domains={"math": {"task": "arithmetic", "reward": True}}, method="mix_rl",
                  loss={"estimator": "policy_gradient", "reward_weight": 1.0},
                  rollout={"samples_per_prompt": 2})  # fmt: skip
    plan = check(made, tmp_path / "run", offline=True)
    layer = 64 * 16 * (4 + 2 + 2) + 16 * 4 * 64 + 3 * 64 * 128 + 2 * 64 + 2 * 16
    assert plan.models[-1].parameters == 2 * 1000 * 64 + 2 * layer + 64


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lab/secrets": SMALL}, "did you mean `lab/secrets`"),
        ({"lab/secret": {**SMALL, "model_type": "qwen33"}}, "is no configuration of transformers"),
        ({"lab/secret": "./nowhere"}, "is no configuration of transformers"),
    ],
)
def test_figures_that_are_none_are_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    made = recipe(student={"model": "lab/secret"}, architectures=given)
    with pytest.raises(UserError, match=words):
        check(made, tmp_path / "run", offline=True)


@pytest.mark.parametrize("name", ["qwen3_1gpu", "qwen3_8gpu", "mimo_cluster"])
def test_specialists_of_the_big_recipes_differ(name: str) -> None:
    teachers = shipped(name).teachers.values()
    assert len({(t.model, t.adapter, t.served_model) for t in teachers}) == len(teachers)
