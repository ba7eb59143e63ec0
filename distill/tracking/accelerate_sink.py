"""Trackers of the package accelerate as sinks: TensorBoard, trackio, MLflow and whatever else it has one for.

Another is a function of ``tracker_process.TRACKERS`` and a row of ``sinks.SINKS``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from accelerate.tracking import GeneralTracker

from mopd.distill.tracking.sink import TrackedRun, numbers_of

OF_A_RANK = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)
"""Environment variables by which accelerate would take the process of a tracker for one of several that train."""


class AccelerateSink:
    """Numbers go to a tracker of accelerate; implements :class:`~mopd.distill.tracking.sink.Sink`.

    Tables are left out: not every tracker has them.

    Args:
        tracker: one that is not started yet.
    """

    def __init__(self, tracker: GeneralTracker) -> None:
        self._tracker = tracker
        self._last_step = 0
        tracker.main_process_only = False  # one process logs; whether it is the main one of a group is not asked
        tracker.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of one line of metrics.jsonl at its step."""
        self._last_step = row["step"]
        self._tracker.log(numbers_of(row), step=row["step"])

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bars: bool) -> None:
        """Not shown."""

    def summary(self, values: Mapping[str, float | None]) -> None:
        """Show the result as numbers of the last step."""
        self._tracker.log({name: value for name, value in values.items() if value is not None}, step=self._last_step)

    def close(self, *, failed: bool) -> None:
        """End the tracker's run."""
        self._tracker.finish()


class TrackerApart(GeneralTracker):
    """A tracker of accelerate that runs in a process of its own; see :mod:`mopd.distill.tracking.tracker_process`.

    Its first warning is printed, for that may mean that rows are lost. What it recorded in ``<run>/<name>/`` in an
    earlier attempt is removed when it starts: a resumed run shows the whole stream again.

    Args:
        name: a row of ``tracker_process.TRACKERS``.
        run: what is shown.

    Raises:
        RuntimeError: the tracker raised, or its process ended; from each method that waits for it.
    """

    name = "apart"
    requires_logging_directory = True

    def __init__(self, name: str, run: TrackedRun) -> None:
        super().__init__()
        self._tracker_name = name
        self._run = run
        self._folder = run.folder.resolve() / name
        self._process: subprocess.Popen[str] | None = None
        self._warned = False

    @property
    def tracker(self) -> subprocess.Popen[str] | None:
        """Its process; None until it is started."""
        return self._process

    def start(self) -> None:
        """Open the tracker's run."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        with (self._folder / "output.log").open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mopd.distill.tracking.tracker_process", self._tracker_name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # a Ctrl-C is not for it
                env={name: value for name, value in os.environ.items() if name not in OF_A_RANK},
            )
        shown = {field.name: getattr(self._run, field.name) for field in fields(self._run) if field.name != "say"}
        self._ask({"open": shown | {"folder": str(self._run.folder.resolve())}})

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Show numbers at a step."""
        self._ask({"log": values, "step": step})

    def finish(self) -> None:
        """End the tracker's run and its process."""
        self._ask({"finish": True})
        assert self._process is not None
        self._process.communicate()

    def _ask(self, request: Mapping[str, Any]) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        answered = json.loads(answer) if answer else {"error": f"its process ended, see {self._folder}/output.log"}
        problem, warning = answered.get("error"), answered.get("warning")
        if warning is not None and not self._warned:
            self._warned = True
            self._run.say(
                f"{self._tracker_name} warns for {self._run.name}: {warning} (all in {self._folder}/output.log)"
            )
        if problem is not None:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
            raise RuntimeError(problem)


def apart(name: str, run: TrackedRun) -> AccelerateSink:
    """A tracker of ``tracker_process.TRACKERS``, in a process of its own."""
    return AccelerateSink(TrackerApart(name, run))
