"""Workers are forks of one process that has imported their libraries, or else started by Ray's own script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mopd.distill import start_worker
from mopd.distill.fork_server import fork_server
from mopd.distill.start_worker import ADDRESS

WORKER = """
import json, os, random, signal, sys
import numpy
print(json.dumps({
    "argv": sys.argv[1:], "folder": os.getcwd(),
    "variable": os.environ.get("TRIED"), "cleared": "ONLY_OF_SERVER" in os.environ,
    "forked": "library_of_test" in sys.modules, "drawn": [random.random(), float(numpy.random.rand())],
    "blocked": signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []), "name": __name__,
    "group": os.getpgid(0) == os.getpid(),
}))
print("to stderr", file=sys.stderr)
sys.exit(3)
"""

LIBRARY = "import numpy\ndef prepare(): pass\n"


@contextmanager
def serving(folder: Path, library: str = LIBRARY) -> Iterator[dict[str, str]]:
    (folder / "library_of_test.py").write_text(library)
    with fork_server(
        folder,
        "library_of_test:prepare",
        variables={
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "ONLY_OF_SERVER": "1",
            "OMP_NUM_THREADS": "1",
        },
    ) as address:
        yield address


def start(
    folder: Path,
    address: dict[str, str],
    *,
    context: dict[str, Any] | None = None,
    args: Sequence[str] = (),
    **more: Any,
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """What a worker that was started as a raylet does says of itself."""
    script = folder / "worker.py"
    script.write_text(WORKER)
    context = {"env_vars": {"TRIED": "yes"}, "py_executable": sys.executable} | (context or {})
    command = [sys.executable, start_worker.__file__, str(script), *args]
    command += [f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON"]
    ended = subprocess.run(
        command, env={**os.environ, **address}, cwd=folder, capture_output=True, text=True, timeout=120, **more
    )
    return json.loads(ended.stdout.splitlines()[-1]), ended


def test_a_worker_is_a_fork_and_as_if_started_by_its_command(tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        worker, ended = start(tmp_path, address, args=["--port=1", "a b"])
    assert worker["forked"]
    assert worker["group"]  # of its own: Ray kills the group of a worker that has ended
    assert worker["name"] == "__main__"
    assert worker["argv"] == ["--port=1", "a b"]
    assert worker["folder"] == str(tmp_path)
    assert worker["variable"] == "yes"
    assert not worker["cleared"]
    assert "to stderr" in ended.stderr


def test_forks_draw_numbers_of_their_own(tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        drawn = [start(tmp_path, address)[0]["drawn"] for _ in range(2)]
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize(
    "context",
    [
        {"env_vars": {"OMP_NUM_THREADS": "7", "TRIED": "yes"}},
        {"command_prefix": ["true", "&&"]},
    ],
)
def test_what_would_differ_at_its_imports_is_started_as_ray_does(tmp_path: Path, context: dict[str, Any]) -> None:
    with serving(tmp_path) as address:
        worker, ended = start(tmp_path, address, context=context)
    assert not worker["forked"]
    assert ended.returncode == 3


def test_without_a_server_it_is_started_as_ray_does(tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        assert start(tmp_path, address)[0]["forked"]
    for gone in (address, {ADDRESS: ""}):
        assert not start(tmp_path, gone)[0]["forked"]


def test_a_library_that_starts_a_thread_is_not_forked(tmp_path: Path) -> None:
    library = LIBRARY + "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    with serving(tmp_path, library) as address:
        assert not start(tmp_path, address)[0]["forked"]


def test_the_signals_that_a_raylet_blocks_stay_blocked(tmp_path: Path) -> None:
    import signal

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    with serving(tmp_path) as address:
        worker, _ = start(tmp_path, address, preexec_fn=block)
    assert worker["forked"]
    assert worker["blocked"]
