"""Walks the recipe's schema: which keys there are at a path, every leaf, and validation errors in plain sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from mopd.distill.recipe.schema.loss import ESTIMATORS, TRAPS
from mopd.distill.recipe.schema.recipe import Recipe

Location = tuple[str | int, ...]
"""A path as pydantic gives it: keys, list positions, and the tags (``<name>``) of the union members it went through."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value of the schema: its path with ``*`` for names that the user chooses, and its field."""

    path: str
    owner: type[BaseModel]
    attribute: str
    field: FieldInfo


def leaves(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[Leaf]:
    """Every value that a recipe can hold, in the schema's order; a union of mappings gives the leaves of each."""
    for attribute, field in model.model_fields.items():
        path = f"{prefix}{field.alias or attribute}"
        members = list(_members(field.annotation))
        named = [value for member in members if get_origin(member) is dict for value in _members(get_args(member)[1])]
        nested = [member for member in members if _is_model(member)]
        for entry in filter(_is_model, named):
            yield from leaves(entry, f"{path}.*.")
        for section in nested:
            yield from leaves(section, f"{path}.")
        if any(not _is_model(member) for member in (named or members)):
            yield Leaf(path, model, attribute, field)


def keys_at(location: Location) -> list[str]:
    """The keys that the schema knows at a location; empty where it holds a plain value or names the user chooses."""
    keys: list[str] = []
    for node in _nodes_at(location):
        keys += [field.alias or name for name, field in node.model_fields.items()] if _is_model(node) else []
    return list(dict.fromkeys(keys))


def takes_chosen_names(location: Location) -> bool:
    """Whether the schema holds a mapping there whose keys the user chooses, such as ``domains``."""
    return any(get_origin(node) is dict for node in _nodes_at(location))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`, or None where nothing is alike."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def guess(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A sentence's end that helps with a wrong name: the nearest known one, and all of them."""
    names = list(known)
    near = nearest(word, names)
    hint = f"did you mean `{prefix}{near}`? " if near else ""
    return f"{hint}known: {', '.join(names) if names else 'none'}"


def dotted(location: Location) -> str:
    """A location as a person writes it: ``student.optimizer.betas[1]``; tags and pydantic's own marks left out."""
    text = ""
    for item in location:
        if isinstance(item, int):
            text += f"[{item}]"
        elif not _is_mark(item):
            text += f".{item}" if text else item
    return text


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """Each problem of a recipe: the dotted path of what is refused, and one sentence that names it, what it has and
    what was needed."""
    return [(dotted(problem["loc"]), _sentence(problem)) for problem in error.errors(include_url=False)]


def sentences(error: ValidationError) -> list[str]:
    """The sentences of :func:`problems_of`."""
    return [sentence for _, sentence in problems_of(error)]


def _sentence(problem: Any) -> str:
    kind, location, value = problem["type"], problem["loc"], problem["input"]
    path = dotted(location)
    if kind == "extra_forbidden":
        return _unknown_key(location)
    if kind == "missing":
        return f"`{path}` is missing{_described(location)}"
    if kind == "estimator":
        return _estimator(path, value)
    if kind == "optimizer":
        return f"`{path}.name` is {_shown(value['name'])}; {guess(str(value['name']), ('adamw', 'sgd'))}"
    if kind == "unknown_name":
        return f"`{path}` is {_shown(value)}; {_on_offer(value, problem['ctx']['shipped'])}"
    if kind == "refusal":
        return f"`{path}` {problem['msg']}"
    if kind == "literal_error":
        offered = _literals(problem["ctx"]["expected"])
        return f"`{path}` is {_shown(value)}; {guess(str(value), offered)}"
    if kind == "string_pattern_mismatch":
        return f"`{path}` is not a usable name: letters, digits, - and _, beginning with a letter or digit"
    if kind == "too_short" and not value:
        return f"`{path}` is empty; it needs at least one entry"
    if kind == "outside":
        return f"`{path}` must be {problem['msg']}; it is {_shown(value)}"
    if kind in _NEEDED:
        bounds = {name: _whole(bound) for name, bound in problem.get("ctx", {}).items()}
        return f"`{path}` must be {_NEEDED[kind].format(**bounds)}; it is {_shown(value)}"
    return f"`{path}`: {problem['msg']}; it is {_shown(value)}"


_NEEDED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "model_type": "a mapping of keys",
    "dict_type": "a mapping of names",
    "tuple_type": "a list",
    "string_too_long": "at most {max_length} letters long",
    "too_long": "a list of {max_length}",
    "too_short": "a list of {min_length}",
}
"""What was needed, by pydantic's type of error."""


def _whole(bound: Any) -> str:
    """A bound as people write it: ``1`` for 1.0, and ``1,000,000,000``."""
    if isinstance(bound, float):
        return f"{int(bound):,}" if bound.is_integer() else f"{bound:g}"
    return f"{bound:,}" if isinstance(bound, int) else str(bound)


def _unknown_key(location: Location) -> str:
    *above, key = location
    prefix = f"{dotted(tuple(above))}." if above else ""
    known = keys_at(tuple(above))
    path = f"{prefix}{key}"
    paths: dict[str, str] = {}
    for leaf in leaves():
        paths.setdefault(leaf.path.split(".")[-1], leaf.path)
    # The key may be right and its place wrong: `lr` at the top belongs to `student.optimizer.lr`.
    elsewhere = paths.get(str(key))
    near, alike = nearest(str(key), known), nearest(str(key), paths)
    suggestions = [elsewhere, f"{prefix}{near}" if near else None, paths[alike] if alike else None]
    suggestion = next((known_path for known_path in suggestions if known_path not in (None, path)), None)
    hint = f"did you mean `{suggestion}`? " if suggestion else ""
    return f"unknown key `{path}`; {hint}known here: {', '.join(known)}"


def _estimator(path: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"`{path}` must be a mapping such as {{estimator: full_reverse_kl}}; it is {_shown(value)}"
    name = str(value.get("estimator"))
    if name in TRAPS:
        return f"`{path}.estimator` {name!r} is a trap: {TRAPS[name]}; use one of {', '.join(ESTIMATORS)}"
    return f"`{path}.estimator` {shortened(repr(name))} is unknown; {guess(name, ESTIMATORS)}"


def _on_offer(value: str, shipped: Sequence[str]) -> str:
    plugin = "./file.py:NAME of your own"
    return f"{guess(value, shipped)}, or {plugin}" if shipped else f"it must be {plugin}"


def _described(location: Location) -> str:
    *above, key = location
    for node in _nodes_at(tuple(above)):
        for name, field in node.model_fields.items() if _is_model(node) else ():
            if key == (field.alias or name) and field.description:
                return f" ({field.description})"
    return ""


def _literals(expected: str) -> list[str]:
    """The values of pydantic's list, for example ``'a', 'b' or 'c'``."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text {shortened(repr(value))}"
    if isinstance(value, bool):
        return str(value).lower()
    return shortened(str(value) if isinstance(value, int | float) else repr(value))


def shortened(text: str, most: int = 60) -> str:
    """A text that is no longer than ``most``; what is left out is told by dots."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _is_mark(item: str | int) -> bool:
    return isinstance(item, str) and (item == "[key]" or (item.startswith("<") and item.endswith(">")))


def _is_model(node: Any) -> bool:
    return isinstance(node, type) and issubclass(node, BaseModel)


def _members(node: Any, tag: str | None = None) -> Iterator[Any]:
    """The plain types of an annotation; with a tag, those of the union member that carries it."""
    if get_origin(node) is Annotated:
        inner, *marks = get_args(node)
        tags = [mark.tag for mark in marks if isinstance(mark, Tag)]
        if tag is None or not tags or tag in tags:
            yield from _members(inner, None if tags else tag)
    elif get_origin(node) in (Union, UnionType):
        for member in get_args(node):
            yield from _members(member, tag)
    else:
        yield node


def _nodes_at(location: Sequence[str | int]) -> list[Any]:
    nodes: list[Any] = [Recipe]
    for item in location:
        if _is_mark(item):
            nodes = [member for node in nodes for member in _members(node, str(item))]
        else:
            nodes = [child for node in nodes for member in _members(node) for child in _children(member, item)]
    return [member for node in nodes for member in _members(node)]


def _children(node: Any, key: str | int) -> Iterator[Any]:
    if _is_model(node):
        yield from (field.annotation for name, field in node.model_fields.items() if key == (field.alias or name))
    elif get_origin(node) in (dict, tuple):
        yield get_args(node)[-1]
