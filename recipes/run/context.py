"""What a run and its stages share: its folder, the device, a quiet console, and whether to stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mopd.distill.errors import Interrupted
from mopd.distill.storage import is_current
from mopd.distill.tracking.console import Progress
from mopd.distill.tracking.sink import one_line
from mopd.recipes.evaluation.cache import SharedAnswers
from mopd.recipes.report.page import write_report
from mopd.recipes.resolve.run_folder import RECIPE, forget_end, note_end
from mopd.recipes.run.cluster import LAST_WORDS, end_everything

_REPORTING = threading.Lock()  # stages that train side by side are one run's
_WAITING = set[Path]()  # folders of runs whose report a thread is about to write
INTERRUPTED = 130
"""The exit code of a command that somebody ended."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a run and its stages share.

    Attributes:
        out: the run's folder.
        title: the run's name, for people.
        device: ``cpu`` or ``cuda``, resolved.
        progress: the console.
        stop: set to end every loop after its step.
        answers: of base and specialists, shared by the runs of a study.
    """

    out: Path
    title: str
    device: Literal["cpu", "cuda"]
    progress: Progress
    stop: threading.Event
    answers: SharedAnswers | None = None

    def report_soon(self) -> None:
        """Have ``report.html`` written of what is there, beside the run: of many answers that takes seconds."""
        if self.out not in _WAITING:
            _WAITING.add(self.out)
            threading.Thread(
                target=self.rewrite_report, kwargs={"if_waiting": True}, daemon=True, name="report"
            ).start()

    def rewrite_report(self, *, if_waiting: bool = False) -> None:
        """Write ``report.html`` of what is there. Whatever is wrong with it is said, and ends nothing.

        Args:
            if_waiting: not where somebody has written it since it was asked for, or has ended that.
        """
        with _REPORTING:
            if if_waiting and self.out not in _WAITING:
                return
            _WAITING.discard(self.out)
            try:
                write_report(self.out)
            except Exception as error:
                self.progress.print(f"{self.out / 'report.html'} was not written ({one_line(error)})")


def end_reports() -> None:
    """Nothing is written any more by what :meth:`RunContext.report_soon` asked for."""
    _WAITING.clear()
    with _REPORTING:
        return


@contextmanager
def noting_its_end(context: RunContext, attempt: str) -> Iterator[None]:
    """A run is carried out in this context: where it ends before its end, its folder and its report say why."""

    def note(error: BaseException) -> None:
        if (context.out / RECIPE).is_file() and is_current(context.out, attempt):
            with suppress(OSError):  # a full disk, of which the error itself tells
                note_end(context.out, error)
            context.rewrite_report()

    forget_end(context.out)
    LAST_WORDS.append(note)
    try:
        yield
    except BaseException as error:
        note(error)
        raise
    finally:
        LAST_WORDS.remove(note)
        with _REPORTING:  # whoever owns the folder next finds nobody writing in it
            _WAITING.discard(context.out)


def quieten_libraries(device: str) -> None:
    """The console is the run's own: no bars for a model of a second's loading, no advice on accelerators."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    os.environ.setdefault("DS_ACCELERATOR", device)  # else DeepSpeed looks around, and says what it did not find
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


@contextmanager
def stopping(progress: Progress, kept: Callable[[], str]) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, or SIGTERM; the second one ends the process where it stands.

    Args:
        kept: says what is saved, for a person who does not wait for the step.
    """
    stop = threading.Event()

    def on_signal(number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if not stop.is_set():
            stop.set()
            progress.print(f"{name}: finishing the step and saving; once more quits at once")
            return
        progress.print(f"{name} again: the step is dropped. {kept()}. The same command goes on from there.")
        if _is_session():
            raise KeyboardInterrupt
        for note in tuple(LAST_WORDS):
            note(Interrupted(f"{name}, twice: the step was dropped"))
        end_everything(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach only the main thread
        return
    with _told_at_once(on_signal) if not _is_session() else nullcontext(lambda number, _: on_signal(number)) as handler:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield stop
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)


def _is_session() -> bool:
    """Whether a person's own session runs this, which is not ours to end."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


@contextmanager
def _told_at_once(on_signal: Callable[[int], None]) -> Iterator[Callable[[int, Any], None]]:
    """Have ``on_signal`` called by a thread for each signal, at once; yields what is to be set as the handler.

    Python calls a handler when its main thread comes to it: not while that waits for Ray, and once for two signals.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while number := reader.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                on_signal(number[0])

    thread = threading.Thread(target=listen, daemon=True, name="signals")
    thread.start()
    try:
        yield lambda number, _: None
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()
