"""The source of the four packages as a test reads it: files, functions, imports, and what they amount to."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("distill", "teachers", "rollouts", "recipes")


@dataclass(frozen=True)
class Source:
    """A file of the four packages: its path from the top, its text, and what Python reads in it."""

    path: str
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)

    @property
    def module(self) -> str:
        """The name that it is imported by."""
        return "mopd." + self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def at(self, node: ast.AST, what: str) -> str:
        """``file:line what``, as an editor opens it."""
        return f"{self.path}:{getattr(node, 'lineno', 1)} {what}"

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Every function and method, nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def read(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text))


def read_all() -> list[Source]:
    """Every file of the four packages, by path."""
    paths = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
    return [read(str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")) for path in paths]


def arguments_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """All parameters of a function, in order, ``*args`` and ``**kwargs`` last."""
    a = function.args
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]


def takers(source: Source, type_name: str) -> list[str]:
    """Functions that have a parameter of a type, or of a union or a container of it.

    Example:
        takers(read("a.py", "def f(recipe: Recipe | None) -> None: ..."), "Recipe")  # ["a.py:1 f"]
    """
    return [
        source.at(function, function.name)
        for function in source.functions()
        if any(_names_type(argument.annotation, type_name) for argument in arguments_of(function))
    ]


def _names_type(annotation: ast.expr | None, type_name: str) -> bool:
    if annotation is None:
        return False
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id == type_name:
            return True
        if isinstance(node, ast.Attribute) and node.attr == type_name:
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and type_name == node.value.split(".")[-1]:
            return True
    return False


def askers(source: Source, carried: str) -> list[str]:
    """Functions that read a recipe, or what it means here, which is no parameter of theirs: ``self._recipe``.

    Example:
        askers(read("a.py", "def f(job: Job) -> None:\n    job.recipe.seed"), "recipe")  # ["a.py:1 f: job.recipe"]
    """
    by_function = []
    for function in source.functions():
        if any(_names_type(argument.annotation, name) for argument in arguments_of(function) for name in CARRIERS):
            continue
        reads = {
            ast.unparse(node)
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute)
            and node.attr in (carried, f"_{carried}")
            and isinstance(node.ctx, ast.Load)
        }
        by_function += [source.at(function, f"{function.name}: {', '.join(sorted(reads))}")] if reads else []
    return by_function


CARRIERS = ("Recipe", "Resolved")
"""Types that hold everything that a recipe says."""

VAGUE = frozenset({"told", "said", "mine", "theirs", "found", "one"})
"""Names that say nothing of the value that they hold."""


def vague_names(source: Source) -> list[str]:
    """Variables and parameters with one of the :data:`VAGUE` names."""
    return [
        source.at(node, node.id if isinstance(node, ast.Name) else node.arg)
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE)
        or (isinstance(node, ast.arg) and node.arg in VAGUE)
    ]


def imports_of(source: Source, modules: set[str]) -> set[str]:
    """The modules of a set that a file imports anywhere: under TYPE_CHECKING and inside functions too."""
    imported: set[str] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                imported.add(name if name in modules else node.module)
    return (imported & modules) - {source.module}


def circles(sources: Iterable[Source]) -> list[list[str]]:
    """Modules that import each other, each circle with its modules in the order of one way around it.

    That a module's packages are imported before it does not count.
    """
    files = {source.module: source for source in sources}
    graph = {module: sorted(imports_of(source, set(files))) for module, source in files.items()}
    all_circles: list[list[str]] = []
    left = set(graph)
    while left:
        start = min(left)
        way = _way_back(graph, start, left)
        if way:
            all_circles.append(way)
        left -= set(way) | {start}
    return all_circles


def _way_back(graph: dict[str, list[str]], start: str, within: set[str]) -> list[str]:
    """The shortest way from a module over its imports back to itself; empty where there is none."""
    before: dict[str, str] = {}
    queue = [start]
    for module in queue:
        for imported in graph[module]:
            if imported == start:
                way = [module]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            if imported in within and imported not in before:
                before[imported] = module
                queue.append(imported)
    return []
