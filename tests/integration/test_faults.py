"""What ends a run before its end: signals, Ray's own processes, ranks that hang. It says so, and leaves no process."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from deadline_kit import Deadline, patience
from runs import assert_whole, finish, left, mark, mopd, processes, rows, run, wait_for, weights

STEPS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    run("run", "smoke", "--out", out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """The folder of a run whose stages are there."""
    shutil.copytree(finished / "stages", tmp_path / "smoke" / "stages")
    return tmp_path / "smoke"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(finished: Path, out: Path, number: signal.Signals) -> None:
    """Sent to every process, as a terminal does with its group and Slurm with a job."""
    process = mopd("run", "smoke", "--out", out)
    wait_for(process, out / "metrics.jsonl", 2)
    running = mark(process)
    if number == signal.SIGTERM:
        for other in processes(process):
            other.send_signal(number)
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    code, printed = finish(process)
    assert code == 130, printed
    assert "mopd run smoke" in printed
    assert "Traceback" not in printed
    assert left(running) == []
    assert_explained(out, "interrupted", "stopped after step")
    saved = sorted((out / "checkpoints").glob("step-*"))
    last = max(row["step"] for row in rows(out / "metrics.jsonl") if row["kind"] == "train")
    assert saved[-1].name == f"step-{last:06d}", "the finished step was not saved"
    run("run", "smoke", "--out", out)
    assert_whole(out, steps=STEPS)
    assert weights(out) == weights(finished)
    assert not (out / "ended.json").exists()


def assert_explained(out: Path, how: str, why: str) -> None:
    """The run's folder and its report, written as it ended, say so."""
    ended = json.loads((out / "ended.json").read_text())
    assert ended["how"] == how
    assert why in ended["why"]
    page = html.unescape((out / "report.html").read_text())
    assert {"interrupted": "Interrupted: step", "broken": "Broken off: step"}[how] in page
    assert why in page
    assert "Traceback" not in page


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_kept(out: Path) -> None:
    process = mopd("run", "smoke", "run.steps=60", "--out", out)
    wait_for(process, out / "metrics.jsonl", 3)
    deadline = Deadline(60)
    while not (out / "checkpoints" / "step-000002").is_dir() and deadline.waits():
        pass
    running = mark(process)
    (rank,) = [other for other in processes(process) if "ray::RankProcess" in " ".join(other.cmdline())]
    rank.suspend()  # the step surely does not end
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    code, printed = finish(process)
    assert code == 130, printed
    saved = max(path.name for path in (out / "checkpoints").glob("step-*") if "." not in path.name)
    assert f"smoke (after step {int(saved.removeprefix('step-'))})" in printed
    assert "base (finished)" in printed
    assert "Traceback" not in printed
    assert_explained(out, "interrupted", "Ctrl-C, twice: the step was dropped")
    assert left(running) == []


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_run_without_ray_ends_and_leaves_no_process_and_no_folder(out: Path, name: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="t"))  # tmp_path has too long a name for sockets
    process = mopd("run", "smoke", "--out", out, RAY_TMPDIR=str(folder))
    wait_for(process, out / "metrics.jsonl", 2)
    running = mark(process)
    assert len(list(folder.iterdir())) == 1
    (victim,) = [other for other in processes(process) if other.name() == name]
    victim.kill()
    code, printed = finish(process)
    assert code == 1, printed
    assert "the run broke: Ray's" in printed
    assert "died, and with it all processes of the run" in printed
    assert "Traceback" not in printed
    assert_explained(out, "broken", "a process of Ray's died")
    assert left(running) == []
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_a_rank_that_hangs_ends_the_run(out: Path) -> None:
    process = mopd("run", "smoke", f"faults.rank_seconds={patience(10):.0f}", "--out", out)
    wait_for(process, out / "metrics.jsonl", 2)
    running = mark(process)
    (rank,) = [other for other in processes(process) if "ray::RankProcess" in " ".join(other.cmdline())]
    rank.suspend()
    code, printed = finish(process)
    assert code == 1, printed
    assert "rank 0 of the student hangs" in printed
    assert "Traceback" not in printed
    assert_explained(out, "broken", "rank 0 of the student hangs")
    assert left(running) == []


def test_a_temporary_folder_whose_name_is_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    code, printed = finish(mopd("run", "smoke", "--out", tmp_path / "run", TMPDIR=str(deep)))
    assert code == 2, printed
    assert str(deep) in printed
    assert "RAY_TMPDIR=" in printed
    assert "nothing was run" in printed
    assert not (tmp_path / "run").exists()
