"""Standard input and output of a program that is run as a whole: text that is given, and text that is noted.

What a program finds as ``input``, ``print``, ``sys`` and ``open(0)`` reads and writes these alone; there is no file
behind them.
"""

from __future__ import annotations

import builtins
import io
import sys
import types
from typing import Any, NoReturn

from mopd.rollouts.sandbox.rules import RUN_MODULES, Refused

DEEPEST_RECURSION = 100_000


class Given(io.StringIO):
    """Standard input; ``buffer`` has the same as bytes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._bytes = io.BytesIO(text.encode())

    @property
    def buffer(self) -> io.BytesIO:
        """What is given, as bytes."""
        return self._bytes


class Console:
    """What a program reads and writes.

    Args:
        given: its standard input.

    Attributes:
        modules: by name, what a program that runs as a whole may import besides.
        names: its builtins besides those of every program.
    """

    def __init__(self, given: str) -> None:
        self._given, self._written, self._errors = Given(given), io.StringIO(), io.StringIO()
        system: dict[str, Any] = {
            "argv": ["program.py"],
            "exit": _exit,
            "maxsize": sys.maxsize,
            "setrecursionlimit": _set_recursion_limit,
            "stderr": self._errors,
            "stdin": self._given,
            "stdout": self._written,
        }
        assert system.keys() == RUN_MODULES["sys"]
        self.modules = {"sys": types.ModuleType("sys")}
        vars(self.modules["sys"]).update(system)
        self.names: dict[str, Any] = {
            "input": self._input,
            "print": self._print,
            "open": self._open,
            "exit": _exit,
            "quit": _exit,
        }

    @property
    def text(self) -> str:
        """What was written to standard output."""
        return self._written.getvalue()

    def _input(self, prompt: object = "") -> str:
        self._written.write(str(prompt))
        line = self._given.readline()
        if not line:
            raise EOFError("EOF when reading a line")
        return line.removesuffix("\n")

    def _print(self, *values: object, **options: Any) -> None:
        if options.get("file") is None:
            options["file"] = self._written
        builtins.print(*values, **options)

    def _open(self, file: object, *options: object, **more: object) -> Given:
        if file != 0 or type(file) is not int:
            raise Refused("a file")
        return self._given


def _exit(status: object = None) -> NoReturn:
    raise SystemExit(status)


def _set_recursion_limit(limit: int) -> None:
    sys.setrecursionlimit(min(int(limit), DEEPEST_RECURSION))
