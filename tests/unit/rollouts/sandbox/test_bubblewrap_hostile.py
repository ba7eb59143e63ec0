"""Hostile programs with all of Python at hand, in bubblewrap: nothing is harmed, nothing is seen, and none passes."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bubblewrap_kit import judged, needs_bubblewrap
from deadline_kit import Deadline, patience
from sandbox_kit import read_programs

from mopd.rollouts.sandbox.run import PROGRAM_LIMITS, end_idle_servers, judge_programs

pytestmark = needs_bubblewrap

QUICK = dataclasses.replace(PROGRAM_LIMITS, cpu_seconds=1.0, memory_bytes=256 << 20, idle_seconds=2.0)
IS_ONE = "assert f() == 1"
RIGHT = ("def f(): return 1", IS_ONE)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's, which has to be there afterwards as it was."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == [path]


def test_no_program_of_the_corpora_passes() -> None:
    """Those that the whitelist refuses for what they use are honest here, and are left out."""
    pairs = {n: pair for n, pair in read_programs("hostile").items() if not n.startswith("refused: ")}
    pairs |= {f"protocol: {name}": pair for name, pair in read_programs("protocol").items()}
    assert len(pairs) > 300
    verdicts = judge_programs(list(pairs.values()), sandbox="bubblewrap", limits=QUICK)
    assert [name for name, verdict in zip(pairs, verdicts, strict=True) if verdict.passed] == []


BEGIN = "import os, sys, signal, time, ctypes, threading\nlibc = ctypes.CDLL(None, use_errno=True)\n"
REACHING = {  # each gives 1 where it reaches what it must not
    "reads a file of the user": "def f(): return open({victim!r}).read() == 'precious' and 1",
    "reads it by its number": "def f(): return any(os.path.exists(f'/proc/{{p}}/root' + {victim!r}) "
    "for p in os.listdir('/proc') if p.isdigit()) and 1",
    "writes a file of the user": "def f(): return open({victim!r}, 'a').write('x')",
    "writes where it would be": "def f():\n    os.makedirs(os.path.dirname({victim!r}), exist_ok=True)\n"
    "    open({victim!r}, 'w').write('x')\n    return 5",
    "lists the user's folder": "def f(): return 'victim' in os.listdir(os.path.dirname({victim!r})) and 1",
    "finds the project": "def f(): return os.path.exists({project!r}) and 1",
    "reads passwords": "def f(): return bool(open('/etc/shadow').read()) and 1",
    "writes the interpreter": "def f():\n    open(os.path.join(sys.prefix, 'x'), 'w').close()\n    return 1",
    "writes the server's code": "def f():\n    open('/opt/mopd/mopd/rollouts/sandbox/judge.py', 'a').write('#')\n"
    "    return 1",
    "reaches the network": "import socket\ndef f():\n    with socket.create_connection(('127.0.0.1', {port}), 5):\n"
    "        return 1",
    "reaches an abstract socket": "import socket\ndef f():\n    c = socket.socket(socket.AF_UNIX)\n"
    "    c.connect(chr(0) + {abstract!r})\n    return 1",
    "sees a process outside": "def f(): return os.path.exists('/proc/{parent}/stat') and "
    "open('/proc/{parent}/cmdline').read() == {cmdline!r} and 1",
    "becomes root": "def f():\n    os.setuid(0)\n    return 1",
    "makes a namespace": "def f(): return libc.unshare(0x10000000) == 0 and 1",
    "makes one by clone": "def f(): return libc.syscall(56 if os.uname().machine == 'x86_64' else 220, "
    "0x10000000 | 17, 0, 0, 0, 0) >= 0 and 1",
    "mounts": "def f(): return libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0 and 1",
    "unmounts": "def f(): return libc.umount2(b'/tmp', 2) == 0 and 1",
    "traces the server": "def f(): return any(libc.ptrace(16, int(p), 0, 0) == 0 for p in os.listdir('/proc') "
    "if p.isdigit()) and 1",
    "reads the server's memory": "def f():\n    for p in os.listdir('/proc'):\n        try:\n"
    "            if p.isdigit() and int(p) not in (os.getpid(), os.getppid()) and "
    "open(f'/proc/{{p}}/mem', 'rb') and os.listdir(f'/proc/{{p}}/fd') and "
    "not os.readlink(f'/proc/{{p}}/ns/pid') == os.readlink('/proc/self/ns/pid'): return 1\n"
    "        except OSError: pass",
    "kills the server": "def f():\n    for p in os.listdir('/proc'):\n"
    "        if p.isdigit() and int(p) != os.getpid():\n            try: os.kill(int(p), 9)\n"
    "            except OSError: pass\n    return 5",
    "raises its limits": "import resource\ndef f():\n    resource.setrlimit(resource.RLIMIT_NPROC, (10**4, 10**4))\n"
    "    return 1",
}


def test_a_program_reaches_nothing_of_the_user(victim: Path) -> None:
    abstract = f"mopd-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0" + abstract)
        local.listen()
        server.settimeout(0.2)
        local.settimeout(0.2)
        facts = {
            "victim": str(victim),
            "project": str(Path(__file__).parents[4] / "pyproject.toml"),
            "port": server.getsockname()[1],
            "abstract": abstract,
            "parent": os.getpid(),
            "cmdline": Path("/proc/self/cmdline").read_text(),
        }
        jobs = [(BEGIN + program.format(**facts), IS_ONE) for program in REACHING.values()]
        verdicts = judge_programs(jobs, sandbox="bubblewrap", limits=QUICK)
        for listening in (server, local):
            with pytest.raises(TimeoutError):
                listening.accept()
    assert [name for name, verdict in zip(REACHING, verdicts, strict=True) if verdict.passed] == []
    assert judged(*RIGHT).passed


FORGING = {
    "the status of tests that passed": "def f(): os._exit(42)",
    "that status at once": "os._exit(42)",
    "answers on every descriptor": "def f():\n    for d in range(200):\n        try:\n"
    "            for text in (b'[\"ok\", 1]\\n', b'[\"ok\", [1, null, []]]\\n', b'[true, null]\\n', b'true\\n'):\n"
    "                os.write(d, text)\n        except OSError: pass\n    return 5",
    "answers before it is asked": "for d in range(3, 200):\n    try: os.write(d, b'[\"ok\", [1, null, []]]\\n' * 9)\n"
    "    except OSError: pass\ndef f(): return 5",
    "reads every descriptor for what is expected": "import re\ndef f():\n    seen = b''\n    for d in range(200):\n"
    "        try: seen += os.pread(d, 9999, 0)\n        except OSError: pass\n"
    "    return 1 if re.search(rb'asser[t] f', seen) else 5",
    "looks for what is expected in its memory": "import re\ndef f():\n    for line in open('/proc/self/maps'):\n"
    "        span, mode = line.split()[:2]\n        if 'r' not in mode: continue\n"
    "        a, b = (int(x, 16) for x in span.split('-'))\n        try:\n"
    "            with open('/proc/self/mem', 'rb', 0) as m:\n                m.seek(a)\n"
    "                if re.search(rb'asser[t] f\\(\\) == 1', m.read(b - a)): return 1\n"
    "        except (OSError, OverflowError): pass\n    return 5",
    "its own encoder": "plain = sys.modules['mopd.rollouts.sandbox.plain']\n"
    "plain.Codec.encode = lambda *a: ['m', 'operator', 'eq']\ndef f(): return 5",
    "an object that equals": "class A:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(): return A()",
    "a number that says it is another": "import numpy\nclass A(numpy.int64):\n    def item(self): return self\n"
    "    def __eq__(self, o): return True\ndef f(): return A(5)",
    "half an answer, and an end": "def f():\n    for d in range(3, 200):\n        try: os.write(d, b'[\"ok\", [1, ')\n"
    "        except OSError: pass\n    os._exit(0)",
}


def test_no_program_forges_its_verdict() -> None:
    jobs = [(BEGIN + program, IS_ONE) for program in FORGING.values()]
    verdicts = judge_programs(jobs * 2, sandbox="bubblewrap", limits=QUICK)
    assert [name for name, verdict in zip([*FORGING] * 2, verdicts, strict=True) if verdict.passed] == []
    assert judged(*RIGHT).passed


def test_a_search_would_find_what_is_there() -> None:
    there = {
        "reads every descriptor for what is expected": "os.write(os.memfd_create('a'), b'assert f() == 1')\n",
        "looks for what is expected in its memory": "here = 'assert f() == 1 and more'.encode()\n",
    }
    for name, before in there.items():
        assert judged(BEGIN + before + FORGING[name], IS_ONE).passed, name


SPENDING = {
    "a fork bomb": "def f():\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "threads without an end": "def f():\n    while True:\n"
    "        try: threading.Thread(target=time.sleep, args=(999,)).start()\n        except RuntimeError: pass",
    "memory": "def f():\n    a = []\n    while True: a.append(bytearray(b'x' * 2**20))",
    "memory of many processes": "def f():\n    for _ in range(20):\n        if os.fork() == 0:\n"
    "            a = bytearray(b'x') * (50 << 20)\n            time.sleep(999)\n    time.sleep(999)",
    "files without an end": "def f():\n    n = 0\n    while True:\n        n += 1\n"
    "        try: open(f'{n}', 'wb').write(bytes(2**20))\n        except OSError: pass",
    "shared memory without an end": "def f():\n    n = 0\n    while True:\n        n += 1\n"
    "        open(f'/dev/shm/{n}', 'wb').write(bytes(2**20))",
    "time": "def f():\n    while True: pass",
    "time that signals do not end": "for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\ndef f():\n    while True: pass",
    "time of one child after another": "def f():\n    while True:\n        if os.fork() == 0:\n"
    "            t = time.process_time()\n            while time.process_time() < t + 0.3: pass\n"
    "            os._exit(0)\n"
    "        os.wait()",
    "sleep": "def f(): time.sleep(10**6)",
    "an answer without an end": "def f():\n    while True:\n        for d in range(3, 20):\n"
    "            try: os.write(d, b'x' * 65536)\n            except OSError: pass",
    "reads nothing more": "def f():\n    def g(v): pass\n    os.kill(os.getpid(), signal.SIGSTOP)",
}


def test_what_a_program_spends_is_bounded_and_the_next_one_runs() -> None:
    jobs: list[tuple[str, str]] = []
    for program in SPENDING.values():
        jobs += [(BEGIN + program, "f('x' * 10**6)" if "nothing more" in program else "assert f() == 1"), RIGHT]
    verdicts = judge_programs(jobs, sandbox="bubblewrap", limits=QUICK)
    assert [verdict.passed for verdict in verdicts] == [False, True] * len(SPENDING)
    of_sleep = verdicts[2 * list(SPENDING).index("sleep")]
    assert of_sleep.refused == "to wait for more than 2 seconds"


def test_a_program_leaves_nothing_to_the_next() -> None:
    """Files, processes in sessions of their own that go on, shared memory, text in pipes."""
    end_idle_servers()
    leave = BEGIN + (
        "open('left', 'w').write('1')\nopen('/dev/shm/left', 'w').close()\n"
        "ipc = libc.shmget(77, 4096, 0o1666)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True:\n"
        "            for d in range(3, 200):\n                try: os.write(d, b'[\"ok\", [1, null, []]]\\n')\n"
        "                except OSError: pass\n            time.sleep(0.001)\n    os._exit(0)\n"
        "def f(): return 1"
    )
    look = BEGIN + (
        "def f(): return [os.path.exists('left'), os.path.exists('/dev/shm/left'),\n"
        "    libc.shmget(77, 4096, 0) >= 0, len([p for p in os.listdir('/proc') if p.isdigit()])]"
    )
    judged(leave, IS_ONE)
    alone = judged(look, "assert f()[:3] == [False, False, False]\nassert f()[3] <= 5")
    assert alone.passed
    assert not judged("def f(): return 5", IS_ONE).passed


def test_servers_end_with_the_process_that_verifies() -> None:
    code = (
        "from mopd.rollouts.sandbox.run import judge_programs\n"
        "judge_programs([('', 'assert 1')], sandbox='bubblewrap')\nprint('up', flush=True)\n"
        "judge_programs([('def f():\\n    while True: pass', 'f()')] * 40, sandbox='bubblewrap')"
    )

    def inside() -> set[str]:
        return {path.name for path in Path("/proc").glob("[0-9]*") if _is_server(path)}

    before, deadline = inside(), Deadline(60)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        started = inside() - before
        process.send_signal(signal.SIGKILL)
    assert started
    while inside() & started and deadline.waits():
        pass
    assert not inside() & started


def _is_server(path: Path) -> bool:
    try:
        return b"bubblewrap.server" in (path / "cmdline").read_bytes()
    except OSError:
        return False


def test_bubblewrap_that_is_not_there_is_refused_by_name() -> None:
    code = (
        "from mopd.rollouts.sandbox.bubblewrap.choice import chosen_sandbox\n"
        "print(chosen_sandbox('auto'), chosen_sandbox('whitelist'), flush=True)\nchosen_sandbox('bubblewrap')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[4],
        env={**os.environ, "PATH": "/nowhere"},
        timeout=patience(60),
    )
    assert done.stdout == "whitelist whitelist\n"
    assert "UserError: sandbox: bubblewrap can't be had here: no bwrap is on the PATH; install it" in done.stderr
    assert "or take `sandbox: whitelist`" in done.stderr
