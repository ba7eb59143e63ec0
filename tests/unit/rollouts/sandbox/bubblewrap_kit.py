"""What the tests of bubblewrap need: a machine that has it, and one program in it."""

from __future__ import annotations

import pytest

from mopd.rollouts.sandbox.bubblewrap.choice import bubblewrap_problem
from mopd.rollouts.sandbox.run import PROGRAM_LIMITS, Limits, ProgramVerdict, judge_programs

PROBLEM = bubblewrap_problem()
needs_bubblewrap = pytest.mark.skipif(PROBLEM is not None, reason=f"needs bubblewrap: {PROBLEM}")


def judged(program: str, tests: str, *, limits: Limits = PROGRAM_LIMITS) -> ProgramVerdict:
    """The verdict on a program in bubblewrap."""
    return judge_programs([(program, tests)], sandbox="bubblewrap", limits=limits)[0]
