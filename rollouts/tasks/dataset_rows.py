"""DatasetRows of a `datasets` source: read, checked, and dealt out to train, validation and test without overlap."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mopd.distill.recipe import Source
from mopd.distill.types import UserError
from mopd.rollouts.tasks.base import split_of
from mopd.rollouts.verifiers import chosen_letter, gold_problem, verify_many

if TYPE_CHECKING:
    import datasets

Message: TypeAlias = dict[str, str]
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
LISTED_PROBLEMS = 3
LONGEST_TEXT = 10_000_000
"""Letters of a prompt or an answer; no model has a context for so many."""
MOST_FILES = 10_000
"""Files of a folder with a dataset: the library lists all of them, several times."""
WHOLE = 2**53
"""From here on not every whole number is a float."""


@dataclass(frozen=True, slots=True)
class Row:
    """One problem: its prompt (text, or chat messages), its gold answer, and its unit tests where it has any."""

    prompt: str | list[Message]
    answer: str
    tests: str | None

    @property
    def gold(self) -> str:
        """What an answer is held against: the unit tests, where there are any beside the answer."""
        return self.answer if self.tests is None else self.tests

    @property
    def canonical(self) -> str:
        """What the prompt says, without differences of white space: what decides its split."""
        if isinstance(self.prompt, str):
            return " ".join(self.prompt.split())
        return json.dumps([[message["role"], " ".join(message["content"].split())] for message in self.prompt])


@dataclass(frozen=True, slots=True)
class Usable:
    """The rows of one prompt: the number of the first, and of those after it that have another gold answer."""

    first: int
    others: tuple[int, ...] = ()


class DatasetRows:
    """Some rows of a dataset, read when they are asked for."""

    def __init__(self, table: datasets.Dataset, rows: Mapping[str, Usable], source: Source) -> None:
        self._table, self._source = table, source
        self._numbers = [usable.first for usable in rows.values()]
        self._others = {usable.first: usable.others for usable in rows.values() if usable.others}

    def more_golds(self) -> Iterator[Row]:
        """The rows that hold further right answers to the prompt of another row."""
        for numbers in self._others.values():
            yield from (parse_row(self._source, self._table[number]) for number in numbers)

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
        kept = {key: row for key, row in rows if key not in taken and (name is not None or split_of(key) == split)}
        if not kept:
            raise UserError(
                f"dataset {source.path!r} has {len(rows)} usable rows of domain {domain!r} in split "
                f"{name or source.split!r}, and none is left for {split}; give it more rows, or name "
                f"splits that share no prompts"
            )
        taken |= kept.keys()
        splits[split] = DatasetRows(tables[name or source.split], kept, source)
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
    if not local and not source.path.strip():
        raise UserError("the dataset's `path` is empty; name a Hub id, or a path (begins with ./ or /)")
    if local and (problem := _unusable_path(source, path, split)):
        raise UserError(f"dataset {source.path!r} {problem}")
    try:
        if local and path.is_file():
            table = datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), split=split)
        else:
            table = datasets.load_dataset(source.path, source.name, split=split)
    except Exception as error:  # the library, and the readers below it, raise anything
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        hint = " (a path begins with ./ or /)" if os.path.exists(path) and not local else ""
        raise UserError(
            f"dataset {source.path!r}, split {split!r}, can't be read{hint}: {reason[0]}; "
            "fix the path, the name or the content"
        ) from error
    assert isinstance(table, datasets.Dataset)
    _require_columns(source, table)
    return table


def _unusable_path(source: Source, path: Path, split: str) -> str | None:
    """Why nothing can be read at a path, as the end of a sentence."""
    try:
        there, one_file = path.exists(), path.is_file()
    except OSError as error:  # a name that is too long
        return f"cannot be looked at ({error.strerror}); fix the path"
    if not there:
        return f"does not exist (looked in {os.path.realpath(path.parent)}); fix the path"
    if not one_file:
        files = (name for _, _, names in os.walk(path) for name in names)
        if sum(1 for _ in itertools.islice(files, MOST_FILES + 1)) > MOST_FILES:
            return f"is a folder of more than {MOST_FILES:,} files; name a folder that holds nothing but the dataset"
        return None
    if path.suffix not in FORMATS:
        return f"is one file, and needs a name that ends in {', '.join(FORMATS)}"
    leaves = {"split": source.split, "validation_split": source.validation_split, "test_split": source.test_split}
    if split != "train":
        leaf = next((leaf for leaf, name in leaves.items() if name == split), "split")
        return f"is one file, which has one split, 'train'; `{leaf}` is {split!r}: leave it out, or name a folder"
    if source.name is not None:
        return f"is one file, which has no configurations; `name` is {source.name!r}: leave it out"
    return None


def parse_row(source: Source, row: Mapping[str, Any]) -> Row:
    """A row of the table as a problem.

    Raises:
        ValueError: a column holds what it can't; the message is the end of a sentence that begins with the row.
    """
    prompt = row[source.prompt]
    if isinstance(prompt, list):
        prompt = [_message(source, message) for message in prompt]
        if prompt and prompt[-1]["role"] == "assistant":  # not per token
            raise ValueError(
                f"`{source.prompt}` ends with a message of the assistant, which is what is to be written; end the "
                "prompt before it"
            )
    if not prompt or not (isinstance(prompt, list) or (isinstance(prompt, str) and prompt.strip())):
        raise ValueError(f"`{source.prompt}` is {_short(prompt)}, which is neither text nor a list of chat messages")
    tests = None if source.tests is None else _text(source, source.tests, row, lines=True)
    answer = _text(source, source.answer, row, lines=source.verifier == "python_tests")
    _refuse_long(source.prompt, prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt))
    _refuse_long(source.answer, answer)
    checked, column = (answer, source.answer) if tests is None else (tests, source.tests)
    if problem := gold_problem(source.verifier, checked):
        raise ValueError(f"`{column}`, {_short(checked)}, {problem} (verifier {source.verifier!r})")
    return Row(prompt, answer, tests)


def _shows_option(row: Row) -> bool:
    """Whether the letter of a row's gold option stands in its prompt."""
    text = row.prompt if isinstance(row.prompt, str) else "\n".join(message["content"] for message in row.prompt)
    return re.search(rf"(?<!\w){chosen_letter(row.answer)}(?!\w)", text) is not None


def _refuse_long(column: str, text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"`{column}` has {len(text):,} letters, and at most {LONGEST_TEXT:,} are read")


def _message(source: Source, message: Any) -> Message:
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise ValueError(f"`{source.prompt}` has {_short(message)} in it, which is no {{role, content}} with two texts")
    if more := [
        key for key, value in message.items() if key not in ("role", "content") and value not in (None, [], {})
    ]:
        raise ValueError(
            f"`{source.prompt}` has a message with {', '.join(f'`{key}`' for key in more)}, which no template would be "
            "given; write it into the content"
        )
    return {"role": message["role"], "content": message["content"]}


def _text(source: Source, column: str, row: Mapping[str, Any], *, lines: bool) -> str:
    """A cell as text: numbers as they are written; a list of texts (of tests) as lines."""
    value = row[column]
    if lines and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if isinstance(value, float) and abs(value) >= WHOLE:
        raise ValueError(f"`{column}` is {value!r}, a number that was rounded as it was read; write it as text")
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


def _usable(source: Source, table: datasets.Dataset, split: str, domain: str) -> dict[str, Usable]:
    """The rows of ``domain`` by canonical prompt; of rows with one prompt and one gold answer, the first."""
    usable: dict[str, Usable] = {}
    golds: dict[str, int] = {}
    problems: list[str] = []
    domains: dict[str, None] = {}
    shown = False
    for number, cells in enumerate(_rows(source, table)):
        if source.domain is not None:
            domains[str(cells[source.domain])] = None
            if str(cells[source.domain]) != domain:
                continue
        try:
            row = parse_row(source, cells)
            shown = shown or source.verifier != "choice" or _shows_option(row)
            key, gold = row.canonical, hash(" ".join(row.gold.split()))
            if key not in usable:
                usable[key], golds[key] = Usable(number), gold
            elif gold != golds[key]:
                first = parse_row(source, table[usable[key].first])
                # Unit tests are no answers, so two are different by their text.
                if source.verifier == "python_tests" or not any(verify_many(source.verifier, [first.gold], [row.gold])):
                    if source.several_golds == "refuse":
                        raise ValueError(
                            f"`{source.answer}` is {_short(row.gold)}, and row {usable[key].first}, which has the same "
                            f"prompt, has {_short(first.gold)}; take one out, or set `several_golds: any` where each "
                            "is right"
                        )
                    usable[key] = Usable(usable[key].first, (*usable[key].others, number))
        except ValueError as error:
            problems.append(f"dataset {source.path!r}, split {split!r}, row {number}: {error}")
    if problems:
        more = len(problems) - LISTED_PROBLEMS
        raise UserError(*problems[:LISTED_PROBLEMS], *([f"... and {more} more rows like these"] if more > 0 else []))
    if usable and not shown:
        raise UserError(
            f"dataset {source.path!r}, split {split!r}: no `{source.prompt}` shows the option that its "
            f"`{source.answer}` names, so an answer is a guess; write the options into the prompts, with letters"
        )
    if not usable and source.domain is not None:
        raise UserError(
            f"dataset {source.path!r}, split {split!r}, has no row whose {source.domain!r} is {domain!r}; it has "
            f"{_short(list(domains))[1:-1] or 'no rows'}; name the domain of the recipe as the column does"
        )
    return usable


def _rows(source: Source, table: datasets.Dataset) -> Iterator[Mapping[str, Any]]:
    columns = dict.fromkeys(c for c in (source.prompt, source.answer, source.tests, source.domain) if c is not None)
    try:
        yield from table.select_columns(list(columns))  # pyright: ignore[reportReturnType]  (rows of a table are mappings)
    except UnicodeDecodeError as error:
        raise UserError(f"dataset {source.path!r} is not written in UTF-8, so it can't be read ({error})") from error
