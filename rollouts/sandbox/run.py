"""Runs generated code where it can do no harm: a whitelist, then a process without privileges, then limits.

Code is parsed and executed only in forks of a lean interpreter (rollouts/sandbox/child.py) that has given up network,
files, other processes and privileges (rollouts/sandbox/lock.py) and knows a whitelist of syntax and names
(rollouts/sandbox/rules.py). No verdict is made where generated code runs, and what is expected is not shown to it: the
values of expressions are compared in this process, and those of programs in a process of their tests' own, which gets
plain values from the program's. Servers live as long as this process, and each takes one batch at a time.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mopd.distill.types import RunError, UserError
from mopd.rollouts.sandbox.bubblewrap.box import BubblewrapBox
from mopd.rollouts.sandbox.rules import RUN, refusal

Kind: TypeAlias = Literal["expressions", "tests", "any_python", "math", "readable"]
SandboxKind: TypeAlias = Literal["whitelist", "bubblewrap"]
"""Where programs are executed: by :mod:`rollouts.sandbox.child`, or by :mod:`rollouts.sandbox.bubblewrap.server`."""
_CHILD = "import sys; sys.path.append({root!r}); from mopd.rollouts.sandbox.child import main; main()"


MOST_SERVERS = 8
_LARGEST_BATCH: dict[Kind, int] = {"expressions": 64, "tests": 1, "any_python": 1, "math": 16, "readable": 16}
"""Jobs that a server is given at a time; those of programs have forks of their own in any case."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use.

    Attributes:
        cpu_seconds: processor time, after which the kernel kills the process: a verdict does not depend on the load.
        wall_seconds: time without an answer, start included, after which this process kills it; long enough that only
            a process that does not run at all meets it, however busy the machine.
        memory_bytes: address space of the process, interpreter included.
        result_bytes: JSON text of an answer, and of what a program hands its tests at a time.
        source_chars: text of a program or expression.
        idle_seconds: time in which no process of a program that may use any Python runs, after which it is ended.
    """

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    result_bytes: int
    source_chars: int
    idle_seconds: float = 20.0


EXPRESSION_LIMITS = Limits(
    cpu_seconds=0.25, wall_seconds=120.0, memory_bytes=256 << 20, result_bytes=64 << 10, source_chars=2000
)
PROGRAM_LIMITS = Limits(
    cpu_seconds=5.0, wall_seconds=600.0, memory_bytes=512 << 20, result_bytes=4 << 20, source_chars=50_000
)
MATH_LIMITS = Limits(cpu_seconds=3.0, wall_seconds=600.0, memory_bytes=1 << 30, result_bytes=64, source_chars=50_000)


def evaluate_expressions(
    jobs: Sequence[tuple[str, Sequence[list[int]]]], *, limits: Limits = EXPRESSION_LIMITS
) -> list[list[object] | None]:
    """Evaluate expressions over ``x``, a list of integers, each on its own inputs.

    Args:
        jobs: (expression, inputs); some share a process until one is killed.

    Returns:
        For each job its values in the order of its inputs, or None where the expression was refused, failed or overran
        a limit on any input. Values are made of int, float, bool, str, None and lists; one with anything else in it
        (a tuple, a set) counts as failed, because it would not come back as what it was.

    Raises:
        UserError: this machine lacks a layer that safety needs; nothing was executed.
        RunError: the sandboxed interpreter could not be started.
    """
    fit = [number for number, (text, _) in enumerate(jobs) if len(text) <= limits.source_chars]
    values: list[list[object] | None] = [None] * len(jobs)
    for number, answer in zip(fit, _run("expressions", [jobs[n] for n in fit], limits), strict=True):
        if isinstance(answer, list) and len(answer) == len(jobs[number][1]):
            values[number] = answer
    return values


@dataclass(frozen=True, slots=True)
class ProgramVerdict:
    """Whether a program passes its tests.

    Attributes:
        refused: of one that fails, what it uses that the sandbox refuses, the first of it.
    """

    passed: bool
    refused: str | None = None


def judge_programs(
    jobs: Sequence[tuple[str, str]], *, sandbox: SandboxKind, limits: Limits = PROGRAM_LIMITS
) -> list[ProgramVerdict]:
    """Run programs against their tests, each in two processes of its own, as many at a time as there are cores.

    Tests are plain Python: top-level code with ``assert``, functions ``test_*`` and ``unittest.TestCase`` classes.
    They use the program's names; what its functions return reaches them as plain values (docs/sandbox.md).

    Args:
        jobs: (program, tests).

    Raises:
        UserError: this machine lacks a layer that safety needs; nothing was executed.
        RunError: the sandboxed interpreter could not be started.
    """
    kind: Kind = "tests" if sandbox == "whitelist" else "any_python"
    fit = [number for number, (program, _) in enumerate(jobs) if len(program) <= limits.source_chars]
    answers = dict(zip(fit, _run(kind, [jobs[n] for n in fit], limits), strict=True))
    verdicts: list[ProgramVerdict] = []
    for number, (program, tests) in enumerate(jobs):
        passed, refused = _passed(answers.get(number))
        if not passed and len(program) > limits.source_chars:
            refused = f"a program of more than {limits.source_chars:,} characters"
        elif not passed and sandbox == "whitelist":
            refused = refusal(program, runs=f"{RUN}(" in tests)
        verdicts.append(ProgramVerdict(passed, None if passed else refused))
    return verdicts


def _passed(answer: object) -> tuple[bool, str | None]:
    """A server's answer on a program; a failure where it gave none."""
    if not isinstance(answer, list) or len(answer) != 2:
        return False, None
    return answer[0] is True, str(answer[1]) if answer[1] is not None else None


def run_tests_many(jobs: Sequence[tuple[str, str]], *, limits: Limits = PROGRAM_LIMITS) -> list[bool]:
    """Whether programs pass their tests under the whitelist; see :func:`judge_programs`."""
    return [verdict.passed for verdict in judge_programs(jobs, sandbox="whitelist", limits=limits)]


def equal_formulas(jobs: Sequence[tuple[str, str]], *, limits: Limits = MATH_LIMITS) -> list[bool]:
    """Whether texts contain the same mathematics as answers, by math-verify; False where a comparison overran a limit.

    Args:
        jobs: (answer, text); all of them share a process, which takes a second or two to start, until one is killed.

    Raises:
        UserError: this machine lacks a layer that safety needs; nothing was executed.
        RunError: the sandboxed interpreter could not be started.
    """
    fit = [number for number, (_, text) in enumerate(jobs) if len(text) <= limits.source_chars]
    answers = dict(zip(fit, _run("math", [jobs[n] for n in fit], limits), strict=True))
    return [answers.get(number) is True for number in range(len(jobs))]


def readable_formulas(golds: Sequence[str], *, limits: Limits = MATH_LIMITS) -> list[bool]:
    """Whether math-verify can read gold answers; False where reading one overran a limit.

    Raises:
        UserError: this machine lacks a layer that safety needs; nothing was executed.
        RunError: the sandboxed interpreter could not be started.
    """
    return [answer is True for answer in _run("readable", [(gold,) for gold in golds], limits)]


@functools.cache
def layers() -> tuple[str, ...]:
    """The mechanisms that hold on this machine, found by locking a server in.

    Raises:
        UserError: a property that safety needs is held by none.
    """
    with _server("expressions", PROGRAM_LIMITS) as server:
        return tuple(server.held)


def _run(kind: Kind, jobs: Sequence[tuple[Any, ...]], limits: Limits) -> list[object]:
    """The answer of each job, None for a job whose process died; batches go to as many servers as there are cores."""
    servers = max(1, min(len(jobs), os.cpu_count() or 1, MOST_SERVERS))
    size = max(1, min(_LARGEST_BATCH[kind], -(-len(jobs) // servers)))
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    if len(batches) < 2:
        return [answer for batch in batches for answer in _run_batch(kind, batch, limits)]
    with ThreadPoolExecutor(max_workers=servers) as pool:
        done = pool.map(lambda batch: _run_batch(kind, batch, limits), batches)
        return [answer for answers in done for answer in answers]


def _run_batch(kind: Kind, jobs: Sequence[tuple[Any, ...]], limits: Limits) -> list[object]:
    answers: list[object] = []
    while len(answers) < len(jobs):
        rest = jobs[len(answers) :]
        with _server(kind, limits) as server:
            done = server.answers(rest, limits)
        answers += done if len(done) == len(rest) else [*done, None]
    return answers


_idle: dict[Kind, list[_Server]] = {}
_idle_lock = threading.Lock()


@contextmanager
def _server(kind: Kind, limits: Limits) -> Iterator[_Server]:
    """A server that nobody else uses meanwhile; kept for the next who asks, if it still serves."""
    with _idle_lock:
        kept = _idle.get(kind)
        server = kept.pop() if kept else None
    server = server or _Server(kind, limits)
    try:
        yield server
    except BaseException:
        server.end()
        raise
    with _idle_lock:
        if server.serves:
            _idle.setdefault(kind, []).append(server)


def end_idle_servers() -> None:
    """End the servers that nobody uses; the next job starts others. It happens by itself when this process exits."""
    with _idle_lock:
        servers = [server for kept in _idle.values() for server in kept]
        _idle.clear()
    for server in servers:
        server.end()


def _forget_idle() -> None:
    """In a fork of this process: the servers are the parent's."""
    global _idle_lock
    _idle_lock = threading.Lock()
    _idle.clear()


atexit.register(end_idle_servers)
os.register_at_fork(after_in_child=_forget_idle)


class _Server:
    """A locked interpreter that forks a process for each job.

    Raises:
        UserError: this machine lacks a layer that safety needs.
        RunError: it did not start.
    """

    def __init__(self, kind: Kind, limits: Limits) -> None:
        if sys.platform != "linux":
            raise UserError(
                f"sandbox: generated code is executed on Linux only, and this is {sys.platform}; run there, or leave "
                f"out the domains whose answers are executed"
            )
        code = _CHILD.format(root=str(Path(__file__).parents[3]))
        # A fixed hash seed, so that the order of a set of strings, and with it a verdict, is the same in every run.
        environment = {"PYTHONHASHSEED": "0"} | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        self.serves = True
        self._unread = b""
        self._owner = os.getpid()
        # A program's text and its tests', which the server itself never reads.
        judges = kind in ("tests", "any_python")
        self._files = [os.memfd_create(name) for name in ("program", "tests")] if judges else []
        self._box = None
        descriptors: dict[str, int] = dict(zip(("program", "tests"), self._files, strict=True)) if judges else {}
        if kind == "any_python":
            self._box = self._boxed(limits)
            descriptors = {"tests": self._files[1], **self._box.descriptors}
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=list(descriptors.values()),
            start_new_session=True,
        )
        if self._box is not None:
            self._box.handed_over()
        try:
            with tempfile.TemporaryDirectory(prefix="mopd-sandbox-") as folder:
                self.held = self._start(kind, descriptors, folder, limits)
        except BaseException:
            self.end()
            raise

    def _boxed(self, limits: Limits) -> BubblewrapBox:
        """The server of programs that may use any Python."""
        try:
            return BubblewrapBox(self._files[0], wall_seconds=limits.wall_seconds)
        except BaseException as error:
            for descriptor in self._files:
                os.close(descriptor)
            if isinstance(error, UserError):
                raise UserError(f"sandbox: bubblewrap can't be had here: {error}") from error
            raise

    def _start(self, kind: Kind, descriptors: dict[str, int], folder: str, limits: Limits) -> list[str]:
        """Wait until it is locked in; returns the mechanisms that hold."""
        paths = [path for path in sys.path if path] if kind in ("math", "readable") else []
        self._write({"kind": kind, "empty_folder": folder, "import_paths": paths, "descriptors": descriptors})
        line = self._line(limits)
        if line is None:
            raise RunError(
                f"the sandbox did not start: {sys.executable} was not locked in within {limits.wall_seconds:g} s "
                f"(status {self._process.poll()}); run it with -c 'import mopd.rollouts.sandbox.child' to see why"
            )
        hello = json.loads(line)
        if hello["missing"]:
            raise UserError(
                f"sandbox: this machine cannot give a process without {', nor without '.join(hello['missing'])} (it "
                f"has {', '.join(hello['held']) or 'nothing'}), so generated code is not executed; run on Linux with "
                f"seccomp and user namespaces, or as root, or leave out the domains whose answers are executed"
            )
        return hello["held"]

    def end(self) -> None:
        """Kill it, and with it its forks."""
        self.serves = False
        if self._owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        if self._box is not None:
            self._box.end()
        for descriptor in self._files:
            os.close(descriptor)
        self._files = []
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def answers(self, jobs: Sequence[tuple[Any, ...]], limits: Limits) -> list[object]:
        """The answer of each job; fewer where it was stopped, after which it serves no more."""
        done: list[object] = []
        bounds = dataclasses.asdict(limits)
        if not self._files:
            self._write({"jobs": jobs, "limits": bounds})
        while len(done) < len(jobs):
            if self._files:
                lengths = [_overwrite(file, text) for file, text in zip(self._files, jobs[len(done)], strict=True)]
                self._write({"lengths": lengths, "limits": bounds})
            line = self._line(limits)
            if line is None:
                self.end()
                break
            done.append(json.loads(line))
        return done

    def _write(self, message: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended, and gives no answer
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _line(self, limits: Limits) -> bytes | None:
        """The next line; None where the server ended or hangs."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()  # unlike select(), it takes descriptors above 1023
        poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + limits.wall_seconds
        while b"\n" not in self._unread:
            if not poll.poll(1000 * max(0.0, end - time.monotonic())):
                return None
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return None
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _overwrite(file: int, text: str) -> int:
    """Make a text, as JSON, all that a file holds; returns its length."""
    data = json.dumps(text).encode()
    os.ftruncate(file, 0)
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], done)
    return len(data)
