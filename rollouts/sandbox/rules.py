"""Layer one of the sandbox: which syntax, names and modules generated code may use. Everything else is refused.

Two languages: an *expression* over the list ``x``, and a *program* with its tests. This room needs nothing but the
standard library, because the sandboxed process imports it. What it can't see (how long, how large) the limits hold.
"""

from __future__ import annotations

import ast
import builtins
import re
import string
from collections.abc import Iterable, Mapping


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


def _kinds(*classes: type[ast.AST]) -> frozenset[type[ast.AST]]:
    """These and every class derived from them."""
    return frozenset(classes).union(*(_kinds(*cls.__subclasses__()) for cls in classes if cls.__subclasses__()))


EXPRESSION_SYNTAX = _kinds(
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword),
    *(ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.comprehension, ast.Subscript, ast.Slice, ast.Attribute),
    *(ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Starred),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
EXPRESSION_NAMES = _words(
    "abs all any bool divmod enumerate filter float int len list map max min range reversed round set sorted sum",
    "tuple zip",
)
EXPRESSION_ATTRIBUTES = frozenset({"count", "index"})

PROGRAM_SYNTAX = _kinds(
    *EXPRESSION_SYNTAX,
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.ClassDef, ast.Lambda, ast.Expr, ast.Pass),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.Delete, ast.Global, ast.Nonlocal),
    *(ast.If, ast.For, ast.While, ast.Break, ast.Continue, ast.With, ast.withitem),
    *(ast.Try, ast.ExceptHandler, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.alias),
    *(ast.Dict, ast.DictComp, ast.Yield, ast.YieldFrom, ast.JoinedStr, ast.FormattedValue),
)
_BUILTIN_ERRORS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
PROGRAM_NAMES = (
    EXPRESSION_NAMES
    | _BUILTIN_ERRORS
    | _words(
        "ascii bin bytearray bytes callable chr classmethod complex dict format frozenset hash hex isinstance",
        "issubclass iter next object oct ord pow property repr slice staticmethod str super NotImplemented",
    )
)
"""Builtins handed over as they are. ``type`` and ``print`` come in a safe form; whatever looks up attributes by a
string (getattr, vars, ...), runs text (eval, exec) or reaches the world (open, input) is left out."""

PROGRAM_DUNDERS = _words(
    "__init__ __repr__ __str__ __len__ __iter__ __next__ __getitem__ __setitem__ __delitem__ __call__ __enter__",
    "__exit__ __post_init__ __name__ __future__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __bool__",
    "__contains__ __reversed__ __missing__ __add__ __sub__ __mul__ __truediv__ __floordiv__ __mod__ __pow__ __neg__",
    "__abs__ __radd__ __rsub__ __rmul__ __rtruediv__ __iadd__ __isub__ __imul__ __and__ __or__ __xor__ __int__",
    "__float__",
)
"""Double-underscore names that may be written. Comparisons are among them: tests compare plain values in a process
where no method of a program runs (rollouts/sandbox/judge.py). What makes classes, looks up attributes or takes objects
apart is not."""
_MANGLED = re.compile(r"_+[^_].*?__.+")
"""Names as Python makes them of ``__name`` in a class: they could stand for private methods of a library class."""

FORBIDDEN_PREFIXES = ("gi_", "cr_", "ag_", "tb_", "f_", "co_", "func_")
"""Attributes of frames, tracebacks, generators and code objects, which lead out of the program's namespace."""
NAMED_TUPLE_ATTRIBUTES = frozenset({"_asdict", "_fields", "_make", "_replace"})
FORBIDDEN_ATTRIBUTES = frozenset({"mro", "format", "format_map"})

MODULES: dict[str, frozenset[str]] = {
    name: frozenset(names.split())
    for name, names in {
        "__future__": "annotations",
        "abc": "ABC abstractmethod",
        "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
        "collections": "ChainMap Counter OrderedDict UserDict UserList defaultdict deque namedtuple",
        "collections.abc": "Callable Collection Container Hashable Iterable Iterator Mapping MutableMapping "
        "MutableSequence MutableSet Sequence Set Sized",
        "copy": "copy deepcopy",
        "dataclasses": "dataclass field",
        "decimal": "Decimal ROUND_CEILING ROUND_DOWN ROUND_FLOOR ROUND_HALF_EVEN ROUND_HALF_UP ROUND_UP",
        "fractions": "Fraction",
        "functools": "cache cached_property cmp_to_key lru_cache partial reduce wraps",
        "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
        "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle dropwhile "
        "filterfalse groupby islice pairwise permutations product repeat starmap takewhile tee zip_longest",
        "math": "acos acosh asin asinh atan atan2 atanh cbrt ceil comb copysign cos cosh degrees dist e erf erfc exp "
        "exp2 expm1 fabs factorial floor fmod frexp fsum gamma gcd hypot inf isclose isfinite isinf isnan isqrt lcm "
        "ldexp lgamma log log10 log1p log2 modf nan nextafter perm pi pow prod radians remainder sin sinh sqrt tan "
        "tanh tau trunc ulp",
        "operator": "add and_ concat contains countOf eq floordiv ge getitem gt index inv invert is_ is_not itemgetter "
        "le lshift lt mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor",
        "random": "Random betavariate choice choices expovariate gauss getrandbits normalvariate paretovariate randint "
        "random randrange sample seed shuffle triangular uniform",
        "re": "A ASCII DOTALL I IGNORECASE M MULTILINE Match Pattern S VERBOSE X compile error escape findall finditer "
        "fullmatch match search split sub subn",
        "statistics": "fmean geometric_mean harmonic_mean mean median median_high median_low mode multimode pstdev "
        "pvariance quantiles stdev variance",
        "string": "ascii_letters ascii_lowercase ascii_uppercase capwords digits hexdigits octdigits printable "
        "punctuation whitespace",
        "typing": "Any Callable ClassVar DefaultDict Deque Dict Final FrozenSet Generator Generic Hashable Iterable "
        "Iterator List Literal Mapping NamedTuple Optional Sequence Set Tuple Type TypeVar Union",
        "unittest": "TestCase",
    }.items()
}
"""What a program may import, and which names of it. The names of a module that reach other modules (``re.enum``), look
up attributes by string (``operator.attrgetter``, ``string.Formatter``) or evaluate text (``typing.ForwardRef``) aren't
among them; others that could be made to come in a safe form, all of typing's too (rollouts/sandbox/safe_stdlib.py)."""


RUN = "run_program"
"""What tests call to run the whole program, on a text that it reads; those that do are given none of its names."""
RUN_MODULES: dict[str, frozenset[str]] = {
    "sys": frozenset({"argv", "exit", "maxsize", "setrecursionlimit", "stderr", "stdin", "stdout"})
}
"""What a program that is run as a whole, on text of its own, may import besides; see rollouts/sandbox/console.py."""
RUN_NAMES = frozenset({"exit", "input", "open", "quit"})
"""Builtins that it has besides."""


class Refused(Exception):
    """The code uses something outside the whitelist; the message names it."""


class NotPython(Refused):
    """The code is no Python at all."""


def parse_expression(text: str) -> ast.Expression:
    """Parse an expression over ``x`` and hold it to the whitelist.

    Raises:
        Refused: it isn't an expression, or uses syntax, a name or an attribute that isn't allowed.
    """
    tree = _parse(text.strip(), "eval")
    assert isinstance(tree, ast.Expression)
    nodes = list(ast.walk(tree))
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    known = EXPRESSION_NAMES | bound | {"x"}
    for node in nodes:
        _require_syntax(node, EXPRESSION_SYNTAX)
        for name in _identifiers(node):
            if name.startswith("_"):
                raise Refused(f"name {name!r}")
        if isinstance(node, ast.Attribute) and node.attr not in EXPRESSION_ATTRIBUTES:
            raise Refused(f"attribute {node.attr!r}")
        if isinstance(node, ast.Name) and node.id not in known:
            raise Refused(f"name {node.id!r}")
    return tree


def parse_program(text: str, *, tests: bool = False, runs: bool = False) -> ast.Module:
    """Parse a program, or its tests, and hold it to the whitelist. Only tests may import unittest.

    Args:
        runs: it is run as a whole, and may import :data:`RUN_MODULES` too.

    Raises:
        Refused: it isn't Python, or uses syntax, a name, an attribute or a module that isn't allowed.
    """
    tree = _parse(text, "exec")
    assert isinstance(tree, ast.Module)
    own = NAMED_TUPLE_ATTRIBUTES | _private_names(tree)
    modules = MODULES | (RUN_MODULES if runs else {})
    for node in ast.walk(tree):
        _require_syntax(node, PROGRAM_SYNTAX)
        for name in _identifiers(node):
            if name.startswith("__") and name not in PROGRAM_DUNDERS:
                raise Refused(f"name {name!r}")
            if not name.startswith("__") and _MANGLED.fullmatch(name):
                raise Refused(f"name {name!r}, which can stand for a private name of class {name.split('__')[0]!r}")
        if isinstance(node, ast.Attribute):
            _require_attribute(node)
            if not tests and node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in own:
                raise Refused(f"attribute {node.attr!r}, which the program does not define")
        if isinstance(node, ast.Import):
            for alias in node.names:
                _require_module(alias.name, modules, tests=tests)
        if isinstance(node, ast.ImportFrom):
            _require_module(node.module or "." * node.level, modules, tests=tests)
            for alias in node.names:
                if node.level or alias.name not in modules[node.module or ""] | {"*"}:
                    raise Refused(f"import of {alias.name!r} from {node.module!r}")
    return tree


def _parse(text: str, mode: str) -> ast.AST:
    try:
        return ast.parse(text, mode=mode)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise NotPython(f"not Python: {error}") from error


def _require_syntax(node: ast.AST, allowed: frozenset[type[ast.AST]]) -> None:
    if type(node) not in allowed:
        raise Refused(f"syntax {type(node).__name__}")


def refusal(text: str, *, runs: bool = False) -> str | None:
    """What a program uses that the whitelist refuses, the first of it; None where it refuses nothing.

    What is no Python is refused by nobody: it fails.
    """
    try:
        tree = parse_program(text, runs=runs)
    except NotPython:
        return None
    except Refused as refused:
        return str(refused).partition(";")[0]
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {name for node in nodes if not isinstance(node, ast.Name) for name in _identifiers(node)}
    left_out = vars(builtins).keys() - PROGRAM_NAMES - {"print", "type"} - (RUN_NAMES if runs else set())
    return next((f"name {node.id!r}" for node in names if node.id in left_out - bound), None)


def _require_module(name: str, modules: Mapping[str, frozenset[str]], *, tests: bool) -> None:
    if name not in modules or (name == "unittest" and not tests):
        raise Refused(f"import of module {name!r}; allowed are {', '.join(sorted(modules))}")


def _identifiers(node: ast.AST) -> Iterable[str]:
    """Every identifier that a node itself carries, in whatever field (a string constant is not an identifier)."""
    if isinstance(node, ast.Constant):
        return
    for field in node._fields:
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield from value.split(".")
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, str):
                    yield from item.split(".")


def _private_names(tree: ast.Module) -> frozenset[str]:
    """Names ``_x`` that a program's classes define: as methods, in a class's body, or by assigning to ``self._x``.

    A fence, not a wall: it keeps a program from private attributes of the library, but one that defines the name itself
    may read it from anything. So nothing handed out may have a dangerous private attribute.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef):
                    names.add(inner.name)
                elif isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Store):
                    names.add(inner.id if isinstance(inner, ast.Name) else inner.attr)
    return frozenset(names)


def _require_attribute(node: ast.Attribute) -> None:
    if node.attr == "format" and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        _require_plain_format(node.value.value)
    elif node.attr in FORBIDDEN_ATTRIBUTES or node.attr.startswith(FORBIDDEN_PREFIXES):
        raise Refused(f"attribute {node.attr!r}")


def _require_plain_format(template: str) -> None:
    """A format string looks up attributes at run time, so only literal ones without lookups are let through."""
    try:
        fields = [(name or "", spec or "") for _, name, spec, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise Refused(f"format string {template!r}: {error}") from error
    if any("." in name or "[" in name or "{" in spec for name, spec in fields):
        raise Refused(f"format string {template!r}: it looks up attributes or items")
