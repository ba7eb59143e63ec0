"""What the names of generated code mean: the builtins, modules and ``type`` that programs and tests get.

Both get the same, made again for each: a program and its tests live in two processes and share no object.
"""

from __future__ import annotations

import builtins
import importlib
import random
import sys
import types
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mopd.rollouts.sandbox.console import Console
from mopd.rollouts.sandbox.rules import MODULES, PROGRAM_NAMES, Refused
from mopd.rollouts.sandbox.safe_stdlib import SAFE_FORMS

LIBRARY: dict[str, dict[str, Any]] = {}
"""By module and name, what a facade holds; filled by :func:`load_library`."""
_NAMES: dict[int, tuple[str, str]] = {}


def load_library(*, safe: bool = True) -> None:
    """Import every module that a program may use, while files can still be opened.

    Args:
        safe: names that reach more than they should come in the forms of rollouts/sandbox/safe_stdlib.py.
    """
    for name, keys in MODULES.items():
        module, forms = importlib.import_module(name), SAFE_FORMS.get(name, {}) if safe else {}
        LIBRARY[name] = {key: forms[key] if key in forms else getattr(module, key) for key in sorted(keys)}
    importlib.import_module("unicodedata")  # text with \N{...} in it asks for it
    random.seed("")  # since Python 3.13 the first seed that is text loads a hash
    for module_name, values in LIBRARY.items():
        for key, value in values.items():
            if callable(value):
                _NAMES.setdefault(id(value), (module_name, key))


def library_name(value: object) -> tuple[str, str] | None:
    """(module, name) of what a facade holds, by identity; None for anything else."""
    name = _NAMES.get(id(value))
    return name if name is not None and LIBRARY[name[0]][name[1]] is value else None


def namespace(name: str, *, type_of: Any, console: Console | None = None) -> dict[str, Any]:
    """Fresh globals, in a fake module of that name, whose builtins are the whitelist.

    Args:
        type_of: what ``type`` is there.
        console: what a program reads and writes that is run as a whole.
    """
    allowed: dict[str, Any] = {key: getattr(builtins, key) for key in PROGRAM_NAMES}
    allowed |= {"__import__": partial(_import, {}), "__build_class__": builtins.__build_class__}
    allowed |= {"print": _print, "type": type_of}
    if console is not None:
        allowed |= console.names | {"__import__": partial(_import, console.modules)}
    # dataclasses execute the code they generate in the module of a class.
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name])["__builtins__"] = allowed
    return {"__name__": name, "__builtins__": allowed}


def facade(name: str) -> types.ModuleType:
    """A module with the allowed names of module ``name`` and nothing else, made again for whoever imports it."""
    module = types.ModuleType(name)
    vars(module).update(LIBRARY[name])
    for child in MODULES:
        parent, _, key = child.rpartition(".")
        if parent == name:
            setattr(module, key, facade(child))
    return module


def type_of(value: object) -> type:
    """``type`` of one value that isn't itself a class: the three-argument form makes classes around the whitelist."""
    if isinstance(value, type):
        raise Refused("the type of a class")
    return type(value)


def _import(
    more: Mapping[str, types.ModuleType],
    name: str,
    globals: object = None,
    locals: object = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> types.ModuleType:
    """What ``import`` calls: hands out a facade, never the module itself."""
    if name in more and not level:
        return more[name]
    if level or name not in MODULES:
        raise Refused(f"import of module {name!r}")
    return facade(name if fromlist else name.partition(".")[0])


def _print(*values: object, **options: object) -> None:
    """Output is not part of any verdict, and an answer that prints much costs nothing."""
