"""The rows of a `datasets` source: read, checked, and dealt out to train, validation and test without overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mopd.distill.recipe import Source
from mopd.distill.recipe.plugins import load_plugin, own_code
from mopd.distill.recipe.source import RUNS_PROGRAMS
from mopd.distill.types import UserError
from mopd.rollouts.tasks.base import TaskSplit, content_hash, split_of
from mopd.rollouts.tasks.row_meaning import (
    Problem,
    domain_of,
    has_value,
    named_columns,
    read_row,
    short,
    shows_letters,
)
from mopd.rollouts.tasks.tables import Cells, RowTable, load
from mopd.rollouts.verifiers import verify_many

LISTED_PROBLEMS = 3
"""Rows that a refusal names, of all that it counts."""
CALL_SECONDS = 60.0
"""That a user's own function may take for a row."""
CHOICE_PROBED = 100
"""Rows of verifier choice that are asked whether they show their options."""


@dataclass(frozen=True, slots=True)
class RowsReport:
    """What became of the rows of one split of a dataset.

    Attributes:
        version: the commit that was resolved, or a hash of the content.
        rows: that were read.
        chosen: of the domain, after `filter`, `row` and `limit`.
        refused: that can't be used, each with its number and why.
    """

    split: str
    version: str
    rows: int
    chosen: int
    refused: tuple[tuple[int, str], ...] = ()


class Reader:
    """Rows of a table as problems: the user's own function first, then what the settings say."""

    def __init__(self, source: Source, *, domain: str) -> None:
        self._source, self._where = source, f"domains.{domain}.task.row"
        self._own: Callable[[Cells], Any] | None = None
        if source.row is not None:
            self._own = load_plugin(source.row, where=self._where)
            if not callable(self._own):
                raise UserError(
                    f"`{self._where}`: {source.row} is no function; it takes a row and returns one, or None"
                )

    def cells(self, table: RowTable, number: int) -> Cells | None:
        """The columns of a row, after the user's own function; None where that leaves the row out.

        Raises:
            ValueError: the function raises, or returns no columns.
        """
        row = table[number]
        if self._own is None:
            return row
        try:
            with own_code(f"`row` {self._source.row}", seconds=CALL_SECONDS):
                made = self._own(dict(row))
        except UserError as error:
            raise ValueError(str(error)) from error
        if made is not None and not isinstance(made, Mapping):
            raise ValueError(f"`row` {self._source.row} returns {short(made)}, and must return columns, or None")
        return None if made is None else dict(made)

    def problem(self, table: RowTable, number: int) -> Problem:
        """A row that is in use."""
        cells = self.cells(table, number)
        if cells is None:
            raise UserError(f"`{self._where}`: {self._source.row} left row {number} out, and kept it before")
        return read_row(self._source, cells)


@dataclass(slots=True)
class Usable:
    """The rows of one prompt: the number of the first, and of those after it that have another gold answer.

    Attributes:
        hashed_split: where the prompt belongs by its content.
        gold: a hash of the first row's gold answer.
    """

    first: int
    hashed_split: TaskSplit
    gold: str
    others: list[int] = field(default_factory=list)


class DatasetRows:
    """Some rows of a table, read when they are asked for.

    Attributes:
        keys: of their prompts, see :func:`rollouts.tasks.base.content_hash`.
    """

    def __init__(self, table: RowTable, rows: Mapping[str, Usable], reader: Reader) -> None:
        self._table, self._reader = table, reader
        self._rows = list(rows.values())
        self.keys = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Problem:
        return self._reader.problem(self._table, self._rows[place].first)

    def golds(self, place: int) -> list[str]:
        """Whatever is right as an answer, or the unit tests of which any may be passed."""
        rows = self._rows[place]
        problems = [self._reader.problem(self._table, number) for number in (rows.first, *rows.others)]
        return [gold for problem in problems for gold in (problem.golds if problem.tests is None else (problem.tests,))]

    def cells(self, place: int) -> Cells:
        """The columns of a row, for a verifier of a user's own."""
        return self._reader.cells(self._table, self._rows[place].first) or {}


@dataclass(frozen=True, slots=True)
class SplitRows:
    """All that is read of a source: its rows by split, the shots, and what became of each row."""

    splits: dict[str, DatasetRows]
    shots: tuple[Problem, ...]
    reports: tuple[RowsReport, ...]


Check: TypeAlias = Callable[[Problem], None]
"""Raises a ValueError where the student's chat template refuses a problem."""
MakeCheck: TypeAlias = Callable[[tuple[Problem, ...]], Check]
"""Of the shots, what checks a problem."""


def read_splits(source: Source, make_check: MakeCheck, *, domain: str) -> SplitRows:
    """The rows of train, validation and test: of ``domain``, each prompt once, no prompt in two splits.

    A held-out split that the source names is that one; the others are held out of the training split by a hash of the
    prompt's content (20% test, 10% validation). What a held-out split has, training leaves out, named or not.

    Raises:
        UserError: the source can't be read, lacks a column or a split, has rows that can't be used and more of them
            than ``drop_refused`` allows, or no row at all for one of the three.
    """
    named = {"test": source.test_split, "validation": source.validation_split, "train": source.split}
    given = [name for name in named.values() if name is not None]
    if len(set(given)) < len(given):
        raise UserError(
            f"dataset {source.path!r}: two of its splits are the same ({', '.join(given)}); name others, or none"
        )
    reader = Reader(source, domain=domain)
    tables = {name: load(source, name) for name in given}
    if source.row is None:
        _require_columns(source, next(iter(tables.values())))
    shots = _shots(source, reader, tables, domain)
    taken = {content_hash(shot.canonical) for shot in shots}
    check = make_check(shots)
    picks = {name: _pick(source, reader, table, check, domain, name) for name, table in tables.items()}
    reports = tuple(pick.report() for pick in picks.values())
    refuse_many(source, reports)
    splits: dict[str, DatasetRows] = {}
    for split, name in named.items():
        rows = picks[name or source.split].usable.items()
        kept = {key: row for key, row in rows if key not in taken and (name is not None or row.hashed_split == split)}
        if not kept:
            raise UserError(
                f"dataset {source.path!r} has {len(rows)} usable rows of domain {domain!r} in split "
                f"{name or source.split!r}, and none is left for {split}; give it more rows, or name "
                f"splits that share no prompts"
            )
        taken |= kept.keys()
        splits[split] = DatasetRows(tables[name or source.split], kept, reader)
    return SplitRows(splits, shots, reports)


@dataclass(slots=True)
class _Pick:
    """What is taken of a split, by key of the prompt, and what is wrong with the rest of it."""

    split: str
    table: RowTable
    chosen: int = 0
    usable: dict[str, Usable] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    others: list[tuple[int, int, str]] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)

    def report(self) -> RowsReport:
        """For people and for the run's folder."""
        refused = tuple(sorted(self.refused.items()))
        return RowsReport(self.split, self.table.version, len(self.table), self.chosen, refused)


def _chosen(
    source: Source, reader: Reader, table: RowTable, domain: str, split: str
) -> Iterator[tuple[int, Problem | ValueError]]:
    """The rows of ``domain`` that the filter and the user's own function keep, up to the limit, or what is wrong."""
    domains: dict[str, None] = {}
    limit = source.limit if split == source.split else None
    chosen = 0
    for number in range(len(table)):
        if limit is not None and chosen >= limit:
            return
        try:
            cells = reader.cells(table, number)
            if cells is None or not all(has_value(cells, *wanted) for wanted in source.filter.items()):
                continue
            if source.domain is not None:
                name = domain_of(cells, source.domain)
                domains[name] = None
                if name != domain:
                    continue
            chosen += 1
            problem = read_row(source, cells)
        except ValueError as error:
            chosen += 1
            yield number, error
        else:
            yield number, problem
    if not chosen:
        _nothing_chosen(source, split, domain, list(domains), len(table))


def _nothing_chosen(source: Source, split: str, domain: str, domains: list[str], rows: int) -> None:
    where = f"dataset {source.path!r}, split {split!r},"
    if source.domain is not None and domains:
        raise UserError(
            f"{where} has no row whose {source.domain!r} is {domain!r}; it has {short(domains)[1:-1] or 'no rows'}; "
            "name the domain of the recipe as the column does"
        )
    if rows and (source.filter or source.row is not None):
        leaf = "filter" if source.filter else "row"
        raise UserError(f"{where} has {rows} rows, and `{leaf}` keeps none of them; fix `{leaf}`")


def _shots(source: Source, reader: Reader, tables: Mapping[str, RowTable], domain: str) -> tuple[Problem, ...]:
    """The rows that are shown with their answers; nothing else may ask what they do."""
    where = f"dataset {source.path!r}"
    shots: dict[str, Problem] = {}
    for number, row in enumerate(source.shot_rows):
        try:
            shot = read_row(source, row)
        except ValueError as error:
            raise UserError(f"{where}: `shot_rows[{number}]` {error}") from error
        shots[shot.canonical] = shot
    if source.shots:
        split = source.shots_split or source.split
        table = tables[split] if split in tables else load(source, split)
        for _, problem in _chosen(source, reader, table, domain, split):
            if len(shots) == source.shots:
                break
            if isinstance(problem, Problem):  # others are refused with the rest
                shots.setdefault(problem.canonical, problem)
        if len(shots) < source.shots:
            raise UserError(f"{where}, split {split!r}, has {len(shots)} usable rows, and `shots` is {source.shots}")
    answerless = source.verifier in RUNS_PROGRAMS and (source.tests is None or source.answer is None)
    if any(answerless or not shot.answer for shot in shots.values()):
        raise UserError(
            f"{where}: shots are shown with their answers, and the rows have none; name their column as `answer`"
        )
    return tuple(shots.values())


def _pick(source: Source, reader: Reader, table: RowTable, check: Check, domain: str, split: str) -> _Pick:
    """The rows that can be used by the key of their prompt; of rows with one prompt and one gold answer, the first."""
    pick = _Pick(split, table)
    for number, problem in _chosen(source, reader, table, domain, split):
        pick.chosen += 1
        try:
            if isinstance(problem, ValueError):
                raise problem
            check(problem)
        except ValueError as error:
            pick.refused[number] = str(error)
            continue
        if source.verifier == "choice" and pick.chosen <= CHOICE_PROBED and not shows_letters(problem, source.suffix):
            pick.hidden.append(number)
        key, gold = content_hash(problem.canonical), content_hash(" ".join(problem.gold.split()))
        usable = pick.usable.setdefault(key, Usable(number, split_of(problem.canonical), gold))
        if gold != usable.gold:
            pick.others.append((usable.first, number, key))
    if len(pick.hidden) > min(pick.chosen, CHOICE_PROBED) / 2:
        _refuse_hidden_options(source, pick)
    _several_golds(source, reader, pick)
    return pick


def _several_golds(source: Source, reader: Reader, pick: _Pick) -> None:
    """Rows whose prompt another row has with another gold answer: kept together, or refused."""
    rows = [(reader.problem(pick.table, first), reader.problem(pick.table, n)) for first, n, _ in pick.others]
    same = [0.0] * len(rows)
    if rows and source.verifier in ("number", "choice", "math"):  # one answer, written in two ways
        boxed = [f"\\boxed{{{other.gold}}}" for _, other in rows]
        same = verify_many(source.verifier, [first.gold for first, _ in rows], boxed)
    for (first, number, key), (problem, other), equal in zip(pick.others, rows, same, strict=True):
        if equal:
            continue
        if source.several_golds == "any":
            pick.usable[key].others.append(number)
            continue
        column = source.answer if source.tests is None else source.tests
        for row, gold, twin, other_gold in (
            (first, problem.gold, number, other.gold),
            (number, other.gold, first, problem.gold),
        ):
            why = (
                f"`{column}` is {short(gold)}, and row {twin}, which has the same prompt, has {short(other_gold)}; "
                "take one out, or set `several_golds: any` where each is right"
            )
            pick.refused.setdefault(row, why)
        pick.usable.pop(key, None)


def _refuse_hidden_options(source: Source, pick: _Pick) -> None:
    """Without its options a question of several choices is a guess at a letter."""
    names = ", ".join(map(repr, pick.table.columns))
    raise UserError(
        f"dataset {source.path!r}, split {pick.split!r}: the options do not stand in `{source.prompt}` (in "
        f"{len(pick.hidden)} of the first {min(pick.chosen, CHOICE_PROBED)} rows, first in row {pick.hidden[0]}), so a "
        "letter would be a guess; name their column as `options` (and `answer_names`, where the answer is no letter); "
        f"the dataset has {names}"
    )


def refuse_many(source: Source, reports: Sequence[RowsReport]) -> None:
    """Refuse rows that can't be used, all at once; ``drop_refused`` leaves up to that part of them out.

    Raises:
        UserError: there are more of them.
    """
    refused = [(report, number, why) for report in reports for number, why in report.refused]
    chosen = sum(report.chosen for report in reports)
    if not refused or (source.drop_refused is not None and len(refused) <= source.drop_refused * chosen):
        return
    sentences = [
        f"dataset {source.path!r}, split {report.split!r}, row {number}: {why}"
        for report, number, why in refused[:LISTED_PROBLEMS]
    ]
    if len(refused) > LISTED_PROBLEMS:
        sentences.append(
            f"... and {len(refused) - LISTED_PROBLEMS} more rows like these, of {chosen}; `drop_refused` leaves out up "
            f"to the part of the rows that it says"
            + ("" if source.drop_refused is None else f", {source.drop_refused}")
        )
    raise UserError(*sentences)


def left_out_rows(source: Source, reports: Sequence[RowsReport]) -> list[str]:
    """The rows that ``drop_refused`` leaves out, a sentence a split."""
    sentences = []
    for report in [report for report in reports if report.refused]:
        shown = "; ".join(f"row {number}: {why}" for number, why in report.refused[:3])
        more = len(report.refused) - 3
        sentences.append(
            f"dataset {source.path!r}, split {report.split!r}: {len(report.refused)} of {report.chosen} rows are left "
            f"out (`drop_refused`): {shown}{f'; and {more} more' if more > 0 else ''}"
        )
    return sentences


def _require_columns(source: Source, table: RowTable) -> None:
    problems = [
        f"dataset {source.path!r} has no column {path!r}; it has {', '.join(map(repr, table.columns))}; "
        f"set `{leaf}` to the one that holds the {leaf}"
        for leaf, paths in named_columns(source).items()
        for path in paths
        if path not in table.columns and path.split(".")[0] not in table.columns
    ]
    if problems:
        raise UserError(*problems)
