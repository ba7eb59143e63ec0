"""Rows of a comparison: runs of one recipe that differ in nothing but the seed; how rows differ, and what was tried."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, TypeAlias

from mopd.distill.recipe.model_names import is_path
from mopd.recipes.compare.runs import Run

Edge: TypeAlias = Literal["lowest", "highest"]

NO_LIKENESS = ("seed", "name", "description", "trials", "track")
"""Keys of a recipe that do not make another row of it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one recipe that differ in nothing but the seed: one row of the comparison."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        """Of its runs, in order."""
        return [run.recipe.seed for run in self.runs]

    @property
    def method(self) -> str:
        """Of all its runs."""
        return self.runs[0].recipe.method


def group_seeds(runs: Sequence[Run]) -> list[Group]:
    """Runs of one recipe that differ in the seed only, together; others, and what is not equally far, by themselves.

    A repeated seed is not another seed: runs of which two share one are rows of their own.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_likeness(run), []).append(run)
    groups: list[Group] = []
    for members in alike.values():
        seeds = [run.recipe.seed for run in members]
        parts = [members] if len(set(seeds)) == len(seeds) else [[run] for run in members]
        for part in parts:
            name = _common_name(part)
            taken = [group.name for group in groups]
            groups.append(Group(name if name not in taken else f"{name} ({part[0].name})", tuple(part)))
    return groups


def _likeness(run: Run) -> str:
    """Equal for runs of one row. A path in which the run's seed stands as a number is alike with another seed in it."""
    own_seed = re.compile(rf"(?<!\d){run.recipe.seed}(?!\d)")

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return {str(key): plain(value) for key, value in leaf.items()}
        return own_seed.sub("{seed}", leaf) if isinstance(leaf, str) and is_path(leaf) else leaf

    leaves = {key: plain(value) for key, value in run.recipe.tree.items() if key not in NO_LIKENESS}
    # The result of a finished run may be any of its steps.
    return json.dumps([leaves, None if run.finished else run.step("validation")], sort_keys=True, default=str)


def _common_name(runs: Sequence[Run]) -> str:
    """A single run's own name; of several, their names without the seed if that is one name, else their recipe's."""
    if len(runs) == 1:
        return runs[0].name
    bare = {re.sub(rf"[-_.]?(?:seed[-_.]?)?{run.recipe.seed}$", "", run.name) for run in runs}
    return bare.pop() if len(bare) == 1 and "" not in bare else runs[0].recipe.name


def differing_leaves(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Leaves of the recipes that are not the same in every row, with each row's value; ``–`` where it has none."""
    flat = [flat_leaves(group) for group in groups]
    leaves = dict.fromkeys(leaf for tree in flat for leaf in tree)
    values = {leaf: [tree.get(leaf, "–") for tree in flat] for leaf in leaves}
    return {leaf: of_rows for leaf, of_rows in values.items() if any(a != b for a, b in combinations(of_rows, 2))}


def flat_leaves(group: Group) -> dict[str, str]:
    """The leaves of a row's recipe by their paths, as text; of what makes another row of it alone."""
    return _flat({key: value for key, value in group.runs[0].recipe.tree.items() if key not in NO_LIKENESS})


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    if isinstance(tree, Mapping) and tree:
        return {leaf: v for name, node in tree.items() for leaf, v in _flat(node, f"{path}.{name}").items()}
    return {path.removeprefix("."): tree if isinstance(tree, str) else json.dumps(tree, default=str)}


# ---- values of one number that were tried beside each other


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
