"""Studies: a recipe with ``methods`` and ``seeds`` is a table of runs, one of each method on each seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from mopd.distill.errors import UserError
from mopd.distill.recipe.base import Count, Name, Seed, Strict, refusal
from mopd.distill.recipe.files import (
    STUDY_KEYS,
    Tree,
    is_study,
    load_recipe,
    merge,
    parse_overrides,
    read_tree,
    validate,
    with_origins,
)
from mopd.distill.recipe.messages import guess, problems_of
from mopd.distill.recipe.schema.recipe import Recipe

NOT_A_METHODS = {
    "name": "a method is called what its key says",
    "seed": "every method runs on all `seeds` of the study",
    "extends": "a method extends the recipe that stands around it, and nothing else",
    **dict.fromkeys(STUDY_KEYS, "it belongs to the study, at the top of the file"),
}
"""Keys of a recipe that a method may not have, with the reason."""


class StudySettings(Strict):
    """What makes a recipe a study; all other keys of its file are the recipe that the methods share."""

    methods: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="changes over the recipe around it, as by `extends`, by the name of the method"
    )
    seeds: tuple[Seed, ...] = Field(min_length=1, description="every method runs on each of them")
    parallel: Count = Field(default=2, description="stages and runs at a time")

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise refusal(f"has a seed twice: {', '.join(map(str, seeds))}")
        return seeds


@dataclass(frozen=True, slots=True)
class Child:
    """One run of a study: an ordinary recipe."""

    method: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder in the study's."""
        return f"{self.method}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Study:
    """Runs that are to be compared: all methods on the first seed, then on the next."""

    name: str
    parallel: int
    children: tuple[Child, ...]


def load(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, shipped: Path) -> Recipe | Study:
    """Read a recipe or a study; see :func:`distill.recipe.files.load_recipe`.

    In a study ``key=value`` changes every run, whatever its method says; ``methods.NAME.key=value`` changes the runs of
    one method, ``methods.NAME=null`` leaves it out, and ``seeds=[0]`` and ``parallel=1`` are the study's own.

    Raises:
        UserError: with every problem that was found, each a sentence that names the key, and the method if it is one's.
    """
    tree, origin = read_tree(recipe, shipped=shipped)
    if not is_study(tree):
        return load_recipe(recipe, overrides, shipped=shipped)
    own, of_method, shared = _sorted_overrides(overrides)
    tree = merge(tree, parse_overrides([override for override in shared if _keys(override) == ["name"]], tree))
    settings = _settings(tree, own, origin)
    unknown = [name for name in of_method if name not in settings.methods]
    if unknown:
        raise UserError(
            *(f"override: no method is called {name!r}; {guess(name, settings.methods)}" for name in unknown)
        )
    around = {key: value for key, value in tree.items() if key not in STUDY_KEYS}
    recipes: dict[str, Recipe] = {}
    problems: dict[str, list[str]] = {}
    for method, changes in settings.methods.items():
        try:
            _refuse_keys(method, changes, origin)
            whole = merge(around, changes)
            whole = merge(whole, parse_overrides(shared, whole))
            whole = merge(whole, parse_overrides(of_method.get(method, ()), whole))
            recipes[method] = validate(
                _named(whole, method, settings.seeds[0]),
                origin,
                before=_named(merge(around, changes), method, settings.seeds[0]),
                overrides=[*shared, *of_method.get(method, ())],
            )
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(method)
    if problems:
        raise UserError(*_with_their_methods(problems, len(settings.methods)))
    children = [
        Child(method, seed, recipe.model_copy(update={"seed": seed}))
        for seed in settings.seeds
        for method, recipe in recipes.items()
    ]
    return Study(str(tree["name"]), settings.parallel, tuple(children))


def _sorted_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Overrides of the study's own keys, of single methods (without the keys before their own), and of every run."""
    own: list[str] = []
    of_method: dict[str, list[str]] = {}
    shared: list[str] = []
    for override in overrides:
        keys = _keys(override)
        if keys == ["seed"]:
            raise UserError(f"override {override!r}: every run of a study has its own; write for example seeds=[5]")
        if keys[0] == "methods" and len(keys) > 2:
            _, name, rest = override.strip().split(".", 2)
            of_method.setdefault(name, []).append(rest)
        else:
            (own if keys[0] in STUDY_KEYS else shared).append(override)
    return own, of_method, shared


def _keys(override: str) -> list[str]:
    return override.partition("=")[0].strip().split(".")


def _settings(tree: Tree, own: Sequence[str], origin: str) -> StudySettings:
    written = {key: tree[key] for key in STUDY_KEYS if key in tree}
    settings, problems = _validated(merge(written, parse_overrides(own, written)))
    if settings is None:
        raise UserError(*with_origins(problems, origin, written=_validated(written)[1] if own else [], overrides=own))
    return settings


def _validated(settings: Tree) -> tuple[StudySettings | None, list[tuple[str, str]]]:
    if isinstance(methods := settings.get("methods"), Mapping):  # `mopd:` alone is the recipe around it, unchanged
        settings = {
            **settings,
            "methods": {name: {} if changes is None else changes for name, changes in methods.items()},
        }
    try:
        return StudySettings.model_validate_json(json.dumps(settings, default=str), strict=True), []
    except ValidationError as error:
        return None, problems_of(error)


def _refuse_keys(method: str, changes: Tree, origin: str) -> None:
    refused = [f"{origin}: has a key `{key}`: {why}" for key, why in NOT_A_METHODS.items() if key in changes]
    if refused:
        raise UserError(*refused)


def _named(tree: Tree, method: str, seed: int) -> Tree:
    name = {"name": f"{tree['name']}-{method}"} if isinstance(tree.get("name"), str) else {}
    return {**tree, **name, "seed": seed}


def _with_their_methods(problems: Mapping[str, Sequence[str]], methods: int) -> Iterator[str]:
    """Problems of every method are the shared recipe's; others are said with the methods that have them."""
    for problem, of in problems.items():
        yield problem if len(of) == methods > 1 else f"{', '.join(f'`methods.{name}`' for name in of)} in {problem}"
