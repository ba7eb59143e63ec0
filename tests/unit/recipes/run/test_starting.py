"""A GCS or a raylet that dies while Ray starts: nobody waits for the dead one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from deadline_kit import patience

RUN = """
import functools, sys
from pathlib import Path
from mopd.recipes.run.cluster import ray_cluster
import ray
from ray._private import services, worker

victim, moment = sys.argv[1:]
module, name = (services, moment) if moment.startswith("start") else (worker, moment)
start = {"gcs_server": services.start_gcs_server, "raylet": services.start_raylet}
done, last = [], {}

def noting(title, start):
    @functools.wraps(start)
    def noted(*args, **settings):
        info = start(*args, **settings)
        last[title] = info.process
        return info
    return noted

services.start_gcs_server = noting("gcs_server", services.start_gcs_server)
services.start_raylet = noting("raylet", services.start_raylet)

def at(function, after):
    @functools.wraps(function)
    def killing(*args, **settings):
        result = function(*args, **settings) if after else None
        if not done:
            done.append(last[victim])
            last[victim].kill()
        return result if after else function(*args, **settings)
    return killing

setattr(module, name, at(getattr(module, name), after=module is services))
with ray_cluster(Path("out")):
    answer = ray.get(ray.remote(num_cpus=0)(lambda: "ready").remote())
    print(answer, len(done), last[victim].pid != done[0].pid, flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of Ray's files; tmp_path has too long a name for sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as name:
        yield Path(name)


def killed_as_it_starts(victim: str, moment: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A cluster of which one process is killed at a call of Ray's. Whoever waits for the port of a dead GCS does so
    all night."""
    return subprocess.run(
        [sys.executable, "-c", RUN, victim, moment],
        capture_output=True,
        text=True,
        timeout=patience(100),
        env=os.environ | {"RAY_gcs_server_port_wait_time_s": "40000", "RAY_TMPDIR": str(folder)},
        check=False,
    )


@pytest.mark.parametrize(
    ("victim", "moment"),
    [("gcs_server", "start_gcs_server"), ("gcs_server", "start_raylet"), ("raylet", "start_raylet")],
)
def test_before_it_connects_ray_is_started_again(victim: str, moment: str, folder: Path) -> None:
    ended = killed_as_it_starts(victim, moment, folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "ready 1 True\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("victim", "name"), [("gcs_server", "GCS"), ("raylet", "raylet")])
def test_as_it_connects_the_run_ends_in_plain_words(victim: str, name: str, folder: Path) -> None:
    """Ray would end this process after a minute, in words of its own."""
    ended = killed_as_it_starts(victim, "connect", folder)
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    line = ended.stderr.splitlines()[-1]  # of a dead raylet Ray has a line of its own before
    assert f"the run broke: Ray's {name}" in line
    assert list(folder.iterdir()) == []
