"""Tables of rows, read as they are written: a number of JSON keeps its digits, a date its text, a null its place.

Arrow guesses a type for every column of a JSON file: of one float among integers it makes floats of all, of integers
beyond 64 bits doubles, of dates timestamps. A gold answer would not be what its file says, so JSON is read here, a line
at a time and only when it is asked for. Everything else is read by `datasets`, whose files have types of their own; CSV
is read as text.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import json
import mmap
import os
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mopd.distill.recipe import Source
from mopd.distill.recipe.model_names import is_path
from mopd.distill.types import UserError

if TYPE_CHECKING:
    import datasets

Cells: TypeAlias = dict[str, Any]
"""A row of a table: its cells by column."""

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


IN_MEMORY = 256 << 20
"""Bytes of a JSON file that is held in memory."""
REASON_CHARS = 500
"""Of the reason that a reader gives, as a message has it."""
MOST_FILES = 10_000
"""Files of a folder with a dataset: the library lists all of them, several times."""


class WrittenFloat(float):
    """A number with a point or an exponent, and how it was written."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        """Of its text, as JSON has it."""
        value = super().__new__(cls, text)
        value.text = text
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return WrittenFloat, (self.text,)


class RowTable(Protocol):
    """Rows of one split, in an order that does not change.

    Attributes:
        columns: all names that a row has.
        version: a hash of the content, or the commit that it is of.
    """

    columns: list[str]
    version: str

    def __len__(self) -> int:
        """How many rows."""
        ...

    def __getitem__(self, number: int) -> Cells:
        """A row; a column that it lacks is None."""
        ...


def rows_of(table: RowTable) -> Iterator[Cells]:
    """Every row in the table's order."""
    return (table[number] for number in range(len(table)))


class JsonFile:
    """A file of JSON objects, one a line, or in one array.

    Args:
        path: of the file. It is held in memory up to :data:`IN_MEMORY`, so that nobody who writes to it changes a run;
            lines of a larger one stay there and are read when they are asked for.

    Raises:
        ValueError: it is no such file; the message names the line.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._bytes = _content(path)
        self.version = hashlib.sha256(self._bytes).hexdigest()[:16]
        self._starts, self._array = array("q"), None
        start = 3 if bytes(self._bytes[:3]) == b"\xef\xbb\xbf" else 0  # a byte order mark
        if bytes(self._bytes[start : start + 4096]).lstrip()[:1] == b"[":
            self._array = _objects(_parse(bytes(self._bytes[start:]), "the file"))
            self.columns = list(dict.fromkeys(itertools.chain.from_iterable(self._array)))
            return
        columns: dict[str, None] = {}
        for number, (begin, line) in enumerate(_lines(self._bytes, start), 1):
            if line.strip():
                row = _parse(line, f"line {number}")
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is {type(row).__name__} {str(row)[:40]}, and must be an object")
                columns |= dict.fromkeys(row)
                self._starts.append(begin)
        self.columns = list(columns)

    def __len__(self) -> int:
        return len(self._starts) if self._array is None else len(self._array)

    def __getitem__(self, number: int) -> Cells:
        if self._array is None:
            begin = self._starts[number]
            end = self._bytes.find(b"\n", begin)
            row = _parse(bytes(self._bytes[begin : end if end >= 0 else len(self._bytes)]), f"row {number}")
        else:
            row = self._array[number]
        return {column: row.get(column) for column in self.columns}

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonFile, (self._path,)


def _content(path: str) -> mmap.mmap | bytes:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= IN_MEMORY:
            return file.read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _lines(content: mmap.mmap | bytes, start: int) -> Iterator[tuple[int, bytes]]:
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        yield start, bytes(content[start:end])
        start = end + 1


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"), parse_float=WrittenFloat)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 (byte {error.start} is 0x{line[error.start]:02x}); write the file in UTF-8, for "
            "example with `iconv -f latin1 -t utf-8`"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply to be read") from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _objects(rows: Any) -> list[Cells]:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} is {type(row).__name__} {str(row)[:40]}, and must be an object")
    return rows


class ArrowTable:
    """A table of `datasets`: Parquet, CSV, Arrow, or whatever a Hub dataset is made of."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self._rows, self.columns, self.version = rows, rows.column_names, ""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Cells:
        return {column: _unfilled(cell) for column, cell in self._rows[number].items()}


class ListedRows:
    """Rows that are held in memory."""

    def __init__(self, rows: Sequence[Cells], version: str) -> None:
        self._rows, self.version = rows, version
        self.columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Cells:
        return {column: self._rows[number].get(column) for column in self.columns}


class JoinedTables:
    """Several tables one after the other."""

    def __init__(self, tables: Sequence[RowTable]) -> None:
        self._tables = tables
        self._ends = list(itertools.accumulate(map(len, tables)))
        self.columns = list(dict.fromkeys(itertools.chain.from_iterable(table.columns for table in tables)))
        self.version = hashlib.sha256("".join(table.version for table in tables).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Cells:
        part = bisect_right(self._ends, number)
        row = self._tables[part][number - (self._ends[part - 1] if part else 0)]
        return {column: row.get(column) for column in self.columns}


def _unfilled(cell: Any) -> Any:
    """A cell without the nulls that Arrow gives a mapping for keys which other rows have; `content` stays."""
    if isinstance(cell, Mapping):
        return {key: _unfilled(value) for key, value in cell.items() if value is not None or key == "content"}
    return [_unfilled(value) for value in cell] if isinstance(cell, list) else cell


# ---- from a source


def load(source: Source, split: str) -> RowTable:
    """One split of a source, from the Hub, a folder or a file.

    Raises:
        UserError: it can't be read.
    """
    path = Path(source.path)
    local = is_path(source.path)
    if not local and not source.path.strip():
        raise UserError("the dataset's `path` is empty; name a Hub id, or a path (begins with ./ or /)")
    if not local and os.path.exists(source.path):
        raise UserError(
            f"dataset {source.path!r} is read as a Hub id, and a file or folder of that name is here; write "
            f"./{source.path}"
        )
    if local and (problem := _unusable_path(source, path, split)):
        raise UserError(f"dataset {source.path!r} {problem}")
    if local and source.revision is not None:
        raise UserError(
            f"dataset {source.path!r} is on this machine, and `revision` {source.revision!r} is of a Hub dataset; "
            "remove it"
        )
    try:
        limit = source.limit if source.streaming else None
        return _table(source.path, source.name, source.revision, split, limit, _state(path) if local else None)
    except UserError:
        raise
    except Exception as error:  # the library, and the readers below it, raise anything
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        reason = " ".join(lines[:3])[:REASON_CHARS] or type(error).__name__
        raise UserError(
            f"dataset {source.path!r}, split {split!r}, can't be read: {reason}; fix the path, the name or the content"
        ) from error


def _unusable_path(source: Source, path: Path, split: str) -> str | None:
    """Why nothing can be read at a path, as the end of a sentence."""
    try:
        there, is_one_file = path.exists(), path.is_file()
    except OSError as error:  # a name that is too long
        return f"cannot be looked at ({error.strerror}); fix the path"
    if not there:
        return f"does not exist (looked in {os.path.realpath(path.parent)}); fix the path"
    if not is_one_file:
        files = (name for _, _, names in os.walk(path) for name in names)
        if sum(1 for _ in itertools.islice(files, MOST_FILES + 1)) > MOST_FILES:
            return f"is a folder of more than {MOST_FILES:,} files; name a folder that holds nothing but the dataset"
        return None
    if path.suffix not in FORMATS:
        return f"is one file, and needs a name that ends in {', '.join(FORMATS)}"
    leaves = {"split": source.split, "validation_split": source.validation_split, "test_split": source.test_split}
    if split != "train":
        leaf = next((leaf for leaf, name in leaves.items() if name == split), "shots_split")
        return f"is one file, which has one split, 'train'; `{leaf}` is {split!r}: leave it out, or name a folder"
    if source.name is not None:
        return f"is one file, which has no configurations; `name` is {source.name!r}: leave it out"
    return None


def _state(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Of every file there, its name, size and time: whatever changes makes another table."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@functools.lru_cache(maxsize=8)
def _table(
    path: str, name: str | None, revision: str | None, split: str, limit: int | None, state: tuple[Any, ...] | None
) -> RowTable:
    """A split by all that it depends on; tasks are made several times in one process."""
    file = Path(path)
    if state is not None and file.is_file() and FORMATS[file.suffix] == "json":
        return JsonFile(path)
    import datasets  # a second that recipes without a dataset do not spend

    datasets.disable_progress_bars()  # they would run through the run's own
    if state is not None and file.is_file():
        builder = datasets.load_dataset_builder(FORMATS[file.suffix], data_files=path)
    else:
        builder = datasets.load_dataset_builder(path, name, revision=revision)
    if limit is not None:
        return _first_rows(builder, split, limit)
    table = _read_here(builder, split)
    if table is None:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
        assert isinstance(rows, datasets.Dataset)
        table = ArrowTable(rows)
    # Of the Hub, where nothing on this machine says what it is, the commit that was resolved.
    table.version = str(builder.hash) if state is None else _digest([file for file, _, _ in state])
    return table


def _digest(files: Sequence[str]) -> str:
    """A hash of the content of files."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _kind(builder: datasets.DatasetBuilder) -> str:
    """What a builder reads: json, csv, parquet; anything else for a builder of its own."""
    return type(builder).__module__.rpartition(".")[2]


def _files(builder: datasets.DatasetBuilder, split: str) -> list[str]:
    """Where the files of a split lie.

    Raises:
        ValueError: it has no such split.
    """
    by_split = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if split not in by_split:
        part = "; the first rows of a split are taken by `limit`" if "[" in split else ""
        raise ValueError(f"it has the splits {', '.join(by_split) or 'none'}{part}")
    return list(by_split[split])


def _read_here(builder: datasets.DatasetBuilder, split: str) -> RowTable | None:
    """The table of JSON or CSV files; None where they are none."""
    import datasets

    kind, field = _kind(builder), getattr(builder.config, "field", None)
    if kind not in ("json", "csv") or field is not None:
        return None
    files = datasets.DownloadManager().download_and_extract(_files(builder, split))
    if kind == "json":
        return JoinedTables([JsonFile(file) for file in files])
    delimiter = getattr(builder.config, "delimiter", None) or getattr(builder.config, "sep", None) or ","
    return JoinedTables([read_csv(file, delimiter) for file in files])


def read_csv(path: str, delimiter: str) -> ListedRows:
    """A file of comma-separated values, each cell as text; its first line names the columns.

    Raises:
        ValueError: it is not UTF-8, or a line has more cells than columns.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8; write the file in UTF-8") from error
    csv.field_size_limit(sys.maxsize)
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    for number, row in enumerate(rows):
        if None in row:
            raise ValueError(f"row {number} has more cells than the {len(row) - 1} columns of the first line")
    return ListedRows(rows, hashlib.sha256(content).hexdigest()[:16])


def _first_rows(builder: datasets.DatasetBuilder, split: str, limit: int) -> ListedRows:
    """The first rows of a split, without the rest of it on this machine."""
    if _kind(builder) == "json" and getattr(builder.config, "field", None) is None:
        rows = list(itertools.islice(_streamed(_files(builder, split)), limit))
    else:
        streamed = builder.as_streaming_dataset(split=split)
        rows = [{column: _unfilled(cell) for column, cell in row.items()} for row in itertools.islice(streamed, limit)]
    return ListedRows(rows, str(builder.hash))


def _streamed(files: Sequence[str]) -> Iterator[Cells]:
    from datasets import StreamingDownloadManager
    from datasets.utils.file_utils import xopen

    manager = StreamingDownloadManager()
    for file in files:
        with xopen(manager.download_and_extract(file), "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = _parse(line, f"line {number}")
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is {type(row).__name__}; only files of a row a line stream")
                    yield row
