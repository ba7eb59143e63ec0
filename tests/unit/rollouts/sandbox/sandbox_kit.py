"""Tables of programs, one program in the sandbox, and one that no whitelist looks at, for the tests of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mopd.rollouts.sandbox import run as sandbox
from mopd.rollouts.sandbox.run import PROGRAM_LIMITS, Limits, run_tests_many

_OPENED = """
import ast, builtins, sys
sys.path.append({root!r})
from mopd.rollouts.sandbox import child, program
program.parse_program = ast.parse
plain_namespace = program.namespace
def namespace(name, *, type_of):
    names = plain_namespace(name, type_of=type)
    names["__builtins__"].update({{key: value for key, value in vars(builtins).items() if key[:2] != "__"}})
    names["__builtins__"]["__import__"] = __import__
    return names
program.namespace = namespace
child.main()
"""


def read_programs(name: str) -> dict[str, tuple[str, str]]:
    """(program, tests) by name, from a file whose entries are ``### NAME``, the program, ``---`` and the tests."""
    entries = (Path(__file__).parent / "programs" / f"{name}.txt").read_text().split("### ")[1:]
    pairs = {}
    for entry in entries:
        title, text = entry.split("\n", 1)
        program, tests = text.split("\n---\n")
        assert title not in pairs, title
        pairs[title] = (program + "\n", tests)
    return pairs


def run_tests(program: str, tests: str, *, limits: Limits = PROGRAM_LIMITS) -> bool:
    """Whether a program passes its tests."""
    return run_tests_many([(program, tests)], limits=limits)[0]


@contextmanager
def opened_language() -> Iterator[None]:
    """Programs may use all of Python meanwhile, as one could that found its way around the whitelist."""
    sandbox.end_idle_servers()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sandbox, "_CHILD", _OPENED)
            yield
    finally:
        sandbox.end_idle_servers()
