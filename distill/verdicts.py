"""Scores of answers that no verifier looked at: 0, with the reason, so that they can be counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
