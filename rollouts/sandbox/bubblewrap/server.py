"""The server inside of bubblewrap: forks each program into namespaces, a temporary folder and limits of its own.

Started by rollouts/sandbox/bubblewrap/box.py; needs the standard library only, and executes nothing itself. It sees of
the machine what bubblewrap shows it: the system and Python's packages, read-only, and no network. Line by line on
standard input: settings, then ``{"start": limits}`` and ``{"end": ...}`` in turn, from the tests' server; on standard
output ``{"ready": true}``, then for each end ``{"refused": what the sandbox refused}``.

A program's processes are alone in a namespace of process ids, whose end is the end of them all, whatever they did to
their sessions and parents; so nothing of one program is there when the next one runs. They are of a user namespace of
their own, without capabilities; system calls that reach further than a program needs are filtered. Memory and processor
time are bounded for each process by the kernel, and for all together by the server, which looks a few times a second.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from mopd.rollouts.sandbox.bubblewrap.program import Report, serve_any_program
from mopd.rollouts.sandbox.lock import NOBODY, drop_capabilities, filter_namespaces
from mopd.rollouts.sandbox.namespaces import load_library
from mopd.rollouts.sandbox.peer import drain, write_all
from mopd.rollouts.sandbox.program import MOST_RUNS

MOST_PROCESSES = 64
ROOM_BYTES = 64 << 20
"""Of a program's temporary folder, of its shared memory, and of a file."""
_ADDRESS_SPACE = 8
"""Times the memory that a program may use: libraries reserve what they never touch."""
_LOOK_SECONDS = 0.03
_NEW_NAMESPACES = 0x10000000 | 0x20000000 | 0x00020000 | 0x08000000  # of users, process ids, mounts, ipc
_PR_SET_DUMPABLE, _PR_SET_PDEATHSIG = 4, 1
_MS_NOSUID, _MS_NODEV = 2, 4
_LIBC = ctypes.CDLL(None, use_errno=True)
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
_ENDED = b"\n0\n"
"""No message: the tests' process gives up when it reads it."""


@dataclass(frozen=True, slots=True)
class _Pipes:
    """Descriptors: of the conversation with the tests' process, and of the file with the program's text."""

    reads: int
    writes: int
    program: int


def main() -> NoReturn:
    """Serve until standard input ends."""
    lines = _Lines()
    settings = json.loads(lines.next() or b"{}")
    pipes = _Pipes(**settings["pipes"])
    for name in settings["preload"]:
        with suppress(ImportError):
            __import__(name)
    load_library(safe=False)
    report = Report()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no program looks into this process
    _say({"ready": True})
    while (line := lines.next()) is not None:
        report.clear()
        job = _Job(json.loads(line)["start"], pipes, report)
        job.watch(lines)
        ended = lines.next()  # the tests have
        job.end()
        drain(pipes.reads)
        if ended is not None:
            _say({"refused": report.refused or job.refused})
    os._exit(0)


class _Job:
    """A program's processes: the first of their namespace, whose end ends them all, and above it one that waits."""

    def __init__(self, limits: dict[str, Any], pipes: _Pipes, report: Report) -> None:
        self.refused: str | None = None
        self._limits, self._pipes, self._report = limits, pipes, report
        source, sink = os.pipe2(os.O_CLOEXEC)
        self._above = os.fork()
        if self._above == 0:
            os.close(source)
            _live(limits, pipes, report, first_to=sink)
        os.close(sink)
        text = os.read(source, 16)  # its number, as this process knows it; nothing where there is none
        os.close(source)
        self._first = int(text) if text else None

    def watch(self, lines: _Lines) -> None:
        """Return once there is another line to read; a program that ends before it comes is told to its tests."""
        used, changed = -1.0, time.monotonic()
        while not lines.is_there(_LOOK_SECONDS):
            if os.waitid(os.P_PID, self._above, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            seconds, memory, running = self._use()
            now = time.monotonic()
            if running or seconds != used:
                used, changed = seconds, now
            most = self._limits["cpu_seconds"] * (MOST_RUNS if self._report.runs else 1) + 1
            if memory > self._limits["memory_bytes"] or seconds > most:
                break
            if now - changed > self._limits["idle_seconds"]:
                self.refused = f"to wait for more than {self._limits['idle_seconds']:g} seconds"
                break
        else:
            return
        self.end()
        _tell_end(self._pipes, lines)

    def end(self) -> None:
        """Kill all of them, and wait until none is left."""
        if self._above == 0:
            return
        if self._first is not None:
            with suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGKILL)
        os.waitpid(self._above, 0)
        self._above = 0

    def _use(self) -> tuple[float, int, bool]:
        """(processor seconds, bytes of memory in use, whether any runs) of all of them together."""
        seconds, memory, running = 0.0, 0, False
        ours = {os.getpid(), os.getppid(), self._above}
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) in ours:
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            running |= fields[0] in (b"R", b"D")
            seconds += sum(map(int, fields[11:15])) / _TICKS
            memory += int(fields[21]) * _PAGE
        return seconds, memory, running


def _live(limits: dict[str, Any], pipes: _Pipes, report: Report, *, first_to: int) -> NoReturn:
    """In a fork: make the namespaces, fork the first process in them, and wait for its end."""
    status = 1
    try:
        _make_namespaces()
        first = os.fork()
        if first == 0:
            os.close(first_to)
            _be_first(limits, pipes, report)
        os.write(first_to, str(first).encode())
        os.close(first_to)
        os.waitpid(first, 0)
        status = 0
    finally:
        os._exit(status)


def _make_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # or its own files under /proc are not its own
    if _LIBC.unshare(_NEW_NAMESPACES) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for folder in (b"/tmp", b"/dev/shm"):
        options = f"size={ROOM_BYTES},mode=1777".encode()
        if _LIBC.mount(b"tmpfs", folder, b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")


def _be_first(limits: dict[str, Any], pipes: _Pipes, report: Report) -> NoReturn:
    """The first process of a namespace: waits for those without a parent, and ends, and all with it, with a program."""
    status = 1
    try:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        main_process = os.fork()
        if main_process == 0:
            _execute(limits, pipes, report)
        for descriptor in (0, 1, *vars_of(pipes)):
            os.close(descriptor)
        while os.wait()[0] != main_process:
            pass
        status = 0
    finally:
        os._exit(status)


def vars_of(pipes: _Pipes) -> tuple[int, int, int]:
    """The descriptors of a program's process."""
    return pipes.reads, pipes.writes, pipes.program


def _execute(limits: dict[str, Any], pipes: _Pipes, report: Report) -> NoReturn:
    """The program's own process: gives up what is left to give up, and serves the program."""
    try:
        length = os.fstat(pipes.program).st_size
        program = json.loads(os.pread(pipes.program, length, 0))
        os.close(pipes.program)
        nothing = os.open("/dev/null", os.O_RDWR)
        for place in (0, 1, 2):
            os.dup2(nothing, place)
        os.close(nothing)
        os.chdir("/tmp")
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory ends, it ends before anything else
        seconds = limits["cpu_seconds"]
        _limit(memory_bytes=limits["memory_bytes"], cpu_seconds=seconds * MOST_RUNS + 1)
        drop_capabilities()
        filter_namespaces()
        _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # what a program finds under /proc/self is its own
        os.setsid()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        serve_any_program(
            program,
            reads=pipes.reads,
            writes=pipes.writes,
            longest=limits["result_bytes"],
            seconds=seconds,
            report=report,
        )
    finally:
        os._exit(1)


def _limit(*, memory_bytes: int, cpu_seconds: float) -> None:
    seconds = int(time.process_time() + cpu_seconds) + 1
    for kind, value in (
        (resource.RLIMIT_AS, _ADDRESS_SPACE * memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, ROOM_BYTES),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_NPROC, MOST_PROCESSES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _tell_end(pipes: _Pipes, lines: _Lines) -> None:
    """Write to the tests' process what ends it, and read what it still writes, until another line says that it has."""
    flags = fcntl.fcntl(pipes.writes, fcntl.F_GETFL)
    fcntl.fcntl(pipes.writes, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    left = _ENDED
    while not lines.is_there(_LOOK_SECONDS):
        drain(pipes.reads)
        with suppress(BlockingIOError):
            left = left[os.write(pipes.writes, left) :] if left else left
    fcntl.fcntl(pipes.writes, fcntl.F_SETFL, flags)


class _Lines:
    """Lines of standard input."""

    def __init__(self) -> None:
        self._unread = b""
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)

    def is_there(self, seconds: float) -> bool:
        """Whether there is something to read within so long, or an end."""
        return bool(self._unread) or bool(self._poll.poll(1000 * seconds))

    def next(self) -> bytes | None:
        """The next line, awaited; None at the end."""
        while b"\n" not in self._unread:
            chunk = os.read(0, 1 << 12)
            if not chunk:
                return None
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _say(value: object) -> None:
    write_all(1, json.dumps(value).encode() + b"\n")
