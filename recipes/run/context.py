"""What a run and its stages share: its folder, the device, the console, and whether to stop."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

    @property
    def gpus(self) -> float:
        """GPUs that a process which holds a model takes."""
        return 1.0 if self.device == "cuda" else 0.0
