"""What runs inside the sandboxed process: reads its jobs, locks itself in, then executes them one after the other.

Started by rollouts/sandbox/run.py as a lean interpreter of its own; needs the standard library only, unless it compares
formulas. Line by line on standard output: first ``{"held": [...], "missing": [...]}``, then one JSON value per job, in
order. Each line begins with the nonce that came with the settings. A job that overruns its processor time kills the
process; the parent goes on with the next job in a fresh one.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from mopd.rollouts.sandbox.lock import lock
from mopd.rollouts.sandbox.rules import (
    EXPRESSION_NAMES,
    MODULES,
    PROGRAM_NAMES,
    Refused,
    parse_expression,
    parse_program,
)
from mopd.rollouts.sandbox.safe_stdlib import NAMESPACES, SAFE_FORMS, harden


def main() -> None:
    """Serve the jobs given on standard input: a line of settings, then one line per job."""
    settings, *jobs = [json.loads(line) for line in sys.stdin.buffer]
    os.close(0)
    nonce = settings.pop("nonce")  # nowhere but in this frame, which no name of a program leads to
    run = _prepare(settings["kind"], settings["import_paths"], jobs)
    cpu_seconds = settings["cpu_seconds"]
    held, missing = lock(
        empty_folder=settings["empty_folder"],
        memory_bytes=settings["memory_bytes"],
        cpu_seconds=cpu_seconds * len(jobs) + 1,
    )
    _write_line(nonce + json.dumps({"held": held, "missing": missing}))
    for job in [] if missing else jobs:
        # The signal's default action ends the process, even in the middle of one huge multiplication.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            answer = json.dumps(run(*job))
        except BaseException:
            answer = "null"
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write_line(nonce + (answer if len(answer) <= settings["result_bytes"] else "null"))
    os._exit(0)


def _prepare(kind: str, import_paths: list[str], jobs: list[Any]) -> Callable[..., object]:
    """Import all that the jobs need, while files can still be opened; returns what runs one job."""
    if kind == "math":
        sys.path += import_paths
        from mopd.rollouts.sandbox import formulas as sandbox_math

        sandbox_math.prepare()
        return sandbox_math.equal
    if kind == "tests":
        for name in MODULES:
            if any(re.search(rf"\b{re.escape(name)}\b", text) for job in jobs for text in job):
                importlib.import_module(name)
        harden()
        return run_program
    return run_expression


def _write_line(line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def run_expression(text: str, inputs: Sequence[list[int]]) -> list[object]:
    """The value of an expression over ``x`` at each input.

    Raises:
        Refused: it isn't allowed, or a value is not made of lists, numbers, strings, booleans and None.
        Exception: whatever the expression raises.
    """
    code = compile(parse_expression(text), "expression", "eval", dont_inherit=True)
    names = {name: getattr(builtins, name) for name in EXPRESSION_NAMES}
    values = [eval(code, {"__builtins__": names, "x": list(x)}) for x in inputs]
    if not _is_plain(values):
        raise Refused("a value that JSON would change")
    return values


def _is_plain(value: object) -> bool:
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) in (int, float, str, bool, type(None))


def run_program(program: str, tests: str) -> bool:
    """Whether all tests pass. Program and tests share no builtins and no module objects, only the program's own names.

    Raises:
        Refused: program or tests use what isn't allowed.
        BaseException: whatever the program raises, or a test that fails.
    """
    program_code = compile(parse_program(program), "program", "exec", dont_inherit=True)
    tests_code = compile(parse_program(tests, tests=True), "tests", "exec", dont_inherit=True)
    if "random" in sys.modules:
        sys.modules["random"].seed(0)
    program_names, tests_names = map(_namespace, NAMESPACES)
    exec(program_code, program_names)
    # What tests rely on is never taken from the program: it could have redefined `abs`, `all` or `math`.
    trusted = {*tests_names["__builtins__"], *MODULES}
    tests_names |= {k: v for k, v in program_names.items() if k not in trusted and not k.startswith("__")}
    tests_names |= {name: _facade(name) for name in MODULES if name in sys.modules and "." not in name}
    exec(tests_code, tests_names)
    _run_collected({k: v for k, v in tests_names.items() if v is not program_names.get(k)})
    return True


def _run_collected(names: dict[str, Any]) -> None:
    """Run what a test runner would collect: functions ``test_*``, and the test methods of TestCase classes."""
    unittest = sys.modules.get("unittest")
    for name, value in names.items():
        if isinstance(value, types.FunctionType) and name.startswith("test_"):
            value()
        elif unittest and isinstance(value, type) and issubclass(value, unittest.TestCase):
            for method in dir(value):
                if method.startswith("test"):
                    value(method).debug()


def _namespace(name: str) -> dict[str, Any]:
    allowed: dict[str, Any] = {key: getattr(builtins, key) for key in PROGRAM_NAMES}
    allowed |= {"__import__": _import, "__build_class__": builtins.__build_class__}
    allowed |= {"print": _print, "type": _type_of}
    # dataclasses execute the code they generate in the module of a class.
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name])["__builtins__"] = allowed
    return {"__name__": name, "__builtins__": allowed}


def _import(
    name: str, globals: object = None, locals: object = None, fromlist: Sequence[str] | None = (), level: int = 0
) -> types.ModuleType:
    """What ``import`` calls: hands out a facade, never the module itself."""
    if level or name not in MODULES:
        raise Refused(f"import of module {name!r}")
    return _facade(name if fromlist else name.partition(".")[0])


def _facade(name: str) -> types.ModuleType:
    """A module with the allowed names of module ``name`` and nothing else, made again for whoever imports it."""
    facade, forms = types.ModuleType(name), SAFE_FORMS.get(name, {})
    for key in MODULES[name]:
        setattr(facade, key, forms[key] if key in forms else getattr(sys.modules[name], key))
    for child in MODULES:
        parent, _, key = child.rpartition(".")
        if parent == name and child in sys.modules:
            setattr(facade, key, _facade(child))
    return facade


def _print(*values: object, **options: object) -> None:
    """Output is not part of any verdict, and an answer that prints much costs nothing."""


def _type_of(value: object) -> type:
    """``type`` of one value that isn't itself a class: the three-argument form makes classes around the whitelist."""
    if isinstance(value, type):
        raise Refused("the type of a class")
    return type(value)
