"""What `mopd answers` shows: what a student was asked and wrote, beside base and teacher, searched and exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mopd.distill.errors import UserError
from mopd.distill.recipe.messages import guess
from mopd.distill.tracking.answers import exam_files, write_parquet
from mopd.recipes.report.records import reading, recorded_recipe
from mopd.recipes.report.wrong import KINDS, RANKS, AskedQuestion, asked_questions, counted
from mopd.recipes.tables import Fitted


@dataclass(frozen=True, slots=True)
class AnswerFilter:
    """Which answers are wanted.

    Attributes:
        domains: empty for all.
        kind: a key of :data:`~mopd.recipes.report.wrong.KINDS` or ``right``; None for all that are wrong.
        search: text in the question, the gold answer or an answer, whatever its case; empty for any.
        everything: right answers, too.
    """

    domains: Sequence[str]
    kind: str | None
    search: str
    everything: bool

    def takes(self, question: AskedQuestion) -> bool:
        """Whether a question is wanted."""
        if self.domains and question.domain not in self.domains:
            return False
        if question.kind != self.kind if self.kind else question.kind == "right" and not self.everything:
            return False
        texts = (question.prompt, question.gold, *(answer.text for answer in question.answers))
        return any(self.search.lower() in text.lower() for text in texts)


def show_answers(
    run: Path,
    wanted: AnswerFilter,
    console: Console,
    *,
    split: str | None,
    step: int | None,
    limit: int,
    out: Path | None,
) -> dict[str, Any]:
    """Print a student's answers, lost ones first; returns all that are wanted as plain values.

    Args:
        split: test where the student was tested, else validation, unless given.
        step: of the student's exam; the last unless given.
        limit: questions that are printed.
        out: a Parquet file for all of them.

    Raises:
        UserError: the run kept no such answers, or what is asked for is not there.
    """
    with reading(run):
        recipe = recorded_recipe(run)
        split, step = _exam(run, split, step)
        questions = asked_questions(run, recipe.teacher_weights, split=split, step=step)
    unknown = [name for name in wanted.domains if name not in recipe.domains]
    if unknown:
        raise UserError(*(f"--domain: no domain is called {name!r}; {guess(name, recipe.domains)}" for name in unknown))
    if wanted.kind is not None and wanted.kind not in RANKS:
        raise UserError(f"--kind: {wanted.kind!r} is unknown; {guess(wanted.kind, RANKS)}")
    chosen = [question for question in questions if wanted.takes(question)]
    _print(chosen[:limit], console)
    _print_counts(questions, console)
    console.print(
        Text(f"{min(limit, len(chosen))} of {len(chosen)} shown; {split} questions, student after step {step}"),
        soft_wrap=True,
    )
    if out is not None:
        _export(chosen, out)
        console.print(Text(f"all of them: {out}"), soft_wrap=True)
    return {
        "format": 1,
        "split": split,
        "step": step,
        "counts": [asdict(count) for count in counted(questions)],
        "questions": [asdict(question) for question in chosen],
    }


def _exam(run: Path, split: str | None, step: int | None) -> tuple[str, int]:
    kept = [(of, at) for _, model, at, of in exam_files(run) if model == "student"]
    if not kept:
        raise UserError(
            f"{run} has no answers of its student: it has not been measured yet, or by an earlier version of mopd"
        )
    chosen = split or ("test" if any(of == "test" for of, _ in kept) else "validation")
    steps = [at for of, at in kept if of == chosen]
    if not steps or (step is not None and step not in steps):
        exams = ", ".join(f"{of} after step {at}" for of, at in kept)
        raise UserError(f"{run} has no such answers; what it kept: {exams}")
    return chosen, max(steps) if step is None else step


def _print(questions: Sequence[AskedQuestion], console: Console) -> None:
    for question in questions:
        kind = KINDS.get(question.kind, "right")
        console.print(Text.assemble((question.domain, "bold"), (f"  {kind}  {question.prompt_id}", "dim")))
        console.print(Text(question.prompt), soft_wrap=True)
        console.print(Text.assemble(("right: ", "dim"), question.gold), soft_wrap=True)
        for answer in question.answers:
            mark = ("✓", "green") if answer.right else ("✗", "red")
            why = (f"  ({answer.why})", "yellow") if answer.why else ""
            console.print(Text.assemble(mark, (f" {answer.who}: ", "dim"), answer.text, why), soft_wrap=True)
        console.print()


def _print_counts(questions: Sequence[AskedQuestion], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("domain", "asked", "wrong", "lost", "missed", "neither"):
        table.add_column(heading, justify="left" if heading == "domain" else "right", no_wrap=True)
    for count in counted(questions):
        cells = (count.asked, count.wrong, count.lost, count.missed, count.neither)
        table.add_row(count.domain, *map(str, cells))
    console.print(Fitted(table))


def _export(questions: Sequence[AskedQuestion], out: Path) -> None:
    """Questions as a Parquet file: a row each, with text and verdict of base, teacher and student."""
    rows: list[dict[str, Any]] = []
    for question in questions:
        row: dict[str, Any] = {
            name: getattr(question, name) for name in ("kind", "domain", "prompt_id", "prompt", "gold")
        }
        for answer in question.answers:
            who = answer.who.partition(" ")[0]
            row |= {f"{who}_text": answer.text, f"{who}_verdict": answer.verdict, f"{who}_why": answer.why}
            row |= {"teacher": answer.who.partition(" ")[2]} if who == "teacher" else {}
        rows.append(row)
    types = dict.fromkeys(("kind", "domain", "prompt_id", "prompt", "gold", "teacher"), "string")
    for who in ("base", "teacher", "student"):
        types |= {f"{who}_text": "string", f"{who}_verdict": "float64", f"{who}_why": "string"}
    try:
        write_parquet(out, rows, types)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror or error}; name another file") from error
