"""A real terminal of 80 columns: tmux, with nobody in front of it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from deadline_kit import patience
from house_kit import REPOSITORY

COLUMNS, ROWS = 80, 100
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
MOPD = "from mopd.recipes.cli import main; main()"


def captured(code: str, arguments: Sequence[str], cwd: Path) -> list[str]:
    """What stands on the screen once a piece of Python has ended; no spaces at the ends of lines."""
    tmux = ["tmux", "-u", "-L", f"mopd-{uuid4().hex}", "-f", "/dev/null"]
    unset = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "TMUX")}
    environment = {**unset, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(REPOSITORY)}
    command = shlex.join([sys.executable, "-c", code, *arguments])
    line = f"{command}; {shlex.join([*tmux, 'wait-for', '-S', 'ended'])}; exec sleep 3600"
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    try:
        subprocess.run([*tmux, "new-session", "-d", *size, "-c", cwd, "sh", "-c", line], env=environment, check=True)
        subprocess.run([*tmux, "wait-for", "ended"], env=environment, check=True, timeout=patience(120))
        done = subprocess.run(
            [*tmux, "capture-pane", "-p"], env=environment, check=True, capture_output=True, text=True, encoding="utf-8"
        )
    finally:
        subprocess.run([*tmux, "kill-server"], env=environment, capture_output=True)
    return [shown.rstrip() for shown in done.stdout.rstrip().splitlines()]
