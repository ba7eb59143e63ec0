"""Layers two and three alone: a locked process runs attacks that no whitelist has looked at."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from deadline_kit import Deadline, patience

ROOT = Path(__file__).resolve().parents[4]
EVALUATE = "from mopd.rollouts.sandbox.run import *; print(layers(), evaluate_expressions([('x[0]+1', [[1], [2]])]))"
ATTACKS = """
import json, os, socket, sys
folder, victim_file, port, parent, without = json.loads(sys.argv[1])
sys.path.append({root!r})
from mopd.rollouts.sandbox import lock
if without == "filter":
    lock._SYSTEM_CALLS.clear()  # as on a machine whose system calls are not known
held, missing = lock.lock_server(empty_folder=folder)

def attempt(attack):
    try:
        attack()
    except BaseException as error:
        return type(error).__name__
    return "DONE"

def fork():
    if os.fork() == 0:
        os._exit(0)

def shout():
    a = socket.socket()
    a.settimeout(2)
    a.connect(("127.0.0.1", port))

attacks = {{
    "read": lambda: open(victim_file).read(),
    "read system": lambda: open("/etc/passwd").read(),
    "write": lambda: open("here", "w").write("x"),
    "append": lambda: open(victim_file, "a").write("x"),
    "delete": lambda: os.unlink(victim_file),
    "list": lambda: os.listdir(os.path.dirname(victim_file)),
    "network": shout,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "privileges": lambda: os.setuid(0),
}}
only_forks = {{
    "fork": fork,
    "kill the parent": lambda: os.kill(parent, 9),
    "memory": lambda: bytearray(10**10),
    "limits": lambda: __import__("resource").setrlimit(7, (100, 100)),
    "read another descriptor": lambda: os.read(source, 1),
    "write another descriptor": lambda: os.write(sink, b"x"),
}}
if without != "filter":
    only_forks["kill the server"] = lambda: os.kill(server, 9)
results = {{"server: " + name: attempt(attack) for name, attack in attacks.items()}}
server = os.getpid()
source, sink = os.pipe()
if without == "filter":  # descriptors are held by the filter, and by being closed, which this fork leaves out
    del only_forks["read another descriptor"], only_forks["write another descriptor"]
child = os.fork()
if child == 0:
    lock.lock_fork(memory_bytes=256 << 20, cpu_seconds=5, server=server)
    results |= {{"fork: " + name: attempt(attack) for name, attack in (attacks | only_forks).items()}}
    os.write(1, json.dumps([held, missing, results]).encode())
    os._exit(0)
status = os.waitpid(child, 0)[1]
os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 99)
"""


def run_attacks(tmp_path: Path, without: str = "") -> tuple[list[str], list[str], dict[str, str]]:
    """(mechanisms held, properties missing, what came of each attack); also looks whether anything was harmed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        argument = json.dumps([str(empty), str(victim), server.getsockname()[1], os.getpid(), without])
        command = [sys.executable, "-S", "-B", "-c", ATTACKS.format(root=str(ROOT)), argument]
        done = subprocess.run(command, capture_output=True, timeout=patience(60))
        assert done.returncode == 0, done.stderr.decode()
        with pytest.raises(TimeoutError):
            server.accept()
    assert victim.read_text() == "precious"
    assert list(empty.iterdir()) == []
    held, missing, results = json.loads(done.stdout)
    return held, missing, results


def test_a_locked_process_can_harm_nothing(tmp_path: Path) -> None:
    held, missing, results = run_attacks(tmp_path)
    assert missing == []
    assert "system call filter" in held
    assert "DONE" not in results.values(), results


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can do without the system call filter")
def test_as_root_the_other_layers_hold_without_the_filter(tmp_path: Path) -> None:
    held, missing, results = run_attacks(tmp_path, without="filter")
    if not {"network namespace", "empty root", "dropped user"} <= set(held):
        pytest.skip(f"this machine gives root only {held}")
    assert missing == []
    assert "DONE" not in results.values(), results


def as_other_user(*command: str) -> list[str]:
    """A command line as an unprivileged user, who may still read the interpreter wherever root has put it."""
    if os.geteuid() != 0:
        return list(command)
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux) to become another user")
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *may_read, *command]


def test_an_ordinary_user_needs_no_root() -> None:
    done = subprocess.run(
        as_other_user(sys.executable, "-c", EVALUATE), capture_output=True, text=True, cwd=ROOT, timeout=patience(60)
    )
    assert done.stdout.endswith("[[2, 3]]\n"), done.stderr
    assert "dropped user" not in done.stdout


def test_a_machine_without_a_needed_layer_is_refused_by_name() -> None:
    # Inside a user namespace that maps one user and allows no further namespace, root can neither become another
    # user nor make a namespace: a real denial, which touches nothing outside.
    script = f'echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -c "{EVALUATE}"'
    if subprocess.run(["unshare", "-U", "-r", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces to make a machine that has none")
    done = subprocess.run(
        ["unshare", "-U", "-r", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=patience(60)
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert "UserError: sandbox: this machine cannot give a process without privileges" in done.stderr


def descendants(process: int) -> list[int]:
    """Processes below one, by what the kernel says of each."""
    found: list[int] = []
    waiting = [process]
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        for task in place.glob("task/*/children"):
            children = [int(number) for number in task.read_text().split()]
            found += children
            waiting += children
    return found


def lives(process: int) -> bool:
    """Whether a process is there, and not only its status for a parent that has not asked."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_killed_process_had_started_ends_with_it() -> None:
    code = (
        "import dataclasses\n"
        "from mopd.rollouts.sandbox.run import PROGRAM_LIMITS, run_tests_many\n"
        "run_tests_many([('', 'assert 1')])\n"
        "print('up', flush=True)\n"
        "limits = dataclasses.replace(PROGRAM_LIMITS, cpu_seconds=900.0)\n"
        "run_tests_many([('def f():\\n    while True: pass', 'f()')] * 4, limits=limits)"
    )
    deadline = Deadline(60)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        while len(started := descendants(process.pid)) < 3 and deadline.waits():  # a server and its two forks
            pass
        process.kill()
    assert len(started) >= 3
    while any(map(lives, started)) and deadline.waits():
        pass
    assert not any(map(lives, started))
