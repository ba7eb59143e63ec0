"""Which sandbox programs are run in: bubblewrap where it works, which a program in it has to show, or the whitelist."""

from __future__ import annotations

import functools
import os
import tempfile

from mopd.distill.errors import RunError, UserError
from mopd.distill.recipe.source import SandboxName
from mopd.rollouts.sandbox.run import SandboxKind, judge_programs

_PROBE = """
import multiprocessing, os, socket, subprocess, sys, tempfile, threading

def lacks(file, prefix):
    lacking = []
    values = []
    thread = threading.Thread(target=lambda: values.append(1))
    thread.start()
    thread.join()
    with tempfile.TemporaryFile("w+") as own:
        own.write("text")
    if subprocess.run([sys.executable, "-c", "import json"]).returncode or values != [1]:
        lacking.append("processes and threads")
    if os.path.exists(file):
        lacking.append("a file system without the user's files")
    if os.access(prefix, os.W_OK) or os.getuid() == 0:
        lacking.append("a read-only system")
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        lacking.append("a network of its own")
    return lacking
"""


def chosen_sandbox(wanted: SandboxName) -> SandboxKind:
    """Where programs are executed on this machine, as a recipe wants it; `auto` is bubblewrap where that works.

    Raises:
        UserError: bubblewrap is asked for, and can't be had; the message says what is missing.
    """
    if wanted == "whitelist":
        return "whitelist"
    problem = bubblewrap_problem()
    if problem is None:
        return "bubblewrap"
    if wanted == "auto":
        return "whitelist"
    raise UserError(f"{problem}; or take `sandbox: whitelist`, which runs a part of Python (docs/sandbox.md)")


@functools.cache
def bubblewrap_problem() -> str | None:
    """Why no program can be executed in bubblewrap on this machine, found by executing one; None where it can."""
    with tempfile.NamedTemporaryFile(prefix="mopd-sandbox-") as file:
        tests = f"assert lacks({file.name!r}, {os.path.dirname(os.__file__)!r}) == []"
        try:
            (verdict,) = judge_programs([(_PROBE, tests)], sandbox="bubblewrap")
        except (UserError, RunError) as error:
            return str(error)
    if verdict.passed:
        return None
    reason = "" if verdict.refused is None else f" ({verdict.refused})"
    return (
        f"sandbox: bubblewrap starts here, and a program in it lacks threads, processes, a temporary folder or "
        f"namespaces{reason}; user namespaces inside of one and Linux 5.14 or newer give them"
    )
