"""A study of two methods on two seeds: killed, then with a run that cannot write, then to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import assert_whole, finish, kill, mopd, rows, run, wait_for

STUDY = """
extends: smoke
name: tiny
domains: {math: {prompts: 4}, code: null, reasoning: null}
teachers: {code: null, reasoning: null}
stages:
  base: {steps: 3, save_every: 3, prompts: 4}
  math: {steps: 2, prompts: 4}
  code: null
  reasoning: null
evaluate: {validation_prompts: 4, test_prompts: 6}
run: {steps: 2, evaluate_every: 1, save_every: 1}
track: {wandb: {mode: disabled}}
methods:
  mopd: {trials: 2}
  gold:
    method: supervised
    loss: {estimator: nll}
    domains: {math: {teacher: null}}
    teachers: null
    stages: {math: null}
  longer:
    method: supervised
    loss: {estimator: nll}
    student: {optimizer: {schedule: constant}}
    domains: {math: {teacher: null}}
    teachers: null
    stages: {math: null}
    run: {steps: 100, evaluate_every: 50, compute: {equal_to: mopd, times: 1.5}}
seeds: [0, 1]
"""
RUNS = ["mopd-0", "gold-0", "mopd-1", "gold-1"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished study that was killed in its first run and met a run that broke; and what it printed at last."""
    home = tmp_path_factory.mktemp("study")
    (home / "tiny.yaml").write_text(STUDY)
    command, out = ("run", home / "tiny.yaml", "--out", home / "tiny"), home / "tiny"
    process = mopd(*command)
    wait_for(process, out / "mopd-0" / "metrics.jsonl", 1)
    kill(process)
    made = {path: path.stat().st_mtime_ns for path in out.glob("stages-*/*/finished.json")}
    assert len(made) >= 2, "base and specialist of the first seed come before its runs"
    (out / "gold-1" / "metrics.jsonl").mkdir()
    code, printed = finish(mopd(*command))
    assert code == 1, printed
    assert "5 of 6 runs are finished" in printed
    assert "Failed: gold-1: " in printed, printed
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished stage was made again"
    (out / "gold-1" / "metrics.jsonl").rmdir()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/finished.json")}
    assert len(finished) == 5
    printed = run(*command)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished run was done again"
    return out, printed


def test_every_run_is_an_ordinary_one(study: tuple[Path, str]) -> None:
    out, _ = study
    for name in RUNS:
        assert_whole(out / name, steps=2)
        assert (out / name / "report.html").is_file()
        roles = json.loads((out / name / "ledger.json").read_text())["roles"]
        assert roles["stage/base/update"]["flops"] > 0, "a run knows what its shared stages cost"
    again = run("run", out / "gold-0" / "recipe.yaml", "--out", out / "gold-0")
    assert "report:" in again


def test_base_and_specialists_of_a_seed_are_made_and_measured_once(study: tuple[Path, str]) -> None:
    out, _ = study
    for seed in (0, 1):
        one, other = ((out / f"{method}-{seed}" / "stages" / "base").resolve() for method in ("mopd", "gold"))
        assert one == other
        assert one.parent == out / f"stages-{seed}"
        names = [f"{method}-{seed}" for method in ("mopd", "gold")]
        given = [[r for r in rows(out / name / "evaluations.jsonl") if r["model"] == "base"] for name in names]
        assert given[0] == given[1]
        assert len(given[0]) == 4 + 6
        asked = [r for name in names for r in rows(out / name / "exams.jsonl") if r["model"] == "base"]
        assert len(asked) == 2, "validation and test, by one of the two runs"
    assert len(list(out.glob("stages-*/*/student"))) == 4


def test_it_ends_with_the_comparison_of_all_runs(study: tuple[Path, str]) -> None:
    out, printed = study
    told = json.loads((out / "comparison.json").read_text())
    assert {row["name"]: (row["n"], row["trials"]) for row in told["rows"]} == {
        "mopd": (2, 2),
        "gold": (2, 0),
        "longer": (2, 0),
    }
    assert [one["name"] for one in told["runs"]] == ["mopd-0", "mopd-1", "gold-0", "gold-1", "longer-0", "longer-1"]
    assert (out / "comparison.html").is_file()
    assert "tiny  6/6" in printed
    code, printed = finish(mopd("compare", out, "--out", out / "again"))
    assert code == 0, printed
    assert json.loads((out / "again" / "comparison.json").read_text())["rows"] == told["rows"]


def test_a_method_spends_what_another_took_on_the_same_seed_with_its_teachers(study: tuple[Path, str]) -> None:
    out, _ = study
    runs = {row["name"]: row["cost"] for row in json.loads((out / "comparison.json").read_text())["runs"]}
    for seed in (0, 1):
        budget = 1.5 * runs[f"mopd-{seed}"]["with_teachers"]["flops"]
        assert json.loads((out / f"longer-{seed}" / "compute.json").read_text()) == {
            "flops": pytest.approx(budget), "equal_to": f"mopd-{seed}", "times": 1.5
        }  # fmt: skip
        steps = [row for row in rows(out / f"longer-{seed}" / "metrics.jsonl") if row["kind"] == "train"]
        assert 2 < len(steps) < 100
        spent = runs[f"longer-{seed}"]["training"]["flops"]
        assert budget <= spent < budget + max(row["flops/update"] for row in steps)
        tested = [r for r in rows(out / f"longer-{seed}" / "evaluations.jsonl") if r["split"] == "test"]
        assert {r["step"] for r in tested if r["model"] == "student"} == {len(steps)}, "the last step was measured"


def test_a_seed_whose_teachers_have_no_room_is_left_out_and_told(tmp_path: Path) -> None:
    """A specialist of two steps is no better than its base: neither method is trained, with teachers or without."""
    (tmp_path / "tiny.yaml").write_text(STUDY)
    settings = ["evaluate.min_headroom=50", "seeds=[0]", "methods.longer=null"]
    code, printed = finish(mopd("run", tmp_path / "tiny.yaml", *settings, "--out", tmp_path / "tiny"))
    assert code == 0, printed
    assert "mopd-0 is left out: mopd-0: teachers differ from the base in math by " in printed
    assert "0 of 2 runs are finished, and none of seed 0 was trained" in printed
    assert not list((tmp_path / "tiny").glob("*-0/metrics.jsonl")), "no step was taken"
    alone = tmp_path / "tiny" / "mopd-0"
    code, printed = finish(mopd("run", alone / "recipe.yaml", "--out", alone))
    assert code == 2, printed
    assert "`evaluate.min_headroom` asks for 50; nothing was trained" in printed
