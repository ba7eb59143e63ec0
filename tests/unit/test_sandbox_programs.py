"""Whole programs in the sandbox: right ones pass, wrong ones fail, hostile ones fail and can't forge a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollouts.sandbox import Limits, run_tests, run_tests_many

QUICK = Limits(cpu_seconds=0.3, wall_seconds=30, memory_bytes=256 << 20, result_bytes=1000, source_chars=20_000)

FIBONACCI = """
from __future__ import annotations
from functools import lru_cache
import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import List

@dataclass
class Pair:
    left: int
    right: int = 0

class Stack:
    def __init__(self): self._items: List[int] = []
    def push(self, v): self._items.append(v)
    def __len__(self): return len(self._items)

@lru_cache(maxsize=None)
def fib(n):
    if n < 0:
        raise ValueError("{} is negative".format(n))
    return n if n < 2 else fib(n - 1) + fib(n - 2)

def letters(text):
    print("looking at", text)
    return [c for c, _ in Counter(sorted(text)).most_common()]

if __name__ == "__main__":
    print(fib(input()))
"""
PASSING = [
    "assert fib(10) == 55\nassert letters('abcab') == ['a', 'b', 'c']",
    "import math\nassert math.isclose(fib(30) / fib(29), (1 + 5 ** 0.5) / 2, rel_tol=1e-9)",
    "def test_fib():\n    assert [fib(n) for n in range(5)] == [0, 1, 1, 2, 3]",
    "s = Stack()\ns.push(3)\nassert len(s) == 1 and Pair(1).right == 0",
    "import unittest\nclass T(unittest.TestCase):\n    def setUp(self): self.n = 5\n    def test_fib(self):\n"
    "        self.assertEqual(fib(self.n), 5)\n        with self.assertRaises(ValueError): fib(-1)\n"
    "if __name__ == '__main__':\n    unittest.main()",
]
FAILING = [
    "assert fib(10) == 54",
    "def test_fib():\n    assert fib(3) == 1",
    "import unittest\nclass T(unittest.TestCase):\n    def test_fib(self): self.assertEqual(fib(5), 6)",
    "assert fob(1) == 1",
    "assert fib('a') == 1",
]


@pytest.mark.parametrize("tests", PASSING)
def test_a_right_program_passes(tests: str) -> None:
    assert run_tests(FIBONACCI, tests)


@pytest.mark.parametrize("tests", FAILING)
def test_a_wrong_program_fails(tests: str) -> None:
    assert not run_tests(FIBONACCI, tests)


def test_source_beyond_the_limit_is_refused() -> None:
    assert run_tests("f = 1" + " " * 3000, "assert f == 1", limits=QUICK)
    assert not run_tests("f = 1" + " " * 30_000, "assert f == 1", limits=QUICK)


def hostile_programs(folder: Path) -> dict[str, str]:
    """Programs whose ``f`` should return 1 and does something else instead."""
    body = {
        "endless loop": "while True: pass",
        "endless loop that catches": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "fork bomb": "import os\nwhile True: os.fork()",
        "memory bomb": "a = [0]\nwhile True: a = a + a",
        "memory bomb that catches": "a = []\nwhile True:\n    try: a += [bytearray(10**7)]\n    except MemoryError: 0",
        "giant integer": "9**9**9",
        "giant string": "'a' * 10**12",
        "recursion": "def g(): return g()\ng()",
        "recursion in C": "a = []\nfor _ in range(10**6): a = [a]\nrepr(a)\na == a\nhash(repr(a))",
        "read": "open('/etc/passwd').read()\nreturn 1",
        "write": f"open({str(folder / 'x')!r}, 'w').write('x')\nreturn 1",
        "network": "import socket\nsocket.create_connection(('127.0.0.1', 1))\nreturn 1",
        "exit": "raise SystemExit(0)",
        "kill the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "subclasses": "[c for c in ().__class__.__base__.__subclasses__() if 'Popen' in str(c)]\nreturn 1",
        "frame": "def g(): yield\ng().gi_frame.f_back.f_back.f_globals\nreturn 1",
        "traceback": "try: 1 / 0\nexcept Exception as e: e.__traceback__.tb_frame\nreturn 1",
        "format": "'{0.__globals__}'.format(f)\nreturn 1",
        "format by variable": "t = '{0.__globals__}'\nt.format(f)\nreturn 1",
        "format by class": "str.format('{0.__globals__}', f)\nreturn 1",
        "module of a module": "import re\nre.enum.sys.exit(0)",
        "attrgetter": "import operator\noperator.attrgetter('__globals__')(f)\nreturn 1",
        "formatter": "import string\nstring.Formatter().get_field('0.__globals__', [f], {})\nreturn 1",
        "eval": "eval('1')\nreturn 1",
        "exec": "exec('1')\nreturn 1",
        "getattr": "getattr(f, '__globals__')\nreturn 1",
        "builtins": "__builtins__\nreturn 1",
        "wraps' options": "import statistics\nfrom functools import wraps\ndef g(): return sys\n"
        "wraps(statistics.mean)(g, updated=['__globals__'])\ng()\nreturn 1",
        "renamed field": "from dataclasses import dataclass, field\nz = field()\n@dataclass\nclass A: y: int = z\n"
        "z.name = 'y,__import__(\"sys\")'\n@dataclass(init=False, repr=False)\nclass B(A): y = 0\n"
        "return int(B(1) == B(1))",
        "deepcopy's memory": "import copy\ncopy.deepcopy([], {})\nreturn 1",
        "match": "match f:\n    case object(__globals__=g): pass\nreturn 1",
        "huge output": "while True: print('a' * 10**6)",
    }
    return {name: "def f():\n" + "".join(f"    {line}\n" for line in text.split("\n")) for name, text in body.items()}


def test_hostile_programs_fail_and_harm_nothing(tmp_path: Path) -> None:
    programs = hostile_programs(tmp_path)
    honest = ("def f(): return 1", "assert f() == 1")
    jobs = [honest] + [(program, "f()" if "loop" in name else "assert f() == 1") for name, program in programs.items()]
    verdicts = run_tests_many([*jobs, honest], limits=QUICK)
    assert (verdicts[0], verdicts[-1]) == (True, True)
    assert dict(zip(programs, verdicts[1:-1], strict=True)) == dict.fromkeys(programs, False)
    assert list(tmp_path.iterdir()) == []


IS_ONE = "assert f() == 1"
FORGERIES = {  # name: (a program that returns something else than 1, tests that it must not pass)
    "always equal": ("class A:\n    def __eq__(self, other): return True\ndef f(): return A()", IS_ONE),
    "by type": ("A = type('A', (), {'__eq__': lambda s, o: True})\ndef f(): return A()", IS_ONE),
    "by type of type": ("A = type(int)('A', (), {'__eq__': lambda s, o: True})\ndef f(): return A()", IS_ONE),
    "by setattr": ("class A: pass\nsetattr(A, '__eq__', lambda s, o: True)\ndef f(): return A()", IS_ONE),
    "by wraps": (
        "from functools import wraps\nclass A: pass\nclass B:\n    __name__ = 'b'\n"
        "wraps(B, ('__name__',))(A)\ndef f(): return 1 if A.__name__ == 'b' else 5",
        IS_ONE,
    ),
    "own abs": ("def abs(v): return 0\ndef f(): return 5", "assert abs(f() - 1) < 0.1"),
    "own all": ("all = lambda v: True\ndef f(): return 5", "assert all([f() == 1])"),
    "own math": (
        "import math\nmath.isclose = lambda *a: True\ndef f(): return 5",
        "import math\nassert math.isclose(f(), 1)",
    ),
    "own module": (
        "class math:\n    isclose = lambda *a: True\ndef f(): return 5",
        "from math import pi\nassert math.isclose(f(), 1)",
    ),
    "changed library class": (
        "import collections\ncollections.Counter.total = lambda s: 1\ndef f(): return 'ab'",
        "from collections import Counter\nassert Counter(f()).total() == 1",
    ),
    "own unittest": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(): return 5",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(), 1)",
    ),
    "exit": ("def f(): raise SystemExit(0)", IS_ONE),
    "exit at once": ("raise SystemExit(0)", IS_ONE),
    "a test of its own": ("def test_f(): pass\ndef f(): return 5", "def test_f():\n    assert f() == 1"),
}


def test_a_program_cannot_forge_its_verdict() -> None:
    right = [("def f(): return 1", tests) for _, tests in FORGERIES.values() if "Counter" not in tests]
    assert run_tests_many(right) == [True] * len(right)  # the tests can be passed
    verdicts = run_tests_many(list(FORGERIES.values()))
    assert dict(zip(FORGERIES, verdicts, strict=True)) == dict.fromkeys(FORGERIES, False)
