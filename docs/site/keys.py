"""The page of every key of a recipe, from the schema that `mopd schema` prints: type, bounds, default, what it is.

python docs/site/keys.py        # prints it
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.plugins import PLUGIN_PATTERN
from mopd.distill.recipe.study import StudySettings

Node = dict[str, Any]
"""A part of a JSON Schema."""

INTRODUCTION = """# Recipes by key

Every key that a recipe may have, written from the schema as this site was built; `mopd schema` prints the same for an
editor. Headings are paths, in which `NAME` stands for a name of your own. A key that is not written has the default
that stands here, and `null` removes one that another recipe has (`extends`). From the command line a key is given by
its path: `mopd run quickstart student.optimizer.lr=1e-3`. What the keys are for is on other pages:
[Recipes and commands](recipe.md), [Mixing teachers](mixture.md), [Teachers](teachers.md), [Datasets](datasets.md),
[On a Ray cluster](cluster.md).
"""
STUDY = "Keys of a study"
TOP = "Keys of a run"


def page() -> str:
    """The page as Markdown."""
    recipe = Recipe.model_json_schema(by_alias=True)
    places: dict[str, list[str]] = {}
    for heading, definition in _sections(recipe):
        places.setdefault(definition, []).append(heading)
    homes = {definition: headings[0] for definition, headings in places.items()}
    parts = [INTRODUCTION]
    for definition, headings in places.items():
        node = recipe if definition == "" else recipe["$defs"][definition]
        parts.append(_section(headings, node, homes, recipe["$defs"]))
    study = StudySettings.model_json_schema()
    study["properties"]["extends"] = {
        "type": "string",
        "description": "of any recipe: a shipped one's name, or a path, that this one changes",
    }
    study["required"] = [name for name in study["required"] if name != "extends"]
    parts.append(_section([STUDY], study, homes, {}))
    return "\n".join(parts)


def _sections(recipe: Node) -> Iterator[tuple[str, str]]:
    """Every mapping of the schema: its heading and its definition ("" is the recipe itself)."""
    waiting: deque[tuple[str, str, str]] = deque([(TOP, "", "")])
    while waiting:
        heading, path, definition = waiting.popleft()
        yield heading, definition
        node = recipe if definition == "" else recipe["$defs"][definition]
        for name, value in reversed(node.get("properties", {}).items()):
            below = f"{path}.{name}" if path else name
            references = list(_references(value, below))
            for inner, inner_path in reversed(references):
                title = _titled(inner_path, recipe["$defs"][inner], alone=len(references) == 1)
                waiting.appendleft((title, inner_path, inner))


def _references(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Definitions that stand at a place, with the path of their keys: names of one's own are NAME."""
    if not isinstance(node, dict):
        return
    if "$ref" in node:
        yield node["$ref"].rpartition("/")[2], path
    for key in ("anyOf", "oneOf"):
        for entry in node.get(key, ()):
            yield from _references(entry, path)
    named = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
    for entry in named:
        yield from _references(entry, f"{path}.NAME")


def _titled(path: str, node: Node, *, alone: bool) -> str:
    """A section's heading: its path, and where several mappings may stand there what makes it this one."""
    if alone:
        return path
    for name in ("estimator", "name"):
        constant = node["properties"].get(name, {}).get("const")
        if constant is not None:
            return f"{path} with {name} {constant}"
    kinds = {"Source": "from a dataset", "GymSource": "from reasoning_gym", "EnvironmentSource": "from an environment"}
    return f"{path} {kinds.get(node['title'], 'of your own' if node['title'].startswith('Custom') else '')}".strip()


def _anchor(heading: str) -> str:
    """The place that Markdown gives a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _first_line(value: Node, definitions: Node) -> str:
    """What the mapping that stands there is, where the key itself has no line; of several, the first."""
    described = [definitions[name].get("description", "") for name, _ in _references(value, "")]
    return _summary(described[0]) if len(described) == 1 else "one of these, as its name says"


def _summary(docstring: str) -> str:
    """The first paragraph of a docstring, in one line."""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def _section(headings: list[str], node: Node, homes: dict[str, str], definitions: Node) -> str:
    lines = [f"## {headings[0]}", ""]
    if node.get("description") and headings[0] not in (TOP, STUDY):
        lines += [_escaped(_summary(node["description"])), ""]
    if len(headings) > 1:
        also = [f"`{heading}`" for heading in headings[1:]]
        lines += [f"The same at {', '.join(also)}.", ""]
    lines += ["| key | type | default | what it is |", "|---|---|---|---|"]
    for name, value in node.get("properties", {}).items():
        needed = name in node.get("required", ())
        described = _escaped(value.get("description") or _first_line(value, definitions))
        lines.append(f"| `{name}` | {_type(value, homes)} | {_default(value, needed=needed)} | {described} |")
    return "\n".join([*lines, ""])


def _default(node: Node, *, needed: bool) -> str:
    if needed:
        return "must be given"
    value = node.get("default")
    if "default" not in node or value in ({}, []):
        return "empty"
    if isinstance(value, dict):
        chosen = value.get("estimator", value.get("name"))
        return "as there" if chosen is None else f"`{chosen}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(node: Any, homes: dict[str, str]) -> str:
    """What may stand there, in words, with links to the sections of mappings."""
    if node in (True, {}, None):
        return "anything"
    if "$ref" in node:
        home = homes[node["$ref"].rpartition("/")[2]]
        return f"[{home}](#{_anchor(home)})"
    for key in ("anyOf", "oneOf"):
        if key in node:
            return " or ".join(dict.fromkeys(_type(entry, homes) for entry in node[key]))
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    kind = node.get("type")
    if kind == "array":
        if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])}: {_type(node['prefixItems'][0], homes)}"
        return f"list of {_type(node.get('items', True), homes)}"
    if kind == "object":
        values = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        inner = next((value for value in values if isinstance(value, dict)), True)
        return f"by name: {_type(inner, homes)}"
    if kind == "string":
        return "`./file.py:NAME`" if node.get("pattern") == PLUGIN_PATTERN else "text"
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "null": "`null`"}
    return f"{words[str(kind)]}{_bounds(node)}"


def _bounds(node: Node) -> str:
    low = next((f"{word} {_number(node[key])}" for key, word in LOW.items() if key in node), "")
    high = next((f"{word} {_number(node[key])}" for key, word in HIGH.items() if key in node), "")
    both = " to ".join([low.removeprefix("at least "), high.removeprefix("at most ")])
    plain = low.startswith("at least ") and high.startswith("at most ")
    joined = both if plain else ", ".join(filter(None, (low, high)))
    return f", {joined}" if joined else ""


def _number(bound: float) -> str:
    """A bound as people write it: 1,000,000,000, but 1e-06."""
    return f"{bound:,.0f}" if bound == int(bound) and abs(bound) < 1e12 else f"{bound:g}"


LOW = {"minimum": "at least", "exclusiveMinimum": "above"}
HIGH = {"maximum": "at most", "exclusiveMaximum": "below"}


def _escaped(text: str) -> str:
    """Text of the schema in a cell of a table, where a bar would end the cell and `<` begin an element."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page())
