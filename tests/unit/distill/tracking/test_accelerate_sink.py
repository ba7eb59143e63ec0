"""Trackers of accelerate record what metrics.jsonl holds, each in a process of its own, with no network."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from deadline_kit import Deadline, patience
from track_apart import run_apart
from track_kit import SEESAW, as_history, tracked_run, write_run
from trackers_kit import READERS, NoNetwork, Recorded, need, trackio_runs

from mopd.distill.recipe import TrackRecipe
from mopd.distill.tracking import sinks as sinks_module
from mopd.distill.tracking.sinks import SINKS, open_sinks, sink_problems
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.tracking.tracker_process import NAMES, TRACKERS, flat_settings

SUMMARY = {"seesaw/worst_recovery": 0.9, "seesaw/worst_recovery/low": 0.8, "seesaw/worst_recovery/high": 1.0}
"""Some of the numbers of SEESAW, as they are shown at the last step."""


IN_HOME = (".session.json",)
"""What ClearML leaves in the user's home: when it was last used. Matplotlib, which Comet imports where it is installed,
keeps a list of fonts there."""


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NoNetwork]:
    """A home without accounts, a machine without a network, and time."""
    proxy = NoNetwork()
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith(("TRACKIO_", "MLFLOW_", "COMET_", "CLEARML_", "SWANLAB_", "HF_")):
            monkeypatch.delenv(name)
    for name, value in {**proxy.environment(), "HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sinks_module, "LIMIT_SECONDS", patience(300))
    yield proxy
    proxy.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder."""
    made = tmp_path / "run"
    made.mkdir()
    return made


def record(folder: Path, *names: str, after: int = 0, steps: int = 4) -> list[str]:
    """A whole run that these trackers show; what was printed."""
    printed: list[str] = []
    with Tracker(folder, sinks=open_sinks(names, tracked_run(folder, say=printed.append))) as tracker:
        tracker.resume(after)
        write_run(tracker, after=after, steps=steps)
        tracker.summarize(SEESAW)
    return printed


def expected(folder: Path, *, steps: int = 4) -> Recorded:
    """What has to be recorded, without the summary's other numbers."""
    rows = {row.pop("step"): row for row in as_history(folder, costs=False)}
    rows[steps] |= SUMMARY
    return rows


def shown(name: str, folder: Path, *, steps: int = 4) -> Recorded:
    """What a tracker holds of a run, without the summary's other numbers."""
    recorded = READERS[name](folder / name)
    others = {key for key in recorded[steps] if key.startswith("seesaw/")} - SUMMARY.keys()
    recorded[steps] = {key: value for key, value in recorded[steps].items() if key not in others}
    return recorded


def as_stored(name: str, rows: Recorded) -> Recorded:
    """TensorBoard keeps float32."""
    if name != "tensorboard":
        return rows
    return {step: {key: float(np.float32(value)) for key, value in row.items()} for step, row in rows.items()}


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_holds_every_number_of_a_run_and_of_its_end_with_no_network(
    name: str, folder: Path, tmp_path: Path, no_network: NoNetwork
) -> None:
    need(name)
    assert record(folder, name) == []
    assert shown(name, folder) == as_stored(name, expected(folder))
    assert no_network.requests == []
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", name}
    in_home = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path for path in in_home if path.name not in IN_HOME and "matplotlib" not in path.parts] == []


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_is_shown_once_and_whole(name: str, folder: Path) -> None:
    need(name)
    assert record(folder, name, steps=3) == []
    assert record(folder, name, after=2) == []  # step 3 is taken again
    assert shown(name, folder) == as_stored(name, expected(folder))


def test_clearml_runs_no_program_while_it_forks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git, of whose pipe its forked process keeps an end: the thread that reads it then waits for ever."""
    need("clearml")
    called, programs = tmp_path / "called", tmp_path / "programs"
    programs.mkdir()
    (programs / "git").write_text(f'#!/bin/sh\necho "$@" >> {called}\nexit 1\n')
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert record(folder, "clearml") == []
    assert not called.exists()


def test_a_run_and_its_stage_are_shown_by_several_trackers_at_once(folder: Path) -> None:
    need("tensorboard", "trackio")
    stage = folder / "stages" / "math"
    stage.mkdir(parents=True)
    both = threading.Barrier(2)
    printed: list[str] = []

    def train(where: Path, steps: int) -> None:
        names = ("tensorboard", "trackio")
        with Tracker(where, sinks=open_sinks(names, tracked_run(where, say=printed.append))) as tracker:
            both.wait(patience(300))
            write_run(tracker, steps=steps)
            both.wait(patience(300))
            tracker.summarize(SEESAW)

    threads = [threading.Thread(target=train, args=arguments) for arguments in ((folder, 4), (stage, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(600))
    assert printed == []
    for name in ("tensorboard", "trackio"):
        for where, steps in ((folder, 4), (stage, 2)):
            assert shown(name, where, steps=steps) == as_stored(name, expected(where, steps=steps))


def test_trackio_records_where_its_user_says_and_keeps_other_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "all"))
    other = tmp_path / "other"
    other.mkdir()
    assert record(folder, "trackio") == record(other, "trackio", steps=2) == []
    steps = [sorted({row["step"] for row in rows}) for rows in trackio_runs(tmp_path / "all")]
    assert sorted(steps) == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert not list(folder.glob("trackio/*.db"))


def test_a_trackers_process_that_dies_ends_that_tracker_alone(folder: Path) -> None:
    need("tensorboard", "trackio")
    printed: list[str] = []
    run = tracked_run(folder, say=printed.append)
    with Tracker(folder, sinks=open_sinks(("tensorboard", "trackio"), run)) as tracker:
        write_run(tracker, steps=2)
        _process_of("trackio", psutil.Process()).kill()
        write_run(tracker, after=2)
        tracker.summarize(SEESAW)
    (line,) = printed
    assert line.startswith("trackio is off for tiny (RuntimeError: its process ended, see ")
    assert (folder / "trackio" / "output.log").exists()
    assert shown("tensorboard", folder) == as_stored("tensorboard", expected(folder))


def test_that_trackio_loses_rows_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("trackio")
    (folder / "file").write_text("")
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "file" / "below"))
    (line,) = record(folder, "trackio")
    assert line.startswith("trackio warns for tiny: ")
    assert str(folder / "file") in line
    assert "Not a directory" in (folder / "trackio" / "output.log").read_text()


def test_what_a_tracker_raises_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("trackio")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "nowhere")
    (line,) = record(folder, "trackio")
    assert line.startswith("trackio is off for tiny (RuntimeError: ValueError: ")
    assert "nowhere" in line


def killed_while_it_records(folder: Path) -> None:
    """A run that is killed once its tracker has begun; prints the tracker's process."""
    tracker = Tracker(folder, sinks=open_sinks(("tensorboard",), tracked_run(folder)))
    write_run(tracker, steps=2)
    process = _process_of("tensorboard", psutil.Process())
    deadline = Deadline(300)
    while not list(folder.glob("tensorboard/events*")) and deadline.waits(0.05):
        pass
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_no_trackers_process_outlives_a_killed_run(folder: Path) -> None:
    need("tensorboard")
    outcome = run_apart(folder, killed_while_it_records, environment=dict(os.environ))
    assert outcome.exit_code == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(outcome.stdout)).wait(patience(60))


def _process_of(name: str, run: psutil.Process) -> psutil.Process:
    deadline = Deadline(300)
    while deadline.waits(0.05):
        for process in run.children():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[-1] == name:
                    return process
    raise TimeoutError(f"no process of {name} was started")


def test_every_tracker_of_accelerate_is_a_sink_that_a_recipe_may_name() -> None:
    """W&B has a sink of its own, which shows more."""
    assert set(LOGGER_TYPE_TO_CLASS) == set(TRACKERS) | {"wandb"} == set(SINKS)
    assert set(TrackRecipe(sinks=tuple(TRACKERS)).sinks) == set(TRACKERS)


def test_a_tracker_whose_package_is_missing_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in TRACKERS:
        (problem,) = sink_problems([name])
        assert f"`track.sinks` has {name!r}, which needs the package " in problem
        assert SINKS[name].packages[0] in problem


def test_settings_are_flat_and_short() -> None:
    config: dict[str, Any] = {"seed": 7, "loss": {"estimator": "k2", "gate": [1, 2]}, "method": None, "text": "x" * 600}
    assert flat_settings(config) == {
        "seed": 7,
        "loss.estimator": "k2",
        "loss.gate": "[1, 2]",
        "text": "x" * 500 + "...",
    }


def test_numbers_have_the_names_that_a_tracker_can_hold() -> None:
    assert [NAMES["dvclive"](name) for name in ("eval/worst_recovery", "eval/worst_recovery/low", "train/loss")] == [
        "eval/worst_recovery", "eval/worst_recovery.low", "train/loss",
    ]  # fmt: skip
    assert [NAMES["clearml"](name) for name in ("train/loss", "eval/score/math", "seesaw/worst_recovery")] == [
        "train_loss", "eval_score/math", "seesaw/worst_recovery",
    ]  # fmt: skip
