"""`mopd recipes` and `mopd init`: what is shipped is named, and what is written passes every check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_kit import save_model, tokenizer_of
from cli_kit import mopd, refused
from house_kit import REPOSITORY
from typer.testing import CliRunner

from mopd.recipes import SHIPPED
from mopd.recipes.cli import app

SUMS = [{"question": f"math {i}+{i + 7}=", "answer": str(2 * i + 7)} for i in range(300)]
ORDERS = [{"problem": f"rank d<k,m>c {i}=", "solution": f"kdmc{i};k", "level": i % 3} for i in range(300)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a model, and two files of rows."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model", tokenizer_of("arithmetic", "ordering"))
    for name, rows in (("sums", SUMS), ("Ordering-Tasks", ORDERS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def checked(path: str) -> dict[str, Any]:
    result = mopd("check", path, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_shipped_recipe_is_listed_with_what_it_is() -> None:
    rows = json.loads(mopd("recipes", "--json", "-").stdout)["recipes"]
    assert [row["recipe"] for row in rows] == sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    assert all(row["description"] for row in rows)
    assert [row["recipe"] for row in rows if row["study"]] == [
        "prefixes",
        "seesaw",
        "seesaw-extra",
        "seesaw-trials",
        "tokenizers",
    ]
    assert mopd("recipes", "smoke").stdout == (SHIPPED / "smoke.yaml").read_text()


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    names = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    for command in (("recipes", "smoek"), ("run", "smoek"), ("check", "smoek")):
        told = refused(*command)
        assert "did you mean `smoke`" in told
        assert all(name in told for name in names)
    told = refused("eval", "./model", "--tasks", "sums")
    assert all(name in told for name in ("arithmetic", "list_programs", "ordering"))


def test_a_recipe_from_a_model_and_rows_passes_the_check(here: Path) -> None:
    result = mopd(
        "init", "mine.yaml", "--model", "model", "--data", "sums.jsonl", "--data", "order=Ordering-Tasks.jsonl"
    )
    assert result.exit_code == 0, result.output
    assert "mopd check ./mine.yaml" in result.stdout
    tree = yaml.safe_load(Path("mine.yaml").read_text())
    assert tree["domains"]["sums"]["task"] == {
        "path": "./sums.jsonl", "prompt": "question", "answer": "answer", "verifier": "number",
    }  # fmt: skip
    assert tree["domains"]["order"]["task"]["verifier"] == "exact"
    assert tree["domains"]["order"]["task"]["prompt"] == "problem"
    assert list(tree["stages"]) == ["sums", "order"]
    assert tree["student"]["model"] == "./model"
    assert 20 <= tree["evaluate"]["validation_prompts"] <= 40
    plan = checked("./mine.yaml")["plan"]
    assert {model["name"] for model in plan["models"]} >= {"teacher sums", "teacher order", "student"}


def test_answers_to_questions_make_the_same_recipe(here: Path) -> None:
    written = mopd("init", "flags/mine.yaml", "--model", "model", "--data", "sums.jsonl")
    assert written.exit_code == 0, written.output
    answers = ["model", "sums.jsonl", "", "", "", "", "", ""]
    asked = CliRunner().invoke(app, ["init", "asked/mine.yaml"], input="\n".join(answers) + "\n")
    assert asked.exit_code == 0, asked.output
    assert Path("asked/mine.yaml").read_text() == Path("flags/mine.yaml").read_text()
    assert "column of the question, of question, answer [question]" in asked.output


def test_a_teacher_that_is_given_is_not_made(here: Path) -> None:
    save_model(here / "expert", tokenizer_of("arithmetic", "ordering"), seed=1)
    data = ["--data", "sums.jsonl", "--data", "Ordering-Tasks.jsonl"]
    result = mopd("init", "--model", "./model", *data, "--teacher", "sums=expert")
    assert result.exit_code == 0, result.output
    tree = yaml.safe_load(Path("recipe.yaml").read_text())
    assert tree["teachers"] == {
        "sums": {"model": "./expert"},
        "ordering_tasks": {"model": "./model", "adapter": "stage:ordering_tasks"},
    }
    assert list(tree["stages"]) == ["ordering_tasks"]
    checked("./recipe.yaml")


def test_answers_may_lie_deeper_or_be_made_of_columns(here: Path) -> None:
    rows = [
        {
            "prompt": f"{i}?",
            "messages": [{"role": "user"}, {"content": f"{i} " + "and so on " * 6}],
            "unit": "m",
            "n": i,
        }
        for i in range(60)
    ]
    (here / "deep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("init", "--model", "model", "--force", "--data", "deep.jsonl", "--answer")
    result = mopd(*asked, "messages.-1.content")
    assert result.exit_code == 0, result.output
    tree = yaml.safe_load(Path("recipe.yaml").read_text())
    assert tree["domains"]["deep"]["task"]["answer"] == "messages.-1.content"
    assert tree["rollout"]["max_new_tokens"] > 64, "counted by the model's own tokenizer, of small pieces"
    result = mopd(*asked, "{n} {unit}")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(Path("recipe.yaml").read_text())["domains"]["deep"]["task"]["verifier"] == "exact"
    assert "name the column with --answer" in refused(*asked, "messages.-1.contents")


def test_what_init_cannot_know_is_asked_for_by_name(here: Path) -> None:
    (here / "odd.jsonl").write_text(json.dumps({"frage": "1+1", "answer": "2"}) + "\n")
    (here / "long.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}", "answer": "why " * 50}) + "\n" for i in range(60))
    )
    (here / "empty.jsonl").write_text("")
    model = ("--model", "model")
    assert "odd.jsonl has the columns frage, answer" in (told := refused("init", *model, "--data", "odd.jsonl"))
    assert "name the column with --prompt" in told
    assert "no verifier is sure to fit" in refused("init", *model, "--data", "long.jsonl")
    assert "two domains are called 'sums'" in refused("init", *model, "--data", "sums.jsonl", "--data", "./sums.jsonl")
    told = refused("init", *model, "--data", "sums.jsonl", "--teacher", "sum=expert")
    assert "no domain is called 'sum'; did you mean `sums`" in told
    assert "needs a model and rows" in refused("init", *model)
    assert refused("init", *model, "--data", "empty.jsonl")
    assert not (here / "recipe.yaml").exists()
    (here / "recipe.yaml").write_text("mine")
    assert "recipe.yaml is there" in refused("init", *model, "--data", "sums.jsonl")
    assert (here / "recipe.yaml").read_text() == "mine"
    assert mopd("init", *model, "--data", "sums.jsonl", "--force").exit_code == 0


# ---- the shell


def completed(words: str, cwd: Path) -> list[str]:
    """What bash is offered for the last word of a line."""
    code = "import sys; sys.argv = ['mopd']; from mopd.recipes.cli import main; main()"
    settings = {"_MOPD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = {**os.environ, **settings, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=cwd)
    return done.stdout.split()


def test_the_shell_completes_commands_recipes_and_runs(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").write_text("")
    assert completed("mopd re", tmp_path) == ["report", "recipes"]
    assert completed("mopd run qwen", tmp_path) == ["qwen3_1gpu", "qwen3_8gpu"]
    assert completed("mopd report runs/s", tmp_path) == ["runs/second"]


def test_the_version_and_the_shells_script_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mopd("--version").stdout.startswith("mopd 0.")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert "_MOPD_COMPLETE" in CliRunner().invoke(app, ["--show-completion", "bash"], prog_name="mopd").stdout
