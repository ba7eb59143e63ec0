"""Starts the command line in a process of its own, as a user does, and reads what it left behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from deadline_kit import Deadline

from mopd.distill.guard import environment_of
from mopd.distill.tracking.answers import exam_files, read_answers

MARK = "MOPD_TEST"
"""In the environment of a command and of every process that it starts, whoever its parent is by now."""
MARKS: dict[int, str] = {}
"""Of the commands that were started, by process id."""

SECONDS = 400
"""Of a quiet machine, that a command may take."""

ONE_SPECIALIST = [
    change for name in ("code", "reasoning") for change in (f"stages.{name}=null", f"teachers.{name}.model=stage:math")
]
"""Overrides of a recipe with three specialists, so that one stands for all: every stage costs the start of its
processes."""


def mopd(*args: str | Path, **environment: str) -> subprocess.Popen[str]:
    """`mopd ARGS`, in a session of its own, so that a test can kill it and all that it started; see :func:`left`."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("mopd")), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, MARK: mark, "WANDB_MODE": "offline", "COLUMNS": "200", **environment},
    )
    MARKS[process.pid] = mark
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; exit code and output."""
    deadline = Deadline(SECONDS)
    while True:
        try:
            return (process.communicate(timeout=1.0)[0], process.returncode)[::-1]
        except subprocess.TimeoutExpired:
            if not deadline.waits():
                os.killpg(process.pid, signal.SIGKILL)
                raise


def run(*args: str | Path) -> str:
    """Run to the end, which must be a good one; returns the output."""
    code, output = finish(mopd(*args))
    assert code == 0, output
    return output


@dataclass(frozen=True, slots=True)
class Course:
    """How an undisturbed command went, in :class:`Work`.

    Attributes:
        rows: how many rows its folder's metrics.jsonl and those of its stages had, and when that was first so.
        signs: when the first process of a title was there.
        end: of all.
        own: processor seconds of the command's own process alone.
    """

    rows: list[tuple[int, float]]
    signs: dict[str, float]
    end: float
    own: float

    def left_after(self, sign: float, kept: int) -> float:
        """Work between a process' first sign and the last row, in a run that has ``kept`` rows when it is started.

        About: before its first row such a run starts its processes, and measures nothing again.
        """
        (_, first), (_, last) = self.rows[1], self.rows[-1]  # not per token
        done = max((work for number, work in self.rows if number <= kept), default=0.0)
        if done < first:
            return last - sign
        return last - done + max(0.0, self.signs["ray::Host"] - sign) + (first - self.signs["ray::RankProcess"]) / 3


def undisturbed(*settings: str, fresh: Path) -> tuple[Path, Course, Course]:
    """A smoke run with these overrides that nobody disturbed: how it went with its stages made, and from scratch.

    Args:
        fresh: where it is made, unless the environment's CHAOS_UNDISTURBED names a folder that keeps such runs: then
            they are of the code that made them, and it goes when the code changes.
    """
    folder = Path(os.environ.get("CHAOS_UNDISTURBED") or fresh) / "-".join(["smoke", *settings])
    out, noted = folder / "smoke", folder / "course.json"
    if not noted.exists():
        shutil.rmtree(folder, ignore_errors=True)
        scratch = _course(folder / "first", *settings)
        shutil.copytree(folder / "first" / "stages", out / "stages")
        noted.write_text(json.dumps([asdict(_course(out, *settings)), asdict(scratch)]))
    made, scratch = (Course(**noted) for noted in json.loads(noted.read_text()))
    return out, made, scratch


def _course(out: Path, *settings: str) -> Course:
    """Run the smoke recipe to its end, and note how that went."""
    rows, signs, own = [(rows_of(out), 0.0)], dict[str, float](), 0.0
    process = mopd("run", "smoke", *settings, "--out", out)
    work = Work(process)
    while process.poll() is None:
        now = work.seconds()
        own = max(own, work_of(process))
        if (number := rows_of(out)) > rows[-1][0]:
            rows.append((number, now))
        for other in work.alive():
            signs.setdefault(titled(other), now)
        time.sleep(0.1)
    code, output = finish(process)
    assert code == 0, output
    return Course(rows, signs, work.seconds(), own)


def rows_of(out: Path) -> int:
    """How many rows of metrics a run and its stages have."""
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("metrics.jsonl"))


class Work:
    """Processor seconds of a command and of all that it has started, also of what has ended.

    A moment in them is about the same place of a run on any machine, whatever else that does: unlike those of the
    command's own process, they go on while it waits for others.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._mark = process, mark(process)
        self._others, self._ours = set[int](), dict[int, psutil.Process]()
        self._seconds: dict[int, float] = {}

    def seconds(self) -> float:
        """So far."""
        for pid in set(psutil.pids()) - self._others - self._ours.keys():
            try:
                process = psutil.Process(pid)
            except psutil.Error:  # it has just ended
                continue
            if environment_of(process).get(MARK) == self._mark:
                self._ours[pid] = process
            else:
                self._others.add(pid)
        for pid, process in self._ours.items():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self._seconds[pid] = max(self._seconds.get(pid, 0.0), times.user + times.system)
        return sum(self._seconds.values())

    def alive(self) -> list[psutil.Process]:
        """What the command has started and lives, as far as :meth:`seconds` has seen it."""
        return [process for pid, process in self._ours.items() if pid != self._process.pid and _lives(process)]

    def wait_until(self, seconds: float) -> None:
        """Until so many, or the command's end."""
        while self._process.poll() is None and self.seconds() < seconds:
            time.sleep(0.1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def titled(process: psutil.Process) -> str:
    """What a process of a run is: its name, or of Ray's workers their class."""
    try:
        title = "".join(process.cmdline()[:1])  # not per token
        if title.startswith("ray::"):
            return title.partition(".")[0]  # a busy one has its method after its class
        return psutil.Process(process.pid).name()  # which is kept: it may have been another program's, before its own
    except psutil.Error:  # it has just ended
        return ""


def work_of(process: subprocess.Popen[str]) -> float:
    """Processor seconds of a command's own process so far; 0 once it has ended."""
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(process: subprocess.Popen[str], path: Path, lines: int) -> None:
    """Wait until ``path`` has ``lines`` lines; fails where the process ends before."""
    deadline = Deadline(SECONDS)
    while deadline.waits():
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        if process.poll() is not None:
            raise AssertionError(f"ended before {path} had {lines} lines:\n{process.communicate()[0]}")
    raise AssertionError(f"{path} had no {lines} lines after {SECONDS} quiet seconds")


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver alone: what it started must notice by itself, as on a real machine."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def teachers(process: subprocess.Popen[str], number: int) -> list[psutil.Process]:
    """Wait until a run has started so many teachers; fails where it ends before."""
    found: list[psutil.Process] = []
    while len(found) < number:
        if process.poll() is not None:
            raise AssertionError(f"ended with {len(found)} of {number} teachers:\n{process.communicate()[0]}")
        time.sleep(0.05)
        found = [one for one in psutil.Process(process.pid).children(recursive=True) if "TeacherProcess" in _title(one)]
    return found


def processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All that a command has started and that live."""
    return [other for other in _marked(mark(process)) if other.pid != process.pid]


def left(mark: str, seconds: float = 60.0) -> list[str]:
    """What still lives of a command with this mark, once it has ended and had a while to be reaped."""
    deadline = Deadline(seconds)
    while (alive := _marked(mark)) and deadline.waits(0.1):
        pass
    return [f"{other.pid} {_title(other)}" for other in alive]


def mark(process: subprocess.Popen[str]) -> str:
    """What all processes of a command have in common."""
    return MARKS[process.pid]


def _marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if environment_of(process).get(MARK) == mark]


def retries(out: Path) -> int:
    """How many microbatches of a run were lost with a teacher and asked again."""
    names = "teacher_retries/"
    return int(sum(v for row in rows(out / "metrics.jsonl") for k, v in row.items() if k.startswith(names)))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def weights(out: Path) -> dict[str, str]:
    """SHA-256 of every model of a run: the student and what its stages made."""
    files = sorted(out.rglob("student/model.safetensors"))
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def texts(out: Path) -> dict[str, str]:
    """SHA-256 of what was written in every exam of a run."""
    files = sorted(out.glob("answers/*/*.parquet"))
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def assert_whole(out: Path, *, steps: int) -> None:
    """Every step is in metrics.jsonl once and in order; nobody was asked a question twice at one step; every answer
    was kept once, with its verdict."""
    trained = [row["step"] for row in rows(out / "metrics.jsonl") if row["kind"] == "train"]
    assert trained == list(range(1, steps + 1))
    asked = [(r["model"], r["step"], r["split"], r["prompt_id"]) for r in rows(out / "evaluations.jsonl")]
    assert len(asked) == len(set(asked))
    kept = [row for path, *_ in exam_files(out) for row in read_answers(path) if row["sample"] == 0]
    of_exam = {(row["model"], row["step"], row["split"], row["prompt_id"]): row["verdict"] for row in kept}
    assert len(of_exam) == len(kept)
    verdicts = {
        (r["model"], r["step"], r["split"], r["prompt_id"]): r["correct"] for r in rows(out / "evaluations.jsonl")
    }
    assert of_exam == verdicts
    for stage in (out / "stages").iterdir():
        steps_of_stage = [row["step"] for row in rows(stage / "metrics.jsonl") if row["kind"] == "train"]
        assert steps_of_stage == list(range(1, len(steps_of_stage) + 1))
