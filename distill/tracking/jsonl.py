"""JSON-lines files that a kill cannot spoil: append, read, cut back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mopd.distill.errors import RunError


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one line per row. The lines are with the operating system on return: a SIGKILL loses none of them.

    Raises:
        RunError: the file cannot be written.
    """
    lines = "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
    try:
        with path.open("ab") as file:
            file.write(lines.encode())
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; fix that and give the same command again"
        ) from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, none if it isn't there; a half-written last line is left out.

    Raises:
        RunError: a whole line is not a JSON object.
    """
    for _, row in _lines(path):
        yield row


def truncate_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Keep only the rows for which ``keep`` holds, byte for byte, and drop a half-written last line.

    Atomic: after a SIGKILL at any moment the file is the old one or the new one.

    Raises:
        RunError: a whole line is not a JSON object, or the folder cannot be written.
    """
    if not path.exists():
        return
    kept = b"".join(line for line, row in _lines(path) if keep(row))
    if kept == path.read_bytes():
        return
    half_made = path.with_name(f".{path.name}.new")
    try:
        half_made.write_bytes(kept)
        os.replace(half_made, path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be rewritten: {error.strerror}; fix that and give the same command again"
        ) from error


def as_json(value: Any) -> Any:
    """``value`` as JSON can hold it: arrays and tensors as lists, NaN and infinity as null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # only the last line of a killed writer ends without its newline
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise RunError(f"{path}, line {number} is not a JSON object; fix or remove that line and resume")
            yield line, row
