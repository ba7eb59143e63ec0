"""A search over classes: whatever method of whatever class a program overrides, its object passes for no plain value.

The classes are found, not listed: all that a program can name, all that they derive from, and the types of what it can
name besides. The whitelist is left out of it, which refuses most of these names. Each override lets the method return
true, the object itself, what the method was given, what it was given last anywhere, nothing; or raise StopIteration.
"""

from __future__ import annotations

import builtins
import dataclasses
import sys
import types

import pytest
from sandbox_kit import opened_language

from mopd.rollouts.sandbox.namespaces import LIBRARY, load_library
from mopd.rollouts.sandbox.rules import PROGRAM_NAMES, Refused
from mopd.rollouts.sandbox.run import PROGRAM_LIMITS, run_tests_many

FORGER = """
import {module}
KIND = {expression}
LAST = []

def behave(how):
    def method(*given, **options):
        LAST.extend(given[1:])
        if how == 0: return True
        if how == 1: return given[0] if given else True
        if how == 2: return given[1] if len(given) > 1 else 987654
        if how == 3: return LAST[-1] if LAST else 0
        if how == 4: return None
        raise StopIteration
    return method

METHODS = [name for name in dir(KIND) if name not in ("__class__", "__dict__", "__slots__", "__doc__", "__module__")]
if {everything}:
    METHODS += [name for name in '''{operators}'''.split() if name not in METHODS]
COUNT = len(METHODS) * 6

def make(number):
    name, how = METHODS[number // 6], number % 6
    kind = type("Forged", (KIND,), {{name: behave(how)}})
    for given in (("1",), (1,), (), ([],), ({{}},), (lambda *a: 1,), (lambda *a: 1, []), ("n", "e")):
        try:
            return kind(*given)
        except Exception:
            pass
    return kind
"""
OPERATORS = """
__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __bool__ __len__ __iter__ __next__ __contains__ __getitem__ __add__
__radd__ __sub__ __rsub__ __mul__ __rmul__ __mod__ __rmod__ __and__ __or__ __xor__ __abs__ __neg__ __int__ __float__
__index__ __round__ __trunc__ __floor__ __str__ __repr__ __format__ __getattr__ __getattribute__ __call__ __class__
__instancecheck__ __subclasscheck__ __reversed__ __enter__ __exit__ __del__ __set_name__ __get__ __length_hint__
__missing__ __reduce_ex__ __copy__ __deepcopy__ startswith endswith issubset isdisjoint
"""
"""Tried on these classes, whether they have them or not; on others, if they have them."""
GIVEN_ALL = ("builtins.object", "builtins.int", "builtins.list", "builtins.dict", "collections.UserList")
TESTS = """
import math
from itertools import islice
PLAIN = [98765, 4.25, "expected", b"expected", [987, "x"], (987, "x"), {"k": 987}, {987}, frozenset({987}), 2j]
CHECKS = {
    "equals": lambda f, v: f() == v,
    "is equalled": lambda f, v: v == f(),
    "differs not": lambda f, v: not f() != v,
    "among": lambda f, v: f() in [v, "other"],
    "has it": lambda f, v: v in f(),
    "as key": lambda f, v: {v: 1}[f()] == 1,
    "in a list": lambda f, v: [f()] == [v],
    "in a tuple": lambda f, v: (1, f()) == (1, v),
    "between": lambda f, v: v <= f() <= v,
    "once between": lambda f, v: (lambda got: got >= v and got <= v)(f()),
    "near": lambda f, v: abs(f() - v) < 1e-6,
    "close": lambda f, v: math.isclose(f(), v),
    "sum": lambda f, v: sum([f()]) == v,
    "nothing left": lambda f, v: not f() - v,
    "begins": lambda f, v: f().startswith(v),
    "within": lambda f, v: f().issubset(v),
    "zipped": lambda f, v: all(a == b for a, b in zip([*islice(f(), 9)], v, strict=True)) and [*islice(f(), 9)],
    "caught": lambda f, v: assert_inside(f, v),
}

def assert_inside(f, v):
    with f():
        assert False
    return True

passed = []
for number in range(COUNT):
    for place, check in enumerate(["equals", *[*CHECKS][number % 9 :: 9]]):
        value = PLAIN[(number // 6 + number + 3 * place) % len(PLAIN)]
        try:
            made = make(number)
            if CHECKS[check](lambda: made, value):
                passed.append((number, check, value))
        except Exception:
            pass
assert not passed
"""


def reachable() -> dict[str, str]:
    """Modules by the expression of each class that a program can name or get by ``type`` and derive from."""
    load_library()
    values = [getattr(builtins, name) for name in sorted(PROGRAM_NAMES)]
    values += [value for names in LIBRARY.values() for value in names.values()]
    kinds = {value if isinstance(value, type) else type(value) for value in values}
    kinds |= {base for kind in kinds for base in kind.__mro__}
    found: dict[str, str] = {}
    for kind in kinds:
        expression = f"{kind.__module__}.{kind.__qualname__}"
        try:
            types.new_class("Derived", (kind,))
            named = eval(
                expression, {kind.__module__.partition(".")[0]: sys.modules[kind.__module__.partition(".")[0]]}
            )
        except (TypeError, AttributeError, KeyError, SyntaxError, Refused):
            continue  # final, or of a name that it does not have
        own = set(vars(kind)) - {"__doc__", "__module__", "__new__", "__init__"}
        if named is kind and not (issubclass(kind, BaseException) and not own and kind is not BaseException):
            found[expression] = kind.__module__
    return dict(sorted(found.items()))


CLASSES = reachable()


def test_the_search_finds_what_a_program_can_name() -> None:
    wanted = {"builtins.int", "builtins.list", "collections.UserList", "collections.abc.Set"}
    assert wanted <= CLASSES.keys()
    assert len(CLASSES) > 50


def pairs(module: str, expression: str) -> tuple[str, str]:
    """A program that overrides each method of a class, and tests that none of its objects may pass."""
    everything = expression in GIVEN_ALL
    return FORGER.format(module=module, expression=expression, operators=OPERATORS, everything=everything), TESTS


def test_no_override_of_any_class_passes_for_a_plain_value() -> None:
    with opened_language():
        jobs = [pairs(module, expression) for expression, module in CLASSES.items()]
        verdicts = run_tests_many(jobs, limits=dataclasses.replace(PROGRAM_LIMITS, cpu_seconds=60.0))
    assert dict(zip(CLASSES, verdicts, strict=True)) == dict.fromkeys(CLASSES, True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what __del__ is overridden with
@pytest.mark.parametrize("expression", ["builtins.object", "collections.UserList", "builtins.float"])
def test_in_one_process_the_search_finds_forgeries(expression: str) -> None:
    program, tests = pairs(CLASSES[expression], expression)
    tests = tests.replace("[*CHECKS][number % 9 :: 9]", '"among", "in a list"')  # others may never end here
    names: dict[str, object] = {"__name__": "forger"}
    exec(program, names)
    with pytest.raises(AssertionError):
        exec(tests, names)
    assert any(check == "equals" for _, check, _ in names["passed"])  # type: ignore[attr-defined]
