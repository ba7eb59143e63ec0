"""Ctrl-C and SIGTERM while the main thread waits for Ray, where no Python handler comes to its turn."""

from __future__ import annotations

import subprocess
import sys

import pytest
from deadline_kit import patience

STOPPED_TWICE = """
import ctypes, os, signal, sys, threading
from mopd.distill.tracking.console import Progress
from mopd.recipes.run.context import stopping

first, second = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None)
with Progress() as progress, stopping(progress, lambda: "Saved are smoke (after step 2)") as stop:
    def signals():
        os.kill(os.getpid(), first)
        stop.wait()
        os.kill(os.getpid(), second)
    threading.Thread(target=signals).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # so the main thread is not woken
    libc.sleep(600)
sys.exit(3)
"""


@pytest.mark.parametrize(("first", "second"), [(2, 2), (15, 15), (15, 2)])
def test_a_second_signal_ends_the_run_at_once_and_says_what_is_saved(first: int, second: int) -> None:
    command = [sys.executable, "-c", STOPPED_TWICE, str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 130, done.stderr
    names = {2: "Ctrl-C", 15: "SIGTERM"}
    assert f"{names[first]}: finishing the step and saving; once more quits at once" in done.stderr
    assert f"{names[second]} again: the step is dropped. Saved are smoke (after step 2)" in done.stderr
