"""When a run ends before its last step: a rule that the recipe declares, a pure function of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mopd.distill.recipe import StopRecipe


def stop_reason(rule: StopRecipe, evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the run ends after the last of ``evaluations``, in words; None where it goes on.

    It ends where one and the same domain was beyond one and the same bound at each of the last ``rule.evaluations``
    ones. Step 0 is the base, which length is measured by and which never counts.

    Args:
        evaluations: rows of metrics.jsonl of kind ``eval``, in order.
    """
    rows = [row for row in evaluations if row["step"] > 0][-rule.evaluations :]  # not per token
    if len(rows) < rule.evaluations:
        return None
    above = {"held_out_kl": rule.kl, "truncation": rule.truncation, "repetition": rule.repetition}
    for name, bound in above.items():
        for key, values in _series(rows, name):
            if bound is not None and min(values) > bound:
                return _message(key, values, f"above {bound:g}", rows)
    start = next((row for row in evaluations if row["step"] == 0), None)
    if rule.length is not None and start is not None:
        for key, values in _series(rows, "length"):
            if max(values) < rule.length * start[key]:
                return _message(key, values, f"below {rule.length:g} of the base's {start[key]:.3g}", rows)
    return None


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, list[float]]]:
    """The values of a metric by domain, of domains that have one in every row; null is no number."""
    keys = [key for key in rows[0] if key.startswith(f"{name}/")]
    columns = [(key, [row.get(key) for row in rows]) for key in keys]
    return [(key, [float(v) for v in values if v is not None]) for key, values in columns if None not in values]


def _message(key: str, values: Sequence[float], beyond: str, rows: Sequence[Mapping[str, Any]]) -> str:
    steps = ", ".join(str(row["step"]) for row in rows)
    return f"{key} was {', '.join(f'{value:.3g}' for value in values)} at steps {steps}, {beyond}"
