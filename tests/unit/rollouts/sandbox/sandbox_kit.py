"""One program in the sandbox, for the tests of it."""

from __future__ import annotations

from mopd.rollouts.sandbox.run import PROGRAM_LIMITS, Limits, run_tests_many


def run_tests(program: str, tests: str, *, limits: Limits = PROGRAM_LIMITS) -> bool:
    """Whether a program passes its tests."""
    return run_tests_many([(program, tests)], limits=limits)[0]
