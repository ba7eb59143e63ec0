"""Programs that the whitelist refuses and bubblewrap runs: libraries, files of their own, threads, processes, input."""

from __future__ import annotations

import pytest
from bubblewrap_kit import judged, needs_bubblewrap
from public_data_kit import public_rows
from sandbox_kit import read_programs

from mopd.rollouts.sandbox.run import judge_programs, run_tests_many

pytestmark = needs_bubblewrap

ANY = {  # name: (a program that the whitelist refuses, tests that it passes)
    "numpy": (
        "import numpy as np\ndef f(n): return np.arange(n).sum()\ndef g(v): return np.array(v).tolist()\n"
        "def h(v): return np.mean(v) > 1\ndef k(v): return np.array(v) * 2",
        "assert f(5) == 10 and g([1, 2]) == [1, 2]\nassert h([1, 2]) is True\nassert list(k([1, 2])) == [2, 4]\n"
        "assert k([1, 2]).tolist() == [2, 4] and len(k([1, 2])) == 2",
    ),
    "os.path": ("import os.path\ndef f(a, b): return os.path.join(a, b)", "assert f('a', 'b') == 'a/b'"),
    "dataclasses": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True, order=True)\nclass P:\n    x: int = 0\n"
        "    def __post_init__(self): object.__setattr__(self, 'twice', 2 * self.x)\n"
        "def f(n): return dataclasses.replace(P(), x=n).twice\ndef g(n): return dataclasses.asdict(P(n))",
        "assert f(2) == 4 and g(3) == {'x': 3}\nassert max(P(1), P(2)).x == 2",
    ),
    "threads": (
        "import threading, queue\ndef f(n):\n    q = queue.Queue()\n"
        "    each = [threading.Thread(target=q.put, args=(i,)) for i in range(n)]\n"
        "    [t.start() for t in each]\n    [t.join() for t in each]\n    return sorted(q.get() for _ in range(n))",
        "assert f(4) == [0, 1, 2, 3]",
    ),
    "processes": (
        "import multiprocessing\ndef square(n): return n * n\n"
        "def f(n):\n    with multiprocessing.Pool(2) as pool: return pool.map(square, range(n))",
        "assert f(4) == [0, 1, 4, 9]",
    ),
    "a shell": (
        "import subprocess\ndef f(text):\n"
        "    return subprocess.run(['tr', 'a-z', 'A-Z'], input=text, capture_output=True, text=True).stdout",
        "assert f('abc') == 'ABC'",
    ),
    "files of its own": (
        "import tempfile, pathlib\ndef f(text):\n    with tempfile.TemporaryDirectory() as folder:\n"
        "        path = pathlib.Path(folder) / 'a.txt'\n        path.write_text(text)\n        return path.read_text()",
        "assert f('hello') == 'hello'",
    ),
    "asyncio": (
        "import asyncio\nasync def one(n):\n    await asyncio.sleep(0.01)\n    return n\n"
        "def f(n):\n    async def main(): return await asyncio.gather(*map(one, range(n)))\n"
        "    return asyncio.run(main())",
        "assert f(3) == [0, 1, 2]",
    ),
    "match, exec, getattr": (
        "def f(v):\n    match v:\n        case [a, *_]: return a\n        case _: return None\n"
        "exec('def g(): return 7')\ndef h(v): return getattr(v, 'upper')()",
        "assert f([3, 4]) == 3 and f(1) is None and g() == 7 and h('a') == 'A'",
    ),
    "dates and paths come as objects": (
        "import datetime\ndef f(): return datetime.date(2024, 2, 29)",
        "assert f().isoformat() == '2024-02-29' and str(f()) == '2024-02-29' and f().year == 2024",
    ),
    "prints while it works": (
        "import sys\ndef f():\n    print('x' * 99999)\n    sys.stderr.write('y')\n    return 1",
        "assert f() == 1",
    ),
    "input by sys.stdin": (
        "import sys, array\nfor line in sys.stdin: print(sum(array.array('l', map(int, line.split()))))",
        "assert run_program('1 2\\n3 4\\n') == '3\\n7\\n' and run_program('') == ''",
    ),
    "input by os.read, output past Python": (
        "import os, sys, subprocess\ntext = os.read(0, 100)\nsys.stdout.write('a')\nsys.stdout.flush()\n"
        "subprocess.run(['printf', 'b'])\nos.write(1, text)\nif __name__ == '__main__': print('main')",
        "assert run_program('cd') == 'abcdmain\\n'",
    ),
    "a deep recursion in a thread of its own": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "def main(): print(depth(int(input())))\nt = threading.Thread(target=main)\nt.start()\nt.join()",
        "assert run_program('50000\\n') == '50000\\n'",
    ),
    "a writer of its own that it never closes": (
        "import io, os, sys\nsys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))\nprint(input())",
        "assert run_program('hi\\n') == 'hi\\n'",
    ),
    "an exit, and what is left for then": (
        "import atexit, sys\natexit.register(lambda: print('bye'))\nprint(open(0).read(), end='')\nsys.exit()",
        "assert run_program('hi\\n') == 'hi\\nbye\\n'",
    ),
}


@pytest.mark.parametrize("name", ANY)
def test_bubblewrap_runs_what_the_whitelist_refuses(name: str) -> None:
    program, tests = ANY[name]
    assert judged(program, tests).passed
    (refused,) = judge_programs([(program, tests)], sandbox="whitelist")
    assert not refused.passed
    assert refused.refused is not None
    assert not judged(program, tests + "\nassert 0").passed


def test_honest_programs_pass_and_wrong_ones_fail_as_under_the_whitelist() -> None:
    for name, passes in (("honest", True), ("wrong", False), ("different", False)):
        pairs = read_programs(name)
        verdicts = judge_programs(list(pairs.values()), sandbox="bubblewrap")
        assert [title for title, v in zip(pairs, verdicts, strict=True) if v.passed != passes] == []


def test_each_run_of_a_program_begins_anew() -> None:
    program = "import sys\nseen = sys.stdin.read()\nsys.modules['kept'] = seen\nprint(seen, 'kept' in vars(sys))"
    assert judged(program, "assert run_program('a') == 'a False\\n'\nassert run_program('b') == 'b False\\n'").passed
    assert not judged("import sys\nprint(1)\nsys.exit(3)", "assert run_program('') == '1\\n'").passed
    assert not judged("print(1)\nraise ValueError", "assert run_program('') == '1\\n'").passed


def test_a_program_that_fails_tells_what_was_refused() -> None:
    refused = {
        "import torch_of_nobody\ndef f(): return 1": "import of module 'torch_of_nobody', which is not installed",
        "import socket\ndef f(): return socket.create_connection(('1.1.1.1', 80))": "network",
        "import urllib.request\ndef f(): return urllib.request.urlopen('http://example.com').read()": "network",
        "def f(): open('/usr/lib/x', 'w')": "a file or a call of '/usr/lib/x': Read-only file system",
        "import os\ndef f(): os.nice(-5)": "a file or a call: Operation not permitted",
        "import os\ndef f(): os.chroot('/tmp')": "a file or a call of '/tmp': Operation not permitted",
        "def f(): open('x', 'wb').write(bytes(10**9))": "files beyond the room for them",
        "x = 0\n" * 30_000: "a program of more than 50,000 characters",
        "def f(): return 2": None,
        "def f(): return 1 / 0": None,
        "def f(": None,
    }
    tests = "assert f() == 1"
    verdicts = judge_programs([(program, tests) for program in refused], sandbox="bubblewrap")
    assert [(v.passed, v.refused) for v in verdicts] == [(False, reason) for reason in refused.values()]
    caught = "try:\n    import torch_of_nobody\nexcept ImportError: pass\ndef f(): return {}"
    verdicts = judge_programs([(caught.format(n), tests) for n in (1, 2)], sandbox="bubblewrap")
    assert [(v.passed, v.refused) for v in verdicts] == [(True, None), (False, None)]


def test_reference_solutions_of_a_public_set_pass_at_least_as_under_the_whitelist() -> None:
    pairs = [
        (row["code"], "\n".join([row["test_setup_code"], *row["test_list"], *row["challenge_test_list"]]))
        for row in public_rows("mbpp.jsonl")[:200]  # not per token
    ]
    verdicts = judge_programs(pairs, sandbox="bubblewrap")
    listed = run_tests_many(pairs)
    assert sum(listed) >= 190
    worse = [number for number, (v, w) in enumerate(zip(verdicts, listed, strict=True)) if w and not v.passed]
    assert worse == []
