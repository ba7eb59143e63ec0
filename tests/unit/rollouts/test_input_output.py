"""Programs that are told by inputs and outputs, and programs that the sandbox refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mopd.distill.errors import UserError
from mopd.distill.recipe import Source
from mopd.distill.verdicts import UnjudgedScore
from mopd.rollouts.input_output import cases_problem, cases_text
from mopd.rollouts.verifiers import verify, verify_many

ECHO = "while True:\n    try:\n        print(input())\n    except EOFError:\n        break"


def printed(program: str, given: str, wanted: str) -> float:
    return verify("input_output", json.dumps({"inputs": [given], "outputs": [wanted]}), program)


def returned(program: str, arguments: list[Any], wanted: object, name: str = "f") -> float:
    cases = json.dumps({"inputs": [arguments], "outputs": [wanted], "function": name})
    return verify("input_output", cases, program)


@pytest.mark.parametrize(
    ("written", "wanted", "right"),
    [
        ("1 2\n3", "1 2\n3\n\n", True),
        ("1  2 \n3\n", "1 2\n3", True),
        ("1 2 3", "1 2\n3", False),
        ("YES", "Yes", False),
        ("1.50", "1.5", True),
        ("0.3333333", "0.33333333", True),
        ("0.3334", "0.33333333", False),
        ("3.0", "3", True),
        ("1000000000000000000001", "1000000000000000000000", False),
        ("3", "3 4", False),
        ("", "", True),
        ("a\n\nb", "a\nb", False),
        ("nan", "0.5", False),
    ],
)
def test_what_is_printed_is_compared_word_by_word(written: str, wanted: str, right: bool) -> None:
    assert printed(ECHO, written, wanted) == float(right)


READERS = {
    "input": "a, b = map(int, input().split())\nprint(a + b)",
    "sys.stdin": "import sys\nprint(sum(int(x) for line in sys.stdin for x in line.split()))",
    "from sys": "from sys import stdin, stdout\nstdout.write(str(sum(map(int, stdin.readline().split()))))",
    "bytes": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "input is renamed": "import sys\ninput = sys.stdin.readline\nprint(sum(map(int, input().split())))",
    "main": "def main():\n    print(sum(map(int, input().split())))\n\nif __name__ == '__main__':\n    main()",
    "ends early": "print(sum(map(int, input().split())))\nexit()\nprint('more')",
    "errors apart": "import sys\nprint('why', file=sys.stderr)\nprint(sum(map(int, input().split())))",
    "deep": "import sys\nsys.setrecursionlimit(10**6)\ndef f(n):\n    return n and 1 + f(n - 1)\n"
    "a, b = map(int, input().split())\nprint(a + b + f(5000) - 5000)",
    "a class": "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\n    b: int\n"
    "p = P(*map(int, input().split()))\nprint(p.a + p.b)",
}


@pytest.mark.parametrize("how", list(READERS))
def test_a_program_reads_as_people_write_it(how: str) -> None:
    assert printed(READERS[how], "3 4\n", "7\n") == 1.0
    assert printed(READERS[how], "3 4\n", "8\n") == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "print(7)\nraise ValueError",
        "import sys\nprint(7)\nsys.exit(1)",
        "print(7)\nwhile True:\n    pass",
        "input()\ninput()\nprint(7)",
        "def run_program(given):\n    return '7'",
        "print('7' * 10**9)",
        "class str(str):\n    def split(self, *a):\n        return ['7']\nprint(str('8'))",
        "import sys\nsys.stdout = None\nprint(8)",
    ],
)
def test_a_run_that_fails_is_no_answer(program: str) -> None:
    assert printed(program, "3 4\n", "7\n") == 0.0


def test_each_case_is_a_run_of_its_own() -> None:
    cases = json.dumps({"inputs": ["1", "2"], "outputs": ["1", "2"]})
    notes = "import math\ntry:\n    math.seen\n    print('again')\n"
    remembers = f"{notes}except AttributeError:\n    math.seen = 1\n    print(input())"
    assert verify("input_output", cases, remembers) == 1.0
    assert verify("input_output", cases, "print(1)") == 0.0


@pytest.mark.parametrize(
    ("program", "wanted", "right"),
    [
        ("def f(xs):\n    return sorted(xs)", [1, 2, 3], True),
        ("def f(xs):\n    return tuple(sorted(xs))", [1, 2, 3], True),
        ("class Solution:\n    def f(self, xs: List[int]) -> List[int]:\n        return sorted(xs)", [1, 2, 3], True),
        ("def f(xs):\n    return sum(xs) / 2", 3.0000000001, True),
        ("def f(xs):\n    return len(xs) > 2", True, True),
        ("def f(xs):\n    return 1", True, False),
        ("def f(xs):\n    return sum(xs)", [6], True),
        ("def f(xs):\n    return xs", [1, 2, 3], False),
        (
            "def f(xs):\n    class Any:\n        def __eq__(self, other):\n            return True\n    return Any()",
            3,
            False,
        ),
        ("def f(xs):\n    print(6)", 6, False),
    ],
)
def test_a_function_is_asked_for_its_value(program: str, wanted: object, right: bool) -> None:
    assert returned(program, [[3, 1, 2]], wanted) == float(right)


def test_cases_are_read_as_the_sets_write_them() -> None:
    apps = '{"inputs": [["1", "2"], "3"], "outputs": ["1\\n2", 3]}'
    assert json.loads(cases_text(apps, None)) == {"inputs": ["1\n2", "3"], "outputs": ["1\n2", "3"]}
    named = {"fn_name": "f", "inputs": [[1]], "outputs": [2]}
    assert json.loads(cases_text(named, None))["function"] == "f"
    functional = [{"input": '[1]\n"a"', "output": "[2]", "testtype": "functional"}]
    assert json.loads(cases_text(functional, "g")) == {"inputs": [[[1], "a"]], "outputs": [[2]], "function": "g"}
    with pytest.raises(ValueError, match="name its column as `function`"):
        cases_text(functional, None)
    with pytest.raises(ValueError, match="holds no cases"):
        cases_text("3", None)


@pytest.mark.parametrize(
    ("cases", "problem"),
    [
        ({"inputs": [], "outputs": []}, "has no case"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": [[1]], "outputs": [1], "function": "lambda"}, "is no name"),
        ({"inputs": [1], "outputs": [1], "function": "f"}, "arguments that are no list"),
    ],
)
def test_cases_that_tell_nothing_are_refused(cases: dict[str, Any], problem: str) -> None:
    assert problem in str(cases_problem(json.dumps(cases)))
    with pytest.raises(UserError, match=problem):
        verify("input_output", json.dumps(cases), "print(1)")


def test_leaves_that_go_together() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="no `tests`"):
        Source(path="a/b", verifier="input_output")
    with pytest.raises(ValidationError, match="which input_output reads"):
        Source(path="a/b", verifier="number", function="name")
    assert Source(path="a/b", verifier="input_output", tests="cases", answer=None).answer is None


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os\ndef f():\n    return 1", "import of module 'os'"),
        ("import numpy as np\ndef f():\n    return 2", "import of module 'numpy'"),
        ("def f():\n    return getattr(1, 'real')", "name 'getattr'"),
        ("def f():\n    return open('x').read()", "name 'open'"),
        ("def f():\n    return (1).__class__", "name '__class__'"),
        ("async def f():\n    return 1", "syntax AsyncFunctionDef"),
        ("def f():\n    return 2", None),
        ("def f(:\n", None),
        ("def open():\n    return 2\ndef f():\n    return open()", None),
        ("def f():\n    while True: pass", None),
    ],
)
def test_what_the_sandbox_refuses_is_told_from_what_is_wrong(program: str, reason: str | None) -> None:
    (score,) = verify_many("python_tests", ["assert f() == 3"], [program])
    assert score == 0.0
    assert (score.reason if isinstance(score, UnjudgedScore) else None) == reason


def test_a_program_that_passes_is_not_asked_what_it_uses() -> None:
    unused = "def f():\n    return 3\ndef g():\n    return open('x')"
    assert verify_many("python_tests", ["assert f() == 3"], [unused]) == [1.0]


def test_a_whole_program_may_use_what_a_function_may_not() -> None:
    (stdin, files) = verify_many(
        "input_output",
        [json.dumps({"inputs": ["1"], "outputs": ["2"]})] * 2,
        ["import sys\nprint(sys.stdin.read())", "import os\nprint(os.read(0, 9))"],
    )
    assert not isinstance(stdin, UnjudgedScore)
    assert isinstance(files, UnjudgedScore)


def test_unit_tests_may_run_the_program() -> None:
    tests = "def test_sum():\n    assert run_program('1 2') == '3\\n'"
    assert verify("python_tests", tests, "print(sum(map(int, input().split())))") == 1.0
    assert verify("python_tests", tests, "print(4)") == 0.0
