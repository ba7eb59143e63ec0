"""What generated code gets in place of library names that execute text or set attributes named by a string.

A program writes only whitelisted identifiers, but the library can be made to write others for it: ``dataclass``
executes text made of field names, ``typing`` evaluates strings, ``copy`` and ``wraps`` set attributes whose names are
data. What could be shown to do so comes in the forms of this file, or has its hook removed by :func:`harden`; that no
other name of the library can do so is not proved, and no verdict depends on it (rollouts/sandbox/judge.py).
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import re
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from mopd.rollouts.sandbox.lock import freeze_classes
from mopd.rollouts.sandbox.rules import Refused

NAMESPACES = ("program", "tests", "__main__")
"""Names of the fake modules in which classes are made; their builtins are the whitelist."""
_HARMLESS_DESCRIPTORS = (types.FunctionType, property, types.MemberDescriptorType)
"""What these give when a class is asked for them runs nothing of the program."""


def harden() -> None:
    """Close what library classes leave open to subclasses, then freeze every class that exists."""
    collections.abc.Set.__eq__ = _equal_sets  # type: ignore[method-assign]
    if "fractions" in sys.modules:
        # Fraction.__eq__ asks self.from_float, which a subclass could redefine to equal any float.
        sys.modules["fractions"].Fraction.__init_subclass__ = classmethod(_no_subclass)
    freeze_classes()


def _equal_sets(self: Any, other: object) -> bool:
    """Set.__eq__ on the members; the library's trusts __len__ apart from __iter__, and nothing is a subset of all."""
    return frozenset(self) == frozenset(other) if isinstance(other, collections.abc.Set) else NotImplemented


def _no_subclass(cls: type, **_: object) -> None:
    raise Refused(f"the subclass {cls.__name__!r} of a library class")


def _wraps(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """functools.wraps for functions, without its options, which name attributes (``__globals__``) to copy by string."""

    def decorate(wrapper: Callable[..., Any]) -> Callable[..., Any]:
        if type(wrapper) is not types.FunctionType:
            raise Refused("wraps on something else than a function")
        return functools.update_wrapper(wrapper, function)

    return decorate


class _CachedProperty(functools.cached_property[Any]):
    """functools.cached_property, which writes whatever name it carries into the instance, without special names."""

    def __init_subclass__(cls) -> None:
        _no_subclass(cls)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "attrname" and value is not None and (type(value) is not str or value.startswith("__")):
            raise Refused(f"the cached property {value!r}")
        super().__setattr__(name, value)


def _deepcopy(value: object) -> object:
    """copy.deepcopy without the memory of copies, by which a caller can swap the parts of what is rebuilt."""
    return sys.modules["copy"].deepcopy(value)


def _dataclass(cls: type | None = None, **options: object) -> Any:
    """dataclasses.dataclass, where nothing of the program runs, and none of its objects is used, while it executes.

    It executes text made of field names. So names are checked, options become booleans (a truth test can call a
    program's ``__len__``), the program's fields are replaced by copies that it cannot rename, and descriptors that
    would run when the class is looked at are refused.
    """
    if cls is None:
        return lambda cls: _dataclass(cls, **options)
    plain = {key: bool(value) for key, value in options.items()}
    annotations = vars(cls).get("__annotations__", {})
    if type(annotations) is not dict or not all(type(name) is str for name in annotations):
        raise Refused("dataclass fields that are no names")  # a name with a hash of its own would run when looked up
    fields = {name: _copied(raw) for name in annotations if isinstance(raw := _raw(cls, name), _field_class())}
    # From here to the end nothing of the program runs.
    if cls.__module__ not in NAMESPACES:
        raise Refused("a dataclass from elsewhere")
    for name, annotation in annotations.items():
        if not name.isidentifier() or name.startswith("__"):
            raise Refused(f"the dataclass field {name!r}")
        raw = fields.get(name, _raw(cls, name))
        if hasattr(type(raw), "__get__") and type(raw) not in _HARMLESS_DESCRIPTORS:
            raise Refused(f"the descriptor of the dataclass field {name!r}")
        if annotation is _CLASS_VAR or (type(annotation) is str and re.match(r"(typing\.)?ClassVar\b", annotation)):
            annotations[name] = sys.modules["typing"].ClassVar
    for name, field in fields.items():
        setattr(cls, name, field)
    return sys.modules["dataclasses"].dataclass(**plain)(cls)


def _raw(cls: type, name: str) -> object:
    """An attribute of a class without running descriptors; None where there is none."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _field_class() -> type:
    return sys.modules["dataclasses"].Field


def _copied(field: Any) -> object:
    """A field with the same default and options; metadata is left out, because nothing can read it."""
    missing = sys.modules["dataclasses"].MISSING
    options = {key: getattr(field, key) for key in ("init", "repr", "hash", "compare", "kw_only")}
    return sys.modules["dataclasses"].field(
        **{key: value if value is None or value is missing else bool(value) for key, value in options.items()},
        default=field.default,
        default_factory=field.default_factory,
    )


def _form(origin: Any = None) -> Any:
    """A stand-in for a name of typing: an annotation that can be subscripted and joined, and evaluates nothing.

    Args:
        origin: what it is as a base class, as a callable and in ``isinstance``; None: it is none of these.
    """

    class Form:
        __slots__ = ()

        def __getitem__(self, _: object) -> Form:
            return self

        def __or__(self, _: object) -> Form:
            return self

        __ror__ = __or__

        def __mro_entries__(self, _: object) -> tuple[Any, ...]:
            return () if origin is None else (origin,)

        def __instancecheck__(self, value: object) -> bool:
            return isinstance(value, origin)

        def __subclasscheck__(self, cls: type) -> bool:
            return issubclass(cls, origin)

        def __call__(self, *values: object) -> object:
            return origin(*values)

    return Form()


class _Generic:
    """typing.Generic: ``Stack[int]`` is ``Stack``."""

    __slots__ = ()

    def __class_getitem__(cls, _: object) -> type:
        return cls


_ANY = _form()
_CLASS_VAR = _form()


def _type_var(name: str, *constraints: object, **options: object) -> Any:
    return _ANY


def _named_tuple(name: str, fields: Iterable[tuple[str, object]] = ()) -> Any:
    """typing.NamedTuple in its functional form, by namedtuple, which admits identifiers only."""
    return collections.namedtuple(name, [field for field, _ in fields])  # type: ignore[misc]


class _NamedTupleType(type):
    """Makes a named tuple of a class body, as typing's own does, but leaves its annotations unread."""

    def __new__(cls, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, names)
        fields = list(names.get("__annotations__", {}))
        given = [field in names for field in fields]
        if given != sorted(given):
            raise TypeError("a field without a default follows one with a default")
        made: Any = collections.namedtuple(name, fields, defaults=[names[f] for f in fields if f in names])  # type: ignore[misc]
        for key, value in names.items():
            if key not in fields and key not in ("__annotations__", "__init__", "__dict__"):
                setattr(made, key, value)
        return made


_named_tuple.__mro_entries__ = lambda _: (_NamedTupleType("NamedTuple", (), {}),)  # type: ignore[attr-defined]

SAFE_FORMS: dict[str, dict[str, Any]] = {
    "copy": {"deepcopy": _deepcopy},
    "dataclasses": {"dataclass": _dataclass},
    "functools": {"wraps": _wraps, "cached_property": _CachedProperty},
    "typing": {
        **dict.fromkeys(("Any", "Final", "Literal", "Optional", "Type", "Union"), _ANY),
        "ClassVar": _CLASS_VAR,
        "Generic": _Generic,
        "NamedTuple": _named_tuple,
        "TypeVar": _type_var,
        "DefaultDict": _form(collections.defaultdict),
        "Deque": _form(collections.deque),
        "Dict": _form(dict),
        "FrozenSet": _form(frozenset),
        "List": _form(list),
        "Set": _form(set),
        "Tuple": _form(tuple),
        **{
            name: _form(getattr(collections.abc, name))
            for name in ("Callable", "Generator", "Hashable", "Iterable", "Iterator", "Mapping", "Sequence")
        },
    },
}
"""By module and name, what :mod:`rollouts.sandbox.child` hands out in place of the library's own."""
