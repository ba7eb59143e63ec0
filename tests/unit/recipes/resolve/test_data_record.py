"""data.json: what was read of every dataset, and runs that are not resumed on other rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check_kit import recipe
from dataset_kit import sums, task_of, write

from mopd.distill.types import UserError
from mopd.recipes.resolve.data import DATA, note_data
from mopd.recipes.resolve.run_folder import note_recipe, refuse_changed_recipe
from mopd.rollouts.tasks import TASKS


def test_what_was_read_is_noted_and_other_rows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*sums(60), {"prompt": "x", "answer": ""}])
    note_data({"math": task_of(path, drop_refused=0.05), "sums": TASKS["arithmetic"]}, tmp_path / DATA)
    noted = json.loads((tmp_path / DATA).read_text())
    (split,) = noted.pop("math")
    assert noted == {}
    assert {key: split[key] for key in ("split", "rows", "chosen", "refused")} == {
        "split": "train",
        "rows": 61,
        "chosen": 61,
        "refused": 1,
    }
    assert split["refused_rows"] == [{"row": 60, "why": "`answer`, '', is empty (verifier 'exact')"}]
    assert len(split["version"]) == 16
    note_data({"math": task_of(path, drop_refused=0.05)}, tmp_path / DATA)  # the same again
    write(tmp_path / "rows.jsonl", [*sums(61, start=1)])
    with pytest.raises(UserError, match=r"`domains.math.task`: split 'train' was version .* with 61 rows.*--restart"):
        note_data({"math": task_of(path)}, tmp_path / DATA)


def test_a_run_without_datasets_notes_nothing(tmp_path: Path) -> None:
    note_data({"sums": TASKS["arithmetic"]}, tmp_path / DATA)
    assert not (tmp_path / DATA).exists()


def test_a_revision_may_be_named_when_a_run_goes_on(tmp_path: Path) -> None:
    """Its commit is in data.json, which is what the rows are held against."""

    def made(**task: str) -> None:
        refuse_changed_recipe(
            recipe(domains={"math": {"task": {"path": "org/set", **task}, "teacher": "math"}}), tmp_path
        )

    note_recipe(recipe(domains={"math": {"task": {"path": "org/set"}, "teacher": "math"}}), tmp_path)
    made(revision="abc")
    with pytest.raises(UserError, match=r"domains.math.task.path"):
        made(path="org/other")
