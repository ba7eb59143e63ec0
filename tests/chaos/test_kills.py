"""`make chaos`: processes of a run are killed at random moments; all ends bitwise as undisturbed, with every step once.

KILLS of each kind, seeded, at moments of the processor seconds that the undisturbed run's own process takes. A kill
ends the run in plain words and leaves no process of it; the same command goes on, and is killed again, A_RUN times in
one folder, before it may end. A teacher's death does not even end it, and another one dies later in the same run.
`CHAOS_KILLS=4 make chaos` tries fewer; what was tried is printed.
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

sys.path.append(str(Path(__file__).parent.parent / "integration"))

from runs import (
    assert_whole,
    finish,
    left,
    mark,
    mopd,
    processes,
    retries,
    run,
    undisturbed,
    wait_until,
    weights,
    work_of,
)

KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
A_RUN = 4
STEPS = 4
SETTINGS = {"sampler": ["rollout.workers=1"]}
"""Overrides of the recipe under which a victim lives all the time; the others live in the recipe as it is."""
NAMES = {
    "rank": "ray::RankProcess",
    "sampler": "ray::SamplerWorker",
    "teacher": "ray::TeacherProcess",
    "raylet": "raylet",
    "gcs": "gcs_server",
}
OF_THE_RUN = ("rank", "sampler", "teacher")
"""They live for a part of a run; a moment counts from when the first of them is there."""


def victims(alive: list[psutil.Process], target: str) -> list[psutil.Process]:
    """Processes of a run that a kind of kill may meet."""
    chosen = []
    for process in alive:
        try:
            title = process.name() if target in ("raylet", "gcs") else process.cmdline()[0]
            if title.startswith(NAMES[target]):  # a busy one has its method after its name
                chosen.append(process)
        except (psutil.Error, IndexError):  # it has just ended
            continue
    return sorted(chosen, key=lambda process: process.pid)


def killed(
    command: tuple[str | Path, ...], target: str, work: float, rng: random.Random, *, times: int
) -> tuple[int, int]:
    """Start a command and kill at so many random moments; how often that was in time, and the exit code."""
    process = mopd(*command)
    running, begin, kills = mark(process), 0.0, 0
    if target in OF_THE_RUN:
        while not victims(processes(process), target) and process.poll() is None:
            time.sleep(0.05)
        begin = min(work, work_of(process))
    moments = sorted(rng.uniform(begin, work) for _ in range(times))
    for moment in moments:
        wait_until(process, moment)
        alive: list[psutil.Process] = [psutil.Process(process.pid)] if target == "driver" else []
        while process.poll() is None and not (alive := alive or victims(processes(process), target)):
            time.sleep(0.02)
        if process.poll() is None:
            rng.choice(alive).kill()
            kills += 1
    code, printed = finish(process)
    if target != "driver":
        assert "Traceback" not in printed, printed
        assert code in (0, 1), printed
        assert code == 0 or "the last checkpoint resumes" in " ".join(printed.lower().split()), printed
    assert left(running) == []
    said = [line.strip() for line in printed.splitlines() if " died" in line or " failed" in line]
    at = ", ".join(f"{moment:.1f}" for moment in moments)
    print(f"chaos: {target} killed {kills} times of {times} at {at} of {work:.1f} s, exit {code}. {said}", flush=True)
    return kills, code


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", range(-(-KILLS // A_RUN)))
@pytest.mark.parametrize("target", ["driver", "rank", "teacher", "sampler", "raylet", "gcs"])
def test_killed_at_random_moments(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, target: str, number: int
) -> None:
    settings = ["track.wandb.mode=disabled", *SETTINGS.get(target, [])]
    finished, work = undisturbed(*settings, fresh=tmp_path_factory.getbasetemp() / "undisturbed")
    rng = random.Random(f"{target} {number}")
    left_to_do, run_number = min(A_RUN, KILLS - A_RUN * number), 0
    while left_to_do:
        run_number += 1
        out = tmp_path / f"run-{run_number}"
        command = ("run", "smoke", *settings, "--out", out)
        if target != "driver" or number % 2:  # a driver also dies while stages are made
            shutil.copytree(finished / "stages", out / "stages")
        code = 1
        while left_to_do and code:
            kills, code = killed(command, target, work, rng, times=left_to_do if target == "teacher" else 1)
            left_to_do -= kills
        if code:
            run(*command)
        assert_whole(out, steps=STEPS)
        assert weights(out) == weights(finished)
        if target == "teacher":
            print(f"chaos: {retries(out)} microbatches were asked again", flush=True)
        shutil.rmtree(out)
