"""data.json: what was read of every dataset, and runs that are not resumed on other rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check_kit import recipe
from dataset_kit import sums, task_of, write

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.source import SandboxName
from mopd.distill.types import UserError
from mopd.recipes.resolve.data import note_data
from mopd.recipes.resolve.run_folder import DATA, note_recipe, refuse_changed_recipe
from mopd.rollouts.sandbox.bubblewrap.choice import bubblewrap_problem
from mopd.rollouts.tasks import TASKS

PROBLEM = bubblewrap_problem()


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


@pytest.mark.parametrize("was", ["whitelist", "bubblewrap"])
def test_a_run_goes_on_with_programs_in_the_sandbox_that_it_began_with(was: SandboxName, tmp_path: Path) -> None:
    if was == "bubblewrap" and PROBLEM is not None:
        pytest.skip(f"needs bubblewrap: {PROBLEM}")
    rows = [{"prompt": f"return {n}", "answer": f"assert f() == {n}"} for n in range(40)]
    path, settings = write(tmp_path / "rows.jsonl", rows), {"verifier": "python_tests"}
    note_data({"code": task_of(path, sandbox=was, **settings)}, tmp_path / DATA)
    noted = json.loads((tmp_path / DATA).read_text())
    assert {split["sandbox"] for split in noted["code"]} == {was}
    note_data({"code": task_of(path, sandbox=was, **settings)}, tmp_path / DATA)
    other = task_of(path, **settings)
    other.sandbox = "whitelist" if was == "bubblewrap" else "bubblewrap"
    with pytest.raises(UserError, match=rf"programs were run in sandbox {was} when the run began.*`sandbox: {was}`"):
        note_data({"code": other}, tmp_path / DATA)
    for split in noted["code"]:
        del split["sandbox"]  # as runs noted it that began before there was another
    (tmp_path / DATA).write_text(json.dumps(noted))
    before = task_of(path, sandbox="whitelist", **settings)
    note_data({"code": before}, tmp_path / DATA)


def test_the_sandbox_may_be_named_when_a_run_goes_on(tmp_path: Path) -> None:
    def made(**task: str) -> Recipe:
        settings = {"path": "./rows.jsonl", "verifier": "python_tests", **task}
        return recipe(domains={"code": {"task": settings, "teacher": "math"}})

    note_recipe(made(), tmp_path)
    refuse_changed_recipe(made(sandbox="whitelist"), tmp_path)
    with pytest.raises(UserError, match=r"domains.code.task.verifier"):
        refuse_changed_recipe(made(verifier="exact"), tmp_path)


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
