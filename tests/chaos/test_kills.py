"""`make chaos`: the smoke run or a teacher of it is killed at ten random moments; all ends bitwise as undisturbed."""

import random
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).parent.parent / "integration"))

from runs import assert_whole, finish, kill, mopd, rows, run, weights

KILLS = 10
STEPS = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights of a run that nobody killed, and how long it took."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    start = time.monotonic()
    run("run", "smoke", "--out", out)
    return weights(out), time.monotonic() - start


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(undisturbed, tmp_path, seed):
    """Once or twice, anywhere from the first import to the report; a moment after the end kills nothing."""
    expected, seconds = undisturbed
    rng = random.Random(seed)
    out = tmp_path / "killed"
    for _ in range(rng.choice([1, 2])):
        process = mopd("run", "smoke", "--out", out)
        moment = rng.uniform(0, seconds)
        time.sleep(moment)
        print(f"seed {seed}: killed after {moment:.1f} of {seconds:.0f} s", flush=True)
        kill(process)
    run("run", "smoke", "--out", out)
    assert_whole(out, steps=STEPS)
    assert weights(out) == expected


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_teacher_killed_at_a_random_moment(undisturbed, tmp_path, seed):
    """From its start to the last score; the run needs no help, and counts what was lost."""
    expected, _ = undisturbed
    rng = random.Random(seed)
    out = tmp_path / "killed"
    process = mopd("run", "smoke", "--out", out)
    driver = psutil.Process(process.pid)
    teachers = []
    while len(teachers) < 3:
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
        teachers = [p for p in driver.children(recursive=True) if "TeacherProcess" in " ".join(_command(p))]
    time.sleep(rng.uniform(0, 10))
    victim = rng.choice(teachers)
    if victim.is_running():  # the steps may be over
        victim.kill()
    code, printed = finish(process)
    assert code == 0, printed
    assert_whole(out, steps=STEPS)
    assert weights(out) == expected
    lost = sum(v for row in rows(out / "metrics.jsonl") for k, v in row.items() if k.startswith("teacher_retries/"))
    print(f"seed {seed}: {lost:g} microbatches were asked again", flush=True)


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []
