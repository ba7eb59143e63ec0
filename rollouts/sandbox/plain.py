"""Plain values between a program and its tests: what crosses the pipe is text, and what comes out has exact types.

Both sides trust :func:`decode` alone: it makes ``int``, ``list``, ``Counter`` and their like, never a subclass, and
nothing of the other side runs while it does. Whatever has no plain form goes by number, through the two hooks of
:class:`Codec`, and stays where it lives.
"""

from __future__ import annotations

import builtins
import collections
import decimal
import fractions
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from mopd.rollouts.sandbox.namespaces import LIBRARY, facade, library_name
from mopd.rollouts.sandbox.rules import PROGRAM_NAMES

Encoded: TypeAlias = Any
"""What JSON has: None, a boolean, a number, a text; or a list whose first item is a tag."""

DEEPEST, MOST_ITEMS, LONGEST_RANGE = 200, 1_000_000, 100_000
"""Items of a value in all; eight letters, or 64 bits of a large integer, count as one."""
_BIG = 1 << 128  # JSON's own integers are read in quadratic time and have a limit of digits
_NUMBERS = {int, float, bool, type(None)}
_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}
_MAPPINGS: dict[type, str] = {dict: "d", collections.Counter: "C", collections.OrderedDict: "O"}
_VIEWS: dict[type, str] = {type({}.keys()): "k", type({}.values()): "v", type({}.items()): "e"}
CONTAINERS = (list, set, bytearray, dict, collections.Counter, collections.OrderedDict, collections.deque)
"""Types that can be changed in place: these are known again when they come a second time."""
_BUILTINS = {id(value): name for name, value in vars(builtins).items() if name in PROGRAM_NAMES}


class NotPlain(ValueError):
    """A value that is too large or too deep to be handed over."""


class Broken(Exception):
    """The other side wrote what no codec writes."""


class Known:
    """The containers of one message, numbered as they appear, so that one that appears twice is one."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self.items = list(items)  # kept alive, or another object could get the same id
        self.numbers = {id(item): number for number, item in enumerate(self.items)}

    def add(self, item: object) -> None:
        """Number the next container."""
        self.numbers[id(item)] = len(self.items)
        self.items.append(item)


class Codec:
    """Turns values into what JSON has and back.

    Args:
        export: the encoded form, a list with a tag, of a value that has no plain one.
        resolve: the value of such a form; raises :class:`Broken` where there is none.
    """

    def __init__(self, export: Callable[[Any], Encoded], resolve: Callable[[list[Any]], Any]) -> None:
        self._export, self._resolve = export, resolve
        self._room = MOST_ITEMS

    def encode(self, value: object, known: Known | None = None) -> Encoded:
        """The form of a value, which is looked at by its exact type: no method that could be overridden is called.

        Args:
            known: the containers of the message so far; it grows. None: each appearance is written out.

        Raises:
            NotPlain: it is too deep or too large.
        """
        self._room = MOST_ITEMS
        return self._encode(value, known, 0)

    def encode_contents(self, container: Any, known: Known) -> Encoded:
        """The form of a container of ``known`` itself, where it stands for its present contents."""
        self._room = MOST_ITEMS
        return self._container(container, known, 0)

    def _encode(self, value: Any, known: Known | None, depth: int) -> Encoded:
        kind = type(value)
        if kind is int:
            if -_BIG < value < _BIG:
                return value
            self._take(value.bit_length() // 64)
            return ["i", hex(value)]
        if kind is str:
            self._take(len(value) // 8)
            return value if value.isascii() else _text(value)
        if value is None or kind is bool or kind is float:
            return value
        if depth > DEEPEST:
            raise NotPlain(f"a value nested deeper than {DEEPEST}")
        if known is not None and kind in CONTAINERS:
            if id(value) in known.numbers:
                return ["r", known.numbers[id(value)]]
            known.add(value)
        return self._container(value, known, depth)

    def _container(self, value: Any, known: Known | None, depth: int) -> Encoded:
        kind = type(value)
        if kind in _SEQUENCES:
            return [_SEQUENCES[kind], *self._items(value, known, depth)]
        if kind in _MAPPINGS:
            pairs = [part for pair in value.items() for part in pair]
            return [_MAPPINGS[kind], *self._items(pairs, known, depth)]
        if kind is collections.deque:
            return ["q", value.maxlen, *self._items(value, known, depth)]
        if kind in _VIEWS:
            return [_VIEWS[kind], *self._items(list(value), known, depth)]
        if kind in (bytes, bytearray):
            self._take(len(value) // 8)
            return ["y" if kind is bytes else "Y", value.hex()]
        if kind is range and _length(value) <= LONGEST_RANGE:
            return ["R", *self._items((value.start, value.stop, value.step), None, depth)]
        if kind in (complex, slice, decimal.Decimal, fractions.Fraction):
            return self._number(value, depth)
        return self._named(value)

    def _number(self, value: Any, depth: int) -> Encoded:
        kind = type(value)
        if kind is complex:
            return ["c", value.real, value.imag]
        if kind is slice:
            return ["S", *self._items((value.start, value.stop, value.step), None, depth)]
        if kind is decimal.Decimal:
            return ["D", str(value)]
        return ["F", *self._items((value.numerator, value.denominator), None, depth)]

    def _named(self, value: Any) -> Encoded:
        if _BUILTINS.get(id(value)) is not None:
            return ["b", _BUILTINS[id(value)]]
        if isinstance(value, types.ModuleType) and value.__name__ in LIBRARY:
            return ["M", value.__name__]
        name = library_name(value)
        return self._export(value) if name is None else ["m", *name]

    def _items(self, values: Any, known: Known | None, depth: int) -> list[Encoded]:
        self._take(len(values))
        kinds = set(map(type, values))
        if kinds <= _NUMBERS and (int not in kinds or all(-_BIG < v < _BIG for v in values if type(v) is int)):
            return list(values)
        return [self._encode(value, known, depth + 1) for value in values]

    def _take(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise NotPlain(f"a value of more than {MOST_ITEMS:,} items")

    def decode(self, form: Encoded, known: list[Any] | None = None) -> Any:
        """The value of a form.

        Args:
            known: the containers of the message so far; it grows as the encoder's did.

        Raises:
            Broken: it is no form.
        """
        if type(form) is not list:
            if type(form) is dict:
                raise Broken("an object")
            return form
        if not form or type(form[0]) is not str:
            raise Broken("no tag")
        tag, *items = form
        if tag in _EMPTY:
            value = self._empty(form)
            if known is not None:
                known.append(value)  # before its items, which may refer to it
            fill(value, self._decode_items(items[tag == "q" :], known), tag)
            return value
        if tag in _MAKERS:
            try:
                return _MAKERS[tag](*[self.decode(item, known) for item in items])
            except (TypeError, ValueError, ArithmeticError) as error:
                raise Broken(f"tag {tag!r}") from error
        if tag in ("t", "z", "k", "v", "e"):
            return _IMMUTABLE[tag](self._decode_items(items, known))
        if tag == "r":
            if known is None or type(items[0]) is not int or not 0 <= items[0] < len(known):
                raise Broken("a reference")
            return known[items[0]]
        return self._resolve(form)

    def decode_contents(self, form: Encoded, known: list[Any]) -> Any:
        """The value of :meth:`encode_contents`' form: the container itself is one of ``known`` already."""
        if type(form) is not list or not form or form[0] not in _EMPTY:
            raise Broken("no container")
        value = self._empty(form)
        fill(value, self._decode_items(form[1 + (form[0] == "q") :], known), form[0])
        return value

    def _decode_items(self, items: list[Encoded], known: list[Any] | None) -> list[Any]:
        if set(map(type, items)) <= {*_NUMBERS, str}:
            return items
        return [self.decode(item, known) for item in items]

    def _empty(self, form: list[Encoded]) -> Any:
        if form[0] != "q":
            return _EMPTY[form[0]]()
        if len(form) < 2 or type(form[1]) not in (int, type(None)):
            raise Broken("a deque")
        return collections.deque(maxlen=form[1])


def fill(container: Any, items: list[Any], tag: str) -> None:
    """Put decoded items into an empty container.

    Raises:
        Broken: they can't be its items.
    """
    try:
        if tag in ("l", "q"):
            container.extend(items)
        elif tag == "s":
            container.update(items)
        elif tag == "Y":
            container.extend(bytes.fromhex(items[0]))
        else:
            _put(container, zip(items[::2], items[1::2], strict=True))
    except (TypeError, ValueError, IndexError) as error:
        raise Broken(f"the items of tag {tag!r}") from error


def refill(container: Any, value: Any) -> None:
    """Give a container the contents of another of its type.

    Raises:
        Broken: it is none.
    """
    if type(value) is not type(container):
        raise Broken("another type of container")
    container.clear()
    if isinstance(container, list | collections.deque | bytearray):
        container.extend(value)
    elif isinstance(container, set):
        container.update(value)
    else:
        _put(container, value.items())


def _put(container: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    for key, value in pairs:
        container[key] = value  # `update` of a Counter would add


def _text(value: str) -> Encoded:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair; JSON would join two of them
        return ["u", value.encode("utf-8", "surrogatepass").hex()]
    return value


def _length(value: range) -> int:
    return max(0, (value.stop - value.start + value.step - (1 if value.step > 0 else -1)) // value.step)


def _range(start: int, stop: int, step: int) -> range:
    value = range(start, stop, step)
    if _length(value) > LONGEST_RANGE:  # what contains every integer equals any test with `in`
        raise ValueError(value)
    return value


def _library(module: str, name: str) -> Any:
    if module not in LIBRARY or name not in LIBRARY[module]:
        raise ValueError(module)
    return LIBRARY[module][name]


def _module(name: str) -> types.ModuleType:
    if name not in LIBRARY:
        raise ValueError(name)
    return facade(name)


def _builtin(name: str) -> Any:
    if name not in PROGRAM_NAMES:
        raise ValueError(name)
    return getattr(builtins, name)


_EMPTY: dict[str, Callable[..., Any]] = {
    **{tag: kind for kind, tag in _MAPPINGS.items()},
    "l": list,
    "s": set,
    "Y": bytearray,
    "q": collections.deque,
}
_IMMUTABLE: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple,
    "z": frozenset,
    "k": lambda items: dict.fromkeys(items).keys(),
    "v": lambda items: dict(enumerate(items)).values(),
    "e": lambda items: dict(items).items(),
}
_MAKERS: dict[str, Callable[..., Any]] = {
    "i": lambda digits: int(digits, 16),
    "u": lambda digits: bytes.fromhex(digits).decode("utf-8", "surrogatepass"),
    "y": bytes.fromhex,
    "c": complex,
    "R": _range,
    "S": slice,
    "D": decimal.Decimal,
    "F": fractions.Fraction,
    "m": _library,
    "M": _module,
    "b": _builtin,
}
