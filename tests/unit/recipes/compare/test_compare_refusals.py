"""Runs that cannot be compared: exit code 2, what differs by name, no traceback, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare_kit import BASE, CURVE, RECIPE, STUDENT, TEACHERS, levels, write_hand_run
from typer.testing import CliRunner

from mopd.distill.tracking.jsonl import append_jsonl, truncate_jsonl
from mopd.recipes.cli import app

TASK = {"path": "./data/chat.jsonl", "verifier": "exact"}


def told(*arguments: str | Path, out: Path, code: int = 2) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments), "--out", str(out)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert (out / "comparison.html").exists() == (code == 0)
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hand_run(tmp_path_factory.mktemp("made") / "one")


@pytest.fixture
def one(made: Path, tmp_path: Path) -> Path:
    """A run of the test's own, to be spoilt or compared with."""
    return shutil.copytree(made, tmp_path / "one")


def fewer(answers: dict[str, list[float]]) -> dict[str, list[float]]:
    return {domain: given[:90] for domain, given in answers.items()}


def without_chat(answers: dict[str, list[float]]) -> dict[str, list[float]]:
    return {domain: given for domain, given in answers.items() if domain != "chat"}


def narrowed(change: Callable[[dict[str, list[float]]], dict[str, list[float]]]) -> dict[str, Any]:
    return {
        "base": change(BASE),
        "teachers": {name: change(answers) for name, answers in TEACHERS.items()},
        "student": change(STUDENT),
        "curve": {step: change(answers) for step, answers in CURVE.items()},
    }


def renamed(run: Path, *, model: str | None, question: str) -> None:
    """As if ``model`` (or all) had been asked another question."""
    path = run / "evaluations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    mine = [row["prompt_id"] == question and model in (None, row["model"]) for row in rows]
    append_jsonl(path, [row | {"prompt_id": "other"} if m else row for row, m in zip(rows, mine, strict=True)])


OTHER_DOMAINS = {name: settings for name, settings in RECIPE["domains"].items() if name != "chat"}


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {"domains": OTHER_DOMAINS},
            narrowed(without_chat),
            "one has the domains math, code, chat, and two has math, code; runs are compared on the same domains",
        ),
        ({"domains.math.task": "ordering"}, {}, "domain 'math' is the task arithmetic in one, and ordering in two"),
        ({"domains.chat.task": TASK}, {}, "domain 'chat' is the task ordering in one, and ./data/chat.jsonl in two"),
        ({"evaluate.seed": 7}, {}, "one was asked the questions of `evaluate.seed` 0, and two those of 7"),
        (
            {"evaluate.validation_prompts": 90, "evaluate.test_prompts": 90},
            narrowed(fewer),
            "test questions of domain 'code': one was asked 100 and two 90, of which 90 are the same, and all must be "
            "(`evaluate.test_prompts` is 100 and 90)",
        ),
        (
            {},
            {"fingerprints": {"math": "feed", "code": "beef", "chat": "feed"}},
            "task list_programs of domain 'code' has the fingerprint feed in one and beef in two",
        ),
    ],
)  # fmt: skip
def test_runs_that_were_asked_something_else_are_refused(
    one: Path, tmp_path: Path, changes: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    two = write_hand_run(tmp_path / "two", changes, **more)
    assert message in told(one, two, out=tmp_path / "out")


def test_answers_that_others_checked_are_refused(tmp_path: Path) -> None:
    folders = [
        write_hand_run(tmp_path / verifier, {"domains.chat.task": TASK | {"verifier": verifier}})
        for verifier in ("exact", "number")
    ]
    message = "answers of domain 'chat' were checked by exact in exact, by number in number"
    assert message in told(*folders, out=tmp_path / "out")


def test_programs_that_were_run_in_another_sandbox_are_refused(tmp_path: Path) -> None:
    folders = {}
    for name, noted in {"old": {}, "new": {"sandbox": "bubblewrap"}, "like": {"sandbox": "whitelist"}}.items():
        folders[name] = write_hand_run(tmp_path / name, {"domains.chat.task": TASK | {"verifier": "python_tests"}})
        (folders[name] / "data.json").write_text(json.dumps({"chat": [{"split": "train"} | noted]}))
    message = "programs of domain 'chat' were run in sandbox whitelist in old and in bubblewrap in new"
    assert message in told(folders["old"], folders["new"], out=tmp_path / "out")
    told(folders["old"], folders["like"], out=tmp_path / "out", code=0)


def test_a_run_under_way_of_another_task_is_refused_by_the_fingerprint_it_will_have(one: Path, tmp_path: Path) -> None:
    """The finished one says 'feed', which the shipped task does not."""
    going = write_hand_run(tmp_path / "going", finished=False)
    message = told(one, going, out=tmp_path / "out")
    assert "task arithmetic of domain 'math' has the fingerprint feed in one and " in message
    assert "in going" in message


def test_other_questions_of_a_dataset_under_way_are_told_by_their_ids(tmp_path: Path) -> None:
    folders = [
        write_hand_run(tmp_path / name, {f"domains.{d}.task": TASK for d in RECIPE["domains"]}, finished=False)
        for name in ("one", "two")
    ]
    renamed(folders[1], model=None, question="math/validation/3")
    message = "validation questions of domain 'math': one was asked 100 and two 100, of which 99 are the same"
    assert message in told(*folders, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "is not there; give the folder of a run, such as runs/NAME"),
        (lambda run: (run / "recipe.yaml").unlink(), "holds no run: it has no recipe.yaml"),
        (lambda run: (run / "recipe.yaml").write_text("a: [\n"), "is damaged, or was not made by this version of mopd"),
        (lambda run: (run / "recipe.yaml").write_text("- 1\n"), "is not the recipe of a run: it has no seed"),
        (lambda run: (run / "evaluations.jsonl").unlink(), "has no evaluation of its base and its student yet"),
        (
            lambda run: truncate_jsonl(run / "evaluations.jsonl", lambda row: row["model"] != "student"),
            "has no evaluation of its student yet; compare it once its first evaluation is done, or leave it out",
        ),
        (lambda run: (run / "evaluations.jsonl").write_text("[]\n"), "evaluations.jsonl, line 1 is not a JSON object"),
        (lambda run: (run / "evaluations.jsonl").write_text('{"model": 1}\n'), "is damaged, or was not made by this"),
        (lambda run: (run / "seesaw.json").write_text('{"tasks": '), "is damaged, or was not made by this"),
        (lambda run: (run / "ledger.json").write_text("{}"), "is damaged, or was not made by this"),
        (
            lambda run: renamed(run, model="teachers/math", question="math/test/3"),
            "'teachers/math' answered 100 test questions of domain 'math' and 'base' 100, or others",
        ),
    ],
)
def test_a_folder_that_holds_no_whole_run_is_named(
    one: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(one)
    said = told(one, out=tmp_path / "out")
    assert str(one) in said
    assert message in said


def test_a_run_given_twice_a_wrong_pair_and_a_file_in_the_way_are_refused(one: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "one is given twice" in told(one, one.parent / "." / "one", out=out)
    assert "--pareto: no domain is called 'maths'; did you mean `math`?" in told(one, "--pareto", "maths,code", out=out)
    assert "two different domains are needed, for example math,code" in told(one, "--pareto", "math", out=out)
    assert "two different domains are needed" in told(one, "--pareto", "math,math", out=out)
    (tmp_path / "file").write_text("")
    assert "file/out cannot be written" in told(one, out=tmp_path / "file" / "out")


def test_a_comparison_that_is_possible_is_written(one: Path, tmp_path: Path) -> None:
    two = write_hand_run(tmp_path / "two", {"seed": 1}, student=levels(70, 80, 70))
    said = told(one, two, "--pareto", "chat, math", out=tmp_path / "deep" / "out", code=0)
    assert "page: " in said
    assert json.loads((tmp_path / "deep" / "out" / "comparison.json").read_text())["rows"][0]["n"] == 2
    assert "chat against math" in (tmp_path / "deep" / "out" / "comparison.html").read_text()
