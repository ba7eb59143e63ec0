"""The clock of tests counts what a quiet machine would have taken, and nothing else ends a test."""

from __future__ import annotations

import os
import time
from pathlib import Path

import deadline_kit
import pytest
from deadline_kit import Deadline, QuietClock, busy_loops, crowding

pytest_plugins = "pytester"


def test_other_work_stretches_a_deadline() -> None:
    """Ten seconds at a crowding of 5, then of 1: two quiet seconds, then ten."""
    now, crowded = [0.0], [5.0]
    clock = QuietClock(lambda: now[0], lambda: crowded[0])
    deadline = Deadline(11.0, clock)
    now[0] = 10.0
    assert deadline.left() == pytest.approx(9.0)
    crowded[0], now[0] = 1.0, 18.0
    assert deadline.waits(0.0)
    now[0] = 20.0
    assert deadline.left() == 0.0
    assert not deadline.waits(0.0)


def test_a_machine_with_more_work_than_cores_is_crowded() -> None:
    cores = len(os.sched_getaffinity(0))
    with busy_loops(3 * cores):
        deadline = Deadline(60)
        while crowding() < 2 and deadline.waits():
            pass
        assert crowding() >= 2  # 3 for certain, but that a loop may not have begun
    assert crowding() <= deadline_kit.LONGEST


def test_the_clock_of_a_forked_child_goes_on() -> None:
    deadline_kit.CLOCK.seconds()
    if (child := os.fork()) == 0:
        before = deadline_kit.CLOCK.seconds()
        time.sleep(0.05)
        os._exit(0 if deadline_kit.CLOCK.seconds() > before else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("crowded", "outcome"), [(4.0, {"passed": 1}), (1.0, {"failed": 1})])
def test_a_tests_timeout_counts_quiet_seconds(
    pytester: pytest.Pytester, crowded: float, outcome: dict[str, int]
) -> None:
    """A test of 1.5 s with a timeout of 1 s passes where the machine is slower, and fails where it is not."""
    kits = Path(deadline_kit.__file__).parent
    pytester.makeini(f"[pytest]\npythonpath = {kits}\ntimeout = 1\n")
    fixed = f"\nimport deadline_kit\ndeadline_kit.CLOCK._crowded = lambda: {crowded}\n"
    pytester.makeconftest("from deadline_kit import pytest_timeout_set_timer" + fixed)
    pytester.makepyfile("import time\ndef test_slow():\n    time.sleep(1.5)\n")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(**outcome)
