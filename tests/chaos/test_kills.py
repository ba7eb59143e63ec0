"""`make chaos`: processes of a run are killed at random moments; all ends bitwise as undisturbed, with every step once.

KILLS of each kind, seeded, at moments of the seconds that the undisturbed run takes. A kill ends the run in plain words
and leaves no process of it (a teacher's death does not even end it), and the same command goes on.
`CHAOS_KILLS=3 make chaos` tries fewer; what was tried is printed.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest
from deadline_kit import CLOCK

sys.path.append(str(Path(__file__).parent.parent / "integration"))

from runs import assert_whole, finish, kill, left, mark, mopd, processes, retries, run, weights

KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
STEPS = 4
SETTINGS = {"sampler": ["rollout.workers=1"]}
"""Overrides of the recipe under which a victim lives all the time; the others live in the recipe as it is."""
NAMES = {
    "rank": "ray::Host",
    "sampler": "ray::Host",
    "teacher": "ray::TeacherProcess",
    "raylet": "raylet",
    "gcs": "gcs_server",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, str], float]]:
    """Runs that nobody killed, by their overrides; their weights, and the quiet seconds they take with stages made."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    run("run", "smoke", "--out", folder / "stages-of")
    for name in ("", "rollout.workers=1"):
        out = folder / f"smoke{name}"
        shutil.copytree(folder / "stages-of" / "stages", out / "stages")
        begin = CLOCK.seconds()
        run("run", "smoke", *filter(None, [name]), "--out", out)
        runs[name] = (out, weights(out), CLOCK.seconds() - begin)
    return runs


def sleep(seconds: float) -> None:
    """So many seconds of a quiet machine."""
    end = CLOCK.seconds() + seconds
    while CLOCK.seconds() < end:
        time.sleep(0.02)


def victims(alive: list[psutil.Process], target: str) -> list[psutil.Process]:
    """Processes of a run that a kind of kill may meet."""
    chosen = []
    for process in alive:
        try:
            if (process.name() if target in ("raylet", "gcs") else process.cmdline()[0].split()[0]) == NAMES[target]:
                chosen.append(process)
        except (psutil.Error, IndexError):  # it has just ended
            continue
    return sorted(chosen, key=lambda process: process.pid)


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("target", ["driver", "rank", "teacher", "sampler", "raylet", "gcs"])
def test_killed_at_a_random_moment(undisturbed, tmp_path: Path, target: str, seed: int) -> None:
    settings = SETTINGS.get(target, [])
    finished, expected, seconds = undisturbed["".join(settings)]
    rng = random.Random(f"{target} {seed}")
    out = tmp_path / "killed"
    if target != "driver" or seed % 2:  # a driver also dies while stages are made
        shutil.copytree(finished / "stages", out / "stages")
    command = ("run", "smoke", *settings, "--out", out)
    process = mopd(*command)
    running = mark(process)
    moment = rng.uniform(0, seconds)
    sleep(moment)
    if target == "driver":
        kill(process)
        code = -9
    else:
        while not (alive := victims(processes(process), target)) and process.poll() is None:
            time.sleep(0.02)
        if alive:
            rng.choice(alive).kill()
        code, printed = finish(process)
        assert "Traceback" not in printed, printed
        assert code in ((0,) if target == "teacher" else (0, 1)), printed
        assert code == 0 or "the last checkpoint resumes" in " ".join(printed.lower().split()), printed
    assert left(running) == []
    print(f"chaos: {target} {seed} killed at {moment:.1f} of {seconds:.1f} s, exit {code}", flush=True)
    if code:
        run(*command)
    assert_whole(out, steps=STEPS)
    assert weights(out) == expected
    if target == "teacher":
        print(f"chaos: {retries(out)} microbatches were asked again", flush=True)
