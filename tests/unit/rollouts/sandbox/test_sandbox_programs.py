"""Whole programs in the sandbox: right ones pass, wrong ones fail, hostile ones fail and harm nothing."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from deadline_kit import patience
from sandbox_kit import run_tests

from mopd.rollouts.sandbox.run import Limits, run_tests_many

QUICK = Limits(
    cpu_seconds=0.3, wall_seconds=patience(30), memory_bytes=256 << 20, result_bytes=1000, source_chars=20_000
)

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


HONEST = """
from __future__ import annotations
import typing
from copy import copy, deepcopy
from collections import namedtuple
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, ClassVar, Dict, Generic, List, NamedTuple, Optional, Tuple, TypeVar, Union

T = TypeVar("T", bound="Node")
Row = namedtuple("Row", "a b")
Pairs = List[Tuple[int, "Node"]]

class Point(NamedTuple):
    x: int
    y: int = 2
    def norm(self) -> int: return self.x + self.y

@dataclass(order=True)
class Base:
    total: ClassVar[int] = 7
    names: List[str] = field(default_factory=list)
    key: Any = field(default=3, compare=False, repr=False)

@dataclass(frozen=True)
class Frozen:
    a: int
    b: Optional[int] = None
    move: typing.Callable[[int], int] = lambda v: v + 1

@dataclass(slots=True)
class Slotted(Base):
    last: int = field(default=9, kw_only=True)

class Stack(Generic[T]):
    def __init__(self, items: Optional[List[T]] = None) -> None: self._items = list(items or [])
    def joined(self, other: 'Stack[T]') -> 'Stack[T]': return Stack[int](self._items + other._items)
    @cached_property
    def size(self) -> int: return len(self._items)

class Table(Dict[str, int]):
    pass

def twice(f):
    @wraps(f)
    def inner(v): return f(f(v))
    return inner

@twice
def more(v: Union[int, None] | str) -> int: return v + 1
"""


def test_what_honest_programs_use_of_the_library_works_as_ever() -> None:
    """Asserts that hold outside the sandbox, with the library itself, hold inside."""
    checks = """
from copy import copy
assert Point(1).norm() == 3 and Point(1, 5) == (1, 5) and Point(1)._replace(y=0) == (1, 0)
assert Row(1, 2)._asdict() == {"a": 1, "b": 2} and isinstance(Point(1), Point)
assert Base() == Base(key=4) and Base(["a"]) < Base(["b"]) and repr(Base()) == "Base(names=[])"
assert Base.total == 7 and Base().names is not Base().names
assert Frozen(1) == Frozen(1, None) and hash(Frozen(1)) == hash(Frozen(1)) and Frozen(2).move(1) == 2
try: Frozen(1).a = 2
except AttributeError: pass
else: assert False
assert Slotted(["x"], last=1).last == 1 and Slotted() == Slotted(last=9)
s = Stack[int]([1]).joined(Stack([2, 3]))
assert s.size == 3 and s.size == 3 and isinstance(s, Stack) and deepcopy(s)._items == [1, 2, 3]
assert Table(a=1) == {"a": 1} and copy(Table(a=1)) == {"a": 1} and isinstance(Table(), dict)
assert isinstance([], typing.List) and not isinstance(3, typing.Iterable) and more.__name__ == "more" and more(1) == 3
assert {1: 2}.keys() == {1} and isinstance({1: 2}.keys(), typing.Iterable)
"""
    for program in (HONEST, HONEST.replace("from __future__ import annotations\n", "")):
        outside = sys.modules["outside"] = types.ModuleType("outside")
        exec(program + checks, vars(outside))
        assert run_tests(program, checks)


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
