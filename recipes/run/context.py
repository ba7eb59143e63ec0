"""What a run and its stages share: its folder, the device, a quiet console, and whether to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mopd.distill.tracking.console import Progress
from mopd.recipes.evaluation.cache import SharedAnswers


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


def quieten_libraries(device: str) -> None:
    """The console is the run's own: no bars for a model of a second's loading, no advice on accelerators."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    os.environ.setdefault("DS_ACCELERATOR", device)  # else DeepSpeed looks around, and says what it did not find
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


@contextmanager
def stopping(progress: Progress) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one ends the process where it stands."""
    stop = threading.Event()

    def on_interrupt(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        progress.print("Ctrl-C: finishing the step and saving; once more quits at once")

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach only the main thread
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
