"""The run's folder before it is claimed: can it be written, is it another recipe's, is it moved aside whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from check_kit import recipe

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.files import dump_recipe
from mopd.distill.storage import claim
from mopd.distill.types import UserError
from mopd.recipes.resolve.checkpoints import local_folder
from mopd.recipes.resolve.run_folder import check_folder, existing_parent, kept, move_aside, refuse_changed_recipe, size

NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """For root, whom no permission stops: as a user that owns nothing."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b", needed_bytes=1) == []
    (found,) = check_folder(Path("/proc/mopd/run"), needed_bytes=1)
    assert "/proc/mopd/run cannot be written" in found
    (found,) = check_folder(tmp_path, needed_bytes=1e18)
    assert "needs about 909494.7 TiB" in found
    assert list(tmp_path.iterdir()) == []


def test_sizes_have_the_unit_that_fits_them() -> None:
    sizes = {0: "0 bytes", 512: "512 bytes", 3_000_000: "2.9 MiB", 2**30: "1.0 GiB", 1.5 * 2**40: "1.5 TiB"}
    assert {amount: size(amount) for amount in sizes} == sizes


def test_what_is_kept_is_said_of_a_run_its_stages_and_a_study(tmp_path: Path) -> None:
    out = tmp_path / "study" / "mopd-0"
    out.mkdir(parents=True)
    assert kept(out) == "No checkpoint was written yet"
    for name in ("stages/base/checkpoints/step-000006", "checkpoints/step-000002", "checkpoints/step-000004"):
        (out / name).mkdir(parents=True)
    (out / "checkpoints" / "step-000006.tmp-abc").mkdir()
    (out / "stages" / "base" / "finished.json").write_text("{}")
    assert kept(out) == "Saved are mopd-0 (after step 4), base (finished)"
    assert kept(out.parent) == "Saved are mopd-0 (after step 4), mopd-0/stages/base (finished)"


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    made = recipe()
    refuse_changed_recipe(made, tmp_path)  # nothing is there
    (tmp_path / "recipe.yaml").write_text(dump_recipe(made))
    refuse_changed_recipe(made, tmp_path)
    with pytest.raises(UserError, match=r"run\.steps: 200 -> 7") as caught:
        refuse_changed_recipe(recipe(run={"steps": 7}), tmp_path)
    assert "--restart" in str(caught.value)
    more = {
        "faults": {"retries": 9},
        "run": {"resident_teachers": 1},
        "teachers": {"math": {"model": "stage:math", "replicas": 2}},
    }
    refuse_changed_recipe(recipe(**more), tmp_path)  # no number of the run depends on them
    (tmp_path / "recipe.yaml").write_text("name: 3\n")
    with pytest.raises(UserError, match="no recipe of this version"):
        refuse_changed_recipe(made, tmp_path)


def test_the_student_may_be_spread_anew_which_is_told(tmp_path: Path) -> None:
    def spread(**engine: int) -> Recipe:
        return recipe(student={"model": "stage:base", "engine": engine})

    assert refuse_changed_recipe(spread(), tmp_path) == []
    (tmp_path / "recipe.yaml").write_text(dump_recipe(spread(ranks=2)))
    assert refuse_changed_recipe(spread(ranks=2), tmp_path) == []
    now = spread(ranks=1, zero_stage=3, microbatch_tokens=512)
    (sentence,) = refuse_changed_recipe(now, tmp_path)
    assert all(f"student.engine.{leaf}" in sentence for leaf in ("ranks: 2 -> 1", "zero_stage", "microbatch_tokens"))
    other = recipe(student={"model": "stage:base", "engine": {"ranks": 1}, "updates_per_step": 3})
    with pytest.raises(UserError, match=r"updates_per_step: 2 -> 3") as caught:
        refuse_changed_recipe(other, tmp_path)
    assert "engine" not in str(caught.value)


def test_a_server_may_move_and_a_teacher_may_not_become_one(tmp_path: Path) -> None:
    def served(**changes: str) -> Recipe:
        return recipe(teachers={"math": {"model": "./a", "served_model": "a", "endpoint": "http://one:1/v1"} | changes})

    (tmp_path / "recipe.yaml").write_text(dump_recipe(served()))
    refuse_changed_recipe(served(endpoint="https://two:2/v1", api_key_env="KEY"), tmp_path)
    with pytest.raises(UserError, match=r"served_model: .a. -> .b."):
        refuse_changed_recipe(served(served_model="b"), tmp_path)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(teachers={"math": {"model": "./a"}})))
    with pytest.raises(UserError, match=r"math.endpoint: "):
        refuse_changed_recipe(served(), tmp_path)


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


def test_what_is_no_run_is_not_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"no run's folder: it holds no recipe\.yaml"):
        move_aside(tmp_path)
    assert (tmp_path / "thesis.tex").is_file()
    (tmp_path / "empty").mkdir()
    assert move_aside(tmp_path / "empty") is None


def test_the_working_folder_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("")
    monkeypatch.chdir(out)
    aside = move_aside(Path())
    assert aside is not None
    assert aside.parent == tmp_path
    assert not out.exists()


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    with without_privileges():
        (found,) = check_folder(closed / "run", needed_bytes=1)
        with pytest.raises(UserError, match="cannot be looked at: Permission denied"):
            local_folder(str(closed / "model"))
    assert f"run folder {closed}/run cannot be made: Permission denied" in found


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    (found,) = check_folder(tmp_path / ("x" * 300), needed_bytes=1)
    assert "cannot be made: File name too long" in found
    with pytest.raises(UserError, match="cannot be looked at: File name too long"):
        local_folder(str(tmp_path / ("x" * 300)))


def test_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b" / "c") == tmp_path
    assert existing_parent(tmp_path) == tmp_path


def test_a_folder_that_somebody_runs_in_is_not_moved(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("")
    with claim(out), pytest.raises(UserError, match="is running in it"):
        move_aside(out)
    assert out.is_dir()
