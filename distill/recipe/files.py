"""Reads and writes recipes: YAML files, ``extends:``, ``key=value`` overrides and differences.

YAML is read as version 1.2 has it (``1e-3`` is a number, ``no`` is text), and a key that stands twice is an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mopd.distill.errors import UserError
from mopd.distill.recipe.messages import guess, problems_of, shortened, takes_chosen_names
from mopd.distill.recipe.schema.recipe import Recipe

Tree = dict[str, Any]
"""A recipe as it is written: nested mappings, not validated yet."""

STUDY_KEYS = ("methods", "seeds", "parallel")
"""Keys that make a file a study."""

DEEPEST = 50
"""Levels of nesting; the schema has six."""
LARGEST_FILE, LARGEST_TREE = 1_000_000, 100_000
"""Bytes of a recipe's file, and values of its tree with every alias written out."""
LONGEST_CHAIN = 50
"""Files that extend each other."""
LONGEST_KEY = 200
"""Letters."""

KINDS = ("estimator", "architecture", "kind")
"""Keys that say what a mapping is. Where a child names another kind, its mapping replaces the parent's."""


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, shipped: Path) -> Recipe:
    """Read a recipe, resolve what it extends, apply overrides and validate the result.

    Args:
        recipe: a shipped recipe's name, a path (anything with a ``/`` or the ending .yaml or .yml), or the mapping
            that such a file holds.
        overrides: ``key=value`` each; the key is a dotted path, the value is YAML. ``null`` takes an inherited key
            away. Their order does not matter.
        shipped: the folder of the shipped recipes.

    Raises:
        UserError: with every problem that was found, each a sentence that names the key.
    """
    tree, origin = read_tree(recipe, shipped=shipped)
    if is_study(tree):
        raise UserError(
            f"{origin} is a study, several runs in one file (it has {', '.join(k for k in STUDY_KEYS if k in tree)}), "
            "and one recipe is needed here; name the recipe.yaml of one of its runs"
        )
    return validate(merge(tree, parse_overrides(overrides, tree)), origin, before=tree, overrides=overrides)


def read_tree(recipe: str | Path | Mapping[str, Any], *, shipped: Path) -> tuple[Tree, str]:
    """A file or a mapping as it is written, laid over what it extends, not validated; and what messages call it."""
    if isinstance(recipe, Mapping):
        return _over_parent(_plain(recipe, "the recipe"), None, shipped, chain=()), "the recipe"
    name_or_path = recipe if isinstance(recipe, str) else f"./{recipe}" if not recipe.is_absolute() else str(recipe)
    path = _find(name_or_path, shipped, wanted_by=None)
    return _resolve(path, shipped, chain=()), str(path)


def is_study(tree: Tree) -> bool:
    """Whether a file describes several runs: distill/recipe/study.py."""
    return any(key in tree for key in STUDY_KEYS)


def parse_overrides(overrides: Sequence[str], tree: Tree) -> Tree:
    """``key=value`` overrides of ``tree`` as one tree of changes."""
    _refuse_repeated(overrides)
    changes: Tree = {}
    for override in overrides:
        changes = merge(changes, _parse_override(override, tree))
    return changes


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every leaf written out; :func:`load_recipe` reads it back to an equal recipe."""
    tree = recipe.model_dump(mode="json", by_alias=True)
    return write_yaml(tree)


def diff_recipes(old: Recipe, new: Recipe) -> list[str]:
    """One line per leaf that differs, for example ``run.steps: 200 -> 300``; empty where the recipes are equal."""
    before, after = _flat(old.model_dump(mode="json", by_alias=True)), _flat(new.model_dump(mode="json", by_alias=True))
    lines = []
    for path in dict.fromkeys([*before, *after]):
        was, now = before.get(path, "(not there)"), after.get(path, "(not there)")
        if was != now:
            lines.append(f"{path}: {was} -> {now}")
    return lines


def shipped_recipes(shipped: Path) -> list[str]:
    """Names of the recipes in a folder."""
    return sorted(path.stem for path in shipped.glob("*.yaml"))


def _find(name_or_path: str, shipped: Path, wanted_by: Path | None) -> Path:
    """Where a recipe is; a relative path counts from the file that extends it, or from the working folder."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = (wanted_by.parent if wanted_by else Path()) / name_or_path
        if not _is_file(path):
            where = f", which {wanted_by} extends, counted from its folder" if wanted_by else ""
            raise UserError(f"no recipe file at {shortened(name_or_path, 500)}{where}")
        return path
    path = shipped / f"{name_or_path}.yaml"
    if not _is_file(path):
        raise UserError(
            f"no shipped recipe is called {shortened(repr(name_or_path), 500)}; "
            f"{guess(name_or_path, shipped_recipes(shipped))}; a path has a / in it or ends in .yaml"
        )
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _resolve(path: Path, shipped: Path, chain: tuple[Path, ...]) -> Tree:
    """A file's tree laid over the trees of what it extends."""
    if len(chain) == LONGEST_CHAIN:
        raise UserError(
            f"{chain[0]} extends a recipe that extends another, through more than {LONGEST_CHAIN} files ({path} is the "
            "next one); write them as fewer files"
        )
    if path.resolve() in chain:
        names = " extends ".join(str(file) for file in (*chain, path.resolve()))
        raise UserError(f"{path} extends itself: {names}; remove one `extends`")
    return _over_parent(_read(path), path, shipped, (*chain, path.resolve()))


def _over_parent(tree: Tree, path: Path | None, shipped: Path, chain: tuple[Path, ...]) -> Tree:
    """A tree that was read at ``path`` (None: a mapping that no file holds) laid over what it extends."""
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise UserError(f"{path or 'the recipe'}: `extends` must be one recipe's name or path; it is {parent!r}")
    return merge(_resolve(_find(parent, shipped, wanted_by=path), shipped, chain), tree)


def _read(path: Path) -> Tree:
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise UserError(f"{path} has {size:,} bytes, and a recipe at most {LARGEST_FILE:,}; name a recipe")
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if tree is None:
        raise UserError(f"{path} is empty; a recipe needs at least name, student and domains, or extends")
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds {type(tree).__name__} {str(tree)[:40]!r}; a recipe is a mapping of keys")
    return tree


def _plain(value: Any, origin: str, path: str = "", depth: int = 0) -> Any:
    """A value with nothing in it but text, numbers, true, false, null, lists and mappings of text.

    Raises:
        UserError: it holds something else, or text that is none, or is nested too deeply.
    """
    where = f"{origin}: `{path}`" if path else origin
    if depth > DEEPEST:
        raise UserError(f"{origin}: `{shortened(path, 80)}` is nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        tree: Tree = {}
        for key, entry in value.items():
            name = str(key) if isinstance(key, int) and not isinstance(key, bool) else key
            if not isinstance(name, str):
                raise UserError(f"{where} has the key {shortened(repr(key))}; a key is text: write it in quotes")
            if problem := _text_problem(name, LONGEST_KEY):
                raise UserError(f"{where} has the key {shortened(repr(name))}, which {problem}")
            tree[name] = _plain(entry, origin, f"{path}.{name}" if path else name, depth + 1)
        return tree
    if isinstance(value, list | tuple):
        return [_plain(entry, origin, f"{path}[{place}]", depth + 1) for place, entry in enumerate(value)]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and (problem := _text_problem(value, LARGEST_FILE)):
        raise UserError(f"{where} is {shortened(repr(value))}, which {problem}")
    if value is None or isinstance(value, str | int | float):
        return value
    raise UserError(
        f"{where} is of type {type(value).__name__}; a recipe holds text, numbers, true, false, null, lists and "
        "mappings"
    )


def _text_problem(text: str, longest: int) -> str | None:
    if "\0" in text:
        return "has a zero byte in it; remove it"
    if len(text) > longest:
        return f"has {len(text):,} letters, and at most {longest:,} are taken"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half a character in it (a lone surrogate); remove it"
    return None


def _refuse_repeated(overrides: Sequence[str]) -> None:
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"override `{key}` is given {keys.count(key)} times; give it once")


def _parse_override(override: str, tree: Tree) -> Tree:
    """``a.b=1`` as ``{a: {b: 1}}``; only its last key may add an entry to a mapping whose keys the user chooses."""
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"override {shortened(repr(override))} is not key=value; write for example run.steps=50")
    if len(keys) > DEEPEST:
        raise UserError(
            f"override {shortened(repr(override))} names {len(keys)} levels; a recipe has {DEEPEST} at most"
        )
    if not text.strip():
        raise UserError(f"override {override!r} gives no value; `{key}=null` removes an inherited key")
    here: Any = tree
    for depth, name in enumerate(keys[:-1]):  # not per token
        known = here if isinstance(here, Mapping) else {}
        if name not in known and takes_chosen_names(tuple(keys[:depth])):
            raise UserError(f"override {override!r}: there is no `{'.'.join(keys[: depth + 1])}`; {guess(name, known)}")
        here = known.get(name)
    value = parse_yaml(text, f"override {shortened(repr(override), 200)}")
    for name in reversed(keys):
        value = {name: value}
    return value


def merge(parent: Tree, child: Tree) -> Tree:
    """The child laid over the parent, key by key; ``null`` removes an inherited key. Neither is changed."""
    if any(kind in child and kind in parent and child[kind] != parent[kind] for kind in KINDS):
        return dict(child)
    merged = dict(parent)
    for key, value in child.items():
        inherited = parent.get(key)
        if value is None and key in parent:
            del merged[key]
        elif isinstance(value, dict) and isinstance(inherited, dict):
            merged[key] = merge(inherited, value)
        else:
            merged[key] = value
    return merged


def validate(tree: Tree, origin: str, *, before: Tree | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """A tree as a recipe.

    Args:
        origin: what messages call it.
        before: the tree without what the command line changed.
        overrides: ``key=value`` each, of the command line.

    Raises:
        UserError: with every problem, each a sentence that names the key after its origin: the command line's where
            there is no such problem without it.
    """
    recipe, problems = _validated(tree)
    if recipe is not None:
        return recipe
    written = [] if before is None or not overrides else _validated(before)[1]
    raise UserError(*with_origins(problems, origin, written=written, overrides=overrides))


def _validated(tree: Tree) -> tuple[Recipe | None, list[tuple[str, str]]]:
    """A tree as a recipe, or the paths that are refused, each with why."""
    try:
        # As JSON, since pydantic's strict mode then takes a list for a tuple, and still no text for a number.
        return Recipe.model_validate_json(json.dumps(tree, default=str), strict=True), []
    except ValidationError as error:
        return None, problems_of(error)


def with_origins(
    problems: Sequence[tuple[str, str]],
    origin: str,
    *,
    written: Sequence[tuple[str, str]],
    overrides: Sequence[str],
) -> list[str]:
    """Problems (path, sentence) as sentences that say where each comes from: ``origin``, or the command line.

    Args:
        written: the problems that there are without the overrides.
    """
    own = {sentence for _, sentence in written}
    return [
        f"{origin if sentence in own or not overrides else _blamed(path, overrides)}: {sentence}"
        for path, sentence in problems
    ]


def _blamed(path: str, overrides: Sequence[str]) -> str:
    """The overrides that a problem at ``path`` can come from: of the leaf itself, of what holds it or is in it."""

    path = path.partition("[")[0]

    def related(override: str) -> bool:
        key = override.partition("=")[0].strip()
        return f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") or not path

    named = [shortened(override, 200) for override in overrides if related(override)]
    return f"command line, {' '.join(named)}" if named else "command line"


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    if isinstance(tree, dict) and tree:
        return {key: value for name, node in tree.items() for key, value in _flat(node, f"{path}.{name}").items()}
    return {path.removeprefix("."): json.dumps(tree)}


# ---- YAML 1.2's plain scalars

_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def parse_yaml(text: str, origin: str) -> Any:
    """The plain values that a text holds.

    Raises:
        UserError: it is not readable as YAML; ``origin``, line and column are named.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        context = f" ({error.context})" if error.context else ""
        raise UserError(f"{where}: not readable as YAML: {shortened(str(error.problem), 300)}{context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: not readable as YAML: {error}") from error
    return _plain(value, origin)


def write_yaml(tree: Any) -> str:
    """Plain values as YAML that :func:`parse_yaml` reads back to equal ones."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: ``1e-3`` is a number, ``no`` and ``2024-01-01`` are text; a key stands once."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way to say it)

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.open_nodes = 0
        self.sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As it is composed; bounded in depth, and in size with every alias written out."""
        mark = self.peek_event().start_mark
        if self.open_nodes > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST} levels", problem_mark=mark)
        alias = self.check_event(yaml.AliasEvent)
        self.open_nodes += 1
        node = super().compose_node(parent, index)
        self.open_nodes -= 1
        if alias and node not in self.sizes:  # it is not composed to its end
            raise yaml.MarkedYAMLError(problem="an anchor (&) that contains itself", problem_mark=mark)
        if node is not None and node not in self.sizes:
            self.sizes[node] = 1 + sum(self.sizes[entry] for entry in _entries(node))
            if self.sizes[node] > LARGEST_TREE:
                problem = f"more than {LARGEST_TREE:,} values, with every alias (*) written out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As it is constructed; every problem with its place."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, UserError):
            raise
        except Exception as error:  # an explicit tag on a value that it does not fit, a number of thousands of digits
            digits = isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > 1000
            problem = f"a number of {len(node.value):,} digits" if digits else f"no {node.tag}: {error!s:.200}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                line = seen[name] + 1
                raise yaml.MarkedYAMLError(
                    problem=f"key `{name}` stands twice, first on line {line}", problem_mark=key.start_mark
                )
            seen[name] = key.start_mark.line
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


def _entries(node: yaml.Node) -> list[yaml.Node]:
    """What a node holds, one level down; keys and values of a mapping."""
    if isinstance(node, yaml.MappingNode):
        return [entry for pair in node.value for entry in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would read as something else than text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:[tT]rue|TRUE|[fF]alse|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
