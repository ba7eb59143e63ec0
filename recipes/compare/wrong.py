"""What the rows of a comparison get wrong: the same questions, with what each row's first run wrote to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mopd.distill.metrics.evaluate import Split
from mopd.recipes.compare.comparison import ComparedRow, ComparedRun, Comparison
from mopd.recipes.report.records import recorded_recipe
from mopd.recipes.report.wrong import (
    INLINE,
    RANKS,
    AskedQuestion,
    WrongCount,
    asked_questions,
    counted,
    in_turn,
    last_exam,
)

BESIDE = 4
"""Rows whose answers are shown beside each other, at most: the first ones."""


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How often a row's first run is wrong, by domain."""

    name: str
    run: str
    counts: Mapping[str, WrongCount]


@dataclass(frozen=True, slots=True)
class ComparedAnswers:
    """What the page shows of wrong answers.

    Attributes:
        rows: that kept their answers, in the page's order.
        beside: names of those whose answers are shown.
        missing: names of the rows that kept none.
        examples: the first questions that one of those beside each other gets wrong.
        total: of all of these.
    """

    rows: Sequence[RowCounts]
    beside: Sequence[str]
    missing: Sequence[str]
    examples: Sequence[AskedQuestion]
    total: int


def compared_answers(comparison: Comparison, rows: Sequence[ComparedRow]) -> ComparedAnswers | None:
    """Wrong answers of the rows' first runs; None where no row kept its answers.

    Args:
        rows: in the order in which they are shown.
    """
    first: dict[str, ComparedRun] = {}
    for run in comparison.runs:
        first.setdefault(run.row, run)
    asked = {row.name: _asked(first[row.name], comparison.split) for row in rows}
    known = {name: questions for name, questions in asked.items() if questions}
    if not known:
        return None
    beside = list(known)[:BESIDE]
    merged = _merged({name: known[name] for name in beside})
    return ComparedAnswers(
        rows=[
            RowCounts(name, first[name].name, {count.domain: count for count in counted(questions)})
            for name, questions in known.items()
        ],
        beside=beside,
        missing=[name for name in asked if name not in known],
        examples=merged[:INLINE],
        total=len(merged),
    )


def _asked(run: ComparedRun, split: Split) -> list[AskedQuestion]:
    """Every question that a run's student was asked last; none where its answers were not kept."""
    folder = Path(run.folder)
    step = last_exam(folder, split)
    if step is None:
        return []
    return asked_questions(folder, recorded_recipe(folder).teacher_weights, split=split, step=step)


def _merged(asked: Mapping[str, Sequence[AskedQuestion]]) -> list[AskedQuestion]:
    """The questions that a row gets wrong, each with base and teacher of the row that has most to answer for."""
    by_id = {name: {(each.domain, each.prompt_id): each for each in questions} for name, questions in asked.items()}
    ids = dict.fromkeys(key for questions in by_id.values() for key in questions)
    merged: list[AskedQuestion] = []
    for key in ids:
        of_rows = {name: questions[key] for name, questions in by_id.items() if key in questions}
        worst = min(of_rows.values(), key=lambda question: RANKS.index(question.kind))
        if worst.kind == "right":
            continue
        others = [answer for answer in worst.answers if answer.who != "student"]
        written = [
            replace(answer, who=name)
            for name, question in of_rows.items()
            for answer in question.answers
            if answer.who == "student"
        ]
        merged.append(replace(worst, answers=[*others, *written]))
    return in_turn(merged)
