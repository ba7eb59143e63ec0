"""The conversation between a program's process and its tests': one asks, the other does, on its own objects.

A message is a line of JSON. While one side waits for an answer it serves what the other asks in between, as a callback
does. What an operation may be is a row of :data:`OPERATIONS`; attributes and operators of the language, nothing else.
"""

from __future__ import annotations

import copy
import json
import math
import operator
import os
import select
from collections.abc import Callable
from typing import Any, NoReturn

from mopd.rollouts.sandbox.plain import Broken, Codec, Encoded, Known, refill
from mopd.rollouts.sandbox.rules import PROGRAM_DUNDERS

COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor", "matmul"),
)
BINARY: dict[str, Callable[[Any, Any], Any]] = {name: getattr(operator, name) for name in (*COMPARISONS, *ARITHMETIC)}
UNARY: dict[str, Callable[[Any], Any]] = {
    **{name: getattr(operator, name) for name in ("abs", "neg", "pos", "invert", "index")},
    **{kind.__name__: kind for kind in (bool, str, int, float, complex)},
    **{function.__name__: function for function in (len, hash, repr, math.trunc, math.floor, math.ceil)},
}
"""Questions without an operand. The name with underscores around it is the method that answers them."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, of which a pipe may take a part at a time."""
    while data:
        data = data[os.write(descriptor, data) :]


def drain(descriptor: int) -> None:
    """Read what has been written into a pipe and nobody else reads."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while any(event & select.POLLIN for _, event in poll.poll(0)):
        os.read(descriptor, 1 << 16)


def _get(value: Any, name: str) -> Any:
    _require_name(name)
    return getattr(value, name)


def _set(value: Any, name: str, item: Any) -> None:
    _require_name(name)
    setattr(value, name, item)


def _del(value: Any, name: str) -> None:
    _require_name(name)
    delattr(value, name)


def _require_name(name: str) -> None:
    if type(name) is not str or (name.startswith("__") and name not in PROGRAM_DUNDERS):
        raise AttributeError(name)


OPERATIONS: dict[str, Callable[..., Any]] = {
    **BINARY,
    **UNARY,
    "get": _get,
    "set": _set,
    "del": _del,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "contains": operator.contains,
    "iter": iter,
    "next": next,
    "reversed": reversed,
    "round": round,
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value: type(value).__exit__(value, None, None, None),
    "type": type,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


class Peer:
    """One side of the conversation.

    Args:
        codec: how values cross.
        longest: bytes of a message; a longer one ends the process.
        reads, writes: the descriptors that it is on.
    """

    def __init__(self, codec: Codec, *, longest: int, reads: int = 0, writes: int = 1) -> None:
        self.codec, self._longest = codec, longest
        self._reads, self._writes = reads, writes
        self._unread = b""
        self.special: dict[str, Callable[..., Any]] = {}
        """Operations of this side alone."""

    def ask(self, operation: str, *values: object) -> Any:
        """What the other side's operation gives; raises what it raised, as :meth:`error` makes it."""
        return self._converse([operation, *[self.codec.encode(value) for value in values]])

    def call(
        self, function: object, args: tuple[Any, ...], options: dict[str, Any], *, carry: bool
    ) -> tuple[Any, bool]:
        """Call a function of the other side on copies of the arguments.

        Args:
            carry: whether what it did to lists, dictionaries and sets among them is done to the originals too.

        Returns:
            (its value, whether it changed any of them). A value that is an argument comes back as the argument itself
            unless only the copy was changed.
        """
        known = Known()
        forms = [self.codec.encode(value, known) for value in (args, options)]
        form, which, changes = self._converse(["call", self.codec.encode(function), *forms], decode=False)
        originals = list(known.items)
        if changes and carry:
            self._carry(changes, originals)
        if type(which) is int and 0 <= which < len(originals) and (carry or not changes):
            return originals[which], bool(changes)
        return self._decode(form), bool(changes)

    def _carry(self, changes: Any, originals: list[Any]) -> None:
        """Refill what was changed; new containers among the items are numbered after the originals."""
        known, numbers = list(originals), [number for number, _ in changes]
        if any(type(n) is not int or not 0 <= n < len(originals) for n in numbers):
            raise Broken("a change of nothing")
        contents = [self.codec.decode_contents(form, known) for _, form in changes]
        for number, value in zip(numbers, contents, strict=True):
            refill(originals[number], value)

    def _converse(self, message: list[Any], *, decode: bool = True) -> Any:
        self._write(message)
        while True:
            answer = self._read()
            try:
                kind, *rest = answer
                if kind == "ok":
                    (form,) = rest
                    if not decode:
                        form, which, changes = form
                        return form, which, [(number, change) for number, change in changes]
                    return self._decode(form)
                error = self.error(*rest) if kind == "raise" else None
            except (Broken, TypeError, ValueError, IndexError, RecursionError):
                self.give_up()
            if error is not None:
                raise error
            self._serve(kind, rest)

    def serve(self) -> NoReturn:
        """Do what is asked until the other side ends."""
        while True:
            kind, *rest = self._read()
            self._serve(kind, rest)

    def _serve(self, kind: Any, forms: list[Encoded]) -> None:
        try:
            if kind == "call":
                answer = self._called(*forms)
            elif kind in self.special:
                answer = self.codec.encode(self.special[kind](*map(self._decode, forms)))
            else:
                answer = self.codec.encode(self.perform(kind, *map(self._decode, forms)))
            self._write(["ok", answer])
        except BaseException as error:
            try:
                self._write(["raise", *self.raised(error)])
            except (ValueError, RecursionError):
                self._write(["raise", ["b", "RecursionError"], ["t"], "", 0])

    def perform(self, kind: str, *values: Any) -> Any:
        """The result of an operation on this side's objects."""
        return OPERATIONS[kind](*values)

    def _called(self, function: Encoded, args: Encoded, options: Encoded) -> Encoded:
        """[value, which container of the arguments it is, changes: number and new contents of each]."""
        containers: list[Any] = []
        values, named = self._decode(args, containers), self._decode(options, containers)
        before = [copy.copy(container) for container in containers]
        result = self.callee(self._decode(function))(*values, **named)
        which = next((number for number, c in enumerate(containers) if c is result), None)
        changed = [n for n, (c, old) in enumerate(zip(containers, before, strict=True)) if not _same(c, old)]
        known = Known(containers)
        changes = [[number, self.codec.encode_contents(containers[number], known)] for number in changed]
        form = None if which is not None and not changes else self.codec.encode(result)
        return [form, which, changes]

    def callee(self, function: Any) -> Callable[..., Any]:
        """What is called where the other side calls ``function``."""
        return function

    def raised(self, error: BaseException) -> list[Encoded]:
        """What is handed over of an error: class, arguments, text, and the error itself."""
        raise NotImplementedError

    def error(self, *forms: Encoded) -> BaseException:
        """The error made of what :meth:`raised` handed over."""
        raise NotImplementedError

    def give_up(self) -> NoReturn:
        """End the process: the other side is gone, or does not keep to the rules."""
        os._exit(1)

    def _decode(self, form: Encoded, known: list[Any] | None = None) -> Any:
        return self.codec.decode(form, known)

    def _write(self, message: list[Any]) -> None:
        data = json.dumps(message, check_circular=False).encode() + b"\n"
        if len(data) > self._longest:
            raise ValueError(f"a message of {len(data):,} bytes; at most {self._longest:,} can be handed over")
        try:
            write_all(self._writes, data)
        except OSError:
            self.give_up()

    def _read(self) -> list[Any]:
        while b"\n" not in self._unread:
            chunk = b"" if len(self._unread) > self._longest else os.read(self._reads, 1 << 16)
            if not chunk:
                self.give_up()
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self.give_up()
        if type(message) is not list or not message or type(message[0]) is not str:
            self.give_up()
        return message


def _same(now: Any, before: Any) -> bool:
    """Whether a container has the same objects as its copy from before, in the same order."""
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(a is b for pair in zip(now.items(), before.items(), strict=True) for a, b in zip(*pair, strict=True))
    if isinstance(now, bytearray):
        return now == before
    if isinstance(now, set):  # a copy may have another order
        return set(map(id, now)) == set(map(id, before))
    return all(a is b for a, b in zip(now, before, strict=True))
