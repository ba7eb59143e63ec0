"""Forged verdicts: programs that return something else than 1 and try to pass for 1, by whatever the library offers."""

from __future__ import annotations

import dataclasses

import pytest
from sandbox_kit import opened_language, read_programs, run_tests

from mopd.rollouts.sandbox.run import PROGRAM_LIMITS, run_tests_many

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
    "changed library class, and put back": (
        "from collections import Counter\nclass A:\n    saved = Counter.total\ndef total(self):\n"
        "    Counter.total = A.saved\n    return 1\nCounter.total = total\ndef f(): return 'ab'",
        "from collections import Counter\nassert Counter(f()).total() == 1",
    ),
    "changed base of a library class": (
        "from fractions import Fraction\nfrom typing import List\nclass Zero(type(List)):\n    pass\n"
        "type(List).__call__ = lambda s, *a: [1]\ndef f(): return 5",
        "from typing import List\nassert List([f()]) == [1]",
    ),
    "a subset of everything": (
        "from collections import UserDict\nclass D(UserDict):\n    def __len__(self): return 1\n"
        "    def __iter__(self): return iter(())\ndef f(): return D().keys()",
        "assert f() in (1, {1})",
    ),
    "asked for the expected": (
        "from fractions import Fraction\nclass F(Fraction):\n    def from_float(self, x): return self\n"
        "def f(): return F(5)",
        "assert f() in (1, 1.5)",
    ),
    "setattr by copy": (
        "from copy import copy\nfrom functools import cached_property\nclass A: pass\nclass B:\n"
        "    @cached_property\n    def c(self):\n"
        "        return lambda v: (lambda: A, (), (None, {'__eq__': lambda s, o: True}))\n"
        "B.c.attrname = '__reduce_ex__'\nb = B()\nb.c\ncopy(b)\ndef f(): return A()",
        IS_ONE,
    ),
    "setattr by copy, late": (
        "from copy import copy\nfrom functools import cached_property\nclass A: pass\n"
        "def c(self):\n    p.attrname = '__reduce_ex__'\n"
        "    return lambda v: (lambda: A, (), (None, {'__eq__': lambda s, o: True}))\np = cached_property(c)\n"
        "class B:\n    c = p\nb = B()\nb.c\ncopy(b)\ndef f(): return A()",
        IS_ONE,
    ),
    "a test of its own": ("def test_f(): pass\ndef f(): return 5", "def test_f():\n    assert f() == 1"),
}


# What these get executed, where they succeed: the program gets a builtin more, by which it gives the right answer.
RUN = "__import__('sys').modules['program'].__builtins__.update(escaped=1)"
EXECUTED = {
    "typing's strings": f'''
from typing import List
r = List["{RUN}"]._determine_new_args(())[0]
try: r._evaluate(None, None, frozenset())
except TypeError: pass
''',
    "typing's strings through self": f'''
from typing import List
class A:
    def _determine_new_args(self, a): return List["{RUN}"]._determine_new_args(a)
    def _evaluate(self, a, b, c): return A._evaluate(self, a, b, c)
def run(self): self._determine_new_args(())[0]._evaluate(None, None, frozenset())
run(List["{RUN}"])
''',
    "a forward reference in a named tuple": f'''
from dataclasses import dataclass, field
from typing import NamedTuple
class P(NamedTuple):
    x: "{RUN}"
z = field()
P.x = z
dataclass(P)
class B:
    def _evaluate(self): pass
z.type._evaluate(None, None, frozenset())
''',
    "a renamed field": f"""
from dataclasses import dataclass, field
z = field()
@dataclass
class A: y: int = z
z.name = "y,{RUN}"
@dataclass(init=False, repr=False)
class B(A): y = 0
B(1) == B(1)
""",
    "a field renamed by a class property": f"""
from dataclasses import dataclass, field
z = field(default=1)
@dataclass(repr=False, init=False)
class A:
    a: int = z
    b: int = 0
    @classmethod
    @property
    def b(cls):
        z.name = "a,{RUN}"
        return 0
A() == A()
""",
    "a field renamed by an inherited class property": f"""
from dataclasses import dataclass, field
z = field(default=1)
class Base:
    @classmethod
    @property
    def b(cls):
        z.name = "a,{RUN}"
        return 0
@dataclass(repr=False, init=False)
class A(Base):
    a: int = z
    b: int
A() == A()
""",
    "a field renamed by a truth test": f"""
from dataclasses import dataclass, field
z = field(default=1)
class L:
    def __len__(self):
        z.name = "a,{RUN}"
        return 1
class A:
    a: int = z
A = dataclass(A, eq=L(), init=False, repr=False)
A() == A()
""",
    "a field renamed by a field's truth test": f"""
from dataclasses import dataclass, field
z = field(default=1)
class L:
    def __len__(self):
        z.name = "a,{RUN}"
        return 1
@dataclass(init=False, repr=False)
class A:
    a: int = z
    b: int = field(default=1, compare=L())
A() == A()
""",
    "annotations that are no identifiers": f"""
from dataclasses import dataclass
from functools import cached_property, wraps
class E:
    @cached_property
    def c(self): return {{"a,{RUN}": int}}
E.c.attrname = "__annotations__"
e = E()
e.c
class A: a = 1
try: wraps(e)(A)
except AttributeError: pass
try: dataclass(init=False, repr=False)(A)
except SyntaxError: pass
A() == A()
""",
    "a dataclass from another module": f"""
__name__ = "statistics"
import statistics
from dataclasses import dataclass, field
class L:
    def __len__(self):
        z.name = "a,{RUN}"
        return 1
z = field(default=1, compare=L())
@dataclass(init=False, repr=False)
class A: a: int = z
A() == A()
""",
}


@pytest.mark.parametrize("name", EXECUTED)
def test_text_in_a_program_is_not_executed_by_the_library(name: str) -> None:
    """The safe forms hold by themselves: what is executed here would make the answer right."""
    assert not run_tests(EXECUTED[name] + "\ndef f(): return escaped", IS_ONE)


def test_text_that_is_executed_would_be_seen() -> None:
    with opened_language():
        assert run_tests(RUN + "\ndef f(): return escaped", IS_ONE)


# Programs that the whitelist does not look at: all of Python, in a process that is locked and knows no verdict.
ANSWER = "import os, sys\ndef say(text): os.write(1, text.encode() + bytes([10]))\ndef f():\n    "
SEARCH = "import gc, sys\nsought = '1 == )(f'\ndef f():\n    seen = ''\n    "
AND_SAY = "\n    return 1 if ''.join(reversed(sought)) in seen else 5"
UNBOUND = {
    "right": "import os, sys\ndef f(): return 1",
    "the status of tests that passed": "import os\ndef f(): os._exit(42)",
    "that status at once": "import os\nos._exit(42)",
    "another status": "import os\ndef f(): os._exit(0)",
    "answers before it is asked": "import os\nfor _ in range(50): os.write(1, b'[\"ok\", 1]\\n')\ndef f(): return 5",
    "answers with true": ANSWER + "say('true')\n    return 5",
    "asks for the tests' frame": ANSWER + """say('["get", ["x", 0], "f_back"]')\n    return os.read(0, 9999)""",
    "calls what was not handed over": (
        ANSWER + """say('["call", ["b", "print"], ["t"], ["d"]]')\n    return 1 if b'ok' in os.read(0, 9999) else 5"""
    ),
    "every descriptor": (
        ANSWER + "for d in range(2, 99):\n        try: os.write(d, b'true')\n        except OSError: pass\n    return 5"
    ),
    "kills its parent": ANSWER + "os.kill(os.getppid(), 9)",
    "kills the others": ANSWER + "for d in range(-3, 4): os.kill(os.getpid() + d, 9)\n    return 5",
    "a fork that goes on": ANSWER + "os.fork()\n    return 5",
    "reads the files of texts": (
        SEARCH + "import os\n    for d in range(2, 99):\n        try: seen += str(os.pread(d, 9999, 0))\n"
        "        except OSError: pass" + AND_SAY
    ),
    "looks in every object": SEARCH + "seen = ' '.join(map(repr, gc.get_objects()))" + AND_SAY,
    "looks in every frame": (
        SEARCH + "g = sys._getframe()\n    while g: seen += repr((g.f_locals, g.f_globals)); g = g.f_back" + AND_SAY
    ),
    "a number that says it is another": ANSWER + """say('["ok", [["h", 7, "o", "int", true, "__eq__"], null, []]]')""",
    "a text that is an object": ANSWER
    + """say('["ok", [["h", 7, "o", "str", ["h", 8, "o", null, null]], null, []]]')""",
    "an object that equals": "class A:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(): return A()",
    "its own encoder": (
        "import sys\nplain = sys.modules['mopd.rollouts.sandbox.plain']\n"
        "plain.Codec.encode = lambda *a: ['m', 'operator', 'eq']\ndef f(): return 5"
    ),
    "patches the library": (
        "import operator, builtins\noperator.eq = lambda *a: True\nbuiltins.abs = lambda v: 0\ndef f(): return 5"
    ),
    "a deep answer": ANSWER + "say('[\"ok\", ' + '[' * 99999)\n    return 5",
    "an endless answer": ANSWER + "while True: os.write(1, b'x' * 65536)",
    "half an answer": ANSWER + "os.write(1, b'[\"ok\", 1')\n    os._exit(0)",
    "no error that there is": ANSWER + """say('["raise", 5, ["t"], "", 0]')""",
    "an error that is a list": ANSWER + """say('["raise", ["b", "list"], ["t"], "", 0]')""",
}


def test_a_search_would_find_what_is_there() -> None:
    with opened_language():
        for name in ("looks in every object", "looks in every frame"):
            assert run_tests("here = {'f() ' '== 1': []}\n" + UNBOUND[name], IS_ONE), name


@pytest.mark.parametrize("tests", [IS_ONE, "def test():\n    try: assert f() == 1\n    except ValueError: pass"])
def test_a_program_out_of_its_language_cannot_forge_its_verdict(tests: str) -> None:
    tests = tests.replace("def test():", "def test_f():")
    with opened_language():
        verdicts = run_tests_many([(program, tests) for program in UNBOUND.values()])
    assert dict(zip(UNBOUND, verdicts, strict=True)) == {name: name == "right" for name in UNBOUND}


def test_answers_that_no_program_gives_forge_no_verdict() -> None:
    """What a process could write that is none of ours any more, in the words of the conversation itself."""
    pairs = read_programs("protocol")
    with opened_language():
        verdicts = run_tests_many(list(pairs.values()), limits=dataclasses.replace(PROGRAM_LIMITS, cpu_seconds=2.0))
    assert [name for name, passed in zip(pairs, verdicts, strict=True) if passed] == []


def test_a_program_cannot_forge_its_verdict() -> None:
    right = [("def f(): return 1", tests) for _, tests in FORGERIES.values() if "Counter" not in tests]
    assert run_tests_many(right) == [True] * len(right)  # the tests can be passed
    verdicts = run_tests_many(list(FORGERIES.values()))
    assert dict(zip(FORGERIES, verdicts, strict=True)) == dict.fromkeys(FORGERIES, False)
