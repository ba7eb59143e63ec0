"""A run notes what it read of its datasets before anything is spent, and does not go on with other rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from check_kit import recipe, save_model, tokenizer_of
from dataset_kit import sums, write

from mopd.distill.types import UserError
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.run_folder import DATA
from mopd.recipes.run.launch import training


def test_a_run_is_made_of_rows_that_it_notes(tmp_path: Path) -> None:
    model = save_model(tmp_path / "student", tokenizer_of("arithmetic"))
    task = {"path": write(tmp_path / "rows.jsonl", [*sums(60), {"prompt": "x", "answer": ""}]), "drop_refused": 0.05}
    made = recipe(
        student={"model": model},
        domains={"math": {"task": task, "teacher": "math"}, "sums": {"task": "arithmetic", "teacher": "math"}},
        teachers={"math": {"model": model}},
        stages={},
    )
    folder = tmp_path / "run"
    folder.mkdir()
    unused: Any = None  # nothing is tracked before the first step

    def begin() -> None:
        training(resolve(made), folder, "attempt", model=model, teachers={"math": model}, tracker=unused, tests=None)

    begin()
    noted = json.loads((folder / DATA).read_text())
    assert list(noted) == ["math"]
    assert [(row["row"], row["why"]) for row in noted["math"][0]["refused_rows"]] == [
        (60, "`answer`, '', is empty (verifier 'exact')")
    ]
    begin()  # the same rows: a resumed run
    write(tmp_path / "rows.jsonl", sums(61))
    with pytest.raises(UserError, match=r"`domains.math.task`: split 'train' was version"):
        begin()
