"""A terminal of a given size: what a program writes to it, as a person sees it."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

COLUMNS, ROWS = 80, 24
_PART = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b.|([\x00-\x1f])|([^\x00-\x1f\x1b]+)")


class Screen:
    """Follows the few control sequences that rich writes; lines that scroll out at the top are kept in ``above``."""

    def __init__(self, columns: int = COLUMNS, rows: int = ROWS) -> None:
        self.columns, self.rows = columns, rows
        self.above: list[str] = []
        self._lines = [""]
        self._row = self._column = 0
        self.wrapped = 0  # lines that were longer than the screen is wide

    def feed(self, text: str) -> None:
        for number, letter, control, plain in _PART.findall(text):
            if plain:
                self._write(plain)
            elif control == "\n":
                self._down()
            elif control == "\r":
                self._column = 0
            elif letter == "A":
                self._row = max(0, self._row - int(number or 1))
            elif letter == "K":
                line = self._lines[self._row]
                self._lines[self._row] = {"2": "", "1": " " * self._column}.get(number, line[: self._column])

    def _write(self, text: str) -> None:
        for letter in text:
            if self._column == self.columns:
                self.wrapped += 1
                self._column = 0
                self._down()
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")
        if len(self._lines) > self.rows:
            self.above.append(self._lines.pop(0))
            self._row -= 1

    @property
    def lines(self) -> list[str]:
        """All lines, also those above the screen; no spaces at their ends."""
        return [line.rstrip() for line in (*self.above, *self._lines)]


def on_terminal(code: str, *arguments: str, columns: int = COLUMNS, cwd: Path | None = None) -> tuple[Screen, str]:
    """Run a piece of Python whose standard error is a terminal; its screen, and what it wrote to standard output."""
    leader, follower = pty.openpty()
    ioctl(follower, TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    unset = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=follower,
        stdin=subprocess.DEVNULL,
        env={**unset, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
        text=True,
        cwd=cwd,
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # nobody writes to it any more
            break
        if not part:
            break
        written += part
    os.close(leader)
    output, _ = process.communicate()
    assert process.returncode == 0, written.decode()
    screen = Screen(columns)
    screen.feed(written.decode())
    return screen, output
