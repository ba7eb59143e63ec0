"""Values of one number that were tried beside each other: which is best, and whether at the edge of what was tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mopd.recipes.compare.groups import Group, flat_leaves

Edge: TypeAlias = Literal["lowest", "highest"]


@dataclass(frozen=True, slots=True)
class Tried:
    """Rows whose recipes differ in one number alone.

    Attributes:
        leaf: the number's.
        rows: their names, from the lowest value to the highest.
        values: of the leaf.
        best: the row that is chosen among them, by what rows are ordered by; None where none has a recovery.
        edge: where the best value is the lowest or the highest of them, so that a better one may lie beyond.
        next: the second of them.
    """

    leaf: str
    rows: Sequence[str]
    values: Sequence[float]
    best: str | None
    edge: Edge | None
    next: str | None


def tried_settings(groups: Sequence[Group], chosen_by: Mapping[str, float | None]) -> list[Tried]:
    """Every set of two rows or more that differ in one number.

    Args:
        chosen_by: what rows are ordered by, by name; higher is better.
    """
    flat = {group.name: flat_leaves(group) for group in groups}
    names = dict.fromkeys(leaf for leaves in flat.values() for leaf in leaves)
    return [
        _tried(leaf, values, chosen_by)
        for leaf in names
        for values in _alike(flat, leaf)
        if len(values) > 1 and len(set(values.values())) == len(values)
    ]


def _alike(flat: Mapping[str, Mapping[str, str]], leaf: str) -> Iterator[dict[str, float]]:
    """The values of a leaf by row, of rows that are the same in all else; those alone whose value is a number."""
    by_rest: dict[str, dict[str, float]] = {}
    for name, leaves in flat.items():
        if (value := _number(leaves.get(leaf))) is not None:
            rest = json.dumps({key: text for key, text in leaves.items() if key != leaf}, sort_keys=True)
            by_rest.setdefault(rest, {})[name] = value
    yield from by_rest.values()


def _number(text: str | None) -> float | None:
    try:
        return None if text in (None, "true", "false") else float(str(text))
    except ValueError:
        return None


def _tried(leaf: str, values: Mapping[str, float], chosen_by: Mapping[str, float | None]) -> Tried:
    rows = sorted(values, key=lambda name: values[name])
    known = {name: value for name in rows if (value := chosen_by[name]) is not None}
    order = sorted(known, key=lambda name: -known[name])
    best = order[0] if len(known) == len(rows) else None
    edges: dict[str, Edge] = {rows[0]: "lowest", rows[-1]: "highest"}
    return Tried(
        leaf=leaf,
        rows=rows,
        values=[values[name] for name in rows],
        best=best,
        edge=None if best is None else edges.get(best),
        next=None if best is None else order[1],
    )
