"""What a comparison reads of a finished run, in one file: kept when its folder is gone, or made on another machine.

``NAME.zip`` holds the :data:`FILES` of the run's folder. metrics.jsonl is cut down to what each step computed, and the
rows of evaluations.jsonl are turned into columns, so that a verdict takes about a bit; :func:`unpack` turns them back.
Weights, answers' texts and checkpoints are not in it.
"""

from __future__ import annotations

import json
import lzma
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from mopd.distill.errors import UserError
from mopd.distill.storage import write_atomic
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.recipes.report.records import reading
from mopd.recipes.resolve.run_folder import BUDGET, DATA, RECIPE, STUDY, runs_of_study

SUFFIX = ".zip"
METRICS, EVALUATIONS, RESULTS, LEDGER = "metrics.jsonl", "evaluations.jsonl", "seesaw.json", "ledger.json"
NEEDED = (RECIPE, EVALUATIONS, RESULTS, LEDGER, METRICS)
"""Files without which a run is not finished."""
FILES = (*NEEDED, DATA, BUDGET, "environment.json", "exams.jsonl")
DAMAGED = (
    *(zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error),
    *(OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, NotImplementedError, MemoryError),
)
"""What zipfile raises of a file that is none, or of one with other bytes in it."""
MOST_BYTES = 500_000_000
"""Of a file that is unpacked: more is no record of a run."""
SHARED = ("model", "step", "split", "domain")
"""Keys of answers that a whole exam has in common."""
WRITTEN = (1980, 1, 1, 0, 0, 0)
"""The time that a zip file notes of what it holds: the same run gives the same bytes."""


def keep(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write a file for every run into the folder ``out``; those of a study are named as in its folder.

    Raises:
        UserError: one of them is not there, no run, not finished or damaged; or two have the same name. Nothing is
            written.
    """
    runs = [run for folder in folders for run in _runs_of(folder)]
    names = [run.name for run in runs]
    problems = [
        f"{run} has no {', '.join(missing)}: a run is kept once it is finished"
        for run in runs
        if (missing := [name for name in NEEDED if not (run / name).is_file()])
    ]
    problems += [f"two runs are named {name}; keep them in two folders" for name in set(names) if names.count(name) > 1]
    if problems:
        raise UserError(*problems)
    packed: dict[Path, bytes] = {}
    for run, name in zip(runs, names, strict=True):
        with reading(run):
            packed[out / f"{name}{SUFFIX}"] = _packed(run)
    out.mkdir(parents=True, exist_ok=True)
    for path, content in packed.items():
        write_atomic(path, content)
    return list(packed)


def unpack(path: Path) -> Path:
    """The folder with a kept run's files, which goes when the program ends.

    Raises:
        UserError: the file is damaged, or no kept run.
    """
    place = Path(path.resolve())
    folder = Path(_scratch().name, *place.parent.parts[1:], place.stem)  # not per token
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            held = {entry.filename: entry for entry in archive.infolist()}
            if missing := [name for name in NEEDED if name not in held]:
                raise UserError(f"{path} is no kept run: it holds no {', '.join(missing)}")
            for name in FILES:
                if name in held and held[name].file_size > MOST_BYTES:
                    raise UserError(f"{path} is no kept run: its {name} is of {held[name].file_size / 1e6:,.0f} MB")
                if name in held:
                    content = archive.read(name)
                    (folder / name).write_bytes(_as_rows(content) if name == EVALUATIONS else content)
    except DAMAGED as error:
        raise UserError(f"{path} is damaged, or no file of `mopd keep` ({type(error).__name__}: {error})") from error
    return folder


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mopd-kept-")


def _runs_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; give the folder of a run or of a study, such as runs/NAME")
    return runs_of_study(folder) if (folder / STUDY).is_file() else [folder.resolve()]


def _packed(run: Path) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        for name in (name for name in FILES if (run / name).is_file()):
            lines = SHORTENED[name](run / name) if name in SHORTENED else None
            content = (run / name).read_bytes() if lines is None else "".join(lines).encode()
            archive.writestr(zipfile.ZipInfo(name, WRITTEN), content, zipfile.ZIP_LZMA)
    return buffer.getvalue()


def _columns(evaluations: Path) -> Iterator[str]:
    """Answers of a model to a domain's questions, a line each: what they share, and a list for every other key.

    Of questions that an earlier line has as well there is only that line's number.
    """
    lines_of: dict[str, int] = {}
    exams = groupby(read_jsonl(evaluations), key=lambda row: ([row[name] for name in SHARED], list(row)))
    for number, ((shared, names), rows) in enumerate(exams):
        answers = list(rows)
        columns = {name: [row[name] for row in answers] for name in names if name not in SHARED}
        kept: dict[str, Any] = dict(zip(SHARED, shared, strict=True))
        for name, values in columns.items():
            earlier = lines_of.setdefault(f"{name}{values}", number) if name == "prompt_id" else number
            kept[name] = values if earlier == number else earlier
        yield json.dumps(kept) + "\n"


def _as_rows(columns: bytes) -> bytes:
    lines = [json.loads(line) for line in columns.splitlines()]
    rows: list[str] = []
    for line in lines:
        shared = {name: line.pop(name) for name in SHARED}
        whole = {name: values if isinstance(values, list) else lines[values][name] for name, values in line.items()}
        line |= whole  # a later line may name this one
        rows += [json.dumps(shared | dict(zip(whole, row, strict=True))) for row in zip(*whole.values(), strict=True)]
    return "".join(f"{row}\n" for row in rows).encode()


def _computed(metrics: Path) -> Iterator[str]:
    """The rows of training steps, each with its step and its floating-point operations."""
    for row in read_jsonl(metrics):
        if row.get("kind") == "train":
            kept = {name: value for name, value in row.items() if name in ("kind", "step") or name.startswith("flops/")}
            yield json.dumps(kept) + "\n"


SHORTENED: dict[str, Callable[[Path], Iterator[str]]] = {METRICS: _computed, EVALUATIONS: _columns}
"""Files that are not kept as they are."""
