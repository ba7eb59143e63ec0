"""DatasetRows of a `datasets` source: read, checked, and dealt out to train, validation and test without overlap."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mopd.distill.recipe import Source
from mopd.distill.types import UserError
from mopd.rollouts.tasks.base import split_of
from mopd.rollouts.verifiers import gold_problem

if TYPE_CHECKING:
    import datasets

Message: TypeAlias = dict[str, str]
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
LISTED_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One problem: its prompt (text, or chat messages), its gold answer, and its unit tests where it has any."""

    prompt: str | list[Message]
    answer: str
    tests: str | None

    @property
    def canonical(self) -> str:
        """What the prompt says, without differences of white space: what decides its split."""
        if isinstance(self.prompt, str):
            return " ".join(self.prompt.split())
        return json.dumps([[message["role"], " ".join(message["content"].split())] for message in self.prompt])


class DatasetRows:
    """Some rows of a dataset, read when they are asked for."""

    def __init__(self, table: datasets.Dataset, numbers: list[int], source: Source) -> None:
        self._table, self._numbers, self._source = table, numbers, source

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> Row:
        return parse_row(self._source, self._table[self._numbers[place]])


def read_splits(source: Source, *, domain: str) -> dict[str, DatasetRows]:
    """The rows of train, validation and test: of ``domain``, each prompt once, no prompt in two splits.

    A held-out split that the source names is that one; the others are held out of the training split by a hash of the
    prompt's content (20% test, 10% validation). What a held-out split has, training leaves out, named or not.

    Raises:
        UserError: the source can't be read, lacks a column or a split, has a row that can't be used, or no row at all
            for one of the three.
    """
    named = {"test": source.test_split, "validation": source.validation_split, "train": source.split}
    given = [name for name in named.values() if name is not None]
    if len(set(given)) < len(given):
        raise UserError(
            f"dataset {source.path!r}: two of its splits are the same ({', '.join(given)}); name others, or none"
        )
    tables = {name: load(source, name) for name in given}
    usable = {name: _usable(source, table, name, domain) for name, table in tables.items()}
    splits: dict[str, DatasetRows] = {}
    taken: set[str] = set()
    for split, name in named.items():
        rows = usable[name or source.split].items()
        kept = {key: n for key, n in rows if key not in taken and (name is not None or split_of(key) == split)}
        if not kept:
            raise UserError(
                f"dataset {source.path!r} has {len(rows)} usable rows of domain {domain!r} in split "
                f"{name or source.split!r}, and none is left for {split}; give it more rows, or name "
                f"splits that share no prompts"
            )
        taken |= kept.keys()
        splits[split] = DatasetRows(tables[name or source.split], list(kept.values()), source)
    return splits


def load(source: Source, split: str) -> datasets.Dataset:
    """One split of a source, from the Hub, a folder or a file, with the columns that the source names.

    Raises:
        UserError: it can't be read, or lacks a column.
    """
    import datasets  # a second that recipes without a dataset do not spend

    datasets.disable_progress_bars()  # they would run through the run's own
    path = Path(source.path)
    local = source.path.startswith(("./", "../", "/"))
    if local and not path.exists():
        raise UserError(f"dataset {source.path!r} does not exist (looked in {path.parent.resolve()}); fix the path")
    if local and path.is_file() and (path.suffix not in FORMATS or split != "train" or source.name is not None):
        raise UserError(
            f"dataset {source.path!r} is one file: it needs a name that ends in {', '.join(FORMATS)}, has one split, "
            f"'train', and no configuration; asked for are split {split!r} and configuration {source.name!r}"
        )
    try:
        if local and path.is_file():
            table = datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), split=split)
        else:
            table = datasets.load_dataset(source.path, source.name, split=split)
    except Exception as error:  # the library, and the readers below it, raise anything
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        hint = " (a path begins with ./ or /)" if path.exists() and not local else ""
        raise UserError(
            f"dataset {source.path!r}, split {split!r}, can't be read{hint}: {reason[0]}; "
            "fix the path, the name or the content"
        ) from error
    assert isinstance(table, datasets.Dataset)
    _require_columns(source, table)
    return table


def parse_row(source: Source, row: Mapping[str, Any]) -> Row:
    """A row of the table as a problem.

    Raises:
        ValueError: a column holds what it can't; the message is the end of a sentence that begins with the row.
    """
    prompt = row[source.prompt]
    if isinstance(prompt, list):
        prompt = [_message(source, message) for message in prompt]
    if not prompt or not (isinstance(prompt, list) or (isinstance(prompt, str) and prompt.strip())):
        raise ValueError(f"`{source.prompt}` is {_short(prompt)}, which is neither text nor a list of chat messages")
    tests = None if source.tests is None else _text(source, source.tests, row, lines=True)
    answer = _text(source, source.answer, row, lines=source.verifier == "python_tests")
    checked, column = (answer, source.answer) if tests is None else (tests, source.tests)
    if problem := gold_problem(source.verifier, checked):
        raise ValueError(f"`{column}`, {_short(checked)}, {problem} (verifier {source.verifier!r})")
    return Row(prompt, answer, tests)


def _message(source: Source, message: Any) -> Message:
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise ValueError(f"`{source.prompt}` has {_short(message)} in it, which is no {{role, content}} with two texts")
    return {"role": message["role"], "content": message["content"]}


def _text(source: Source, column: str, row: Mapping[str, Any], *, lines: bool) -> str:
    """A cell as text: numbers as they are written; a list of texts (of tests) as lines."""
    value = row[column]
    if lines and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"`{column}` is {_short(value)}, which is neither text nor a number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _require_columns(source: Source, table: datasets.Dataset) -> None:
    wanted = {"prompt": source.prompt, "answer": source.answer, "tests": source.tests, "domain": source.domain}
    problems = [
        f"dataset {source.path!r} has no column {column!r}; it has {', '.join(map(repr, table.column_names))}; "
        f"set `{key}` to the one that holds the {key}"
        for key, column in wanted.items()
        if column is not None and column not in table.column_names
    ]
    if problems:
        raise UserError(*problems)


def _usable(source: Source, table: datasets.Dataset, split: str, domain: str) -> dict[str, int]:
    """Row number by canonical prompt, for the rows of ``domain``; of rows with one prompt, the first."""
    numbers: dict[str, int] = {}
    problems: list[str] = []
    domains: dict[str, None] = {}
    for number, cells in enumerate(_rows(source, table)):
        if source.domain is not None:
            domains[str(cells[source.domain])] = None
            if str(cells[source.domain]) != domain:
                continue
        try:
            numbers.setdefault(parse_row(source, cells).canonical, number)
        except ValueError as error:
            problems.append(f"dataset {source.path!r}, split {split!r}, row {number}: {error}")
    if problems:
        more = len(problems) - LISTED_PROBLEMS
        raise UserError(*problems[:LISTED_PROBLEMS], *([f"... and {more} more rows like these"] if more > 0 else []))
    if not numbers and source.domain is not None:
        raise UserError(
            f"dataset {source.path!r}, split {split!r}, has no row whose {source.domain!r} is {domain!r}; it has "
            f"{_short(list(domains))[1:-1] or 'no rows'}; name the domain of the recipe as the column does"
        )
    return numbers


def _rows(source: Source, table: datasets.Dataset) -> Iterator[Mapping[str, Any]]:
    columns = dict.fromkeys(c for c in (source.prompt, source.answer, source.tests, source.domain) if c is not None)
    yield from table.select_columns(list(columns))  # pyright: ignore[reportReturnType]  (rows of a table are mappings)
