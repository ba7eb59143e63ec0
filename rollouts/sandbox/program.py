"""The process that a program lives in: it executes the program and does what the tests ask of it.

Nothing here decides anything: whatever a program makes of this process, all it can say is what its functions return.
It is given arguments, never tests nor what they expect.
"""

from __future__ import annotations

import collections
import itertools
import random
import signal
from typing import Any, NoReturn

from mopd.rollouts.sandbox.console import Console
from mopd.rollouts.sandbox.namespaces import namespace, type_of
from mopd.rollouts.sandbox.peer import OPERATIONS, Peer
from mopd.rollouts.sandbox.plain import CONTAINERS, Broken, Codec, Encoded
from mopd.rollouts.sandbox.remote import ABILITIES, Remote, Target, make_remote, target_of
from mopd.rollouts.sandbox.rules import parse_program

MOST_RUNS = 12
"""Times a run's processor time that a program has which is run on several texts, all together."""

_FIXED: dict[type, Any] = {
    int: lambda value: int.__add__(value, 0),
    float: float.__float__,
    complex: lambda value: complex.__add__(value, 0j),
    str: str.__str__,
    bytes: lambda value: bytes(bytes.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}
_CHANGING: dict[type, Any] = {
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    bytearray: lambda value: bytearray(bytearray.__iter__(value)),
    collections.deque: lambda value: collections.deque(collections.deque.__iter__(value)),
}
_PLAIN = _FIXED | _CHANGING
"""What is plain of an object whose class is derived from a plain one, by the methods of the plain class alone."""
_WRAPPERS = {collections.UserList: list, collections.UserDict: dict}


def serve_program(program: str, *, longest: int, seconds: float) -> NoReturn:
    """Serve the process of a program's tests until that ends: execute the program once, or run it on texts.

    Args:
        longest: bytes of a message.
        seconds: processor time of a run.
    """
    peer = ProgramPeer(longest=longest)
    names = namespace("program", type_of=type_of)

    def start() -> list[list[Any]]:
        random.seed(0)
        exec(compile(parse_program(program), "program", "exec", dont_inherit=True), names)
        return [[name, kept(value)] for name, value in names.items() if not name.startswith("__")]

    def run(given: str) -> str:
        # Each run has its own time; that of all of them the kernel bounds.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        random.seed(0)
        console = Console(str(given))
        names = namespace("__main__", type_of=type_of, console=console)
        code = compile(parse_program(program, runs=True), "program", "exec", dont_inherit=True)
        try:
            exec(code, names)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise RuntimeError("the program ended with an error") from end
        return console.text

    peer.special |= {"start": start, "run": run}
    peer.serve()


class Kept:
    """A container that the program's names, attributes or items hold: handed over by number, for it may change."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def kept(value: object) -> object:
    """A value as what holds it hands it over."""
    return Kept(value) if type(value) in CONTAINERS else value


def _next(iterator: Any) -> tuple[bool, Any]:
    """(whether there is a next item, the item): that there is none is no error of the program's."""
    try:
        return True, next(iterator)
    except StopIteration:
        return False, None


class ProgramPeer(Peer):
    """The program's side: hands out its objects by number."""

    def __init__(self, *, longest: int, reads: int = 0, writes: int = 1) -> None:
        super().__init__(Codec(self._export, self._resolve), longest=longest, reads=reads, writes=writes)
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self.special |= {
            "plain": plain_value,
            "next": _next,
            "items": lambda value, most: list(itertools.islice(iter(value), most)),
            "get": lambda value, name: kept(OPERATIONS["get"](value, name)),
            "getitem": lambda value, key: kept(OPERATIONS["getitem"](value, key)),
        }

    def _export(self, value: Any) -> Encoded:
        value = value.value if type(value) is Kept else value
        if (target := target_of(value)) is not None:
            return ["x", target.number]
        if issubclass(type(value), type) and issubclass(value, BaseException):
            return ["E", self._number(value), value.__name__, [self.codec.encode(base) for base in value.__bases__]]
        base = next((base for base in _PLAIN if base in type(value).__mro__), None)
        base = base or next((plain for kind, plain in _WRAPPERS.items() if kind in type(value).__mro__), None)
        fixed = self.codec.encode(_FIXED[base](value)) if base in _FIXED else None
        kind = "c" if issubclass(type(value), type) else "o"
        return ["h", self._number(value), kind, base and base.__name__, fixed, *abilities_of(value)]

    def _number(self, value: object) -> int:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return number

    def _resolve(self, form: list[Any]) -> Any:
        if form[0] == "h":
            return self._objects[form[1]]
        if form[0] == "x":
            return make_remote(Target(self, form[1]), frozenset(form[3:]), is_class=form[2] == "c")
        raise Broken(f"tag {form[0]!r}")

    def raised(self, error: BaseException) -> list[Encoded]:
        """See :meth:`Peer.raised`."""
        try:
            args, text = self.codec.encode(tuple(error.args)), str(error)
        except Exception:
            args, text = ["t"], ""
        return [self.codec.encode(type(error)), args, str.__str__(text), self._number(error)]

    def error(self, *forms: Encoded) -> BaseException:
        """See :meth:`Peer.error`."""
        kind, args = map(self._decode, forms)
        error = kind.__new__(kind)
        error.args = args
        return error

    # What a remote object of the tests asks.

    def attribute(self, remote: Remote, name: str) -> Any:
        """An attribute of a tests' object."""
        return self.ask("get", remote, name)

    def operate(self, operation: str, remote: Remote, *values: object) -> Any:
        """The result of an operation on a tests' object."""
        return self.ask(operation, remote, *values)

    def called(self, remote: Remote, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What a tests' function returns."""
        return self.call(remote, args, options, carry=True)[0]

    def binary(self, operation: str, remote: Remote, other: object, swap: bool) -> Any:
        """The result of an operator on a tests' object."""
        return self.ask(operation, *((other, remote) if swap else (remote, other)))

    def formatted(self, remote: Remote, spec: str) -> str:
        """The text of a tests' object."""
        return format(str(remote), spec)

    def is_instance(self, value: object, remote: Remote) -> bool:
        """Whether a value is of a tests' class."""
        return target_of(value) is not None and self.ask("isinstance", value, remote)


def abilities_of(value: Any) -> list[str]:
    """The methods, of those that a remote object can have, that the class of a value has."""
    classes = [vars(cls) for cls in type(value).__mro__]
    present = [name for name in ABILITIES if next((c[name] for c in classes if name in c), None) is not None]
    if issubclass(type(value), type) and any("__class_getitem__" in vars(cls) for cls in value.__mro__):
        present.append("__getitem__")  # Stack[int]
    return present


def plain_value(value: Any) -> Any:
    """The plain value of an object whose class is derived from a plain one.

    Raises:
        TypeError: it isn't.
    """
    for base, make in _PLAIN.items():
        if base in type(value).__mro__:
            return make(value)
    data = object.__getattribute__(value, "__dict__").get("data")
    if type(data) in (list, dict):
        return data
    raise TypeError(f"{type(value).__name__} is not derived from a plain type")
