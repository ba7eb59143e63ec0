"""Whole public sets of programs: reference solutions pass their tests as they are, and wrong ones do not."""

from __future__ import annotations

import random
import re

from public_data_kit import public_rows

from mopd.rollouts.sandbox.run import run_tests_many

PASSING = {"mbpp.jsonl": 956, "humaneval.jsonl": 162}
"""Of 974 and 164. The others import what programs may not, name a function like a builtin, or fail their own tests."""
FEW = 150


def solutions(name: str) -> list[tuple[str, str, str]]:
    """(reference solution, its tests, the name of the function that they call) of each row."""
    rows = public_rows(name)
    if name == "humaneval.jsonl":
        return [
            (
                row["prompt"] + row["canonical_solution"],
                f"{row['test']}\ncheck({row['entry_point']})",
                row["entry_point"],
            )
            for row in rows
        ]
    found = []
    for row in rows:
        tests = "\n".join([row["test_setup_code"], *row["test_list"], *row["challenge_test_list"]])
        called = re.search(
            r"assert\s*\(*\s*(?:set|math\.isclose|abs|sorted|len|not)?\s*\(*\s*(\w+)", row["test_list"][0]
        )
        found.append((row["code"], tests, called[1] if called else ""))
    return found


def test_reference_solutions_pass_their_tests() -> None:
    for name, wanted in PASSING.items():
        verdicts = run_tests_many([(program, tests) for program, tests, _ in solutions(name)])
        assert sum(verdicts) >= wanted, name


def test_solutions_that_give_a_list_around_the_answer_do_not() -> None:
    for name in PASSING:
        drawn = random.Random(0).sample(solutions(name), FEW)
        wrong = [
            (f"{program}\n\nright_one = {called}\ndef {called}(*a, **k): return [right_one(*a, **k)]\n", tests)
            for program, tests, called in drawn
            if re.search(rf"def {called}\b", program)
        ]
        assert len(wrong) > FEW / 2
        assert not any(run_tests_many(wrong)), name
