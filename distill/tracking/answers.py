"""What models wrote in exams: a compressed Parquet file for each, so that answers can be read long after.

``answers/SPLIT/MODEL-STEP.parquet`` in a run's folder, ``teachers/NAME`` as ``teachers--NAME``. A row is an answer:

    model, step, split    who was asked, after how many finished steps, and on which questions
    domain, prompt_id     the question; an id is unique within its domain
    prompt, gold          what was asked, as a person reads it, and the gold answer
    sample                0: the greedy answer; 1 and on: those that were sampled beside it
    text                  what was written, without prompt and closing token
    verdict               the verifier's score, 0..1
    tokens, truncated     its length, and whether it was cut at the limit
    unjudged, reason      ``no_answer`` or ``refused`` and why, where no verifier looked at it; else empty

Example:
    ``datasets.load_dataset("parquet", data_files="runs/NAME/answers/test/*.parquet")``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopd.distill.errors import RunError
from mopd.distill.storage import write_atomic

if TYPE_CHECKING:
    import pyarrow

FOLDER = "answers"
TYPES = {
    "model": "string",
    "step": "int64",
    "split": "string",
    "domain": "string",
    "prompt_id": "string",
    "prompt": "string",
    "gold": "string",
    "sample": "int32",
    "text": "string",
    "verdict": "float64",
    "tokens": "int32",
    "truncated": "bool_",
    "unjudged": "string",
    "reason": "string",
}
"""Columns, with pyarrow's names for their types."""


def answers_path(run: Path, model: str, step: int, split: str) -> Path:
    """The file of an exam in a run's folder."""
    return run / FOLDER / split / f"{model.replace('/', '--')}-{step:06d}.parquet"


def write_answers(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the answers of an exam; a reader, or a crash, sees all of them or none.

    Args:
        rows: each with every column of :data:`TYPES`. Halves of characters become ``?``.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        write_parquet(path, [{name: _whole(row[name]) for name in TYPES} for row in rows], TYPES)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; fix that and give the same command again"
        ) from error


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> None:
    """Write rows as a compressed Parquet file, whose folder is made; a reader, or a crash, sees all of it or none.

    Args:
        types: columns, with pyarrow's names for their types; a row that lacks one has nothing there.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in types.items()])
    buffer = BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _whole(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def read_answers(path: Path, only: Sequence[tuple[str, str, Any]] = ()) -> list[dict[str, Any]]:
    """The rows of a file; none where it is not there.

    Args:
        only: conditions that rows meet, such as ``("sample", "==", 0)`` or ``("domain", "in", ["math"])``.

    Raises:
        RunError: it is no such file.
    """
    if not path.is_file():
        return []
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table: pyarrow.Table = parquet.read_table(path, columns=list(TYPES), filters=list(only) or None)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it, and reports do without these answers") from error
    return table.to_pylist()


def exam_files(run: Path) -> Iterator[tuple[Path, str, int, str]]:
    """Every file of answers in a run's folder, with its model's name as the file has it, its step and its split."""
    for path in sorted((run / FOLDER).glob("*/*.parquet")):
        if match := re.fullmatch(r"(.+)-(\d+)", path.stem):
            yield path, match[1], int(match[2]), path.parent.name


def forget_answers(run: Path, step: int) -> None:
    """Remove what the student answered after ``step`` finished steps; all of it where no step is finished."""
    for path, model, at, _ in exam_files(run):
        if model == "student" and (at > step or step == 0):
            path.unlink()
