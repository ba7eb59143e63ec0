"""Sees to it that no process of a run's Ray cluster outlives the run, whatever ends it; a small process beside the run.

It is told of an orderly end. Where the run is killed, or dies of Ray's death (Ray ends a process whose raylet is dead
without a word), it says what happened, kills what is left and removes what Ray has written. Of Ray's death it tells the
run first, which may have all its results, or be dead: one of the two says how the run ended. Imports no torch.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "MOPD_CLUSTER"
"""In the environment of every process of a cluster: the folder that Ray writes to. So none of them is overlooked,
whoever its parent is by now, and a killed run's can be known by the next."""

SHARED_MEMORY = Path("/dev/shm")

LOOK_SECONDS = 0.1
LIST_SECONDS = 1.0
"""Between two looks at what the run has started, which goes through all processes of the machine. That one of Ray's has
died is heard of at once."""
ANSWER_SECONDS = 60.0
"""How long a run may take to say whether Ray's death broke it; one that takes longer hangs, and is broken."""
END_SECONDS = 30.0
"""How long the end of killed processes is waited for."""
START_SECONDS = 10.0
"""How long the kernel may take to load a program, on a machine that is busy."""


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
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is not for it
        env={name: value for name, value in os.environ.items() if name != MARK},
    )


def ray_died(guard: subprocess.Popen[bytes]) -> None:
    """Wait until a process of Ray's has died, or the guard has ended; then :func:`confirm` or :func:`dismiss` it."""
    assert guard.stdout is not None
    guard.stdout.readline()


def confirm(guard: subprocess.Popen[bytes]) -> None:
    """Ray's death broke the run: the guard says so, and ends all that the run has started."""
    _answer(guard, b"broke\n")


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """The run ends its cluster itself, whatever has died of it meanwhile."""
    _answer(guard, b"done\n")


def _answer(guard: subprocess.Popen[bytes], word: bytes) -> None:
    assert guard.stdin is not None
    with suppress(OSError):  # it has ended
        guard.stdin.write(word)
        guard.stdin.close()
    guard.wait()


def end_cluster(folder: Path) -> None:
    """Kill every process of the cluster that writes to ``folder``, wait for their end, and remove the folder, and what
    they have in shared memory."""
    for _ in range(3):  # one may be starting another
        others = (process for process in psutil.process_iter() if process.pid != os.getpid())
        marked = [process for process in others if environment_of(process).get(MARK) == str(folder)]
        if not marked:
            break
        _kill(marked)
    shutil.rmtree(_in_memory(folder), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def memory_folder() -> Path:
    """Where a process of a run puts files that another process of its node is to read at once: in shared memory, by the
    name of the run's cluster, with which they go; in the folder of temporary files where there is none."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        return Path(tempfile.gettempdir())
    cluster = os.environ.get(MARK)
    if cluster is None:  # one that others have started: who makes files here removes them
        return SHARED_MEMORY
    folder = _in_memory(Path(cluster))
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _in_memory(cluster: Path) -> Path:
    return SHARED_MEMORY / f"mopd-{cluster.name}"


def environment_of(process: psutil.Process) -> dict[str, str]:
    """The environment that another process was started in; empty for one that has ended or is another user's.

    While the kernel loads a program it tells neither the process's arguments nor its environment, and then, for a
    moment, the first alone: one that seems to have none may be just starting, and is looked at again.
    """
    late = time.monotonic() + START_SECONDS
    try:
        while not process.cmdline() and process.exe() and time.monotonic() < late:  # a kernel's thread has no program
            time.sleep(LOOK_SECONDS / 100)
        environment = process.environ()
        if not environment and process.exe():
            time.sleep(LOOK_SECONDS)
            environment = process.environ()
        return environment
    except (psutil.Error, OSError):
        return {}


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
    ends = [descriptor for pid in ray.values() if (descriptor := _end_of(pid)) is not None]
    dead: str | None = None
    while dead is None:
        if sys.stdin in select.select([sys.stdin, *ends], [], [], LIST_SECONDS)[0]:
            if sys.stdin.readline():
                return
            break  # the run is dead, and its end of the pipe with it
        with suppress(psutil.Error):
            children = psutil.Process(run).children(recursive=True)
        dead = next((name for name, process in watched.items() if not _lives(process)), None)
    word = "" if dead is None else _ask(dead)
    if word == "done":
        return
    # Ray takes a run with it after a while, and a killed run takes Ray with it at once: where both are dead by now,
    # nobody can tell which was first.
    unclear = not word
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


def _ask(dead: str) -> str:
    """Tell the run that one of Ray's processes died: what it answers; nothing where it is dead, too."""
    with suppress(OSError):  # it is dead
        os.write(sys.stdout.fileno(), f"{dead}\n".encode())
    answered = select.select([sys.stdin], [], [], ANSWER_SECONDS)[0]
    return sys.stdin.readline().strip() if answered else "broke"


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:  # it has ended already
        return None


def _end_of(pid: int) -> int | None:
    """What becomes readable when a process ends; None where it has, or this kernel has no such thing."""
    try:
        return os.pidfd_open(pid)
    except OSError:
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
