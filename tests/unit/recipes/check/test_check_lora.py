"""What `mopd check` says of adapters that are trained: their size in the plan, targets, stages that make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_kit import CONFIG, check, problems, recipe, routes_problems, tree, warnings

from mopd.recipes.resolve.resolved import resolve

LORA = {"rank": 2, "alpha": 4}
BASE = {"from": {"architecture": "llama", "config": CONFIG, "vocabulary": 100}}
PARAMETERS = 2 * (16 + 16) * 2 + 2 * (16 + 8) * 2 + 3 * 2 * (16 + 32)
"""Of rank 2 beside q and o (16 x 16), k and v (16 x 8), gate, up and down (16 x 32), in one layer."""


def specialists(**math: Any) -> dict[str, Any]:
    """Two specialists over one base, of which `math` is an adapter."""
    return {
        "domains": {
            "math": {"task": "arithmetic", "teacher": "math", "prompts": 4},
            "order": {"task": "ordering", "teacher": "order", "prompts": 4},
        },
        "teachers": {"math": {"model": "stage:base", "adapter": "stage:math"}, "order": {"model": "stage:base"}},
        "stages": {"base": BASE, "math": {"from": "stage:base", "lora": LORA, **math}},
    }


def test_the_plan_counts_what_is_trained(tmp_path: Path) -> None:
    whole = check(recipe(), tmp_path)
    plan = check(recipe(student={"model": "stage:base", "lora": LORA}), tmp_path)
    assert plan.models[-1].made.endswith(f"an adapter of {PARAMETERS:,} parameters")
    planned = [next(p for p in each.processes if p.name == "rank of the student") for each in (whole, plan)]
    ranks = [sum(rank.held.values()) + sum(rank.moments["learning"].values()) for rank in planned]
    parameters = plan.models[-1].parameters
    # Float32: gradients and AdamW's copies of all weights, or of the adapter's; the weights beside them.
    assert ranks[0] - ranks[1] == pytest.approx(20 * parameters - (4 * parameters + 24 * PARAMETERS) + 4 * parameters)
    assert plan.disk_bytes < whole.disk_bytes


def test_a_target_that_no_layer_has_is_named_with_its_leaf(tmp_path: Path) -> None:
    found = problems(tmp_path, student={"model": "stage:base", "lora": {"targets": ["q_proj", "qproj"]}})
    assert any(problem.startswith("`student.lora` has 'qproj'") for problem in found)
    stages = {"base": BASE, "math": {"from": "stage:base", "lora": {"experts": True}}}
    assert any(problem.startswith("`stages.math.lora` has `experts`") for problem in problems(tmp_path, stages=stages))


def test_a_specialist_made_as_an_adapter_shares_its_base(tmp_path: Path) -> None:
    made = recipe(**specialists())
    check(made, tmp_path)
    assert resolve(made).groups == [["math", "order"]]


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"teachers": {"math": {"model": "stage:base", "adapter": "stage:maths"}}}, "no stage 'maths'"),
        ({"stages": {"base": BASE, "math": {"from": "stage:base"}}}, "trains a whole model"),
        (
            {"stages": {"base": BASE, "other": {"from": "stage:base"}, "math": {"from": "stage:other", "lora": LORA}}},
            "trained over stage:other",
        ),
    ],
    ids=["undeclared", "whole", "another base"],
)
def test_an_adapter_that_a_stage_does_not_make_is_refused(
    tmp_path: Path, changes: dict[str, Any], culprit: str
) -> None:
    sections = {**tree(), **specialists(), **changes}
    teachers = {**specialists()["teachers"], **sections["teachers"]}
    found = problems(tmp_path, **{key: sections[key] for key in ("domains", "stages")}, teachers=teachers)
    assert any("`teachers.math.adapter`" in problem and culprit in problem for problem in found), found


def test_a_stage_that_makes_an_adapter_is_in_use() -> None:
    assert not routes_problems(recipe(**specialists()))


def test_self_is_scored_by_the_ranks_where_an_adapter_is_trained() -> None:
    anchored: dict[str, Any] = {
        "domains": {
            "math": {"task": "arithmetic", "teacher": "math"},
            "order": {"task": "ordering", "teacher": "anchor"},
        },
        "teachers": {"math": {"model": "stage:math"}, "anchor": {"model": "self", "replicas": 2}},
        "student": {"model": "stage:base", "lora": LORA, "engine": {"expert_bias_rate": 0.01}},
    }
    resolved = resolve(recipe(**anchored))
    assert resolved.on_student == ("anchor",)
    assert resolved.groups == [["math"]]
    said = "\n".join(warnings(recipe(**anchored)))
    assert "`teachers.anchor.replicas` is set and changes nothing" in said
    assert "`student.engine.expert_bias_rate` is set and changes nothing" in said
    whole = {**anchored, "student": {"model": "stage:base"}}
    assert resolve(recipe(**whole)).on_student == ()
    other = {**anchored["teachers"], "anchor": {"model": "self", "dtype": "bfloat16"}}
    assert resolve(recipe(**{**anchored, "teachers": other})).on_student == ()


def test_draft_heads_beside_an_adapter_are_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, student={"model": "stage:base", "lora": LORA}, mtp={"heads": 1})
    assert any("`mtp.heads` is 1" in problem and "`student.lora`" in problem for problem in found), found
