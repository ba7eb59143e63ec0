"""What of a run's weights is no longer as it was written: results, checkpoints, adapters. Imports without torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mopd.distill.errors import UserError
from mopd.distill.storage import damage, digest_of, is_sealed, seal_of, write_atomic

FINISHED = "finished.json"
"""Lies in the folder of a run or a stage whose every result is there, and names the seals of its student and, where one
was trained, of its adapter."""
RESULTS = ("student", "adapter")
"""The folders of weights that a run or a stage ends with."""
ADAPTERS = "adapters.json"
"""Digests of the teachers' adapters, which lie elsewhere, as the run began: of the files that peft names adapter_*."""


def read_marker(folder: Path) -> dict[str, Any]:
    """What ``finished.json`` says; nothing where it is not there or cannot be read, so that the end is made again."""
    try:
        marker = json.loads((folder / FINISHED).read_text())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def write_marker(folder: Path, **content: Any) -> None:
    """Note that the results of a run or a stage are whole."""
    seals = {name: seal_of(folder / name) for name in RESULTS if name == "student" or (folder / name).is_dir()}
    write_atomic(folder / FINISHED, json.dumps({**content, **seals}, indent=2) + "\n")


def result_damage(folder: Path) -> tuple[str, ...]:
    """What is wrong with the student of a finished run or stage, or with its adapter; nothing where all is whole, or
    not finished."""
    marker = read_marker(folder)
    if not marker:
        return ()
    for name in RESULTS:
        if name != "student" and name not in marker:
            continue
        if problems := _damage(folder / name):
            return problems if name == "student" else tuple(f"{name}: {problem}" for problem in problems)
        noted = marker.get(name)  # an earlier version noted none
        if noted and noted != seal_of(folder / name):
            return (f"{'it' if name == 'student' else name} is not the one that finished.json names",)
    return ()


def refuse_damaged(folder: str | Path, remedy: str) -> None:
    """Refuse a folder that is sealed and no longer as it was written.

    Args:
        remedy: what a user can do, as the end of a sentence.

    Raises:
        UserError: with every file that is wrong.
    """
    if problems := _damage(Path(folder)):
        raise UserError(f"{folder} is damaged: {'; '.join(problems)}; {remedy}")


def _damage(folder: Path) -> tuple[str, ...]:
    """Read once a process, unless a file has been touched since: base and teachers are asked for several times."""
    if folder.is_dir() and not is_sealed(folder):
        return ()
    stats = [path.stat() for path in sorted(folder.rglob("*")) if path.is_file()]
    return _read(folder, tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=256)
def _read(folder: Path, stats: tuple[tuple[int, int, int], ...]) -> tuple[str, ...]:
    return damage(folder)


def note_adapters(folders: Collection[str], out: Path) -> None:
    """Note the digests of adapters as a run begins, and refuse to go on with others.

    Raises:
        UserError: a file of one has changed since, or is gone.
    """
    path, noted = out / ADAPTERS, adapters_of(out)
    for folder in folders:
        refuse_damaged(folder, "fetch it anew, or name another adapter")
    if problems := adapter_damage(out):
        remedy = "put it back as it was, or start from scratch with --restart"
        raise UserError(*(f"adapter {problem} since the run began; {remedy}" for problem in problems))
    now = {f: {path.name: asdict(digest_of(path)) for path in sorted(Path(f).glob("adapter_*"))} for f in folders}
    if {**noted, **now} != noted:
        write_atomic(path, json.dumps({**noted, **now}, indent=1) + "\n")


def adapters_of(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The digests of adapters that a run has noted, by folder and file; none where it noted none."""
    try:
        return json.loads((out / ADAPTERS).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{out / ADAPTERS} cannot be read ({error}); put it back, or remove it") from error


def adapter_damage(out: Path) -> tuple[str, ...]:
    """What of the adapters is not as the run noted it: a folder, a file, and what happened to it."""
    problems = []
    for folder, digests in adapters_of(out).items():
        for name, noted in digests.items():
            file = Path(folder) / name
            if not file.is_file():
                problems.append(f"{folder}: {name} is missing")
            elif asdict(digest_of(file)) != noted:
                problems.append(f"{folder}: {name} has changed")
    return tuple(problems)
