"""Runs generated code where it can do no harm: a whitelist, then a process without privileges, then limits.

Code is parsed and executed only in a lean interpreter of its own (rollouts/sandbox/child.py) that has given up
network, files, other processes and privileges (rollouts/sandbox/lock.py) and knows a whitelist of syntax and names
(rollouts/sandbox/rules.py). The values of expressions are compared in this process: the sandboxed one never sees what
is expected of them. The verdict of tests is made in the sandboxed process, one process per program. It counts only
after a nonce that the process read before the program began, so that text which a program gets written is no verdict;
one that got at the interpreter's own frames could still read the nonce.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mopd.distill.types import RunError, UserError

Kind: TypeAlias = Literal["expressions", "tests", "math"]
_CHILD = "import sys; sys.path.append({root!r}); from mopd.rollouts.sandbox.child import main; main()"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use.

    Attributes:
        cpu_seconds: processor time, after which the kernel kills the process: a verdict does not depend on the load.
        wall_seconds: time without an answer, start included, after which this process kills it; long enough that only
            a process that does not run at all meets it, however busy the machine.
        memory_bytes: address space of the process, interpreter included.
        result_bytes: JSON text of an answer.
        source_chars: text of a program or expression.
    """

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    result_bytes: int
    source_chars: int


EXPRESSION_LIMITS = Limits(
    cpu_seconds=0.25, wall_seconds=120.0, memory_bytes=256 << 20, result_bytes=64 << 10, source_chars=2000
)
PROGRAM_LIMITS = Limits(
    cpu_seconds=5.0, wall_seconds=120.0, memory_bytes=512 << 20, result_bytes=64, source_chars=50_000
)
MATH_LIMITS = Limits(cpu_seconds=3.0, wall_seconds=600.0, memory_bytes=1 << 30, result_bytes=64, source_chars=50_000)


def evaluate_expressions(
    jobs: Sequence[tuple[str, Sequence[list[int]]]], *, limits: Limits = EXPRESSION_LIMITS
) -> list[list[object] | None]:
    """Evaluate expressions over ``x``, a list of integers, each on its own inputs.

    Args:
        jobs: (expression, inputs); all of them share a process until one is killed.

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


def run_tests_many(jobs: Sequence[tuple[str, str]], *, limits: Limits = PROGRAM_LIMITS) -> list[bool]:
    """Run programs against their tests, each in a process of its own, as many at a time as there are cores.

    Tests are plain Python: top-level code with ``assert``, functions ``test_*`` and ``unittest.TestCase`` classes.
    They see the program's names, but their builtins and modules are their own.

    Args:
        jobs: (program, tests).

    Raises:
        UserError: this machine lacks a layer that safety needs; nothing was executed.
        RunError: the sandboxed interpreter could not be started.
    """

    def passes(job: tuple[str, str]) -> bool:
        return len(job[0]) <= limits.source_chars and _run("tests", [job], limits) == [True]

    with ThreadPoolExecutor(max_workers=max(1, min(len(jobs), os.cpu_count() or 1, 8))) as pool:
        return list(pool.map(passes, jobs))


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


@functools.cache
def layers() -> tuple[str, ...]:
    """The mechanisms that hold on this machine, found by locking a process that executes nothing.

    Raises:
        UserError: a property that safety needs is held by none.
    """
    empty = tempfile.TemporaryDirectory(prefix="mopd-sandbox-")
    with empty as folder, _Child("expressions", [], PROGRAM_LIMITS, folder) as child:
        return tuple(child.start())


def _run(kind: Kind, jobs: Sequence[tuple[Any, ...]], limits: Limits) -> list[object]:
    """The answer of each job, None for a job whose process died; a fresh process goes on with the jobs after it."""
    answers: list[object] = []
    with tempfile.TemporaryDirectory(prefix="mopd-sandbox-") as folder:
        while len(answers) < len(jobs):
            rest = jobs[len(answers) :]
            with _Child(kind, rest, limits, folder) as child:
                child.start()
                done = child.answers(len(rest))
            answers += done if len(done) == len(rest) else [*done, None]
    return answers


class _Child:
    """One sandboxed process with its jobs; killed, if it still lives, when the context ends."""

    def __init__(self, kind: Kind, jobs: Sequence[tuple[Any, ...]], limits: Limits, folder: str) -> None:
        self.limits = limits
        self.nonce = secrets.token_hex(16).encode()
        settings = {
            "nonce": self.nonce.decode(),
            "kind": kind,
            "empty_folder": folder,
            "cpu_seconds": limits.cpu_seconds,
            "memory_bytes": limits.memory_bytes,
            "result_bytes": limits.result_bytes,
            "import_paths": [path for path in sys.path if path] if kind == "math" else [],
        }
        self.jobs = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        self.jobs.writelines(json.dumps(line).encode() + b"\n" for line in [settings, *jobs])
        self.jobs.seek(0)
        self.unread = b""

    def __enter__(self) -> _Child:
        if sys.platform != "linux":
            raise UserError(
                f"sandbox: generated code is executed on Linux only, and this is {sys.platform}; run there, or leave "
                f"out the domains whose answers are executed"
            )
        code = _CHILD.format(root=str(Path(__file__).parents[3]))
        # A fixed hash seed, so that the order of a set of strings, and with it a verdict, is the same in every run.
        environment = {"PYTHONHASHSEED": "0"} | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", "-W", "ignore", "-c", code],
            stdin=self.jobs,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.jobs.close()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def start(self) -> list[str]:
        """Wait until it is locked in; returns the mechanisms that hold."""
        line = self._line()
        if line is None:
            raise RunError(
                f"the sandbox did not start: {sys.executable} was not locked in within {self.limits.wall_seconds:g} s "
                f"(status {self.process.poll()}); run it with -c 'import mopd.rollouts.sandbox.child' to see why"
            )
        hello = json.loads(line)
        if hello["missing"]:
            raise UserError(
                f"sandbox: this machine cannot give a process without {', nor without '.join(hello['missing'])} (it "
                f"has {', '.join(hello['held']) or 'nothing'}), so generated code is not executed; run on Linux with "
                f"seccomp and user namespaces, or as root, or leave out the domains whose answers are executed"
            )
        return hello["held"]

    def answers(self, count: int) -> list[object]:
        """Up to ``count`` answers; fewer where the process died or was stopped."""
        done: list[object] = []
        while len(done) < count and (line := self._line()) is not None:
            try:
                done.append(json.loads(line))
            except (ValueError, RecursionError):
                done.append(None)
        return done

    def _line(self) -> bytes | None:
        """The next line, without its nonce; None where it has none or is too long, or the process ended or hangs."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poll = select.poll()  # unlike select(), it takes descriptors above 1023
        poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + self.limits.wall_seconds
        while b"\n" not in self.unread:
            too_long = len(self.unread) > self.limits.result_bytes + 4096
            if too_long or not poll.poll(1000 * max(0.0, end - time.monotonic())):
                return None
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return None
            self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        return line.removeprefix(self.nonce) if line.startswith(self.nonce) else None
