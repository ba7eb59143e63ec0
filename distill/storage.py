"""A run's folder on disk: files that are whole or absent, and one live run per folder. Imports without torch.

A run's folder is claimed by one attempt at a time: a lock that dies with its process refuses a second live run, and
the attempt's id is written beside it. Processes of a killed attempt live on for seconds; whatever they have half
written, :func:`publish` lets only the current attempt give a file or folder its final name.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mopd.distill.errors import RunError, UserError


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    The content reaches the disk before the name does.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)


@contextmanager
def claim(run_dir: str | Path) -> Iterator[str]:
    """Own a run's folder for the life of the context; yields the attempt's id.

    Raises:
        UserError: another live process owns the folder (its pid is named), or it cannot be written.
    """
    run_dir = Path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = open(run_dir / ".lock", "a+")  # noqa: SIM115  (held until the context ends)
    except OSError as error:
        raise UserError(
            f"run folder {run_dir}: cannot be written ({error.strerror}); give another with --out"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UserError(
                f"run folder {run_dir}: process {owner} is running in it; wait for it, stop it (kill {owner}), "
                "or give another folder with --out"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        attempt = uuid.uuid4().hex[:12]
        with publishing(run_dir):
            write_atomic(run_dir / "attempt", attempt)
        yield attempt


def is_current(run_dir: str | Path, attempt: str) -> bool:
    """Whether ``attempt`` is the one that owns the run's folder now."""
    try:
        return (Path(run_dir) / "attempt").read_text() == attempt
    except FileNotFoundError:
        return False


def check_current(run_dir: str | Path, attempt: str, name: str) -> None:
    """Refuse to write ``name`` for an attempt that was followed by another.

    Raises:
        RunError: a newer attempt owns the run.
    """
    if not is_current(run_dir, attempt):
        raise RunError(f"attempt {attempt} no longer owns {run_dir}; {name} was not written")


def publish(run_dir: str | Path, attempt: str, temporary: str | Path, final: str | Path) -> None:
    """Give a finished file or folder its final name, if ``attempt`` still owns the run.

    Everything below ``temporary`` reaches the disk first. A folder that has the final name already is replaced.
    The check and the rename happen under the lock that :func:`claim` takes to write a new id, so an old attempt
    cannot slip in between.

    Raises:
        RunError: a newer attempt owns the run; ``temporary`` is removed and nothing is published.
    """
    temporary, final = Path(temporary), Path(final)
    for path in [temporary, *temporary.rglob("*")]:
        _fsync(path)
    with publishing(run_dir):
        try:
            check_current(run_dir, attempt, final.name)
        except RunError:
            remove(temporary)
            raise
        if final.is_dir():  # os.replace cannot replace a folder that holds something
            old = final.with_name(f".{final.name}.{attempt}.old")
            remove(old)
            os.replace(final, old)
            os.replace(temporary, final)
            remove(old)
        else:
            os.replace(temporary, final)
        _fsync(final.parent)


def remove(path: str | Path) -> None:
    """Remove a file or a folder and all below it, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def publishing(run_dir: str | Path) -> Iterator[None]:
    """Hold the short lock under which names appear in the run's folder."""
    with open(Path(run_dir) / ".publish-lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fsync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems refuse it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
