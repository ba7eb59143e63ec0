"""The sandbox's server: imports what generated code may use, locks itself in once, then forks a process for each job.

Started by rollouts/sandbox/run.py as a lean interpreter of its own; needs the standard library only, unless it compares
formulas. It executes nothing itself. Line by line on standard input: settings, then one batch of jobs each; on standard
output: ``{"held": [...], "missing": [...]}``, then one JSON value per job, in order, null for one that failed. A fork
that overruns its processor time is killed by the kernel; the next job has a fresh one, which costs milliseconds.

A program and its tests are two forks, joined by pipes: rollouts/sandbox/program.py and judge.py. The tests' exit status
is the verdict. Each reads its own text from a file that only it has, so that not even memory that the server gave back
holds a word of the tests, or of another program, when a program's process is made of it. Where programs may use any
Python they are another server's (rollouts/sandbox/bubblewrap/server.py), and only their tests are forks of this one.
Expressions and formulas of a batch share a fork until it ends.
"""

from __future__ import annotations

import builtins
import fcntl
import gc
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mopd.rollouts.sandbox.judge import Judge, run_tests
from mopd.rollouts.sandbox.lock import lock_fork, lock_server
from mopd.rollouts.sandbox.namespaces import load_library
from mopd.rollouts.sandbox.peer import drain, write_all
from mopd.rollouts.sandbox.program import MOST_RUNS, serve_program
from mopd.rollouts.sandbox.rules import EXPRESSION_NAMES, Refused, parse_expression, parse_program
from mopd.rollouts.sandbox.safe_stdlib import harden

PASSED, PASSED_WITH_A_CHANGE = 42, 43
"""Exit statuses of tests that passed; the second: a call changed arguments that the tests hold, out of their sight."""
_PROGRAM_FILE, _TESTS_FILE, _CONTROL, _STATUS, _FROM_PROGRAM, _TO_PROGRAM = range(3, 9)
"""Descriptors: texts, or the four pipes to the server of programs that may use any Python."""
PLACES = {
    "program": _PROGRAM_FILE,
    "tests": _TESTS_FILE,
    "control": _CONTROL,
    "status": _STATUS,
    "from_program": _FROM_PROGRAM,
    "to_program": _TO_PROGRAM,
}
_MOST_DESCRIPTORS = 64
_FIRST_PROGRAM = "def first(x, *, y=()):\n    return [f'{v}' for v in x if v not in y]\nassert first([0]) == ['0']\n"
"""Ours, and only compiled."""


def main() -> None:
    """Serve until standard input ends, or the process that started this one does."""
    lines = _lines()
    settings = json.loads(next(lines))
    _place(settings["descriptors"])
    run = _prepare(settings["kind"], settings["import_paths"])
    held, missing = lock_server(empty_folder=settings["empty_folder"])
    gc.collect()
    gc.freeze()  # what exists is shared with the forks, whose collectors would copy it
    _write({"held": held, "missing": missing})
    for line in lines if not missing else ():
        batch = json.loads(line)
        if settings["kind"] == "tests":
            program_bytes, tests_bytes = batch["lengths"]
            _write([judge_program(program_bytes, tests_bytes, batch["limits"]), None])
        elif settings["kind"] == "any_python":
            _write(_judge_beside(batch["lengths"][1], batch["limits"]))
        else:
            for answer in _run_in_forks(run, batch["jobs"], batch["limits"]):
                _write(answer)
    os._exit(0)


def _place(descriptors: dict[str, int]) -> None:
    """Move the descriptors of texts and pipes to where the forks look for them."""
    apart = {name: fcntl.fcntl(given, fcntl.F_DUPFD, _MOST_DESCRIPTORS) for name, given in descriptors.items()}
    for given in descriptors.values():
        os.close(given)
    for name, descriptor in apart.items():
        os.dup2(descriptor, PLACES[name])
        os.close(descriptor)


def _read(descriptor: int, length: int) -> str:
    data = b""
    while len(data) < length and (chunk := os.pread(descriptor, length - len(data), len(data))):
        data += chunk
    return json.loads(data)


def _prepare(kind: str, import_paths: list[str]) -> Callable[..., object]:
    """Import all that jobs need, while files can still be opened; returns what runs one job."""
    if kind in ("math", "readable"):
        sys.path += import_paths
        from mopd.rollouts.sandbox import formulas as sandbox_math

        sandbox_math.prepare()
        return sandbox_math.equal if kind == "math" else sandbox_math.readable
    if kind in ("tests", "any_python"):
        load_library()
        harden()
        compile(parse_program(_FIRST_PROGRAM, tests=True), "program", "exec", dont_inherit=True)
    # The interpreter makes the classes of syntax trees when it parses for the first time; each fork would make its own.
    run_expression("sorted(v for v in x)", [[0]])
    return run_expression


def _lines() -> Iterator[bytes]:
    """Lines of standard input."""
    unread = b""
    while True:
        while b"\n" not in unread:
            wait_for(0)
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return
            unread += chunk
        line, _, unread = unread.partition(b"\n")
        yield line


_PARENT = os.getppid()


def wait_for(descriptor: int) -> None:
    """Wait until there is something to read, or an end; this process ends, and with it its forks, with its parent.

    The end of standard input is one sign of that; where a fork of the parent holds the other end, another is looked for
    every few seconds.
    """
    poll = select.poll()
    poll.register(0, 0)
    poll.register(descriptor, select.POLLIN)
    while True:
        ready = dict(poll.poll(3000))
        if descriptor in ready and (descriptor or ready[0] & select.POLLIN):
            return
        if ready or os.getppid() != _PARENT:
            os._exit(0)


def _write(value: object, descriptor: int = 1) -> None:
    write_all(descriptor, json.dumps(value).encode() + b"\n")


def judge_program(program_bytes: int, tests_bytes: int, limits: dict[str, Any]) -> bool:
    """Whether all tests pass, in two forks: one for the program, one for the tests.

    Where a call changed arguments that the tests hold, they are run twice: once with the changes hidden, except from a
    call that is a statement of its own, and once with all of them shown. A right program passes both.

    Args:
        program_bytes: length of the program's file.
        tests_bytes: length of the tests' file.
        limits: those of :class:`rollouts.sandbox.run.Limits`.
    """
    status = _judge(program_bytes, tests_bytes, limits, always_carry=False)
    if status == PASSED_WITH_A_CHANGE:
        status = _judge(program_bytes, tests_bytes, limits, always_carry=True)
    return status in (PASSED, PASSED_WITH_A_CHANGE)


def _judge(program_bytes: int, tests_bytes: int, limits: dict[str, Any], *, always_carry: bool) -> int:
    """The exit status of the tests; -1 where a signal ended them."""

    def serve(program: str) -> NoReturn:
        serve_program(program, longest=limits["result_bytes"], seconds=limits["cpu_seconds"])

    (to_program, from_tests), (to_tests, from_program) = os.pipe2(0), os.pipe2(0)
    ended, lives = os.pipe2(0)
    own = (_PROGRAM_FILE, program_bytes)
    running = _fork(serve, limits, reads=to_program, writes=from_program, file=own, jobs=MOST_RUNS)
    judging = _fork_tests(tests_bytes, limits, always_carry, reads=to_tests, writes=from_tests, holds=lives)
    for descriptor in (to_program, from_tests, to_tests, from_program, lives):
        os.close(descriptor)
    status = _end_of(judging, ended)
    os.kill(running, signal.SIGKILL)
    os.waitpid(running, 0)
    return status


def _fork_tests(
    tests_bytes: int, limits: dict[str, Any], always_carry: bool, *, reads: int, writes: int, holds: int
) -> int:
    """The process id of the fork that tests run in, which ends with what they say."""

    def judge(tests: str) -> int:
        side = Judge(longest=limits["result_bytes"], always_carry=always_carry)
        run_tests(tests, side)
        return PASSED_WITH_A_CHANGE if side.unseen_change else PASSED

    return _fork(judge, limits, reads=reads, writes=writes, file=(_TESTS_FILE, tests_bytes), holds=holds)


def _end_of(process: int, ended: int) -> int:
    """The exit status of a fork that holds the other end of ``ended``; -1 where a signal ended it."""
    wait_for(ended)
    os.close(ended)
    status = os.waitpid(process, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1


def _judge_beside(tests_bytes: int, limits: dict[str, Any]) -> list[Any]:
    """As :func:`judge_program`, with the program's process in the other server: (verdict, what was refused)."""
    refused: str | None = None
    for always_carry in (False, True):
        _write({"start": limits}, _CONTROL)
        ended, lives = os.pipe2(0)
        judging = _fork_tests(tests_bytes, limits, always_carry, reads=_FROM_PROGRAM, writes=_TO_PROGRAM, holds=lives)
        os.close(lives)
        status = _end_of(judging, ended)
        _write({"end": status}, _CONTROL)
        refused = refused or _answer_beside()
        if status != PASSED_WITH_A_CHANGE:
            break
    return [status in (PASSED, PASSED_WITH_A_CHANGE), refused]


def _answer_beside() -> str | None:
    """What the other server says once none of the program's processes is left; then nothing that they wrote is, too."""
    line = b""
    while b"\n" not in line:
        wait_for(_STATUS)
        chunk = os.read(_STATUS, 1 << 12)
        if not chunk:
            os._exit(1)  # it ended; with a fresh one the next job goes on
        line += chunk
    drain(_FROM_PROGRAM)
    return json.loads(line)["refused"]


def _fork(
    run: Callable[..., int],
    limits: dict[str, Any],
    *,
    reads: int | None,
    writes: int,
    file: tuple[int, int] | None = None,
    holds: int = 2,
    jobs: int = 1,
) -> int:
    """Run a function in a locked fork that has these descriptors alone, and can use the first two.

    The fork's status is what the function returns, and 1 where it raises.

    Args:
        run: gets the text in ``file``, where there is one.
        limits: those of :class:`rollouts.sandbox.run.Limits`.
        reads: becomes descriptor 0.
        writes: becomes descriptor 1.
        file: descriptor and length; read, and then closed.
        holds: becomes descriptor 2, which is closed when the fork ends.
        jobs: how many it will have, each with its own processor time.

    Returns:
        The fork's process id.
    """
    server = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if reads is None:
            os.close(0)
        else:
            os.dup2(reads, 0)
        os.dup2(writes, 1)
        os.dup2(holds, 2)
        text = () if file is None else (_read(*file),)
        os.closerange(3, _MOST_DESCRIPTORS)
        seconds = limits["cpu_seconds"]
        lock_fork(memory_bytes=limits["memory_bytes"], cpu_seconds=seconds * jobs + 1, server=server)
        # The signal's default action ends the process, even in the middle of one huge multiplication.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        status = run(*text)
    except BaseException:
        status = 1
    finally:
        os._exit(status)


def _run_in_forks(
    run: Callable[..., object], jobs: Sequence[Sequence[Any]], limits: dict[str, Any]
) -> Iterator[object]:
    """The answer of each job, None for one that ended its fork; a fresh fork goes on with the jobs after it."""
    answered = 0
    while answered < len(jobs):
        rest = jobs[answered:]
        source, sink = os.pipe2(0)
        worker = _fork(lambda rest=rest: _answer(run, rest, limits), limits, reads=None, writes=sink, jobs=len(rest))
        os.close(sink)
        before = answered
        for answer in _answers(source, limits["result_bytes"]):
            if answered - before < len(rest):
                yield answer
                answered += 1
        os.close(source)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        if answered < len(jobs):
            yield None
            answered += 1


def _answer(run: Callable[..., object], jobs: Sequence[Sequence[Any]], limits: dict[str, Any]) -> int:
    """Write the answer of each job, in a fork."""
    for job in jobs:
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
        try:
            answer = json.dumps(run(*job))
        except BaseException:
            answer = "null"
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_all(1, (answer if len(answer) <= limits["result_bytes"] else "null").encode() + b"\n")
    return 0


def _answers(source: int, longest: int) -> Iterator[object]:
    """What comes line by line from a fork, until it ends or writes what is no answer."""
    unread = b""
    while True:
        wait_for(source)
        chunk = os.read(source, 1 << 16)
        if not chunk:
            return
        *lines, unread = (unread + chunk).split(b"\n")
        for line in lines:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None
        if len(unread) > longest + 1:
            return


def run_expression(text: str, inputs: Sequence[list[int]]) -> list[object]:
    """The value of an expression over ``x`` at each input.

    Raises:
        Refused: it isn't allowed, or a value is not made of lists, numbers, strings, booleans and None.
        Exception: whatever the expression raises.
    """
    code = compile(parse_expression(text), "expression", "eval", dont_inherit=True)
    names = {name: getattr(builtins, name) for name in EXPRESSION_NAMES}
    values = [eval(code, {"__builtins__": names, "x": list(x)}) for x in inputs]
    if not _is_plain(values):
        raise Refused("a value that JSON would change")
    return values


def _is_plain(value: object) -> bool:
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) in (int, float, str, bool, type(None))
