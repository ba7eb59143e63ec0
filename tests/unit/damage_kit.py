"""What can happen to a file on a disk, done to a folder of files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

PLACES = 20


def flip(file: Path, others: list[Path], rng: random.Random) -> None:
    """One bit."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, others: list[Path], rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(1, len(content))])


def lose(file: Path, others: list[Path], rng: random.Random) -> None:
    file.unlink()


def empty(file: Path, others: list[Path], rng: random.Random) -> None:
    file.write_bytes(b"")


def exchange(file: Path, others: list[Path], rng: random.Random) -> None:
    """For a file of another folder: what a copy with the wrong source makes."""
    content = file.read_bytes()
    file.write_bytes(rng.choice([other for other in others if other.read_bytes() != content]).read_bytes())


KINDS: dict[str, Callable[[Path, list[Path], random.Random], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "missing": lose,
    "emptied": empty,
    "exchanged": exchange,
}


def harm(folder: Path, other: Path, *, kind: str, place: int) -> str:
    """Damage one file of ``folder``; returns its path within it.

    Args:
        other: a folder of the same kind of files.
        place: which of the :data:`PLACES`; every file has its turn, and within it another spot.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1)
    file = files[place % len(files)]
    KINDS[kind](file, sorted(path for path in other.rglob("*") if path.is_file()), random.Random(f"{kind}{place}"))
    return file.relative_to(folder).as_posix()
