"""The one door for a user's own Python: ``./file.py:NAME`` in a recipe means the object NAME of that file.

Whatever comes through it (a task, a loss, a teacher's source) is a plain object that satisfies the same Protocol as
what is shipped. A file is read again by every process that needs it, so on a cluster it lies where all nodes see it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from mopd.distill.errors import UserError

PLUGIN_PATTERN = r"^(/|\.\.?/).*\.py:[^:]+$"
"""What a reference looks like: a path that begins with ``./``, ``../`` or ``/``, and a name of that file."""


IMPORT_SECONDS = 120.0
"""That a user's own file may take to be imported."""
PRINTED = 2**16
"""Letters of what a user's own code prints that are shown."""


class _TookTooLong(BaseException):
    """Raised in the middle of a user's own code; no Exception, so that it is not caught there by chance."""


class _Cut:
    """A stream that shows the first letters of what is printed and counts the rest, until it is opened again."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.left, self.dropped = stream, PRINTED, 0
        self.cuts = True

    def write(self, text: str) -> int:
        """As a stream's."""
        shown = text[: self.left] if self.cuts else text
        self.left -= len(shown) * self.cuts
        self.dropped += len(text) - len(shown)
        self._stream.write(shown)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def own_code(what: str, *, seconds: float, remedy: str = "fix it") -> Iterator[None]:
    """Runs code of a user's own: whatever it does, it ends, and a message says so.

    What it raises becomes a refusal, `sys.exit` and a KeyboardInterrupt of its own included (a Ctrl-C stays one), and
    so does a call that takes longer than ``seconds``. What it prints is shown up to :data:`PRINTED` letters.

    Args:
        what: begins the message, for example "`domains.math.task`: /path/task.py cannot be imported".
        remedy: ends it.

    Raises:
        UserError: it raised something, or took too long; a UserError passes as it is. Time is only watched in the main
            thread, where Python can interrupt.
    """
    cuts = [_Cut(sys.stdout), _Cut(sys.stderr)]
    pressed: Any = None  # nobody has, where the watch itself cannot be set
    try:
        with _watched(seconds) as pressed, redirect_stdout(cuts[0]), redirect_stderr(cuts[1]):  # pyright: ignore
            yield
    except UserError:
        raise
    except _TookTooLong as error:
        raise UserError(f"{what}: it takes longer than {seconds:g} seconds; {remedy}") from error
    except BaseException as error:
        if pressed:
            raise
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise UserError(f"{what}: it ends the process ({type(error).__name__}: {error}); {remedy}") from error
        raise UserError(f"{what}: it raises {type(error).__name__}: {error!s:.2000}") from error
    finally:
        for cut in cuts:
            cut.cuts = False  # a logger that was made meanwhile keeps its stream
            if cut.dropped:
                cut.write(f"\n({cut.dropped:,} more letters that own code prints are left out)\n")


@contextmanager
def _watched(seconds: float) -> Iterator[list[bool]]:
    """Raises :class:`_TookTooLong` after ``seconds``, in the main thread; the list gets an entry with a Ctrl-C."""
    pressed: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def late(number: int, frame: Any) -> None:
        raise _TookTooLong

    def press(number: int, frame: Any) -> None:
        pressed.append(True)
        (before if callable(before) else signal.default_int_handler)(number, frame)

    before, alarm = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGINT, press)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, where own code catches it
    begun = time.monotonic()
    try:
        yield pressed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGINT, before)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - begun)), interval)


def is_plugin(reference: str) -> bool:
    """Whether a name of the recipe means an object of a user's own file."""
    return re.match(PLUGIN_PATTERN, reference) is not None


def plugin_file(reference: str) -> Path:
    """The file of a reference, wherever a process' working folder is."""
    return Path(os.path.realpath(reference.rpartition(":")[0]))  # Path.resolve raises where a link leads to itself


def located_plugin(reference: str) -> str:
    """The same for a process with another working folder: by the file's absolute path."""
    return f"{plugin_file(reference)}:{reference.rpartition(':')[2]}"


def plugin_digest(reference: str) -> str:
    """A hash of the file's content: what depends on it changes when it changes."""
    return hashlib.sha256(plugin_file(reference).read_bytes()).hexdigest()[:16]


def plugin_digests(tree: Any) -> dict[str, str]:
    """Hashes of every file of a user's own that a recipe's tree (nested mappings and lists) names, by reference."""
    if isinstance(tree, dict | list):
        nodes = tree.values() if isinstance(tree, dict) else tree
        return {reference: digest for node in nodes for reference, digest in plugin_digests(node).items()}
    named = isinstance(tree, str) and is_plugin(tree) and _is_file(plugin_file(tree))
    return {tree: plugin_digest(tree)} if named else {}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def load_plugin(reference: str, *, where: str) -> Any:
    """The object that ``./file.py:NAME`` means.

    Args:
        where: the leaf of the recipe that says it, for the message.

    Raises:
        UserError: there is no such file, it cannot be imported, or it has no such name.
    """
    file, name = plugin_file(reference), reference.rpartition(":")[2]
    if not _is_file(file):
        raise UserError(
            f"`{where}` is {reference!r:.500}, and there is no file {file!s:.500} (it counts from the working folder)"
        )
    module_name = (
        f"mopd_own_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{plugin_digest(reference)}"
    )
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses of the file look themselves up there
        remedy = "load or compute what is slow where it is first used, and end nothing: the file is only imported here"
        try:
            with own_code(f"`{where}`: {file} cannot be imported", seconds=IMPORT_SECONDS, remedy=remedy):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    if not hasattr(module, name):
        offered = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))
        raise UserError(f"`{where}` is {reference!r}, and {file} has no {name!r}; it has {offered}")
    return getattr(module, name)
