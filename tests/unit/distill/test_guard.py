"""The process beside a run: it ends what is left of the run's cluster, and leaves an orderly end to the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from deadline_kit import Deadline, patience

from mopd.distill.guard import MARK, SHARED_MEMORY, end_cluster, environment_of, memory_folder

RUN = """
import os, subprocess, sys, time
from pathlib import Path
from mopd.distill.guard import MARK, confirm, dismiss, ray_died, start_guard

folder, asked = Path(sys.argv[1]), sys.argv[2]
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
marked = {**os.environ, MARK: str(folder)}
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # else they would hold the test's pipes
ray = subprocess.Popen(sleeper, env=marked, **quiet)
# An agent of Ray's is no child of the run, nor in its session; another child has nothing to do with Ray.
agent = subprocess.Popen(sleeper, env=marked, start_new_session=True, **quiet)
other = subprocess.Popen(sleeper, **quiet)
guard = start_guard(folder, {"GCS": ray.pid})
print(ray.pid, agent.pid, other.pid, flush=True)
if asked == "late":  # it has all its results when it hears of the death
    ray_died(guard)
if asked in ("orderly", "late"):
    dismiss(guard)
    sys.exit(guard.wait())
ray_died(guard)
confirm(guard)
sys.exit(7)
"""


def start(folder: Path, asked: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A run with a cluster in ``folder``, and the processes that it has started, the GCS first."""
    folder.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    return run, [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]


def ended(processes: list[psutil.Process]) -> bool:
    """Whether all of them end in time."""
    deadline = Deadline(60)
    while any(lives(process) for process in processes) and deadline.waits():
        pass
    return not any(lives(process) for process in processes)


def end(process: psutil.Process) -> None:
    """Kill one that may have ended."""
    with suppress(psutil.Error):
        process.kill()


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("killed", ["run", "GCS"])
def test_no_process_and_no_folder_outlives_a_run_or_its_ray(tmp_path: Path, killed: str) -> None:
    folder = tmp_path / "cluster"
    run, processes = start(folder, "wait")
    os.kill(run.pid if killed == "run" else processes[0].pid, signal.SIGKILL)
    _, printed = run.communicate(timeout=patience(60))  # the guard has its end of the pipe
    assert ended(processes[:2])
    assert not folder.exists()
    if killed == "run":
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 7
        assert f"Ray's GCS (process {processes[0].pid}) died" in printed
        assert "The last checkpoint resumes it" in printed
    end(processes[2])


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no folder of shared memory")
def test_what_a_cluster_has_in_shared_memory_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MARK, raising=False)
    assert memory_folder() == SHARED_MEMORY
    cluster = tmp_path / f"cluster-{os.getpid()}"
    cluster.mkdir()
    monkeypatch.setenv(MARK, str(cluster))
    file = memory_folder() / "weights"
    file.touch()
    assert memory_folder().stat().st_mode & 0o077 == 0
    end_cluster(cluster)
    assert not file.parent.exists()
    assert not cluster.exists()


def test_a_process_that_is_just_being_started_has_its_environment(tmp_path: Path) -> None:
    """It reads as empty until the kernel has loaded its program; neighbours hold that up."""
    spin = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(spin) for _ in range(4 * len(os.sched_getaffinity(0)))]
    sleepers = []
    try:
        for n in range(20):
            folder = str(tmp_path / f"cluster{n}")
            sleepers.append(psutil.Popen(["sleep", "600"], env={**os.environ, MARK: folder}))
            assert environment_of(sleepers[-1]).get(MARK) == folder
    finally:
        for process in (*neighbours, *sleepers):
            process.kill()


def test_an_orderly_end_is_the_runs_own(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    run, processes = start(folder, "orderly")
    _, printed = run.communicate(timeout=patience(60))
    assert run.returncode == 0
    assert printed == ""
    assert all(map(lives, processes))
    assert folder.exists()
    end_cluster(folder)
    assert ended(processes[:2])
    assert lives(processes[2]), "it is not of the cluster"
    assert not folder.exists()
    end(processes[2])


def test_a_run_that_has_its_results_as_ray_dies_has_not_broken(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    run, processes = start(folder, "late")
    processes[0].kill()
    _, printed = run.communicate(timeout=patience(60))
    assert (run.returncode, printed) == (0, "")
    assert all(map(lives, processes[1:]))
    end_cluster(folder)
    end(processes[2])


def test_a_run_that_dies_slowly_is_not_said_to_have_died_of_ray(tmp_path: Path) -> None:
    """Ray's processes die with the run's main thread, and its pipes are closed with its last one."""
    folder = tmp_path / "cluster"
    run, processes = start(folder, "wait")
    os.kill(run.pid, signal.SIGSTOP)
    processes[0].kill()
    time.sleep(1.0)
    os.kill(run.pid, signal.SIGKILL)
    _, printed = run.communicate(timeout=patience(60))
    assert f"Ray's GCS (process {processes[0].pid}) died" in printed
    assert "or the run was killed" in printed
    assert ended(processes[:2])
    end(processes[2])


def test_a_terminals_ctrl_c_and_slurms_sigterm_do_not_end_the_guard(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup it is ignored from the start
    run, processes = start(folder, "wait")
    signal.signal(signal.SIGHUP, before)
    deadline = Deadline(60)
    while not (guards := [p for p in psutil.Process(run.pid).children() if "mopd.distill.guard" in p.cmdline()]):
        assert deadline.waits()
    (guard,) = guards
    assert MARK not in guard.environ()
    while not ignored(guard) and deadline.waits():
        pass
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        guard.send_signal(number)
    processes[0].kill()
    run.communicate(timeout=patience(60))
    assert ended([*processes[:2], guard])
    end(processes[2])


def ignored(process: psutil.Process) -> bool:
    """Whether it ignores SIGHUP, the last of those that it sets."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.split("SigIgn:")[1].split()[0], 16) >> (signal.SIGHUP - 1) & 1)
