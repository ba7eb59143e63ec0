"""What `mopd check` says of attention: how each model computes it, and what a family does not have."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from check_kit import tree
from rich.console import Console

from mopd.distill.models.attention import LONG_TOKENS
from mopd.distill.models.memory import MAPS
from mopd.distill.recipe import Recipe
from mopd.distill.types import UserError
from mopd.recipes.check.model_info import read_model_infos
from mopd.recipes.check.plan.processes import planned_processes
from mopd.recipes.check.plan.room import Room
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.check.plan.view import print_plan
from mopd.recipes.check.static import check
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.resolved import resolve
from mopd.rollouts.tasks import TASKS

SLIDING: dict[str, Any] = {
    "architecture": "mimo_v2_flash",
    "config": {
        "hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "v_head_dim": 8, "n_routed_experts": 2,
        "num_experts_per_tok": 1, "max_position_embeddings": 8192, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
    },
}  # fmt: skip


def sliding(student: str = "auto", teacher: str = "auto", **changes: Any) -> Recipe:
    """A base and a teacher whose layers slide, with these leaves."""
    sections = tree(**changes)
    sections["student"]["engine"] = {"attn_implementation": student, "microbatch_tokens": 8192}
    sections["teachers"]["math"]["attn_implementation"] = teacher
    sections["stages"]["base"] = {"from": {**SLIDING, "vocabulary": 100}}
    return Recipe.model_validate(sections)


def shown(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_plan(plan, console, Room(None, None))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_plan_says_what_each_model_computes(tmp_path: Path) -> None:
    plan = check(resolve(sliding("banded", "eager")), tmp_path / "run")
    assert {model.name: model.attention for model in plan.models} == {
        "stage:base": f"by blocks in forwards of {LONG_TOKENS} tokens and more, eager in shorter ones",
        "stage:math": f"by blocks in forwards of {LONG_TOKENS} tokens and more, eager in shorter ones",
        "teacher math": "eager",
        "student": "by blocks",
    }
    assert "attention: eager (teacher math)" in shown(plan)


@pytest.mark.parametrize(
    ("leaf", "values"), [("student.engine", ("sdpa", "auto")), ("teachers.math", ("auto", "sdpa"))]
)
def test_what_a_family_does_not_have_is_refused(tmp_path: Path, leaf: str, values: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=rf"`{leaf}.attn_implementation`: mimo_v2_flash: transformers has no sdpa"):
        check(resolve(sliding(*values)), tmp_path / "run")


def test_blocks_are_planned_without_maps_of_all_pairs(tmp_path: Path) -> None:
    """A long answer's maps, of two layers with two heads in float32, are what an eager student needs more."""
    lengths = {"math": Lengths(100, 3900, 4000, 100.0, 3900.0)}
    planned: dict[str, float] = {}
    for implementation in ("eager", "banded", "auto"):
        resolved = resolve(sliding(implementation))
        infos, problems = read_model_infos(resolved, {"math": TASKS["arithmetic"]})
        assert problems == []
        ranks = [p for p in planned_processes(resolved, infos, lengths, {"math": 0}) if p.name == "rank of the student"]
        planned[implementation] = ranks[0].moments["learning"]["activations"]
    written = 4 * (100 + resolved.recipe.rollout.max_new_tokens)
    assert planned["auto"] == planned["banded"]
    assert planned["eager"] - planned["banded"] == pytest.approx(MAPS[4] * written * 4000 * 2 * 2 * 4)
