"""A run's budget: what another run took with its teachers, less what the making of its own took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compare_kit import no_teachers, write_hand_run

from mopd.distill.errors import UserError
from mopd.distill.recipe import ComputeRecipe
from mopd.recipes.compare.budget import note_budget, read_budget

EQUAL = ComputeRecipe(equal_to="taught")


def test_without_teachers_it_is_all_that_the_other_took(tmp_path: Path) -> None:
    taught = write_hand_run(tmp_path / "taught-0")  # 450 FLOP of training, 140 of teachers
    bare = write_hand_run(tmp_path / "bare-0", no_teachers(), teachers={})
    note_budget(taught, bare, times=3.0)
    assert json.loads((bare / "compute.json").read_text()) == {"flops": 1770.0, "equal_to": "taught-0", "times": 3.0}
    assert read_budget(EQUAL, bare) == 1770.0
    assert read_budget(ComputeRecipe(flops=7.0), bare) == 7.0
    assert read_budget(None, bare) is None


def test_what_is_noted_stays_when_the_run_goes_on(tmp_path: Path) -> None:
    taught = write_hand_run(tmp_path / "taught-0")
    bare = write_hand_run(tmp_path / "bare-0", no_teachers(), teachers={})
    note_budget(taught, bare, times=1.0)
    note_budget(tmp_path / "gone", bare, times=2.0)
    assert read_budget(EQUAL, bare) == 590.0


def test_what_cannot_be_known_is_refused_by_name(tmp_path: Path) -> None:
    taught = write_hand_run(tmp_path / "taught-0")
    elsewhere = write_hand_run(tmp_path / "far-0", {"teachers.math.model": "some/hub-model"})
    with pytest.raises(UserError, match="what the teachers of far-0 cost is not known"):
        note_budget(elsewhere, write_hand_run(tmp_path / "a-0"), times=1.0)
    with pytest.raises(UserError, match="what the teachers of far-0 cost is not known"):
        note_budget(taught, elsewhere, times=1.0)
    with pytest.raises(UserError, match=r"`run.compute.equal_to` is taught, .*compute.json is not there"):
        read_budget(EQUAL, taught)
