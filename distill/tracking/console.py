"""Live progress for people: one line per stage while it runs; plain lines now and then where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

_PACE_STEPS = 50  # time left is judged by the pace of this many steps, evaluations and checkpoints among them
_BAR = range(8, 21)  # columns
_LONGEST_NAME, _LONGEST_DOMAIN = 24, 16  # columns
_PACE_SIZE = 12  # columns of a time left; what is longer is a note, and stands in no column


class TaskHandle:
    """One line of the display; made by :meth:`Progress.task`, thread-safe as long as one thread advances it."""

    def __init__(self, progress: Progress, name: str, total: int, now: Callable[[], float]) -> None:
        self.name, self.total = name, total
        self._progress, self._now = progress, now
        self._numbers: dict[str, str] = {}
        self._worst = ("", "", "")
        self._note = ""
        self._marks: deque[tuple[float, int]] = deque([(now(), 0)], maxlen=_PACE_STEPS)
        progress._add(self)

    def start_at(self, step: int) -> None:
        """A resumed run goes on after ``step`` finished steps; the pace is judged from here."""
        self._marks = deque([(self._now(), step)], maxlen=_PACE_STEPS)
        self._progress._show(self, at_once=False)

    def takes(self, steps: int) -> None:
        """The task takes ``steps`` steps, as is known now."""
        self.total = steps

    def advance(self, step: int, metrics: Mapping[str, float], note: str = "") -> None:
        """Show that ``step`` steps are finished. Loss, KL, scores and worst domain are shown; other metrics are not.

        ``note`` stands in the place of the time left.
        """
        self._numbers = self._numbers | _key_numbers(metrics)  # another thread may be reading the old ones
        self._worst = _worst(metrics) or self._worst
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
    def worst(self) -> str:
        """The domain that has least of its teacher's gain, ``worst code 41%``; the lowest score where no recovery is
        known, ``lowest code 38.4``; empty before a domain is measured. A long domain's name is cut."""
        word, domain, value = self._worst
        return f"{word} {_cut(domain, _LONGEST_DOMAIN)} {value}" if word else ""

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
        self._tasks: list[TaskHandle] = []
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(_Lines(self._tasks), console=self.console, refresh_per_second=4)

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

    def _add(self, task: TaskHandle) -> None:
        self._tasks.append(task)

    def _close(self, task: TaskHandle) -> None:
        if self._live is not None and not self._keeps_finished:
            if task in self._tasks:
                self._tasks.remove(task)
                self.print(_line(task))
        else:
            self._show(task, at_once=True)

    def _show(self, task: TaskHandle, *, at_once: bool) -> None:
        if self._live is not None:
            return  # it looks by itself, four times a second
        line = _line(task)
        with self._lock:
            last, printed = self._printed.get(task, (self._now() - self._interval_seconds, ""))
            if (at_once or self._now() - last >= self._interval_seconds) and line != printed:
                self._printed[task] = (self._now(), line)
                self.print(line)


class _Lines:
    """What a terminal shows of tasks: a line each, of at most its width; fields stand below each other."""

    def __init__(self, tasks: Sequence[TaskHandle]) -> None:
        self._tasks = tasks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tasks = list(self._tasks)
        if tasks:
            yield live_lines(tasks, options.max_width, ascii_only=options.ascii_only)


def live_lines(tasks: Sequence[TaskHandle], width: int, *, ascii_only: bool = False) -> Text:
    """The tasks as lines of at most ``width`` columns: name, bar, steps, time left, worst domain, further numbers.

    Numbers that have no room are left out from the right, then the bar; names are cut to what the others leave.
    """
    pace = _widest([task.status for task in tasks if cell_len(task.status) <= _PACE_SIZE])
    rows = [(task.name, f"{task.step}/{task.total}", f"{task.status:<{pace}}", task.worst) for task in tasks]
    steps = _widest([count for _, count, _, _ in rows])
    others = max(steps + cell_len(status) + cell_len(worst) for _, _, status, worst in rows) + 6
    names = max(min(16, width // 5), min(_LONGEST_NAME, width - others - _BAR.start - 2))
    names = min(names, _widest([row[0] for row in rows]))
    room = [width - names - steps - 4 - cell_len(status) - _taken(worst) for _, _, status, worst in rows]
    bar = min(_BAR[-1], max(_BAR.start, min(room) - 2))
    lines: list[Text] = []
    for task, (name, count, status, worst) in zip(tasks, rows, strict=True):
        left = width - names - steps - 4
        status = _cut(status, left)
        left -= cell_len(status)
        beside = bar + 2 if cell_len(status) > _PACE_SIZE else 0  # a note leaves room for one of the two
        shown = [worst] if worst and _taken(worst) + beside <= left else []
        left -= sum(map(_taken, shown))
        line = Text(set_cell_size(_cut(name, names), names))
        if left >= bar + 2:
            left -= bar + 2
            line.append("  ").append_text(_bar(task, bar, ascii_only=ascii_only))
        for number in (f"{key} {value}" for key, value in task._numbers.items()):
            if _taken(number) > left:
                break
            left -= _taken(number)
            shown.append(number)
        line.append(f"  {count:>{steps}}", style="bold").append(f"  {status}", style="dim")
        line.append("".join(f"  {part}" for part in shown)).rstrip()
        lines.append(line)
    block = Text("\n").join(lines)
    block.no_wrap, block.overflow = True, "crop"
    return block


def _taken(text: str) -> int:
    """Columns that a part of a line takes, with the gap before it."""
    return cell_len(text) + 2 if text else 0


def _bar(task: TaskHandle, width: int, *, ascii_only: bool) -> Text:
    done = round(width * min(1.0, task.step / max(1, task.total)))
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    return Text.assemble((full * done, "bar.complete"), (empty * (width - done), "dim"))


def _widest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _cut(text: str, width: int) -> str:
    """A text of at most so many columns."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(0, width - 1)).rstrip()}…"


def _line(task: TaskHandle) -> str:
    worst = task.worst if task.worst.startswith("worst") else ""  # the lowest score stands among the numbers
    parts = (f"{task.name}  {task.step}/{task.total}", task.numbers, worst, task.status)
    return "  ".join(part for part in parts if part)


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


def _worst(metrics: Mapping[str, float]) -> tuple[str, str, str] | None:
    """Word, domain and value of the worst domain of an evaluation; None of other metrics."""
    recoveries = {name.removeprefix("recovery/"): v for name, v in metrics.items() if name.startswith("recovery/")}
    scores = {name.removeprefix("score/"): value for name, value in metrics.items() if name.startswith("score/")}
    if recoveries:
        domain = min(recoveries, key=lambda name: recoveries[name])
        return "worst", domain, f"{100 * recoveries[domain]:.0f}%"
    if scores:
        domain = min(scores, key=lambda name: scores[name])
        return "lowest", domain, f"{100 * scores[domain]:.1f}"
    return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h {minutes % 60:02}m" if minutes >= 60 else f"{minutes}m {rest:02}s"
