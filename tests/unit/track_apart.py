"""Runs that are written in a process of their own, because they are killed, or because W&B is broken there.

The processes come from a server that has imported torch and the package once, and W&B never.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from deadline_kit import Deadline
from track_kit import ROLLOUTS, SEESAW, open_tracker, write_run

_APART = multiprocessing.get_context("forkserver")
_APART.set_forkserver_preload(["mopd.distill.tracking.tracker", "mopd.recipes.run.tracking"])
_LIMIT_SECONDS = 300  # of a quiet machine


@dataclass(frozen=True)
class Outcome:
    """How a process ended (minus the signal, if one killed it) and what it printed."""

    exit_code: int
    stdout: str
    stderr: str


def run_apart(
    folder: Path,
    scenario: Callable[..., None],
    *,
    environment: dict[str, str] | None = None,
    first_on_path: str = "",
    kill_when: Callable[[str], bool] | None = None,
    **options: Any,
) -> Outcome:
    """Run ``scenario(folder, **options)`` in a process without a W&B login; SIGKILL it at ``kill_when(stdout)``."""
    (folder / "home").mkdir(exist_ok=True)
    out, err = folder / "home" / "out", folder / "home" / "err"
    process = _APART.Process(target=_inside, args=(folder, scenario, environment or {}, first_on_path, options))
    process.start()
    deadline = Deadline(_LIMIT_SECONDS)
    while process.is_alive() and deadline.waits(0.0):
        if kill_when is not None and out.exists() and kill_when(out.read_text()):
            process.kill()
        process.join(0.05)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return Outcome(process.exitcode, out.read_text(), err.read_text())


def _inside(
    folder: Path,
    scenario: Callable[..., None],
    environment: dict[str, str],
    first_on_path: str,
    options: dict[str, Any],
) -> None:
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / "home" / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            del os.environ[name]
    os.environ.update(environment, HOME=str(folder / "home"))
    if first_on_path:
        sys.path.insert(0, first_on_path)
    scenario(folder, **options)
    atexit._run_exitfuncs()  # which multiprocessing leaves out, and W&B hangs in
    print(time.time(), flush=True)


def whole_run(
    folder: Path, *, mode: str, steps: int, after: int = 0, tables: bool = True, init_seconds: float | None = None
) -> None:
    """From a checkpoint to the end. Prints the times at which everything was logged, and at which it was closed."""
    if init_seconds is not None:  # else W&B is imported by the run itself, which must bear it where that fails
        from mopd.distill.tracking.wandb_sink import WandbSink

        assert WandbSink.__init__.__kwdefaults__ is not None
        WandbSink.__init__.__kwdefaults__["init_seconds"] = init_seconds
    with open_tracker(folder, mode) as tracker:
        tracker.resume(after)
        write_run(tracker, after=after, steps=steps)
        if tables:
            tracker.append_rows("rollouts", ROLLOUTS)
            tracker.summarize(SEESAW)
        print(time.time())
    print(time.time())


def run_with_a_stage(folder: Path, *, worst: float, mode: str = "offline") -> None:
    """A run whose specialist is made first, as `mopd run` does it; its worst domain recovers ``worst``."""
    stage = folder / "stages" / "math"
    stage.mkdir(parents=True)
    with open_tracker(folder, mode) as tracker:
        with open_tracker(stage, mode, stage="math") as of_stage:
            of_stage.resume(0)
            write_run(of_stage, steps=2)
        tracker.resume(0)
        write_run(tracker, steps=2)
        tracker.summarize(SEESAW | {"metrics": SEESAW["metrics"] | {"worst_recovery": worst}})


def killed_after_step_3(folder: Path) -> None:
    """A run that does not live to close its Tracker."""
    with open_tracker(folder) as tracker:
        tracker.resume(0)
        write_run(tracker, steps=3)
        tracker.append_rows("rollouts", ROLLOUTS)
        os.kill(os.getpid(), signal.SIGKILL)


def core_killed_after_step_2(folder: Path, *, steps: int) -> None:
    """A run whose W&B process is killed once it has begun to write."""
    with open_tracker(folder) as tracker:
        write_run(tracker, steps=2)
        for process in _core(folder):
            process.kill()
            process.wait()
        write_run(tracker, after=2, steps=steps)


def _core(folder: Path) -> list[psutil.Process]:
    deadline = Deadline(_LIMIT_SECONDS / 2)
    while deadline.waits(0.05):
        processes = [p for p in psutil.Process().children(recursive=True) if "wandb-core" in p.name()]
        if processes and list(folder.glob("wandb/offline-run-*/run-*.wandb")):
            return processes
    raise TimeoutError("W&B's process did not start")


def log_until_killed(folder: Path) -> None:
    """Print each step once it has been logged."""
    tracker = open_tracker(folder, "disabled")
    for step in range(1, 10**9):
        tracker.log("train", step, {f"metric/{i}": step / 7 for i in range(100)})
        print(step, flush=True)
