"""What a run costs: tokens, floating-point operations, seconds and shipped bytes of each role.

Every step's row of metrics.jsonl has ``tokens/ROLE``, ``flops/ROLE``, ``seconds/ROLE`` and ``bytes/ROLE``, and
:func:`ledger_from_rows` adds up those rows.
So a resumed run, whose rows are cut back to its checkpoint, counts every step once. Time that was lost with a killed
process is in none.

FLOPs are those the model needs (one multiplication and one addition are two), not those a machine did: padding,
and recomputed activations are left out. Seconds are wall clock of the loop, whose roles take turns; starting processes,
saving and exporting are left out. A teacher's seconds are its own processes', added up: they work while the loop
generates or waits, so no total includes them. What a lost process did of a microbatch is in none.
Stages may run side by side: the total of a run that includes theirs is longer than their part of it took.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mopd.distill.storage import write_atomic
from mopd.distill.tracking.jsonl import read_jsonl

ROLES: dict[str, str] = {
    "publish": "handing the student's weights to the sampler",
    "generation": "the student writes rollouts; tokens: written",
    "scoring": "the loop waits for grades: of teachers, and of verifiers where they reward",
    "teacher": "a teacher scores rollouts in its own processes (teacher/NAME); tokens: scored, prompts included; "
    "bytes: of the payloads that it ships to the student",
    "update": "forward and backward; tokens: trained",
    "evaluation": "base, teachers and student answer held-out prompts, and are verified; tokens: written",
    "other": "the part of a step that is none of these",
}
"""Who spends. A stage's roles are ``stage/NAME/ROLE``."""

UNITS = ("tokens", "flops", "seconds", "bytes")

_ROLE = re.compile(rf"(?:stage/[^/]+/)?(?:{'|'.join(ROLES)})(?:/[^/]+)?")


@dataclass(slots=True)
class Spent:
    """An amount: tokens, floating-point operations, seconds of wall clock, bytes between processes."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """The sum of both."""
        return Spent(*(getattr(self, unit) + getattr(other, unit) for unit in UNITS))


class Ledger:
    """Adds up what each role spends."""

    def __init__(self) -> None:
        self._spent: dict[str, Spent] = {}

    @property
    def spent(self) -> Mapping[str, Spent]:
        """All that was added, by role, in order of first appearance."""
        return self._spent

    def add(self, role: str, *, tokens: float = 0, flops: float = 0, seconds: float = 0, bytes: float = 0) -> None:
        """Add to a role.

        Raises:
            ValueError: a role outside :data:`ROLES`, or an amount that is negative or no number.
        """
        if not _ROLE.fullmatch(role):
            raise ValueError(f"{role!r} is no role of the ledger; roles are {', '.join(ROLES)}, or stage/NAME/ROLE")
        amount = Spent(float(tokens), float(flops), float(seconds), float(bytes))
        for unit in UNITS:
            value = getattr(amount, unit)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{role} spent {value} {unit}; a finite amount of at least 0 is needed")
        self._spent[role] = self._spent.get(role, Spent()).plus(amount)

    def include(self, other: Ledger, *, stage: str) -> None:
        """Add a stage's ledger under ``stage/NAME/``."""
        for role, spent in other.spent.items():
            self.add(f"stage/{stage}/{role}", **asdict(spent))

    def record(self) -> dict[str, Any]:
        """The content of ledger.json: ``{"format": 1, "roles": {ROLE: amounts}, "total": {"flops", "seconds"}}``.

        Amounts are ``{"tokens", "flops", "seconds"}``, and ``"bytes"`` of who ships any. Tokens have no total: one
        token is written, scored and trained.
        """
        roles = {role: _amounts(spent) for role, spent in self._spent.items()}
        return {"format": 1, "roles": roles, "total": total_of(self._spent)}

    def write(self, path: Path) -> None:
        """Write ledger.json; a reader sees the old file or the new one, never half of one."""
        write_atomic(path, json.dumps(self.record(), indent=2) + "\n")


def _amounts(spent: Spent) -> dict[str, float]:
    amounts: dict[str, float] = {
        "tokens": round(spent.tokens),
        "flops": spent.flops,
        "seconds": round(spent.seconds, 3),
    }
    return amounts | ({"bytes": round(spent.bytes)} if spent.bytes else {})


def read_ledger(path: Path) -> Ledger:
    """A ledger from its ledger.json."""
    ledger = Ledger()
    for role, amounts in json.loads(path.read_text())["roles"].items():
        ledger.add(role, **amounts)
    return ledger


def ledger_from_rows(rows: Iterable[Mapping[str, Any]]) -> Ledger:
    """The ledger of a run from its metrics.jsonl; metrics that are no role's (``seconds/step``) are left."""
    ledger = Ledger()
    for row in rows:
        for name, value in row.items():
            unit, _, role = name.partition("/")
            if unit in UNITS and _ROLE.fullmatch(role):
                # A difference of clocks may be a hair below 0, and what was not finite is null.
                ledger.add(role, **{unit: max(0.0, value or 0.0)})
    return ledger


def ledger_of(folder: Path) -> Ledger:
    """What the steps and the exams of a run's or a stage's folder cost, without those of its stages."""
    ledger = ledger_from_rows(read_jsonl(folder / "metrics.jsonl"))
    for row in read_jsonl(folder / "exams.jsonl"):
        ledger.add("evaluation", tokens=row["tokens"], flops=row["flops"], seconds=row["seconds"])
    return ledger


def total_of(spent: Mapping[str, Spent]) -> dict[str, float]:
    """FLOPs and seconds of roles, ``{"flops": ..., "seconds": ...}``; teachers' seconds go by beside the loop's."""
    seconds = sum(amount.seconds for role, amount in spent.items() if "teacher" not in role.split("/"))
    return {"flops": sum(amount.flops for amount in spent.values()), "seconds": round(seconds, 3)}
