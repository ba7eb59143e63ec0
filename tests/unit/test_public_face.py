"""`import mopd`: the names it offers, that each of them loads, and what they cost."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_kit import write_run

import mopd

ROOT = Path(__file__).parents[2]
NOTEBOOK = ["Checked", "build_seesaw", "check", "compare", "load_run", "run", "verify"]
ERRORS = ["RunError", "UserError"]
SEAMS = ["Grader", "Prompt", "Rollout", "Sampler", "ScoredRollout", "Weights"]
ANSWERS = ["Full", "Hidden", "PAYLOADS", "Payload", "PayloadSpec", "Sampled", "Support", "TeacherScore", "TopK"]
LOSS = ["GradedTokens", "LossSpec", "Microbatch", "TokenLoss", "align_logits", "each_teacher", "gap_to_teacher"]
ROWS = ["log_softmax", "pick", "spread", "teachers_mean"]
ENVIRONMENT = ["Drawn", "Environment", "Step", "Tool", "ToolEpisode", "tool"]
TASK = ["Example", "Generated", "Task", *ENVIRONMENT]
KIND = ["TeacherKind", "TeacherReach", "TeacherSetup", "TeacherUse", "TeacherView"]
TEACHER = ["Conditions", "Scorer", "TeacherModel", "TeacherSource", *KIND]
SINK = ["Sink", "TrackedRun"]
METHOD = ["MadeMethod", "MadeStudent", "MakingJob", "Method", "Parts"]
ENGINE = ["Decoding", "FrozenModel", "RolloutEngine", "StudentModel", "WeightTransport"]
SAMPLING = ["SamplerProcesses", "SamplerSettings"]
PUBLIC = [
    *NOTEBOOK,
    *ERRORS,
    *SEAMS,
    *ANSWERS,
    *LOSS,
    *ROWS,
    *TASK,
    *ENVIRONMENT,
    *TEACHER,
    *SINK,
    *METHOD,
    *ENGINE,
    *SAMPLING,
]
HEAVY = ("torch", "ray", "transformers", "deepspeed")


def test_the_exported_names_are_these() -> None:
    offered = {name for name in dir(mopd) if not name.startswith("_")}
    modules = {"annotations", "importlib", "Any", "distill", "recipes", "rollouts", "teachers"}
    assert offered - modules == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_an_exported_name_loads_and_says_what_it_is(name: str) -> None:
    value = getattr(mopd, name)
    assert getattr(value, "__name__", name) == name
    assert name == "PAYLOADS" or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Teecher'"):
        _ = mopd.Teecher
    assert mopd.__version__ == importlib.metadata.version("mopd")


# ---- what it costs


def python(code: str, *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python in a process of its own."""
    settings = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=settings, capture_output=True, text=True)


COMMAND = """
import sys
sys.argv = ["mopd", *{arguments!r}]
from mopd.recipes.cli import main
code = 0
try:
    main()
except SystemExit as stopped:
    code = stopped.code
"""
LOADED = f"""
import json, sys, time
print(json.dumps([code, round(time.process_time(), 2), [name for name in {HEAVY} if name in sys.modules]]))
"""
CHEAP = {
    "import mopd": ("import mopd; mopd.UserError; code = 0", 0),
    "read a recipe": (
        "from mopd.distill.recipe.study import load; from mopd.recipes import SHIPPED; "
        "load('quickstart', shipped=SHIPPED); code = 0",
        0,
    ),
    "mopd --help": (COMMAND.format(arguments=["--help"]), 0),
    "mopd run --help": (COMMAND.format(arguments=["run", "--help"]), 0),
    "mopd --version": (COMMAND.format(arguments=["--version"]), 0),
    "mopd recipes": (COMMAND.format(arguments=["recipes"]), 0),
    "mopd ls": (COMMAND.format(arguments=["ls", "."]), 0),
    "mopd schema": (COMMAND.format(arguments=["schema"]), 0),
    "a typo": (COMMAND.format(arguments=["run", "smoke", "run.stepz=3"]), 2),
}


@pytest.mark.parametrize("what", CHEAP)
def test_what_reads_no_model_loads_no_library_of_models(what: str, tmp_path: Path) -> None:
    code, exit_code = CHEAP[what]
    done = python(code + LOADED, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    stopped, seconds, loaded = json.loads(done.stdout.splitlines()[-1])
    print(f"{what}: {seconds} s of CPU")
    assert (stopped, loaded) == (exit_code, [])


# ---- for notebooks


def test_check_returns_problems_of_a_name_a_path_and_a_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {"extends": "smoke", "run": {"stepz": 3}}
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps(wrong))
    for recipe in (wrong, path, str(path), Path("wrong.yaml")):
        checked = mopd.check(recipe)
        assert (len(checked.problems), checked.plan, checked.prompts) == (1, None, {})
        assert "unknown key `run.stepz`" in checked.problems[0]


def test_check_returns_the_plan_and_a_prompt_of_each_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checked = mopd.check({"extends": "smoke", "name": "mine"})
    assert checked.problems == ()
    assert checked.plan.disk_bytes > 0
    domains = json.loads(json.dumps(list(checked.prompts)))
    assert domains
    assert all(isinstance(text, str) and text for text in checked.prompts.values())
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_loaded_compared_and_its_seesaw_built_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    run = mopd.load_run(str(folder))
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    written = json.loads((folder / "seesaw.json").read_text())
    tasks = {domain: task["fingerprint"] for domain, task in written["tasks"].items()}
    assert mopd.build_seesaw(rows, written["teachers"], fingerprints=tasks) == written
    assert mopd.build_seesaw(rows, written["teachers"])["metrics"] == written["metrics"]
    assert {row["domain"]: row["recovery"] for row in run.recovery()} == written["metrics"]["recovery"]
    assert mopd.compare([folder]).domains == mopd.compare([run]).domains == run.domains


def test_verify_asks_a_shipped_verifier() -> None:
    assert mopd.verify("number", "42", "so it is 42") == 1.0
    assert mopd.verify("number", "42", "41") == 0.0
    with pytest.raises(mopd.UserError, match="no verifier is called 'nummer'; known: exact"):
        mopd.verify("nummer", "42", "42")
    with pytest.raises(mopd.UserError, match="no number"):
        mopd.verify("number", "none", "42")
