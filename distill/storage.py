"""A run's folder on disk: files that are whole or absent, and one live run per folder. Imports without torch.

A run's folder is claimed by one attempt at a time: a lock that dies with its process refuses a second live run, and
the attempt's id is written beside it. Processes of a killed attempt live on for seconds; whatever they have half
written, :func:`publish` lets only the current attempt give a file or folder its final name.

A folder that is published is sealed: ``manifest.json`` lists its files with bytes and SHA-256, and ``manifest.sha256``,
written last, is the SHA-256 of that list. :func:`damage` says what of it is no longer as it was written. This finds
what disks, copies and people do by mistake; whoever may write into the folder can seal it anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

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
            _lock(lock)
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


def _lock(lock: IO[str]) -> None:
    """Take the lock; asked again for a moment, as whoever looks whether it is held holds it as long as that takes."""
    for _ in range(4):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.05)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_claimed(run_dir: str | Path) -> bool:
    """Whether a live process of this machine owns the run's folder, this one included."""
    try:
        with open(Path(run_dir) / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nothing is known
        return False
    return False


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


def publish(
    run_dir: str | Path,
    attempt: str,
    temporary: str | Path,
    final: str | Path,
    digests: Mapping[str, Digest] | None = None,
) -> None:
    """Seal a finished folder and give it its final name, if ``attempt`` still owns the run.

    Everything below ``temporary`` reaches the disk first, and may be read by whom the umask allows. A folder that has
    the final name already is replaced.
    The check and the rename happen under the lock that :func:`claim` takes to write a new id, so an old attempt
    cannot slip in between.

    Args:
        digests: of files that were hashed as they were written; see :func:`seal`.

    Raises:
        RunError: a newer attempt owns the run; ``temporary`` is removed and nothing is published.
    """
    temporary, final = Path(temporary), Path(final)
    if temporary.is_dir():
        seal(temporary, digests)
        _open_to_readers(temporary)
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


def _open_to_readers(folder: Path) -> None:
    """Let whoever may read the list of a folder's files read these: safetensors writes its own for the owner alone."""
    allowed = (folder / MANIFEST).stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | allowed)


MANIFEST, SEAL = "manifest.json", "manifest.sha256"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    """A file's content: its bytes, and their SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str


class HashingFile:
    """A binary file that is hashed as it is written; takes writes alone, from first byte to last."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Any) -> int:
        """Write ``data``, any buffer of bytes."""
        self._hash.update(data)
        self._bytes += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        """Hand over to the system what was written."""
        self._file.flush()

    def digest(self) -> Digest:
        """Of what was written so far."""
        return Digest(self._bytes, self._hash.hexdigest())


def digest_of(path: str | Path) -> Digest:
    """Of the file at ``path``."""
    hashed, read = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            hashed.update(block)
            read += len(block)
    return Digest(read, hashed.hexdigest())


def seal(folder: str | Path, digests: Mapping[str, Digest] | None = None) -> str:
    """List a folder's files with their digests in it, and write the list's own SHA-256 last; returns that.

    Args:
        digests: of files, by their paths within the folder, that were hashed as they were written; the rest is read.
    """
    folder, known = Path(folder), digests or {}
    files = {name: asdict(known.get(name) or digest_of(path)) for name, path in files_of(folder).items()}
    content = json.dumps({"format": 1, "files": files}, indent=1).encode() + b"\n"
    write_atomic(folder / MANIFEST, content)
    own = hashlib.sha256(content).hexdigest()
    write_atomic(folder / SEAL, own + "\n")
    return own


def seal_of(folder: str | Path) -> str | None:
    """What a folder was sealed with; None where it was not, or the file is gone or is no seal."""
    try:
        text = (Path(folder) / SEAL).read_text().strip()
    except (OSError, ValueError):
        return None
    return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else None


def is_sealed(folder: str | Path) -> bool:
    """Whether anything says how a folder was written; an earlier version of mopd, and other programs, leave nothing."""
    return any((Path(folder) / name).exists() for name in (MANIFEST, SEAL))


def damage(folder: str | Path, *, part: int = 0, parts: int = 1) -> tuple[str, ...]:
    """What is wrong with the files of a sealed folder, a predicate of each; nothing where it is whole or not sealed.

    Args:
        part: which of ``parts`` equal parts of its bytes to read; names and sizes are compared by the first.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return (f"{folder.name} is missing",)
    if not is_sealed(folder):
        return ()
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError:
        return (f"{MANIFEST} is missing",)
    own, text = hashlib.sha256(content).hexdigest(), seal_of(folder)
    if own != text:
        return (f"{MANIFEST} is not the list that {SEAL} {'is of' if text else 'should be of'}",)
    listed = {name: Digest(**values) for name, values in json.loads(content)["files"].items()}
    there = files_of(folder)
    problems = [] if part else [f"{name} was not written with it" for name in sorted({*there} - {*listed})]
    for name, digest in listed.items():
        size = there[name].stat().st_size if name in there else None
        if size != digest.bytes and not part:
            problems.append(f"{name} is missing" if size is None else f"{name} has {size} bytes and not {digest.bytes}")
    whole = [name for name in listed if name in there and there[name].stat().st_size == listed[name].bytes]
    for name in _part_of(whole, listed, part, parts):
        if digest_of(there[name]) != listed[name]:
            problems.append(f"{name} has other bytes than were written")
    return tuple(problems)


def _part_of(names: list[str], listed: Mapping[str, Digest], part: int, parts: int) -> list[str]:
    """The largest go first, each to the part that has the fewest bytes."""
    shares: list[list[str]] = [[] for _ in range(parts)]
    bytes_of = [0] * parts
    for name in sorted(names, key=lambda name: (-listed[name].bytes, name)):
        least = bytes_of.index(min(bytes_of))
        shares[least].append(name)
        bytes_of[least] += listed[name].bytes
    return shares[part]


def files_of(folder: Path) -> dict[str, Path]:
    """The files below a folder by their paths within it, sorted, but for those that a seal is made of."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name not in (MANIFEST, SEAL)}


def set_aside(run_dir: str | Path, attempt: str, folder: str | Path) -> Path:
    """Give a damaged folder the name ``NAME.damaged``, in the place of what has it already; returns where it is.

    Raises:
        RunError: a newer attempt owns the run.
    """
    folder = Path(folder)
    aside = folder.with_name(f"{folder.name}.damaged")
    with publishing(run_dir):
        check_current(run_dir, attempt, aside.name)
        remove(aside)
        os.replace(folder, aside)
        _fsync(folder.parent)
    return aside


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
