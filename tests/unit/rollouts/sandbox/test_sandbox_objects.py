"""What tests may do with what a program returns or defines: it lives in another process, and works as if it did not.

Every honest pair also passes in one process, by plain Python; what differs from that is in a table of its own.
"""

from __future__ import annotations

import sys
import types

import pytest
from sandbox_kit import read_programs, run_tests

from mopd.rollouts.sandbox.run import run_tests_many

HONEST = read_programs("honest")
WRONG = read_programs("wrong")
"""What a wrong program does, and tests that see it."""
DIFFERENT = read_programs("different")
"""Passes in one process and not here, as docs/sandbox.md says."""


def passes_in_one_process(program: str, tests: str) -> bool:
    """Whether plain Python lets the tests pass, with nothing between them and the program."""
    module = sys.modules["alone"] = types.ModuleType("alone")
    before = set(vars(module))
    try:
        exec(program, vars(module))
        own = set(vars(module)) - before
        exec(tests, vars(module))
        unittest = sys.modules["unittest"]
        for name, value in list(vars(module).items()):
            if name not in own and isinstance(value, type) and issubclass(value, unittest.TestCase):
                for method in dir(value):
                    if method.startswith("test"):
                        value(method).debug()
    except BaseException:
        return False
    return True


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes_as_in_one_process(name: str) -> None:
    assert passes_in_one_process(*HONEST[name])
    assert run_tests(*HONEST[name])


def test_a_wrong_program_fails_as_in_one_process() -> None:
    assert not [name for name, pair in WRONG.items() if passes_in_one_process(*pair)]
    verdicts = run_tests_many(list(WRONG.values()))
    assert dict(zip(WRONG, verdicts, strict=True)) == dict.fromkeys(WRONG, False)


def test_what_differs_from_one_process_is_what_the_page_says() -> None:
    assert not [name for name, pair in DIFFERENT.items() if not passes_in_one_process(*pair)]
    verdicts = run_tests_many(list(DIFFERENT.values()))
    assert dict(zip(DIFFERENT, verdicts, strict=True)) == dict.fromkeys(DIFFERENT, False)
