"""What `mopd check` says of packed rollouts: families that would give other results are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from check_kit import CONFIG, check, problems, recipe

from mopd.recipes.check import model_info

PACKED = {"packing": True}
LINEAR: dict[str, Any] = {
    "architecture": "lfm2",
    "config": {**CONFIG, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "vocabulary": 100,
}


def test_a_family_whose_rows_meet_is_refused_where_it_learns_and_where_it_scores(tmp_path: Path) -> None:
    made = {"base": {"from": LINEAR}, "math": {"from": "stage:base", "engine": PACKED}}
    sentences = problems(tmp_path / "out", student={"model": "stage:base", "engine": PACKED}, stages=made)
    assert [sentence.split(" ")[0] for sentence in sentences] == [
        "`stages.math.engine.packing`", "`student.engine.packing`", "`student.engine.packing`",
    ]  # fmt: skip
    assert all("lfm2" in sentence and "differ by" in sentence for sentence in sentences)
    assert "`teachers.math.model`" in sentences[-1]


def test_a_family_that_packs_is_let_through_and_one_too_large_to_be_tried_goes_by_its_row(
    tmp_path: Path, monkeypatch: Any
) -> None:
    packed = recipe(student={"model": "stage:base", "engine": PACKED})
    assert check(packed, tmp_path / "out").warnings == ()
    monkeypatch.setattr(model_info, "LARGEST", 0)
    assert check(packed, tmp_path / "out").warnings == ()  # llama has a row
    made = {"base": {"from": {**LINEAR, "architecture": "olmo", "config": CONFIG}}, "math": {"from": "stage:base"}}
    (first, _) = problems(tmp_path / "out", student={"model": "stage:base", "engine": PACKED}, stages=made)
    assert "olmo that `student.model` names is of a family that is not known" in first
