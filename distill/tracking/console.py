"""Live progress for people: one line per stage while it runs; plain lines now and then where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

_PACE_STEPS = 50  # time left is judged by the pace of this many steps, evaluations and checkpoints among them


class TaskHandle:
    """One line of the display; made by :meth:`Progress.task`, thread-safe as long as one thread advances it."""

    def __init__(self, progress: Progress, name: str, total: int, now: Callable[[], float]) -> None:
        self.name, self.total = name, total
        self._progress, self._now = progress, now
        self._numbers: dict[str, str] = {}
        self._note = ""
        self._marks: deque[tuple[float, int]] = deque([(now(), 0)], maxlen=_PACE_STEPS)
        self._rich_id = progress._add(self)

    def start_at(self, step: int) -> None:
        """A resumed run goes on after ``step`` finished steps; the pace is judged from here."""
        self._marks.clear()
        self._marks.append((self._now(), step))
        self._progress._show(self, at_once=False)

    def advance(self, step: int, metrics: Mapping[str, float], note: str = "") -> None:
        """Show that ``step`` steps are finished. Loss, KL and scores are shown; other metrics are not.

        ``note`` stands in the place of the time left.
        """
        self._numbers |= _key_numbers(metrics)
        self._note = note
        if step != self.step:
            self._marks.append((self._now(), step))
        scored = any(name.startswith("score/") for name in metrics)
        self._progress._show(self, at_once=scored or bool(note))

    def print(self, *objects: Any) -> None:
        """Show something above the bars, for good."""
        self._progress.print(*objects)

    def note(self, text: str) -> None:
        """Say what is being done between or after the steps."""
        self._note = text
        self._progress._show(self, at_once=True)

    def close(self) -> None:
        """Nothing more will happen; the line stays as it is."""
        self._note = "done" if self.step >= self.total else "stopped"
        self._progress._close(self)

    @property
    def step(self) -> int:
        """Finished steps."""
        return self._marks[-1][1]

    @property
    def numbers(self) -> str:
        """The key numbers seen last, for example ``loss 0.431  kl 0.12  math 85.5  code 79.0`` (scores in percent)."""
        return "  ".join(f"{name} {value}" for name, value in self._numbers.items())

    @property
    def status(self) -> str:
        """The note, or else the time left at the pace of the last steps; empty before there is a pace."""
        (start_seconds, start), (end_seconds, end) = self._marks[0], self._marks[-1]
        if self._note or end == start:
            return self._note
        return f"{_duration((self.total - end) * (end_seconds - start_seconds) / (end - start))} left"


class Progress:
    """The display of all tasks; a context manager. Two stages in two threads have two lines.

    Args:
        console: where to; standard error unless given.
        title: printed once at the start.
        interval_seconds: without a terminal, a task prints one line in this time, and one for each evaluation.
        keeps_finished: whether the lines of closed tasks stay on a terminal's display, or are printed above it.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        title: str = "",
        interval_seconds: float = 10.0,
        keeps_finished: bool = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._title, self._interval_seconds, self._now = title, interval_seconds, now
        self._keeps_finished = keeps_finished
        self._printed: dict[TaskHandle, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._live: RichProgress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("{task.fields[status]}", style="dim"),
            )
            self._live = RichProgress(*columns, console=self.console, refresh_per_second=4)

    def task(self, name: str, total: int) -> TaskHandle:
        """A new line, of ``total`` steps."""
        return TaskHandle(self, name, total, self._now)

    def print(self, *objects: Any) -> None:
        """Print above the live lines; text is printed as it is, without markup."""
        self.console.print(*objects, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._title:
            self.print(self._title)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _add(self, task: TaskHandle) -> TaskID | None:
        if self._live is None:
            return None
        return self._live.add_task(escape(task.name), total=task.total, numbers="", status="")

    def _close(self, task: TaskHandle) -> None:
        if self._live is not None and task._rich_id is not None and not self._keeps_finished:
            self._live.remove_task(task._rich_id)
            task._rich_id = None
            self.print(_line(task))
        else:
            self._show(task, at_once=True)

    def _show(self, task: TaskHandle, *, at_once: bool) -> None:
        numbers, status = task.numbers, task.status
        if self._live is not None and task._rich_id is not None:
            self._live.update(task._rich_id, completed=task.step, numbers=escape(numbers), status=escape(status))
            return
        line = _line(task)
        with self._lock:
            last, printed = self._printed.get(task, (self._now() - self._interval_seconds, ""))
            if (at_once or self._now() - last >= self._interval_seconds) and line != printed:
                self._printed[task] = (self._now(), line)
                self.print(line)


def _line(task: TaskHandle) -> str:
    return "  ".join(part for part in (f"{task.name}  {task.step}/{task.total}", task.numbers, task.status) if part)


def _key_numbers(metrics: Mapping[str, float]) -> dict[str, str]:
    """Loss, KL (the mean over domains) and scores in percent, as text."""
    kls = [value for name, value in metrics.items() if name.startswith("kl/")]
    numbers: dict[str, str] = {}
    if "loss" in metrics:
        numbers["loss"] = f"{metrics['loss']:.3g}"
    if kls:
        numbers["kl"] = f"{sum(kls) / len(kls):.3g}"
    scores = {name: value for name, value in metrics.items() if name.startswith("score/")}
    return numbers | {name.removeprefix("score/"): f"{100 * value:.1f}" for name, value in scores.items()}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h {minutes % 60:02}m" if minutes >= 60 else f"{minutes}m {rest:02}s"
