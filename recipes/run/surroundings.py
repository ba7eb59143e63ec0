"""What a command that trains needs around it: a Ray cluster, a Ctrl-C that ends a step, libraries that are quiet."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mopd.distill.tracking.console import Progress
from mopd.distill.types import UserError


def quieten_libraries(device: str) -> None:
    """The console is the run's own: no bars for a model of a second's loading, no advice on accelerators."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    os.environ.setdefault("DS_ACCELERATOR", device)  # else DeepSpeed looks around, and says what it did not find
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


@contextmanager
def ray_cluster(out: Path) -> Iterator[None]:
    """A Ray cluster of this run's own, or the one that RAY_ADDRESS names.

    Raises:
        UserError: there is no cluster at RAY_ADDRESS.
    """
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # "local": without an address Ray would join whatever cluster somebody has started on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            namespace=str(out),
        )  # fmt: skip
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster at RAY_ADDRESS={address}: {error}; start one, unset RAY_ADDRESS, or, where its nodes ask "
            "for a token (`ray start` may set one up in ~/.ray), set RAY_AUTH_MODE=token"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


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
