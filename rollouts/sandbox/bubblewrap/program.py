"""The process that a program lives in which may use any Python: it executes the program and does what tests ask of it.

As in rollouts/sandbox/program.py nothing here decides anything; here nothing is forbidden either. The conversation is
on descriptors of its own, so that 0, 1 and 2 are a program's, as it expects. What the sandbox refused it is noted.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import gc
import io
import mmap
import os
import random
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from mopd.rollouts.sandbox.peer import write_all
from mopd.rollouts.sandbox.plain import Encoded
from mopd.rollouts.sandbox.program import ProgramPeer, kept

_PLAIN = (bool, int, float, complex, str, bytes)
_NETWORK = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}
_FILES = {errno.EROFS, errno.EACCES, errno.EPERM}
_SIZES = {errno.ENOSPC, errno.EFBIG}
_LONGEST_NAME = 80


class Report:
    """What a program's processes tell the server: in memory that they share, which a program can write as it likes.

    So a server takes it for no more than it is: what is shown to people, and how much time is the most there is.
    """

    def __init__(self) -> None:
        self._room = mmap.mmap(-1, 256)

    def clear(self) -> None:
        """Before the next program."""
        self._room[:] = bytes(len(self._room))

    def begin_run(self) -> None:
        """The program is run as a whole, on one text after another."""
        self._room[-1] = 1

    @property
    def runs(self) -> bool:
        """Whether it is."""
        return self._room[-1] == 1

    def refuse(self, reason: str) -> None:
        """What the sandbox refused, unless something was refused before."""
        data = reason.encode("utf-8", "replace")[: len(self._room) - 1]  # not per token
        if not self._room[0]:
            self._room[: len(data)] = data

    @property
    def refused(self) -> str | None:
        """What was refused first."""
        text = self._room[: len(self._room) - 1].rstrip(b"\0").decode("utf-8", "replace")  # not per token
        return text or None


def serve_any_program(
    program: str, *, reads: int, writes: int, longest: int, seconds: float, report: Report
) -> NoReturn:
    """Serve the process of a program's tests until this one is ended: execute the program once, or run it on texts.

    Args:
        reads, writes: descriptors of the conversation.
        longest: bytes of a message, and of what a run prints.
        seconds: processor time of the program, and of a run of it.
        report: is told what the sandbox refused the program.
    """
    peer = _AnyProgram(longest=longest, reads=reads, writes=writes, report=report)

    def start() -> list[list[Any]]:
        _lower_cpu_limit(seconds)
        names = _module("program")
        random.seed(0)
        exec(compile(program, "program.py", "exec", dont_inherit=True), names)
        return [[name, kept(value)] for name, value in list(names.items()) if not name.startswith("__")]

    def run(given: str) -> str:
        report.begin_run()
        return _run_whole(program, str(given), seconds=seconds, longest=longest, report=report, closed=(reads, writes))

    peer.special |= {"start": start, "run": run}
    peer.serve()


class _AnyProgram(ProgramPeer):
    """A program's side that hands over numpy's numbers as Python's, and notes what was refused."""

    def __init__(self, *, longest: int, reads: int, writes: int, report: Report) -> None:
        super().__init__(longest=longest, reads=reads, writes=writes)
        self._report = report

    def _export(self, value: Any) -> Encoded:
        generic = getattr(sys.modules.get("numpy"), "generic", None)
        if isinstance(generic, type) and generic in type(value).__mro__:
            item = value.item()
            if type(item) in _PLAIN:
                return self.codec.encode(item)
        return super()._export(value)

    def raised(self, error: BaseException) -> list[Encoded]:
        """See :meth:`Peer.raised`."""
        if (reason := refused_reason(error)) is not None:
            self._report.refuse(reason)
        return super().raised(error)


def refused_reason(error: BaseException) -> str | None:
    """What the sandbox refused a program that fails with an error; None where it refused nothing."""
    causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
    for cause in causes:
        if isinstance(cause, ModuleNotFoundError):
            return f"import of module {str(cause.name)[:_LONGEST_NAME]!r}, which is not installed"
        if type(cause).__name__ == "gaierror" or (isinstance(cause, OSError) and cause.errno in _NETWORK):
            return "network"
        if isinstance(cause, OSError) and cause.errno in _FILES:
            name = "" if cause.filename is None else f" of {str(cause.filename)[:_LONGEST_NAME]!r}"
            return f"a file or a call{name}: {os.strerror(cause.errno or 0)}"
        if isinstance(cause, OSError) and cause.errno in _SIZES:
            return "files beyond the room for them"
        if isinstance(cause, BlockingIOError) or "start new thread" in str(cause):
            return "more processes or threads than there may be"
    return None


def _module(name: str) -> dict[str, Any]:
    """The globals of a fresh module, which imports and pickles find by its name."""
    sys.modules[name] = module = types.ModuleType(name)
    vars(module)["__builtins__"] = builtins
    return vars(module)


def _lower_cpu_limit(seconds: float) -> None:
    most = int(time.process_time() + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))


def _run_whole(
    program: str, given: str, *, seconds: float, longest: int, report: Report, closed: tuple[int, ...]
) -> str:
    """What a program prints that is run as a script, in a process of its own, with a text as its standard input.

    Raises:
        RuntimeError: it ends with an error, or prints more than can be handed over.
    """
    signal.setitimer(signal.ITIMER_PROF, 0)  # of a run each has its own; the kernel bounds that of all
    reads, writes = os.memfd_create("given"), os.memfd_create("printed")
    try:
        write_all(reads, given.encode("utf-8", "surrogatepass"))
        os.lseek(reads, 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for descriptor, place in ((reads, 0), (writes, 1)):
                    os.dup2(descriptor, place)
                for descriptor in (*closed, reads, writes):
                    os.close(descriptor)
                _lower_cpu_limit(seconds)
                signal.setitimer(signal.ITIMER_PROF, seconds)
                status = _as_script(program, report)
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # what it started and left: all there is but this process and the first
        size = os.fstat(writes).st_size
        if status != 0 or size > longest:
            raise RuntimeError("the program ended with an error" if status else f"the program printed {size:,} bytes")
        return os.pread(writes, size, 0).decode("utf-8", "replace")
    finally:
        os.close(reads)
        os.close(writes)


def _as_script(program: str, report: Report) -> int:
    """Execute a program as Python does a script that it is given; returns its exit status."""
    sys.argv = ["program.py"]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the process is there
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    random.seed(0)
    status = 0
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), _module("__main__"))
    except SystemExit as end:
        status = 0 if end.code in (None, 0) else 1
    except BaseException as error:
        if (reason := refused_reason(error)) is not None:
            report.refuse(reason)
        status = 1
    shutdown: Callable[[], None] = getattr(threading, "_shutdown")  # noqa: B009  # waits for threads, as at any exit
    shutdown()
    atexit._run_exitfuncs()
    for each in gc.get_objects():  # what an interpreter that ends would have closed
        if isinstance(each, io.TextIOWrapper | io.BufferedWriter) and not each.closed:
            with suppress(OSError, ValueError):
                each.flush()
    return status
