"""`mopd ...` in a fork of a process that has imported everything: a command costs a tenth of a second and no more.

Run as a program it is the server: a line of JSON for a command on stdin, a line for its end on stdout. A command runs
in a child of its own, with limits on its CPU time and on the size of what it writes. One that spends no CPU time any
more and does not end hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 30
"""Of one command; most take a tenth of a second."""
IDLE_SECONDS = 60.0
"""Without a hundredth of a second of CPU time: it waits for something that never comes."""
OUTPUT_BYTES = 64 * 2**20
CRASHED = 99
"""Exit code of a command that ends in a traceback."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code (negative: a signal's number), what it printed, what it took."""

    code: int
    output: str
    hung: bool
    cpu_seconds: float
    memory_bytes: int


class ForkServer:
    """Runs commands one after the other.

    Args:
        patches: values of modules that every command has changed, ``module.NAME`` each; deadlines that are shorter.
        runs: whether commands may run recipes, too: all in one process, without Ray (inline_ray_kit.py).
        cpu_seconds: that a command may take.
    """

    def __init__(
        self, patches: dict[str, float] | None = None, *, runs: bool = False, cpu_seconds: int = CPU_SECONDS
    ) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "400",
        }
        environment |= {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({"patches": patches or {}, "runs": runs, "cpu": cpu_seconds})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def mopd(self, folder: Path, *arguments: str) -> Ended:
        """`mopd ARGUMENTS` in a working folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        output = folder.with_name(f"{folder.name}.output")
        job = {"folder": str(folder), "arguments": arguments, "output": str(output)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        ended = json.loads(self._process.stdout.readline())
        with output.open("rb") as file:
            printed = file.read(OUTPUT_BYTES).decode(errors="replace")
        output.unlink()
        return Ended(output=printed, **ended)

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _serve(patches: dict[str, float], *, runs: bool, cpu: int) -> None:
    import importlib

    import datasets  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    import mopd.recipes.check_command
    import mopd.recipes.cli
    import mopd.rollouts.tasks.dataset

    if runs:
        import inline_ray_kit

        import mopd.recipes.run.launch  # noqa: F401

        inline_ray_kit.install()
    torch.set_num_threads(1)
    for name, value in patches.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(_run(job["folder"], job["arguments"], job["output"], cpu)), flush=True)


def _run(folder: str, arguments: Sequence[str], output: str, cpu: int) -> dict[str, object]:
    pid = os.fork()
    if pid == 0:
        _command(folder, arguments, output, cpu)
    hung = False
    spent, last = -1.0, time.monotonic()
    end = os.pidfd_open(pid)
    while not select.select([end], [], [], 1.0)[0]:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        now = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
        if now > spent:
            spent, last = now, time.monotonic()
        elif time.monotonic() - last > IDLE_SECONDS:
            hung = True
            os.killpg(pid, signal.SIGKILL)
    os.close(end)
    _, status, usage = os.wait4(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it left behind
    code = os.waitstatus_to_exitcode(status)
    return {
        "code": code,
        "hung": hung or code == -signal.SIGXCPU or code == -signal.SIGKILL,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_bytes": usage.ru_maxrss * 1024,
    }


def _command(folder: str, arguments: Sequence[str], output: str, cpu: int) -> None:
    """Never returns."""
    code = CRASHED
    try:
        os.setsid()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))  # the sandbox sets its own
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**30, 4 * 2**30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, standard in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(number, standard)
        sys.argv = ["mopd", *arguments]
        from mopd.recipes.cli import app

        try:
            app(list(arguments), prog_name="mopd")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    _serve(given["patches"], runs=given["runs"], cpu=given["cpu"])
