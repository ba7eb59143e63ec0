"""Objects of the other process, as an object here that asks for whatever is done with it.

A class of these is made for each set of abilities, so that ``callable``, ``len`` and ``isinstance(x, Iterable)`` say of
it what they say of the object. Python looks up attributes of the class before it asks ``__getattr__``, so there are
none here but the language's own; what an object stands for is kept where no name leads to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mopd.rollouts.sandbox.peer import ARITHMETIC, COMPARISONS, UNARY
from mopd.rollouts.sandbox.rules import PROGRAM_DUNDERS

ABILITIES = {
    f"__{name.rstrip('_')}__": name
    for name in (*UNARY, *COMPARISONS, "call", "iter", "next", "getitem", "setitem", "delitem", "contains", "reversed")
} | {"__round__": "round", "__enter__": "enter", "__exit__": "exit"}
"""By the method that a class has or lacks, the operation that it does."""
REFLECTED = {f"__r{name.rstrip('_')}__": name for name in ARITHMETIC}


@dataclass(frozen=True, slots=True)
class Target:
    """What a remote object stands for.

    Attributes:
        peer: asks the other process.
        number: of the object there.
        base: the plain type that its class is derived from; None for others.
        value: the plain value that it had when it was handed over, if that cannot change; otherwise None.
    """

    peer: Any
    number: int
    base: type | None = None
    value: Any = None


class Remote:
    """The base of them all."""

    __slots__ = ("_target",)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in PROGRAM_DUNDERS:
            raise AttributeError(name)
        return _peer(self).attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        _peer(self).ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _peer(self).ask("del", self, name)

    def __copy__(self) -> Any:
        return _peer(self).ask("copy", self)

    def __deepcopy__(self, memo: object) -> Any:
        return _peer(self).ask("deepcopy", self)

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("an object of a program cannot be taken apart")

    def __format__(self, spec: str) -> str:
        return _peer(self).formatted(self, spec)

    def __ne__(self, other: object) -> Any:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal


_TARGET: Any = vars(Remote)["_target"]
del Remote._target  # type: ignore[attr-defined]  # no name leads to it any more


def target_of(remote: object) -> Target | None:
    """What a remote object stands for; None for anything else. Asks nothing of the object."""
    return _TARGET.__get__(remote) if issubclass(type(remote), Remote) else None


def make_remote(target: Target, abilities: frozenset[str], *, is_class: bool) -> Remote:
    """An object that stands for ``target``, with the methods that the object's class has."""
    remote = object.__new__(_class(abilities, is_class))
    _TARGET.__set__(remote, target)
    return remote


def _peer(remote: Remote) -> Any:
    return _TARGET.__get__(remote).peer


@functools.cache
def _class(abilities: frozenset[str], is_class: bool) -> type[Remote]:
    names: dict[str, Any] = {"__slots__": (), "__class__": property(_class_shown)}
    for method in sorted(abilities & ABILITIES.keys()):
        names[method] = _forward(ABILITIES[method])
    for operation in (*ARITHMETIC, *COMPARISONS):
        names[f"__{operation.rstrip('_')}__"] = _binary(operation, swap=False)
    for method, operation in REFLECTED.items():
        names[method] = _binary(operation, swap=True)
    if {"__iter__", "__getitem__"} & abilities:
        # Without these Python would look through the items itself, and stop at the first that fits. A class has none.
        both = (None, None) if is_class else (_forward("iter"), _forward("contains"))
        names["__iter__"], names["__contains__"] = both
    names["__hash__"] = _forward("hash") if "__hash__" in abilities else None
    names["__bool__"] = _truth if {"__bool__", "__len__"} & abilities else lambda self: True
    names.pop("__ne__", None)
    if is_class:
        names["__instancecheck__"] = lambda self, value: _peer(self).is_instance(value, self)
        names["__subclasscheck__"] = lambda self, value: _peer(self).ask("issubclass", value, self)
    return type("Remote", (Remote,), names)


def _class_shown(remote: Remote) -> type:
    """What ``isinstance`` sees besides the class itself: the plain type that the object's class is derived from."""
    return _TARGET.__get__(remote).base or type(remote)


def _forward(operation: str) -> Callable[..., Any]:
    if operation == "call":
        return lambda self, /, *args, **options: _peer(self).called(self, args, options)
    return lambda self, *values: _peer(self).operate(operation, self, *values)


def _truth(remote: Remote) -> bool:
    return _peer(remote).operate("bool", remote)


def _binary(operation: str, *, swap: bool) -> Callable[[Any, Any], Any]:
    return lambda self, other: _peer(self).binary(operation, self, other, swap)
