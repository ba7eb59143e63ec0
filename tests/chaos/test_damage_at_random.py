"""`make chaos`: files of the smoke run are damaged, a kind and a place at a time; all ends bitwise as undisturbed."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "integration"))
sys.path.append(str(Path(__file__).parent))

from damage_kit import KINDS, harm
from runs import assert_whole, finish, mopd, run, undisturbed, weights
from switches import switched_off

STEPS = 4
PLACES_OF_A_KIND = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody damaged."""
    return undisturbed(fresh=tmp_path_factory.mktemp("runs"))[0]


def copy(whole, out):
    """The run as it was before its end: all checkpoints are there, and its results are not."""
    shutil.copytree(whole, out, symlinks=True)
    shutil.rmtree(out / "student")
    for name in ("finished.json", "seesaw.json"):
        (out / name).unlink()
    return out


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("place", range(PLACES_OF_A_KIND))
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_and_a_damaged_stage(whole, tmp_path, kind, place):
    """The newest checkpoint of the run, and the finished student of one stage; the same command mends both."""
    out = copy(whole, tmp_path / "damaged")
    rng = random.Random(f"{kind}{place}")
    older, newest = sorted((out / "checkpoints").glob("step-*"))[-2:]  # not per token
    stage = rng.choice(["base", "math", "code", "reasoning"])
    other = next(name for name in ("math", "code") if name != stage)
    files = [
        harm(newest, older, kind=kind, place=rng.randrange(100)),
        harm(out / "stages" / stage / "student", out / "stages" / other / "student", kind=kind, place=place),
    ]
    code, printed = finish(mopd("audit", out))
    assert code == 2, printed
    assert all(name in printed.replace("\n", "") for name in files), printed
    printed = run("run", "smoke", "--out", out)
    assert f"checkpoint {newest.name} is damaged" in printed
    assert f"stage {stage}: its student is damaged" in printed
    assert_whole(out, steps=STEPS)
    assert weights(out) == weights(whole)
    code, printed = finish(mopd("audit", out))
    assert code == 0, printed
    print(f"{kind} {place}: {newest.name}/{files[0]} and stages/{stage}/student/{files[1]}", flush=True)


@pytest.mark.timeout(1200)
def test_a_run_without_a_whole_checkpoint_says_how_to_go_on(whole, tmp_path):
    out = copy(whole, tmp_path / "damaged")
    for folder in (out / "checkpoints").glob("step-*"):
        harm(folder, out / "stages" / "base" / "student", kind="flipped", place=0)
    before = sorted(out.rglob("checkpoints/**/*"))
    code, printed = finish(mopd("run", "smoke", "--out", out))
    assert code == 2, printed
    assert "no whole checkpoint is left" in printed
    assert sorted(out.rglob("checkpoints/**/*")) == before
    shutil.rmtree(out / "checkpoints")  # as it says
    run("run", "smoke", "--out", out)
    assert_whole(out, steps=STEPS)
    assert weights(out) == weights(whole)


@pytest.mark.timeout(1200)
def test_without_the_digests_a_flipped_byte_would_be_used(whole, tmp_path):
    """A control: the tests above can fail. One bit of the newest checkpoint's weights, which are exported, and nobody
    looks. Beside them stand the optimizer's moments, which nothing reads once the run has ended."""
    out = copy(whole, tmp_path / "damaged")
    (file,) = max((out / "checkpoints").glob("step-*")).rglob("shard-*.safetensors")
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + header])
    end = next(tensor["data_offsets"][1] for name, tensor in tensors.items() if name.startswith("weight/"))
    content[8 + header + end - 2] ^= 64  # the highest bit of a fraction
    file.write_bytes(content)
    unread = switched_off(tmp_path / "off", "module._part_of = lambda names, listed, part, parts: []")
    code, printed = finish(mopd("run", "smoke", "--out", out, **unread))
    assert "is damaged" not in printed, printed
    print(f"control: {file.relative_to(out)}, exit {code}", flush=True)
    assert code != 0 or weights(out) != weights(whole)
