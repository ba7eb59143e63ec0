"""`make chaos`: the smoke run or a teacher of it is killed at ten random moments; all ends bitwise as undisturbed."""

import random
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "integration"))

from runs import assert_whole, finish, kill, mopd, retries, run, teachers, wait_for, weights

KILLS = 10
STEPS = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody killed, its weights, and how long it took."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    start = time.monotonic()
    run("run", "smoke", "--out", out)
    return out, weights(out), time.monotonic() - start


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(undisturbed, tmp_path, seed):
    """Once or twice, anywhere from the first import to the report; a moment after the end kills nothing."""
    _, expected, seconds = undisturbed
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
    """From its start to the last step, whatever it does; the run needs no help, and counts what was lost."""
    finished, expected, _ = undisturbed
    rng = random.Random(seed)
    out = tmp_path / "killed"
    shutil.copytree(finished / "stages", out / "stages")  # the teachers' making is no concern here
    process = mopd("run", "smoke", "--out", out)
    victim = rng.choice(teachers(process, 3))
    after, later = rng.randrange(STEPS + 1), rng.uniform(0, 1)
    wait_for(process, out / "metrics.jsonl", after)
    time.sleep(later)
    victim.kill()
    code, printed = finish(process)
    assert code == 0, printed
    assert_whole(out, steps=STEPS)
    assert weights(out) == expected
    told = f"seed {seed}: killed {later:.2f} s after row {after}"
    print(f"{told}; {retries(out)} microbatches were asked again", flush=True)
