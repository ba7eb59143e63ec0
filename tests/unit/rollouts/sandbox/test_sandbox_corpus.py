"""Hostile programs, each with tests that it must not pass; what honest ones do is in test_sandbox_objects.py.

`programs/hostile.txt` is the corpus. A forgery that somebody finds goes there, with the kind that it is of.
"""

from __future__ import annotations

from sandbox_kit import read_programs

from mopd.rollouts.sandbox.run import Limits, run_tests_many

QUICK = Limits(cpu_seconds=1.0, wall_seconds=120, memory_bytes=256 << 20, result_bytes=4 << 20, source_chars=20_000)
HOSTILE = read_programs("hostile")


def test_the_corpus_is_large_and_has_no_doubles() -> None:
    assert len({program for program, _ in HOSTILE.values()}) >= 200
    assert len(set(HOSTILE.values())) == len(HOSTILE)


def test_no_hostile_program_passes() -> None:
    verdicts = run_tests_many(list(HOSTILE.values()), limits=QUICK)
    assert [name for name, passed in zip(HOSTILE, verdicts, strict=True) if passed] == []
