"""The command line: every bad input ends with exit code 2, its culprit named and no traceback; the other codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from check_kit import save_model, tokenizer_of, tree
from cli_kit import broken, mopd, refused
from typer.testing import CliRunner

from mopd.distill.errors import Interrupted
from mopd.distill.recipe.files import dump_recipe, load_recipe
from mopd.distill.types import NonFinite, RunError, UserError
from mopd.recipes import SHIPPED


@pytest.fixture(params=["check", "run"])
def command(request: pytest.FixtureRequest) -> str:
    """Both commands refuse alike, and `run` before it makes anything."""
    return str(request.param)


# ---- bad input that shows in the recipe alone: no model is looked at


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("run.stps=3", "unknown key `run.stps`; did you mean `run.steps`"),
        ("run.steps=many", "`run.steps` must be a whole number; it is the text 'many'"),
        ("run.steps=-5", "`run.steps` must be at least 1; it is -5"),
        ("domains=null", "`domains` is missing"),
        ("domains.math.share=0", "`domains.math.share` must be from 1e-06"),
        ("domains.math.share=-1", "`domains.math.share` must be from 1e-06"),
        ("domains.math.share=.nan", "`domains.math.share` must be a finite number"),
        ("student.optimizer.lr=0", "`student.optimizer.lr` must be from 1e-09"),
        ("rollout.temperature=0", "`rollout.temperature` must be from 0.01"),
        ("loss={estimator: policy_gradient, gate: [5, 0.2]}", "`loss.gate` is inverted: [5, 0.2]"),
        ("loss.estimator=full_kl", "`loss.estimator` 'full_kl' is unknown; did you mean `full_reverse_kl`"),
        ("loss.estimator=k1_backprop", "is a trap: back-propagating log(student/teacher) has zero expected gradient"),
        ("run.steps", "override 'run.steps' is not key=value"),
    ],
)
def test_a_wrong_leaf_is_refused(command: str, override: str, told: str) -> None:
    assert told in refused(command, "smoke", override)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "recipe.yaml is empty"),
        ("name: x\nstudent: {model: [\ndomains: }\n", "recipe.yaml, line 3"),
        ("name: x\nstudent: {model: ./a}\ndomains: {}\n", "`domains` is empty"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, command: str, text: str, told: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert told in refused(command, str(path))


@pytest.mark.parametrize("name", ["quikstart", "./nowhere.yaml"])
def test_a_recipe_that_is_not_there_is_refused(command: str, name: str) -> None:
    assert name in refused(command, name)


# ---- bad input that shows once models, tasks and the machine are looked at


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["domains.more={task: ordering}"], "`domains.more` has neither teacher nor reward"),
        (["domains.math.teacher=maths"], "no teacher 'maths' is declared under `teachers`; did you mean `math`"),
        (["teachers.idle={model: stage:math}"], "`teachers.idle`: no domain uses this teacher"),
        (["domains.math.task=arithmetics"], "no task is called 'arithmetics'; did you mean `arithmetic`"),
        (
            ["student.engine={ranks: 3, expert_parallel: 3}"],
            "`student.engine`: expert_parallel is 3, which does not divide the 4 experts",
        ),
        (["teachers.math.model=./nowhere"], "`teachers.math.model`: no checkpoint at ./nowhere"),
        (["rollout.max_new_tokens=500"], "beyond the context of 128 tokens"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, overrides: list[str], told: str) -> None:
    for command in ("check", "run"):
        assert told in refused(command, "smoke", *overrides, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_is_refused() -> None:
    for command in ("check", "run"):
        assert "run folder /proc/run cannot be written" in refused(command, "smoke", "--out", "/proc/run")


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    teacher = save_model(tmp_path / "teacher", tokenizer_of("ordering", vocabulary=60))
    told = refused(
        "check", "smoke", f"teachers.math.model={teacher}", "stages.math=null", "--out", str(tmp_path / "run")
    )
    assert f"`teachers.math` ({teacher}) has" in told
    assert "ids differ" in told


def test_a_dataset_without_the_named_column_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(100)))
    told = refused("check", "smoke", f"domains.math.task={{path: {data}}}", "--out", str(tmp_path / "run"))
    assert "`domains.math.task`" in told
    assert "'prompt'" in told
    assert "question" in told  # what there is


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text(dump_recipe(load_recipe("smoke", shipped=SHIPPED)))
    for command in ("check", "run"):
        told = refused(command, "smoke", "run.steps=9", "--out", str(out))
        assert "run.steps: 4 -> 9" in told
        assert "--restart" in told


# ---- what is well


def test_check_prints_a_plan(tmp_path: Path) -> None:
    result = mopd("check", "smoke_expert_parallel", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    for told in (
        "stage:base",
        "teacher code",
        "rank of the",
        "memory of the host: about",
        "disk: about",
        "every check passed",
    ):
        assert told in result.output


def test_schema_is_json() -> None:
    result = mopd("schema")
    assert result.exit_code == 0
    schema = json.loads(result.output)
    assert "extends" in schema["properties"]
    assert schema["$defs"]["RunRecipe"]["properties"]["steps"]["anyOf"][0]["description"]


def test_help_names_every_command() -> None:
    result = mopd("--help")
    for name in ("run", "check", "compare", "eval", "workspace", "schema"):
        assert name in result.output


def test_eval_measures_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model", tokenizer_of("arithmetic"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("from mopd.rollouts.tasks.arithmetic import Arithmetic")
    result = mopd("eval", "model", "--tasks", "arithmetic,./own.py:Arithmetic", "--prompts", "4")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("arithmetic", "Arithmetic"))
    assert "0.0" in result.output  # a random model adds nothing up


def test_eval_asks_a_recipes_questions_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model", tokenizer_of("arithmetic", "ordering"))
    monkeypatch.chdir(tmp_path)
    sections = tree(evaluate={"test_prompts": 3}, rollout={"max_new_tokens": 5})
    sections["domains"]["order"] = {"task": "ordering", "teacher": "math"}
    (tmp_path / "mine.yaml").write_text(json.dumps(sections))
    result = mopd("eval", model, "--recipe", "./mine.yaml", "--samples", "4", "--json", "-")
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    assert list(written["tasks"]) == ["math", "order"]
    assert (written["samples"], written["max_new_tokens"]) == (4, 5)
    for task in written["tasks"].values():
        assert (task["greedy"]["n"], task["sampled"]["n"]) == (3, 3)
        assert 0 < task["mean_tokens"] <= 5
    picked = mopd("eval", model, "--recipe", "./mine.yaml", "--domains", "order", "--prompts", "2", "--json", "a.json")
    assert picked.exit_code == 0, picked.output
    assert "order" in picked.output
    of_order = json.loads((tmp_path / "a.json").read_text())["tasks"]
    assert (list(of_order), of_order["order"]["greedy"]["n"], of_order["order"]["sampled"]) == (["order"], 2, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "give --tasks, or --recipe, or --harness"),
        (("--tasks", "arithmetic", "--recipe", "smoke"), "give --tasks, or --recipe, or --harness"),
        (("--tasks", "arithmetic", "--domains", "math"), "--domains picks from the domains of a recipe"),
        (("--recipe", "smoke", "--domains", "maths"), "no domain is called 'maths'; did you mean `math`"),
        (("--recipe", "seesaw"), "is a study; name the recipe.yaml of one of its runs"),
    ],
)
def test_eval_is_told_which_questions(options: tuple[str, ...], told: str) -> None:
    assert told in refused("eval", "./nowhere", *options)


@pytest.mark.parametrize(
    ("model", "tasks", "told"),
    [
        ("./nowhere", "arithmetic", "no checkpoint at ./nowhere"),
        ("./nowhere", "arithmetics,ordering", "no task is called 'arithmetics'; did you mean `arithmetic`"),
        ("./nowhere", ",", "no task is called ''"),
        ("./nowhere", "./a.py:T,./b.py:T", "two are called 'T'; ask them one by one"),
    ],
)
def test_eval_refuses_what_is_not_there(model: str, tasks: str, told: str) -> None:
    assert told in refused("eval", model, "--tasks", tasks)


# ---- exit codes


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (lambda: UserError("first thing", "second thing"), 2, ["2 problems", "- first thing", "- second thing"]),
        (lambda: RunError("a disk filled"), 1, ["a disk filled", "the last checkpoint resumes it: mopd"]),
        (lambda: NonFinite("math, step 3"), 1, ["math, step 3", "the last checkpoint resumes it: mopd"]),
        (lambda: Interrupted("saved step 3"), 130, ["saved step 3", "go on with: mopd"]),
        (lambda: KeyboardInterrupt(), 130, ["go on from the last checkpoint"]),
    ],
)
def test_what_is_raised_decides_the_exit_code(error: Callable[[], BaseException], code: int, told: list[str]) -> None:
    result = CliRunner().invoke(broken(error()), ["fail"])
    assert result.exit_code == code
    for text in told:
        assert text in result.output
    assert "Traceback" not in result.output


def test_a_wrong_command_is_a_users_mistake() -> None:
    assert mopd("chek", "smoke").exit_code == 2
    assert mopd("run").exit_code == 2
    assert mopd("eval", "./model", "--tasks", "arithmetic", "--prompts", "0").exit_code == 2


def test_square_brackets_are_printed_as_they_are() -> None:
    result = CliRunner().invoke(broken(UserError("[0.2, 5] of [bold]x[/bold]")), ["fail"])
    assert "[0.2, 5] of [bold]x[/bold]" in result.output
