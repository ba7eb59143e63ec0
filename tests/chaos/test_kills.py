"""`make chaos`: processes of a run are killed at random moments; all ends bitwise as undisturbed, with every step once.

KILLS of each kind, seeded, at moments between the victim's first sign and the run's last step, in processor seconds of
all of its processes, of which the undisturbed run says how many they are. A kill that comes too late is not counted. It
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
    Course,
    Work,
    assert_whole,
    finish,
    left,
    mark,
    mopd,
    retries,
    rows_of,
    run,
    titled,
    undisturbed,
    weights,
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


def victims(alive: list[psutil.Process], target: str) -> list[psutil.Process]:
    """Processes of a run that a kind of kill may meet."""
    return sorted((process for process in alive if titled(process) == NAMES[target]), key=lambda process: process.pid)


def killed(
    command: tuple[str | Path, ...], target: str, course: Course, rng: random.Random, *, times: int
) -> tuple[int, int]:
    """Start a command and kill at so many random moments; how often that was in time, and the exit code."""
    kept = rows_of(Path(command[-1]))
    process = mopd(*command)
    running, work, kills, begin = mark(process), Work(process), 0, 0.0
    driver = psutil.Process(process.pid)
    while target != "driver" and process.poll() is None and not victims(work.alive(), target):
        time.sleep(0.1)
        begin = work.seconds()
    length = course.left_after(course.signs.get(NAMES.get(target, ""), 0.0), kept)
    moments = sorted(rng.uniform(0, length) for _ in range(times))
    for moment in moments:
        work.wait_until(begin + moment)
        alive: list[psutil.Process] = [driver] if target == "driver" else []
        while process.poll() is None and not (alive := alive or victims(work.alive(), target)):
            time.sleep(0.1)
            work.seconds()
        if process.poll() is None:
            rng.choice(alive).kill()
            kills += 1
    had = rows_of(Path(command[-1]))
    code, printed = finish(process)
    if target != "driver":
        assert not any(words in printed for words in ("Traceback", "Worker exit")), printed  # that is Ray's prose
        assert code in (0, 1), printed
        assert code == 0 or "the last checkpoint resumes" in " ".join(printed.lower().split()), printed
    assert left(running) == []
    said = [line.strip() for line in printed.splitlines() if " died" in line or " failed" in line]
    at = ", ".join(f"{moment:.1f}" for moment in moments)
    print(
        f"chaos: {target} killed {kills} times of {times} at {at} of {length:.1f} s, rows {kept} to {had}, exit {code}."
        f" {said}",
        flush=True,
    )
    return kills, code


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", range(-(-KILLS // A_RUN)))
@pytest.mark.parametrize("target", ["driver", "rank", "teacher", "sampler", "raylet", "gcs"])
def test_killed_at_random_moments(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, target: str, number: int
) -> None:
    settings = ["track.wandb.mode=disabled", *SETTINGS.get(target, [])]
    finished, made, scratch = undisturbed(*settings, fresh=tmp_path_factory.getbasetemp() / "undisturbed")
    rng = random.Random(f"{target} {number}")
    left_to_do, run_number = min(A_RUN, KILLS - A_RUN * number), 0
    while left_to_do:
        run_number += 1
        out = tmp_path / f"run-{run_number}"
        command = ("run", "smoke", *settings, "--out", out)
        course = scratch if target == "driver" and number % 2 else made  # a driver also dies while stages are made
        if course is made:
            shutil.copytree(finished / "stages", out / "stages")
        code = 1
        while left_to_do and code:
            kills, code = killed(command, target, course, rng, times=left_to_do if target == "teacher" else 1)
            left_to_do -= kills
        if code:
            run(*command)
        assert_whole(out, steps=STEPS)
        assert weights(out) == weights(finished)
        if target == "teacher":
            print(f"chaos: {retries(out)} microbatches were asked again", flush=True)
        shutil.rmtree(out)
