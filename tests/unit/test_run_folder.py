"""The run's folder before it is claimed: can it be written, is it another recipe's, is it moved aside whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_kit import recipe

from distill.checkpoint import claim
from distill.recipe_file import dump_recipe
from distill.types import UserError
from recipes.run_folder import check_folder, existing_parent, move_aside, refuse_changed_recipe


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b", needed_bytes=1) == []
    (found,) = check_folder(Path("/proc/mopd/run"), needed_bytes=1)
    assert "/proc/mopd/run cannot be written" in found
    (found,) = check_folder(tmp_path, needed_bytes=1e18)
    assert "needs about 1000000000.0 GB" in found
    assert list(tmp_path.iterdir()) == []


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    made = recipe()
    refuse_changed_recipe(made, tmp_path)  # nothing is there
    (tmp_path / "recipe.yaml").write_text(dump_recipe(made))
    refuse_changed_recipe(made, tmp_path)
    with pytest.raises(UserError, match=r"run\.steps: 200 -> 7") as caught:
        refuse_changed_recipe(recipe(run={"steps": 7}), tmp_path)
    assert "--restart" in str(caught.value)
    more = {"faults": {"retries": 9}, "teachers": {"math": {"model": "stage:math", "replicas": 2}}}
    refuse_changed_recipe(recipe(**more), tmp_path)  # no number of the run depends on them
    (tmp_path / "recipe.yaml").write_text("name: 3\n")
    with pytest.raises(UserError, match="no recipe of this version"):
        refuse_changed_recipe(made, tmp_path)


def test_moving_aside_keeps_everything(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert move_aside(out) is None
    for content in ("first", "second"):
        out.mkdir()
        (out / "recipe.yaml").write_text(content)
        aside = move_aside(out)
        assert aside is not None
        assert not out.exists()
        assert (aside / "recipe.yaml").read_text() == content
    assert len(list(tmp_path.iterdir())) == 2


def test_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b" / "c") == tmp_path
    assert existing_parent(tmp_path) == tmp_path


def test_a_folder_that_somebody_runs_in_is_not_moved(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with claim(out), pytest.raises(UserError, match="is running in it"):
        move_aside(out)
    assert out.is_dir()
