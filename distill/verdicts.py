"""Verdicts that say more than a score: on answers that no verifier looked at, and on conversations with environments.

The former are 0, with the reason, so that they can be counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Unjudged: TypeAlias = Literal["no_answer", "refused"]
"""no_answer: the thought was cut off, or what the answer comes after is missing; refused: by the sandbox."""


class UnjudgedScore(float):
    """A score of 0, and why no verifier looked at the answer. Wherever a score is read, it is a plain 0.

    Attributes:
        kind: see :data:`Unjudged`.
        reason: for people.
    """

    kind: Unjudged
    reason: str

    def __new__(cls, kind: Unjudged, reason: str) -> UnjudgedScore:
        """A score of 0 for that reason."""
        score = super().__new__(cls, 0.0)
        score.kind, score.reason = kind, reason
        return score

    def __reduce__(self) -> tuple[Any, ...]:
        return UnjudgedScore, (self.kind, self.reason)


def unjudged(scores: Iterable[float], kind: Unjudged) -> list[str]:
    """The reasons of the scores of one kind, in their order."""
    return [score.reason for score in scores if isinstance(score, UnjudgedScore) and score.kind == kind]


def unjudged_counts(scores: Sequence[float], domain: str) -> dict[str, float]:
    """``no_answer/DOMAIN`` and ``refused/DOMAIN``: answers, each where there is any."""
    counts = {kind: len(unjudged(scores, kind)) for kind in ("no_answer", "refused")}
    return {f"{kind}/{domain}": float(count) for kind, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """What became of a conversation with an environment.

    Attributes:
        reward: the environment's verdict, 0..1; 0 where a limit ended it.
        ended: ``done``, by the environment; ``turns``, ``tokens``, by a limit; ``failed``, where the environment did.
        turns: messages that the model wrote.
        tool_calls: in them.
        tool_errors: calls that failed, or could not be read.
        failed_first: whether the environment told the model before the end that what it did had failed.
        failures: why earlier attempts at it failed, each in a word.

    Example:
        ``EpisodeRecord(1.0, "done", turns=3, tool_calls=2, tool_errors=0, failed_first=True)``: solved after a failure.
    """

    reward: float
    ended: Literal["done", "turns", "tokens", "failed"]
    turns: int
    tool_calls: int = 0
    tool_errors: int = 0
    failed_first: bool = False
    failures: tuple[str, ...] = ()


PER_MINUTE = ("turns_per_minute", "tool_calls_per_minute", "solved_per_minute")
"""What evaluations with episodes measure of their pace; see :func:`distill.metrics.episodes.pace`."""


def paces(exams: Iterable[Mapping[str, Any]], split: str) -> dict[str, dict[str, float]]:
    """Model -> its :data:`PER_MINUTE` at its last evaluation on a split, of rows of exams.jsonl; absent where none."""
    last = {row["model"]: row for row in exams if row.get("split") == split and PER_MINUTE[0] in row}
    return {model: {name: row[name] for name in PER_MINUTE} for model, row in last.items()}
