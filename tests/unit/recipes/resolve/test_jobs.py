"""Jobs that need others: order, failures, and what is not begun after one."""

from __future__ import annotations

import threading

import pytest
from deadline_kit import patience

from mopd.recipes.resolve.stages import run_jobs
from mopd.recipes.run.study_line import seconds_left

NEEDS = {"base": (), "math": ("base",), "run": ("math", "made before"), "lone": ()}


def test_a_job_begins_once_those_it_needs_are_done() -> None:
    order: list[str] = []
    assert run_jobs(NEEDS, order.append, parallel=1, goes_on=lambda job, error: True) == {}
    assert order == ["base", "math", "run", "lone"]


def test_who_needs_a_failed_job_is_not_begun_and_the_others_go_on() -> None:
    begun: list[str] = []

    def run_one(job: str) -> None:
        begun.append(job)
        if job == "base":
            raise ValueError(job)

    failures = run_jobs(NEEDS, run_one, parallel=1, goes_on=lambda job, error: True)
    assert begun == ["base", "lone"]
    assert list(failures) == ["base"]


def test_after_a_failure_that_ends_all_nothing_begins_and_what_runs_ends() -> None:
    meet, ended = threading.Barrier(2, timeout=patience(10)), threading.Event()
    begun: list[str] = []

    def run_one(job: str) -> None:
        begun.append(job)
        meet.wait()
        if job == "one":
            raise ValueError(job)
        assert ended.wait(patience(10))

    def end(job: str, error: BaseException) -> bool:
        ended.set()
        return False

    failures = run_jobs({"one": (), "other": (), "third": ()}, run_one, parallel=2, goes_on=end)
    assert sorted(begun) == ["one", "other"]
    assert list(failures) == ["one"]


def test_no_more_than_asked_run_at_a_time() -> None:
    lock, running, most = threading.Lock(), set[str](), [0]
    full = threading.Barrier(2, timeout=patience(10))

    def run_one(job: str) -> None:
        with lock:
            running.add(job)
            most[0] = max(most[0], len(running))
        full.wait()
        with lock:
            running.discard(job)

    assert run_jobs({str(n): () for n in range(4)}, run_one, parallel=2, goes_on=lambda *_: True) == {}
    assert most[0] == 2


def test_time_left_is_what_jobs_of_the_kind_took() -> None:
    took = {"mopd": [100.0, 200.0], "gold": [50.0]}
    # 150 and 50 wait, 150 - 30 are left of one under way; two at a time.
    assert seconds_left(["mopd", "gold"], [("mopd", 30.0)], took, parallel=2) == pytest.approx(160.0)
    # A kind that nobody finished takes the mean of the others: 100.
    assert seconds_left(["cascade"], [], took, parallel=1) == pytest.approx(100.0)
    # The longest one is waited for, however many run beside it.
    assert seconds_left(["mopd"], [("gold", 0.0)], took, parallel=8) == pytest.approx(150.0)
    assert seconds_left([], [("gold", 70.0)], took, parallel=2) == 0.0
    assert seconds_left(["mopd"], [], {}, parallel=2) is None
