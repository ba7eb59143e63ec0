"""`make chaos`: the smoke run is killed at ten random moments, each time anew, and ends bitwise where it would have."""

import random
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "integration"))

from runs import assert_whole, kill, mopd, run, weights

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
