"""Trackers of the package accelerate as sinks: TensorBoard, and whatever else has a ``GeneralTracker`` there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker

from mopd.distill.tracking.sink import TrackedRun, numbers_of


class AccelerateSink:
    """Numbers go to a tracker of accelerate; implements :class:`~mopd.distill.tracking.sink.Sink`.

    Tables are left out: not every tracker has them. A resumed run gives the tracker steps that it was given before.

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


def tensorboard(run: TrackedRun) -> AccelerateSink:
    """TensorBoard's event files, in ``<run>/tensorboard/``; ``tensorboard --logdir runs`` shows all runs below."""
    return AccelerateSink(TensorBoardTracker("tensorboard", run.folder))
