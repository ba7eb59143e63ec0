"""The corpus of labelled answers, and the rates of each verifier on it.

``verdicts.jsonl`` has a pair a line: ``gold``, ``text`` (what a model wrote) and ``right``, 1 where a careful reader
would give the mark and 0 where not. ``part`` says when a pair was written: ``given`` are cases of people's reports,
``before`` was written before the verifiers were mended and is never edited, ``after`` came later. A pair over which
careful readers would disagree is left out. Run as a program, this file prints the table of docs/verifiers.md and every
pair that is judged wrongly.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mopd.rollouts.verifiers import verify_many

CORPUS = Path(__file__).parent / "rollouts" / "verdicts.jsonl"


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """An answer with the verdict that it deserves."""

    id: str
    verifier: str
    kind: str
    gold: str
    text: str
    right: int
    part: str


@dataclass(frozen=True, slots=True)
class Rates:
    """The errors of a verifier: ids of wrong answers that it accepts, and of right ones that it refuses."""

    wrong: int
    right: int
    false_positives: tuple[str, ...]
    false_negatives: tuple[str, ...]

    @property
    def false_positive_rate(self) -> float:
        return len(self.false_positives) / max(1, self.wrong)

    @property
    def false_negative_rate(self) -> float:
        return len(self.false_negatives) / max(1, self.right)


def labelled_pairs() -> list[LabelledPair]:
    """Every pair of the corpus."""
    return [LabelledPair(**json.loads(line)) for line in CORPUS.read_text().splitlines()]


def verdicts(pairs: Sequence[LabelledPair]) -> dict[str, float]:
    """The verdict on each pair by its id."""
    by_verifier: dict[str, list[LabelledPair]] = defaultdict(list)
    for pair in pairs:
        by_verifier[pair.verifier].append(pair)
    scores: dict[str, float] = {}
    for verifier, group in by_verifier.items():
        got = verify_many(verifier, [pair.gold for pair in group], [pair.text for pair in group])
        scores |= dict(zip([pair.id for pair in group], got, strict=True))
    return scores


def rates(pairs: Sequence[LabelledPair], scores: dict[str, float]) -> Rates:
    """The errors in ``scores`` on ``pairs``."""
    return Rates(
        wrong=sum(not pair.right for pair in pairs),
        right=sum(pair.right for pair in pairs),
        false_positives=tuple(pair.id for pair in pairs if scores[pair.id] and not pair.right),
        false_negatives=tuple(pair.id for pair in pairs if pair.right and not scores[pair.id]),
    )


def table(pairs: Sequence[LabelledPair], scores: dict[str, float]) -> list[str]:
    """Rows of markdown: verifier, part, wrong answers accepted, right answers refused."""
    groups: dict[tuple[str, str], list[LabelledPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.verifier, pair.part].append(pair)
    lines = ["| verifier | part | false positives | false negatives |", "|---|---|---|---|"]
    for (verifier, part), group in sorted(groups.items()):
        errors = rates(group, scores)
        cells = (
            f"{len(bad)} of {count} ({len(bad) / max(1, count):.1%})"
            for bad, count in ((errors.false_positives, errors.wrong), (errors.false_negatives, errors.right))
        )
        lines.append(f"| {verifier} | {part} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    everything = labelled_pairs()
    scored = verdicts(everything)
    print("\n".join(table(everything, scored)))
    for labelled in everything:
        if scored[labelled.id] != labelled.right:
            print(labelled)
