"""`mopd ls` and `mopd report`: how runs stand while they run, and after whatever ended them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cli_kit import mopd, refused
from deadline_kit import Deadline
from rich.console import Console
from run_kit import train_row, write_run

from mopd.distill.errors import Interrupted, RunError
from mopd.distill.storage import claim, is_claimed
from mopd.distill.tracking.console import Progress
from mopd.recipes import cli
from mopd.recipes.resolve.run_folder import standing
from mopd.recipes.run.context import RunContext, end_reports, noting_its_end
from mopd.recipes.runs_command import age


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has come to step 160 of 200."""
    return write_run(tmp_path / "runs" / "half", steps=160, finished=False, n_test=30, n_validation=60)


def page(run: Path) -> str:
    return " ".join((run / "report.html").read_text().split())


@contextmanager
def carried_out(run: Path) -> Iterator[None]:
    """As the programs that run a recipe do it."""
    with claim(run) as attempt, quiet() as progress:
        context = RunContext(run, "half", "cpu", progress, threading.Event())
        with noting_its_end(context, attempt):
            yield


def end(run: Path, error: BaseException) -> None:
    with carried_out(run):
        assert standing(run).state == "running"
        raise error


def quiet() -> Progress:
    return Progress(Console(file=open(os.devnull, "w")))


@pytest.mark.parametrize(
    ("error", "state", "headline", "sentence"),
    [
        (lambda: Interrupted("saved step 160"), "interrupted", "Interrupted: step 160 of 200", "saved step 160."),
        (lambda: RunError("rank 1 died"), "broken", "Broken off: step 160 of 200", "rank 1 died."),
        (lambda: OSError(28, "No space left"), "broken", "Broken off: step 160 of 200", "No space left"),
        (lambda: ZeroDivisionError("by zero"), "broken", "Broken off: step 160 of 200", "ZeroDivisionError: by zero."),
        (lambda: KeyboardInterrupt(), "interrupted", "Interrupted: step 160 of 200", "KeyboardInterrupt."),
    ],
)
def test_whatever_ends_a_run_stands_in_its_report(run, error, state, headline, sentence) -> None:
    raised = error()
    with pytest.raises(type(raised)):
        end(run, raised)
    assert standing(run).state == state
    assert headline in page(run)
    assert sentence in page(run)
    listed = mopd("ls", str(run.parent))
    assert state in listed.stdout
    with carried_out(run):  # it goes on
        assert standing(run).state == "running"
        assert mopd("report", str(run)).exit_code == 0
        assert "Under way: step 160 of 200" in page(run)
    assert standing(run).state == "killed"  # nothing was noted, and nobody runs there


def test_a_later_attempt_is_not_told_how_an_earlier_one_ended(run: Path) -> None:
    def superseded() -> None:
        with carried_out(run):
            (run / "attempt").write_text("another")
            raise RunError("attempt no longer owns the run")

    with pytest.raises(RunError):
        superseded()
    assert not (run / "ended.json").exists()
    assert not (run / "report.html").exists()


def test_a_report_that_cannot_be_written_is_said_and_ends_nothing(run: Path) -> None:
    (run / "metrics.jsonl").write_text("no json\n")
    console = Console(record=True, file=open(os.devnull, "w"), width=400)  # noqa: SIM115
    with Progress(console) as progress:
        RunContext(run, "half", "cpu", progress, threading.Event()).rewrite_report()
    assert "report.html was not written (RunError: " in console.export_text()


def test_reports_asked_for_while_it_runs_are_written_beside_it_and_none_after(run: Path) -> None:
    with quiet() as progress:
        context = RunContext(run, "half", "cpu", progress, threading.Event())
        for _ in range(20):  # faster than it can be written: the last one counts
            context.report_soon()
        deadline = Deadline(20)
        while not (run / "report.html").exists() and deadline.waits(0.05):
            pass
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(train_row(np.random.default_rng(0), 170)) + "\n")
        context.report_soon()
        while "step 170 of 200" not in page(run) and deadline.waits(0.05):
            pass
        assert "step 170 of 200" in page(run)
        context.report_soon()
        end_reports()
        written = (run / "report.html").stat().st_mtime_ns
        assert list(run.glob(".report*")) == []
        time.sleep(0.5)
        assert (run / "report.html").stat().st_mtime_ns == written


def test_a_run_under_way_is_seen_from_another_process(run: Path) -> None:
    script = "import sys; from mopd.distill.storage import claim\nwith claim(sys.argv[1]): print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert is_claimed(run)
    listed = json.loads(mopd("ls", str(run.parent), "--json", "-").stdout)["runs"]
    assert [(row["run"], row["state"], row["step"], row["steps"]) for row in listed] == [("half", "running", 160, 200)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert standing(run).state == "killed"


def test_looking_whether_a_run_is_alive_never_keeps_one_from_starting(run: Path) -> None:
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_claimed(run)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            with claim(run):
                pass
    finally:
        done.set()
        thread.join()


def test_runs_are_listed_newest_first_with_step_and_worst_recovery(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = write_run(run.parent / "whole", n_test=60, n_validation=30)
    (finished / "finished.json").write_text('{"steps": 200}')
    (run.parent / "notes" / "of-mine").mkdir(parents=True)
    old = (run / "metrics.jsonl").stat().st_mtime - 7200
    for path in run.rglob("*"):
        os.utime(path, (old, old))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 160, "kind": "eval", "worst_recovery_estimate": 0.7149}) + '\n{"step": 161, "ki')
    os.utime(run / "metrics.jsonl", (old, old))
    monkeypatch.setenv("COLUMNS", "80")
    result = mopd("ls", str(run.parent), "--json", "-")
    whole, half = json.loads(result.stdout)["runs"]
    worst = json.loads((finished / "seesaw.json").read_text())["metrics"]["worst_recovery_estimate"]
    assert (whole["run"], whole["state"], whole["step"], whole["worst_recovery"]) == ("whole", "finished", 200, worst)
    assert (half["run"], half["state"], half["step"], half["worst_recovery"]) == ("half", "killed", 160, 0.7149)
    assert 7200 <= half["seconds"] < 7200 + 3600
    lines = mopd("ls", str(run.parent)).stdout.splitlines()
    assert lines[0].split() == ["run", "state", "step", "W", "age"]
    assert lines[1].split()[:3] == ["whole", "finished", "200/200"]
    assert lines[2].split() == ["half", "killed", "160/200", "71%", "val", "2", "h"]


def test_trials_of_a_sweep_are_listed_by_their_paths(run: Path) -> None:
    write_run(run.parent / "half-sweep1" / "trial1", steps=20, finished=False, n_test=2, n_validation=4)
    listed = json.loads(mopd("ls", str(run.parent), "--json", "-").stdout)["runs"]
    assert {row["run"] for row in listed} == {"half", "half-sweep1/trial1"}


def test_a_trial_of_a_sweep_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variables of `wandb agent`: the recipes of two trials differ, and neither goes on with the other's run."""
    folders = []
    for trial, rate in (("trial1", "1e-3"), ("trial2", "2e-3")):
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        folders.append(cli._load("smoke", [f"student.optimizer.lr={rate}"], None)[1])
    assert folders == [Path("runs/smoke-sweep1/trial1"), Path("runs/smoke-sweep1/trial2")]
    assert cli._load("smoke", [], Path("here"))[1] == Path("here")
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert cli._load("smoke", [], None)[1] == Path("runs/smoke")


def test_a_run_in_its_stages_shows_the_stage(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=0, finished=False, n_test=2, n_validation=2)
    for name in ("base", "math", "code"):
        (run / "stages" / name / "finished.json").write_text('{"steps": 1}')
    metrics = run / "stages" / "reasoning" / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:41]))
    (row,) = json.loads(mopd("ls", str(run), "--json", "-").stdout)["runs"]
    assert (row["stage"], row["step"], row["steps"]) == ("reasoning", 41, 200)


def test_a_damaged_run_does_not_hide_the_others(run: Path) -> None:
    bad = run.parent / "bad"
    bad.mkdir()
    (bad / "recipe.yaml").write_text("name: bad\n")
    result = mopd("ls", str(run.parent))
    assert result.exit_code == 0
    assert "half" in result.stdout
    assert "bad is damaged" in result.stdout


DAMAGED_STUDIES = (b"", b"{", b"\xff\xfe", b"[]", b'"runs"', b'{"name": "s"}', b'{"runs": 3}', b'{"runs": ["../half"]}')


@pytest.mark.parametrize("content", DAMAGED_STUDIES)
def test_a_damaged_study_is_named_and_does_not_hide_the_runs_beside_it(
    run: Path, tmp_path: Path, content: bytes
) -> None:
    study = run.parent / "bad"
    study.mkdir()
    (study / "study.json").write_bytes(content)
    culprit = f"{study / 'study.json'} is damaged: "
    for command in ("ls", "report", "audit", "compare", "keep"):
        out = ("--out", str(tmp_path / "out")) if command in ("compare", "keep") else ()
        assert culprit in refused(command, str(study), *out), command
    assert not (tmp_path / "out").exists()
    rows = {row["run"]: row for row in json.loads(mopd("ls", str(run.parent), "--json", "-").stdout)["runs"]}
    assert (rows["bad"]["state"], rows["half"]["problem"]) == ("damaged", "")
    assert rows["bad"]["problem"].startswith(culprit)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "is not there" in refused("ls", str(tmp_path / "no"))
    assert "holds no run" in refused("report", str(tmp_path))
    assert "holds no runs; `mopd run RECIPE` begins one" in mopd("ls", str(tmp_path)).stdout


def test_a_study_is_listed_and_reported_run_by_run(run: Path) -> None:
    study = run.parent
    write_run(study / "mopd-1", steps=20, finished=False, n_test=10, n_validation=20)
    (study / "study.json").write_text(json.dumps({"format": 1, "name": "s", "runs": {"half": {}, "mopd-1": {}}}))
    assert {row["run"] for row in json.loads(mopd("ls", str(study), "--json", "-").stdout)["runs"]} == {
        "half",
        "mopd-1",
    }
    told = json.loads(mopd("report", str(study), "--json", "-").stdout)
    assert [(row["step"], Path(row["page"]).is_file()) for row in told["runs"]] == [(160, True), (20, True)]
    assert {score["model"] for score in told["runs"][0]["scores"]} == {
        "base", "teachers/math", "teachers/code", "teachers/reasoning", "student",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86400, "1 day"), (2e5, "2 days")]
)
def test_ages_are_in_their_largest_unit(seconds: float, words: str) -> None:
    assert age(seconds) == words
