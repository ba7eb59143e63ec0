"""Sees to it that no process of a run's Ray cluster outlives the run, whatever ends it; a small process beside the run.

It is told of an orderly end. Where the run is killed, or dies of Ray's death (Ray ends a process whose raylet is dead
without a word), it says what happened, kills what is left and removes what Ray has written. Imports no torch.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "MOPD_CLUSTER"
"""In the environment of every process of a cluster: the folder that Ray writes to. So none of them is overlooked,
whoever its parent is by now, and a killed run's can be known by the next."""

LOOK_SECONDS = 0.1
LIST_SECONDS = 1.0
"""Between two looks at what the run has started, which goes through all processes of the machine."""
END_SECONDS = 30.0
"""How long the end of killed processes is waited for."""


def start_guard(folder: Path, ray: Mapping[str, int]) -> subprocess.Popen[bytes]:
    """The process that looks after this one's cluster; :func:`dismiss` it at an orderly end.

    Args:
        folder: that Ray writes to.
        ray: process ids without which Ray is dead, by the names that a message gives them.
    """
    named = [f"{name}={pid}" for name, pid in ray.items()]
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder), str(os.getpid()), *named],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is not for it
        env={name: value for name, value in os.environ.items() if name != MARK},
    )


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """The run ends its cluster itself."""
    with suppress(OSError):  # it has ended
        guard.communicate(b"done\n")


def end_cluster(folder: Path) -> None:
    """Kill every process of the cluster that writes to ``folder``, wait for their end, and remove the folder."""
    for _ in range(3):  # one may be starting another
        marked = [process for process in psutil.process_iter() if _mark_of(process) == str(folder)]
        if not marked:
            break
        _kill(marked)
    shutil.rmtree(folder, ignore_errors=True)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return None if process.pid == os.getpid() else process.environ().get(MARK)
    except (psutil.Error, OSError):  # it is another user's, or has ended
        return None


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    late = time.monotonic() + END_SECONDS
    while any(map(_lives, processes)) and time.monotonic() < late:
        time.sleep(LOOK_SECONDS / 4)


def _guard(folder: Path, run: int, ray: Mapping[str, int]) -> None:
    """Wait for an orderly end, or end all that is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    children: list[psutil.Process] = []
    watched = {name: _process(pid) for name, pid in ray.items()}
    dead: str | None = None
    listed = -LIST_SECONDS
    while dead is None:
        if select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
            if sys.stdin.readline():
                return
            break  # the run is dead, and its end of the pipe with it
        if time.monotonic() >= listed + LIST_SECONDS:
            with suppress(psutil.Error):
                children = psutil.Process(run).children(recursive=True)
            listed = time.monotonic()
        dead = next((name for name, process in watched.items() if not _lives(process)), None)
    # Ray takes a run with it after a while, and a killed run takes Ray with it at once: where both are dead by now,
    # nobody can tell which was first.
    unclear = dead is None or bool(select.select([sys.stdin], [], [], LOOK_SECONDS)[0])
    dead = dead or next((name for name, process in watched.items() if not _lives(process)), None)
    if dead is not None:
        print(
            f"the run broke: Ray's {dead} (process {ray[dead]}) died, and with it all processes of the run"
            f"{', or the run was killed' * unclear}. The last checkpoint resumes it: give the same command again",
            file=sys.stderr,
            flush=True,
        )
    _kill([child for child in children if child.pid != os.getpid()])
    end_cluster(folder)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:  # it has ended already
        return None


def _lives(process: psutil.Process | None) -> bool:
    """Whether it has not ended; its parent may be slow to ask how."""
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _main(folder: str, run: str, *ray: str) -> None:
    pairs = (named.partition("=") for named in ray)
    _guard(Path(folder), int(run), {name: int(pid) for name, _, pid in pairs})


if __name__ == "__main__":
    _main(*sys.argv[1:])  # not per token
