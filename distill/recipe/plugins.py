"""The one door for a user's own Python: ``./file.py:NAME`` in a recipe means the object NAME of that file.

Whatever comes through it (a task, a loss, a teacher's source) is a plain object that satisfies the same Protocol as
what is shipped. A file is read again by every process that needs it, so on a cluster it lies where all nodes see it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from mopd.distill.errors import UserError

PLUGIN_PATTERN = r"^(/|\.\.?/).*\.py:[^:]+$"
"""What a reference looks like: a path that begins with ``./``, ``../`` or ``/``, and a name of that file."""


def is_plugin(reference: str) -> bool:
    """Whether a name of the recipe means an object of a user's own file."""
    return re.match(PLUGIN_PATTERN, reference) is not None


def plugin_file(reference: str) -> Path:
    """The file of a reference, wherever a process' working folder is."""
    return Path(reference.rpartition(":")[0]).resolve()


def located_plugin(reference: str) -> str:
    """The same for a process with another working folder: by the file's absolute path."""
    return f"{plugin_file(reference)}:{reference.rpartition(':')[2]}"


def plugin_digest(reference: str) -> str:
    """A hash of the file's content: what depends on it changes when it changes."""
    return hashlib.sha256(plugin_file(reference).read_bytes()).hexdigest()[:16]


def plugin_digests(tree: Any) -> dict[str, str]:
    """Hashes of every file of a user's own that a recipe's tree (nested mappings and lists) names, by reference."""
    if isinstance(tree, dict | list):
        nodes = tree.values() if isinstance(tree, dict) else tree
        return {reference: digest for node in nodes for reference, digest in plugin_digests(node).items()}
    named = isinstance(tree, str) and is_plugin(tree) and plugin_file(tree).is_file()
    return {tree: plugin_digest(tree)} if named else {}


def load_plugin(reference: str, *, where: str) -> Any:
    """The object that ``./file.py:NAME`` means.

    Args:
        where: the leaf of the recipe that says it, for the message.

    Raises:
        UserError: there is no such file, it cannot be imported, or it has no such name.
    """
    file, name = plugin_file(reference), reference.rpartition(":")[2]
    if not file.is_file():
        raise UserError(f"`{where}` is {reference!r}, and there is no file {file} (it counts from the working folder)")
    module_name = (
        f"mopd_own_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{plugin_digest(reference)}"
    )
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses of the file look themselves up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise UserError(f"`{where}`: {file} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        offered = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))
        raise UserError(f"`{where}` is {reference!r}, and {file} has no {name!r}; it has {offered}")
    return getattr(module, name)
