"""What a student gets wrong: its answers beside those of base and teacher; first those that it lost to the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mopd.distill.tracking.answers import answers_path, exam_files, read_answers

AnswerKind: TypeAlias = Literal["lost", "missed", "neither", "right"]
"""lost: the base scores more; missed: its teacher does; neither does, and it is wrong; right: nothing is wrong."""
KINDS: dict[AnswerKind, str] = {
    "lost": "lost: the base scores more",
    "missed": "missed: its teacher scores more",
    "neither": "wrong, and base and teacher too",
}
RANKS: tuple[AnswerKind, ...] = (*KINDS, "right")
"""In this order."""
INLINE = 30
"""Questions that a page shows; ``mopd answers`` has the others."""
LONGEST = 1500
"""Letters of a text that a page shows."""


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """What a model wrote.

    Attributes:
        who: base, a teacher's name, student, or the name of a compared run.
        verdict: 0..1.
        why: no verifier looked at it, for this reason; empty where one did.
    """

    who: str
    text: str
    verdict: float
    why: str

    @property
    def right(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.verdict >= 1.0


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question with what was written to it: by the base, the domain's teacher, and those that learned, in order."""

    kind: AnswerKind
    domain: str
    prompt_id: str
    prompt: str
    gold: str
    answers: Sequence[GivenAnswer]


@dataclass(frozen=True, slots=True)
class WrongCount:
    """How many questions of a domain were asked, and how many were answered wrongly, by kind."""

    domain: str
    asked: int
    lost: int
    missed: int
    neither: int

    @property
    def wrong(self) -> int:
        """All of them."""
        return self.lost + self.missed + self.neither


@dataclass(frozen=True, slots=True)
class WrongAnswers:
    """What a page shows of wrong answers.

    Attributes:
        counts: of each domain that was asked.
        examples: the first :data:`INLINE` questions.
        total: of all wrong answers.
    """

    split: str
    step: int
    counts: Sequence[WrongCount]
    examples: Sequence[AskedQuestion]
    total: int


def last_exam(run: Path, split: str) -> int | None:
    """The step that the student's last exam on a split was at; None where none was kept."""
    return max((step for _, model, step, of in exam_files(run) if (model, of) == ("student", split)), default=None)


def greedy_answers(
    run: Path, model: str, step: int, split: str, domains: Sequence[str] = ()
) -> dict[tuple[str, str], dict[str, Any]]:
    """The greedy answers of an exam by domain and question, of all domains unless some are named."""
    only = [("sample", "==", 0), *([("domain", "in", list(domains))] if domains else [])]
    return {(row["domain"], row["prompt_id"]): row for row in read_answers(answers_path(run, model, step, split), only)}


def asked_questions(
    run: Path, teachers: Mapping[str, Mapping[str, float]], *, split: str, step: int
) -> list[AskedQuestion]:
    """Every question of an exam of the student: lost ones first, of each kind one of every domain in turn.

    Args:
        teachers: domain -> its teachers with their weights; the answers of the heaviest are shown.
    """
    student, base = greedy_answers(run, "student", step, split), greedy_answers(run, "base", 0, split)
    heaviest = {domain: max(weights, key=lambda name: weights[name]) for domain, weights in teachers.items() if weights}
    taught = {name: [d for d, of in heaviest.items() if of == name] for name in heaviest.values()}
    written = {name: greedy_answers(run, f"teachers/{name}", 0, split, of) for name, of in taught.items()}
    questions: list[AskedQuestion] = []
    for asked, row in student.items():
        teacher = heaviest.get(row["domain"], "")
        best = written.get(teacher, {}).get(asked)
        rows = {"base": base.get(asked), f"teacher {teacher}": best, "student": row}
        answers = [_given(who, answer) for who, answer in rows.items() if answer is not None]
        kind = _kind(row, base.get(asked), best)
        questions.append(AskedQuestion(kind, *asked, row["prompt"], row["gold"], answers))
    return in_turn(questions)


def in_turn(questions: Sequence[AskedQuestion]) -> list[AskedQuestion]:
    """Questions by kind, and of each kind one of every domain in turn."""
    seen = Counter[tuple[str, str]]()
    keyed: list[tuple[int, int, int, AskedQuestion]] = []
    for place, question in enumerate(questions):
        group = (question.kind, question.domain)
        keyed.append((RANKS.index(question.kind), seen[group], place, question))
        seen[group] += 1
    return [question for *_, question in sorted(keyed, key=lambda key: key[:3])]


def _kind(student: Mapping[str, Any], base: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None) -> AnswerKind:
    if student["verdict"] >= 1.0:
        return "right"
    if base is not None and base["verdict"] > student["verdict"]:
        return "lost"
    return "missed" if teacher is not None and teacher["verdict"] > student["verdict"] else "neither"


def _given(who: str, row: Mapping[str, Any]) -> GivenAnswer:
    return GivenAnswer(who, row["text"], row["verdict"], row["reason"] or row["unjudged"])


def counted(questions: Sequence[AskedQuestion]) -> list[WrongCount]:
    """How many questions of each domain are of each kind, in the order of the domains' first questions."""
    kinds = Counter((question.domain, question.kind) for question in questions)
    domains = dict.fromkeys(question.domain for question in questions)
    return [
        WrongCount(
            domain,
            sum(n for (of, _), n in kinds.items() if of == domain),
            *(kinds[domain, kind] for kind in KINDS),
        )
        for domain in domains
    ]


def wrong_answers(
    run: Path, teachers: Mapping[str, Mapping[str, float]], *, split: str, domains: Sequence[str]
) -> WrongAnswers | None:
    """What a run's student gets wrong on a split, for its page; None where its answers were not kept.

    Args:
        domains: in the order in which they are shown.
    """
    step = last_exam(run, split)
    if step is None:
        return None
    questions = asked_questions(run, teachers, split=split, step=step)
    wrong = [question for question in questions if question.kind != "right"]
    counts = sorted(counted(questions), key=lambda count: domains.index(count.domain))
    return WrongAnswers(split, step, counts, wrong[:INLINE], len(wrong))


def shown(text: str) -> str:
    """A text as a page shows it: what is left out is said."""
    more = len(text) - LONGEST
    return text if more <= 0 else f"{text[:LONGEST]} […] {more:,} more letters"
