"""The rules of the house that a machine can hold; CONTRIBUTING.md says them in words."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_kit import PACKAGES, REPOSITORY, Source, arguments_of, read, read_all

from mopd.distill import recipe as recipe_module
from mopd.distill.recipe import Strict

MAX_FUNCTION_LINES = 60


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_all()


def too_long(source: Source) -> list[str]:
    findings = []
    for function in source.functions():
        length = (function.end_lineno or 0) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            findings.append(
                source.at(function, f"{function.name} has {length} lines, {MAX_FUNCTION_LINES} are the limit")
            )
    return findings


def undocumented(source: Source) -> list[str]:
    """Modules, public functions and classes, and public methods of public classes, without a docstring."""
    findings = [] if ast.get_docstring(source.tree) or not source.text else [f"{source.path} has no docstring"]

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                if ast.get_docstring(node) is None:
                    findings.append(source.at(node, f"{node.name} has no docstring"))
                if isinstance(node, ast.ClassDef):
                    visit(node.body)

    visit(source.tree.body)
    return findings


def untyped(source: Source) -> list[str]:
    """Functions with an argument or a result that has no annotation."""
    findings = []
    for function in source.functions():
        bare = [arg.arg for arg in arguments_of(function) if arg.annotation is None and arg.arg not in ("self", "cls")]
        bare += ["its result"] if function.returns is None else []
        findings += [source.at(function, f"{function.name}: no type for {', '.join(bare)}")] if bare else []
    return findings


def lax_zips(source: Source) -> list[str]:
    """Calls of zip without ``strict=True``; ruff's B905 is content with ``strict=False``."""
    findings = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            strict = [k.value for k in node.keywords if k.arg == "strict"]
            if not (strict and isinstance(strict[0], ast.Constant) and strict[0].value is True):
                findings.append(source.at(node, "zip is not strict"))
    return findings


def shifts(source: Source) -> list[str]:
    """Slices ``[1:]``, ``[:-1]`` and ``[-n:]`` in any dimension, unless the line says that they are not per token.

    A heuristic: it does not see a shift by ``roll``, ``narrow``, ``shift`` of a loop's index, or a named slice.
    """

    def is_shift(part: ast.expr) -> bool:
        if not isinstance(part, ast.Slice) or part.step is not None:
            return False
        from_second = isinstance(part.lower, ast.Constant) and part.lower.value == 1 and part.upper is None
        tail = _is_negative(part.lower) and part.upper is None
        head = part.lower is None and isinstance(part.upper, ast.UnaryOp) and ast.unparse(part.upper) == "-1"
        return from_second or tail or head

    lines, findings = source.text.splitlines(), []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if any(map(is_shift, parts)) and "# not per token" not in lines[(node.end_lineno or 1) - 1]:
                findings.append(source.at(node, ast.unparse(node)))
    return findings


def _is_negative(node: ast.expr | None) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


def leaves() -> dict[str, type[Strict]]:
    """Names of the schema's leaves whose default is a setting: not None, not empty, not a part of a recipe."""
    settings: dict[str, type[Strict]] = {}
    for model in _models(Strict):
        for name, field in model.model_fields.items():
            default = field.default
            if not field.is_required() and default is not None and default != () and not isinstance(default, Strict):
                settings.setdefault(name, model)
    return {
        name: model for name, model in settings.items() if settings[name].model_fields[name].default_factory is None
    }


def _models(base: type[Strict]) -> Iterator[type[Strict]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


OTHER_THINGS = {("build_seesaw", "split"): "of evaluations", ("evaluate", "prompts"): "mopd eval's own option"}
"""What has the name of a leaf and is something else."""


def second_defaults(source: Source, names: set[str]) -> list[str]:
    """Parameters and fields that are named like a leaf of the schema and have a literal default of their own.

    A heuristic: one thing may have two names.
    """
    findings = []
    for node in ast.walk(source.tree):
        pairs: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            positional = [*a.posonlyargs, *a.args]
            arguments = [*positional[len(positional) - len(a.defaults) :], *a.kwonlyargs]
            pairs = [(arg.arg, d) for arg, d in zip(arguments, [*a.defaults, *a.kw_defaults], strict=True)]
        elif isinstance(node, ast.ClassDef):
            pairs = [(ast.unparse(f.target), f.value) for f in node.body if isinstance(f, ast.AnnAssign)]
        for name, default in pairs:
            if name in names and _is_setting(default) and (getattr(node, "name", ""), name) not in OTHER_THINGS:
                findings.append(
                    source.at(node, f"{getattr(node, 'name', '')}: {name} = {ast.unparse(default or node)}")
                )
    return findings


def _is_setting(default: ast.expr | None) -> bool:
    """Whether a default is a literal, and not one of those that say "nothing given"."""
    try:
        return default is not None and ast.literal_eval(default) not in (None, False, "", ())
    except ValueError:
        return False


def test_no_test_joins_a_cluster_that_another_one_started() -> None:
    """Without an address ``ray.init`` takes whatever cluster runs on the machine."""
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.init", "start_ray"):
                assert "address" in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}"


def runs_what_it_reads(source: Source) -> list[str]:
    """Calls that would run code that lies in what they read: pickles, YAML of any kind, text that is evaluated."""
    findings = []
    for node in (node for node in ast.walk(source.tree) if isinstance(node, ast.Call)):
        called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        safe = {
            "torch.load": given.get("weights_only") == "True",
            "np.load": given.get("allow_pickle", "False") == "False",
            "yaml.load": given.get("Loader") == "_Loader",  # which is a SafeLoader
        }
        unsafe = ("pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.unsafe_load", "yaml.full_load")
        unsafe += ("eval", "exec", "marshal.loads", "shelve.open", "joblib.load")
        if not safe.get(called, called not in unsafe):
            findings.append(source.at(node, f"{called} runs what it reads"))
    return findings


RULES = {r.__name__: r for r in (too_long, undocumented, untyped, lax_zips, shifts, runs_what_it_reads)}
BREAKS = {
    "too_long": "def f() -> None:\n" + "    pass\n" * 60,
    "undocumented": '"""A file."""\nclass A:\n    """A class."""\n    def b(self) -> None: ...\n',
    "untyped": "class A:\n    def b(self, *c) -> None: ...\n",
    "lax_zips": "for a, b in zip(x, y, strict=False): ...\n",
    "shifts": "a = x[:, 1:]\n",
    "runs_what_it_reads": "a = torch.load(path)\n",
}
KEEPS = {
    "too_long": "def f() -> None:\n" + "    pass\n" * 59,
    "undocumented": '"""A file."""\nclass _A:\n    def b(self) -> None: ...\n',
    "untyped": "class A:\n    def b(self, *c: int) -> None: ...\n",
    "lax_zips": "for a, b in zip(x, y, strict=True): ...\n",
    "shifts": "a = x[2:][: n - 1][1:5]\nb = argv[1:]  # not per token\nc = x[-1]\n",
    "runs_what_it_reads": "a = torch.load(path, weights_only=True)\nb = model.eval()\nc = json.load(file)\n",
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_tells_right_from_wrong(name: str) -> None:
    assert RULES[name](read("wrong.py", BREAKS[name]))
    assert not RULES[name](read("right.py", KEEPS[name]))


@pytest.mark.parametrize("name", RULES)
def test_every_file_keeps_the_rule(name: str, sources: list[Source]) -> None:
    homes = {
        "shifts": "distill/types.py",  # of the alignment rule
        "runs_what_it_reads": "rollouts/sandbox/",  # locked in; see lock.py
    }
    elsewhere = [source for source in sources if name not in homes or not source.path.startswith(homes[name])]
    assert [finding for source in elsewhere for finding in RULES[name](source)] == []


def test_every_default_has_one_home(sources: list[Source]) -> None:
    names = set(leaves())
    assert {"lr", "temperature", "max_new_tokens", "microbatch_tokens"} <= names
    for wrong in ("def f(a: int, *, temperature: float = 1.0) -> None: ...", "class A:\n    lr: float = 1e-3\n"):
        assert second_defaults(read("wrong.py", wrong), names)
    assert not second_defaults(read("right.py", "def f(a: int = 3, *, temperature: float) -> None: ..."), names)
    home = ("distill/recipe/schema/", "distill/recipe/base.py")
    elsewhere = [source for source in sources if not source.path.startswith(home)]
    assert [finding for source in elsewhere for finding in second_defaults(source, names)] == []


def test_every_leaf_of_the_schema_is_documented() -> None:
    bare = [
        f"{model.__name__}.{name}"
        for model in _models(Strict)
        for name, field in model.model_fields.items()
        if not field.description and not _is_part(field.annotation)
    ]
    assert bare == []


def _is_part(annotation: object) -> bool:
    """Whether a field holds a part of a recipe, which documents itself, and not a leaf."""
    parts = {
        name for name, value in vars(recipe_module).items() if inspect.isclass(value) and issubclass(value, Strict)
    }
    return any(name in str(annotation) for name in parts)


def test_nothing_can_write_to_a_recipe() -> None:
    assert all(
        model.model_config.get("frozen") and model.model_config.get("extra") == "forbid" for model in _models(Strict)
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_are_those_of_this_repository(package: str) -> None:
    """An installed copy of another checkout would be tested instead, in silence."""
    module = importlib.import_module(f"mopd.{package}")
    assert Path(str(module.__file__)).resolve().parent == REPOSITORY / package


@pytest.mark.parametrize("path", sorted((REPOSITORY / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_what_is_not_run_here_can_still_be_imported(path: Path) -> None:
    """Benchmarks, the GPU's and the long tests: whatever they take from the packages is there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "mopd":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                    alias.name
                )


def test_import_contracts_are_kept() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    outcome = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "0 broken" in outcome.stdout
