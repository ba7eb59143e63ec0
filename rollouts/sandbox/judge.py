"""The process that tests run in. It holds no object of the program: calls of the program's functions go to the other
process, and plain values come back, which are compared here, where no code of the program ever ran.

An object of a class of the program's own stays there (:mod:`rollouts.sandbox.remote`), and is never shown what it is
compared with: it equals no plain value, unless its class is derived from a plain one, whose part of it is compared.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import itertools
import json
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, cast

from mopd.rollouts.sandbox.namespaces import facade, namespace, type_of
from mopd.rollouts.sandbox.peer import BINARY, COMPARISONS, OPERATIONS, UNARY, Peer
from mopd.rollouts.sandbox.plain import Broken, Codec, Encoded
from mopd.rollouts.sandbox.program import abilities_of
from mopd.rollouts.sandbox.remote import Remote, Target, make_remote, target_of
from mopd.rollouts.sandbox.rules import MODULES, PROGRAM_NAMES, RUN, parse_program

_BASES: dict[str, type] = {
    kind.__name__: kind
    for kind in (int, float, complex, str, bytes, tuple, frozenset, list, dict, set, bytearray, collections.deque)
}
_FIXED = {int, float, complex, str, bytes, tuple, frozenset}
_STOPS = (StopIteration, StopAsyncIteration, GeneratorExit)
_MISSING: Any = object()
_QUESTIONS = frozenset({*UNARY, *COMPARISONS, "get", "getitem", "type", "isinstance", "issubclass", "plain"})
PREDICATES = frozenset({"endswith", "isdisjoint", "issubset", "issuperset", "startswith"})
"""Methods of plain values that say whether what they are given fits."""
LOOKING = PREDICATES | {"count", "find", "index", "rfind", "rindex"}
"""Methods of plain values that are given what a test expects."""
MOST_LOOKED_THROUGH = 10_000


class Judge(Peer):
    """The tests' side of the conversation.

    Args:
        longest: bytes of a message.
        always_carry: whether what a call does to its arguments is done to the tests' own objects even where the value
            of the call is used.
    """

    def __init__(self, *, longest: int, always_carry: bool) -> None:
        super().__init__(Codec(self._export, self._resolve), longest=longest)
        self.always_carry = always_carry
        self.unseen_change = False
        """Whether a call changed arguments and the tests' own objects were left as they were."""
        self.failed_inside: AssertionError | None = None
        """An assertion of the tests that failed while the program waited for it: the program could catch it."""
        self._exported: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._remotes: dict[int, Remote] = {}
        self._errors: dict[int, type[BaseException]] = {}
        self._error_numbers: dict[type, int] = {}
        self._answers: dict[str, Any] = {}
        self._replays: dict[int, _Replay] = {}

    def _export(self, value: Any) -> Encoded:
        if (target := target_of(value)) is not None:
            return ["h", target.number]
        if value in self._error_numbers if isinstance(value, type) else False:
            return ["h", self._error_numbers[value]]
        number = self._numbers.setdefault(id(value), len(self._exported))
        if number == len(self._exported):
            self._exported.append(value)
        return ["x", number, "c" if isinstance(value, type) else "o", *abilities_of(value)]

    def _resolve(self, form: list[Any]) -> Any:
        tag, number, *rest = form
        if type(number) is not int or number < 0:
            raise Broken("a number")
        if tag == "x":
            return self._exported[number]
        if tag == "h":
            kind, base, fixed, *abilities = rest
            if number not in self._remotes:
                target = Target(self, number, _BASES.get(base), self._decode(fixed))
                if target.base in _FIXED and type(target.value) is not target.base:
                    raise Broken("the plain part of an object")
                self._remotes[number] = make_remote(target, frozenset(abilities), is_class=kind == "c")
            return self._remotes[number]
        if tag == "E":
            return self._error_class(number, *rest)
        raise Broken(f"tag {tag!r}")

    def _error_class(self, number: int, name: str, bases: list[Encoded]) -> type[BaseException]:
        """A class here for an error class of the program's, so that tests can catch it."""
        if number not in self._errors:
            kinds = tuple(kind if not issubclass(kind, _STOPS) else RuntimeError for kind in map(self._decode, bases))
            if not all(issubclass(kind, BaseException) for kind in kinds):
                kinds = tuple(kind for kind in kinds if issubclass(kind, BaseException)) or (Exception,)
            cls = type(str(name), kinds, {"__str__": _error_text, "__getattr__": _error_attribute})
            self._errors[number] = cls
            self._error_numbers[cls] = number
        return self._errors[number]

    def raised(self, error: BaseException) -> list[Encoded]:
        """See :meth:`Peer.raised`."""
        if isinstance(error, AssertionError):
            self.failed_inside = self.failed_inside or error
        known = (kind for kind in type(error).__mro__ if kind in self._error_numbers or kind.__name__ in PROGRAM_NAMES)
        kind = next(known)
        try:
            return [self.codec.encode(kind), self.codec.encode(tuple(error.args))]
        except ValueError:
            return [self.codec.encode(kind), ["t"]]

    def error(self, *forms: Encoded) -> BaseException:
        """See :meth:`Peer.error`. What ends an iteration elsewhere than in ``next`` is a RuntimeError here."""
        kind, args = self._decode(forms[0]), self._decode(forms[1])
        if not (isinstance(kind, type) and issubclass(kind, BaseException)) or type(args) is not tuple:
            raise Broken("an error")
        if issubclass(kind, _STOPS):
            kind, args = RuntimeError, ("the program raised StopIteration",)
        if kind not in self._error_numbers:
            with contextlib.suppress(TypeError):
                return kind(*args)
        error = kind.__new__(kind)
        error.args = args
        if kind in self._error_numbers:
            error.__dict__["_of_program"] = (self, str(forms[2]), int(forms[3]))
        return error

    def ask(self, operation: str, *values: object) -> Any:
        """See :meth:`Peer.ask`. A question is answered once, until something else is done: an object that answers
        otherwise when it is asked again would lie in every range."""
        if operation not in _QUESTIONS:
            self._answers.clear()
            if operation not in ("iter", "next", "items"):
                self._replays.clear()
            return super().ask(operation, *values)
        key = json.dumps([operation, *map(self.codec.encode, values)])
        if key not in self._answers:
            self._answers[key] = super().ask(operation, *values)
        return self._answers[key]

    def perform(self, kind: str, *values: Any) -> Any:
        """See :meth:`Peer.perform`; only on what the tests handed over."""
        target = values[1] if kind == "isinstance" else values[0]
        if not any(id(value) in self._numbers for value in values):
            raise TypeError(f"{kind} of an object that the tests did not hand over")
        if kind == "type":
            raise TypeError("the type of an object of the tests")
        if kind in ("get", "set", "del") and (type(target).__module__ != "tests" or str(values[1]).startswith("_")):
            raise AttributeError(values[1])
        return super().perform(kind, *values)

    def callee(self, function: Any) -> Callable[..., Any]:
        """See :meth:`Peer.callee`; only what the tests handed over."""
        if id(function) not in self._numbers:
            raise TypeError("a call of an object that the tests did not hand over")
        return function

    # What a remote object of the program asks.

    def attribute(self, remote: Remote, name: str) -> Any:
        """An attribute of a program's object; methods that are given what a test expects are the plain value's."""
        target = target_of(remote)
        assert target is not None
        if name in LOOKING and target.base is not None:
            return getattr(self.plain(remote), name)
        value = self.ask("get", remote, name)
        if name in PREDICATES and callable(value):
            raise TypeError(f"{name!r} of an object of the program's own: it would be shown what is expected of it")
        return value

    def operate(self, operation: str, remote: Remote, *values: object) -> Any:
        """The result of an operation on a program's object."""
        if operation == "exit":
            self.ask("exit", remote)
            return False  # it suppresses no failure of a test
        if operation == "next":
            more, item = self.ask("next", remote)
            if not more:
                raise StopIteration
            return item
        if operation == "contains":
            return self._contains(remote, *values)
        plain = self.plain(remote)
        if plain is not _MISSING and operation in _OF_PLAIN:
            return OPERATIONS[operation](plain, *values)
        if operation == "iter" and not hasattr(type(remote), "__next__"):
            return iter(self._replay(remote))
        answer = self.ask(operation, remote, *values)
        wanted = _ANSWERS.get(operation)
        if wanted is not None and type(answer) is not wanted:
            raise TypeError(f"{operation} of a program's object is no {wanted.__name__}")
        return answer

    def _contains(self, remote: Remote, wanted: object) -> bool:
        """Whether it is among what iterating gives, which must come to an end; the object is not asked."""
        plain = self.plain(remote)
        if plain is not _MISSING:
            return wanted in plain
        items = self._replay(remote).up_to(MOST_LOOKED_THROUGH)
        if len(items) > MOST_LOOKED_THROUGH:
            raise ValueError(f"more than {MOST_LOOKED_THROUGH:,} items to look through")
        return wanted in items

    def _replay(self, remote: Remote) -> _Replay:
        if hasattr(type(remote), "__next__"):  # an iterator is used up
            return _Replay(self, remote)
        return self._replays.setdefault(id(remote), _Replay(self, remote))

    def called(self, remote: Remote, args: tuple[Any, ...], options: dict[str, Any], *, carry: bool = False) -> Any:
        """What a program's function returns, given copies of the arguments."""
        self._answers.clear()
        self._replays.clear()
        value, changed = self.call(remote, args, options, carry=carry or self.always_carry)
        self.unseen_change |= changed and not carry
        return value

    def binary(self, operation: str, remote: Remote, other: object, swap: bool) -> Any:
        """An operator: on plain values here, between two objects of the program there, and between the two not."""
        left, right = self.plain(remote), other if target_of(other) is None else self.plain(other)
        if left is not _MISSING and right is not _MISSING:
            return BINARY[operation](*((right, left) if swap else (left, right)))
        if target_of(other) is not None and left is right:
            answer = self.ask(operation, *((other, remote) if swap else (remote, other)))
            if operation in COMPARISONS and type(answer) is not bool:
                raise TypeError(f"{operation} of two of a program's objects is no bool")
            return answer
        return NotImplemented

    def plain(self, remote: Any) -> Any:
        """The plain value of an object whose class is derived from a plain one; otherwise ``_MISSING``."""
        target = target_of(remote)
        assert target is not None
        if target.base is None:
            return _MISSING
        if target.value is not None:
            return target.value
        value = self.ask("plain", remote)
        if type(value) is not target.base:
            raise TypeError("a program's object is not what it was")
        return value

    def formatted(self, remote: Remote, spec: str) -> str:
        """The text of a program's object."""
        plain = self.plain(remote)
        if plain is not _MISSING and spec:
            return format(plain, spec)
        return format(str(remote), spec)

    def is_instance(self, value: object, remote: Remote) -> bool:
        """Whether a value is of a program's class: plain ones never are."""
        return target_of(value) is not None and self.ask("isinstance", value, remote) is True


class _Replay:
    """What iterating over an object gave, so that iterating again gives the same. It is asked for as it is needed."""

    def __init__(self, judge: Judge, remote: Remote) -> None:
        self._judge, self._remote = judge, remote
        self._source: Any = None
        self._items: list[Any] = []
        self._ended = False

    def up_to(self, count: int) -> list[Any]:
        """The items, of which there may be ``count``; one more where there are more. All at once, if none was given."""
        if self._items or self._ended:
            return list(itertools.islice(self, count + 1))
        self._items = list(self._judge.ask("items", self._remote, count + 1))
        self._ended = len(self._items) <= count
        return self._items

    def __iter__(self) -> Iterator[Any]:
        place = 0
        while True:
            if place == len(self._items) and not self._ended:
                self._source = self._source or self._judge.ask("iter", self._remote)
                try:
                    self._items.append(next(self._source))
                except StopIteration:
                    self._ended = True
            if place == len(self._items):
                return
            yield self._items[place]
            place += 1


_OF_PLAIN = frozenset({*UNARY, "round", "iter", "reversed"} - {"str", "repr"})
_ANSWERS: dict[str, type] = {
    **dict.fromkeys(("len", "hash", "int", "index"), int),
    **dict.fromkeys(("str", "repr"), str),
    "bool": bool,
    "float": float,
    "complex": complex,
}


def _error_text(error: BaseException) -> str:
    return error.__dict__["_of_program"][1] if "_of_program" in error.__dict__ else BaseException.__str__(error)


def _error_attribute(error: BaseException, name: str) -> Any:
    if name.startswith("__") or "_of_program" not in error.__dict__:
        raise AttributeError(name)
    judge, _, number = error.__dict__["_of_program"]
    return judge.ask("get", make_remote(Target(judge, number), frozenset(), is_class=False), name)


def run_tests(tests: str, judge: Judge) -> None:
    """Run tests against the program on the other side; returns where all pass.

    Raises:
        Refused: the tests use what isn't allowed.
        BaseException: whatever a test that fails raises.
    """
    tree = ast.fix_missing_locations(_Statements().visit(parse_program(tests, tests=True)))
    code = compile(tree, "tests", "exec", dont_inherit=True)
    runs = any(isinstance(node, ast.Name) and node.id == RUN for node in ast.walk(tree))
    given = {} if runs else dict(judge.ask("start"))
    random.seed(tests)  # a program can't foresee what is drawn
    names = namespace("tests", type_of=lambda value: _type_of(judge, value))
    names["__builtins__"][_STATEMENT] = lambda function, *args, **options: _call(judge, function, args, options)
    if runs:
        names["__builtins__"][RUN] = lambda text: _run(judge, text)
    # What tests rely on is never taken from the program: it could have redefined `abs`, `all` or `math`.
    trusted = {*names["__builtins__"], *MODULES}
    given = {name: value for name, value in given.items() if name not in trusted and not name.startswith("__")}
    names |= given
    names |= {name: facade(name) for name in MODULES if "." not in name}
    exec(code, names)
    _run_collected({name: value for name, value in names.items() if value is not given.get(name)})
    if judge.failed_inside is not None:
        raise judge.failed_inside


def _type_of(judge: Judge, value: object) -> Any:
    if target_of(value) is not None:
        return judge.ask("type", value)
    return type_of(value)


def _run(judge: Judge, text: object) -> str:
    """What the program prints, run as a whole on a text."""
    written = judge.ask("run", text)
    if type(written) is not str:
        raise TypeError("what a program prints is no text")
    return written


_STATEMENT = "__statement__"


class _Statements(ast.NodeTransformer):
    """Marks calls that are statements of their own: what they do to their arguments is what they are called for."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        call = node.value
        if isinstance(call, ast.Call) and not (isinstance(call.func, ast.Name) and call.func.id == "super"):
            name = ast.Name(_STATEMENT, ast.Load())
            node.value = ast.Call(name, [call.func, *call.args], call.keywords)
        return node


def _call(judge: Judge, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if target_of(function) is not None and callable(function):
        return judge.called(cast(Remote, function), args, options, carry=True)
    return function(*args, **options)


def _run_collected(names: dict[str, Any]) -> None:
    """Run what a test runner would collect: functions ``test_*``, and the test methods of TestCase classes."""
    unittest = sys.modules["unittest"]
    for name, value in names.items():
        if isinstance(value, types.FunctionType) and name.startswith("test_"):
            value()
        elif type(value) is type and issubclass(value, unittest.TestCase):
            for method in dir(value):
                if method.startswith("test"):
                    value(method).debug()
