"""A whole run whose base gets draft heads in a stage: they learn, write and are exported, and a kill changes no bit."""

import json

import pytest
from runs import assert_whole, kill, mopd, rows, run, wait_for
from safetensors.torch import load_file

HEADS = [
    "student.model=stage:heads",
    "mtp={heads: 2, share: 1.0}",
    "stages.heads={from: stage:base, method: draft_heads, prompts: 8, steps: 4, mtp: {heads: 2, share: 1.0}}",
]


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "drafted"
    run("run", "smoke", *HEADS, "--out", out)
    return out


def test_heads_are_given_trained_used_and_exported(drafted):
    assert_whole(drafted, steps=4)
    folders = ("stages/base/student", "stages/heads/student", "student")
    base, heads, student = (load_file(drafted / folder / "model.safetensors") for folder in folders)
    assert all(base[name].equal(heads[name]) for name in base)
    assert heads.keys() == student.keys()
    assert sum(name.startswith("model.mtp.layers.") for name in student) == 2 * 14
    assert json.loads((drafted / "student" / "config.json").read_text())["num_nextn_predict_layers"] == 2
    costs = json.loads((drafted / "draft_costs.json").read_text())
    assert len(costs["plain"]) == len(costs["rows"]) == len(costs["rounds"])
    trained = [row for row in rows(drafted / "metrics.jsonl") if row["kind"] == "train"]
    for row in trained:
        assert 0 < row["draft_overlap_1/math"] <= 1
    stage = [row for row in rows(drafted / "stages" / "heads" / "metrics.jsonl") if row["kind"] == "train"]
    assert stage[-1]["draft_kl/math"] < stage[0]["draft_kl/math"]


def test_a_killed_run_with_heads_ends_with_the_same_weights(drafted, tmp_path):
    out = tmp_path / "run"
    process = mopd("run", "smoke", *HEADS, "--out", out)
    wait_for(process, out / "metrics.jsonl", 5)
    kill(process)
    # How many tokens are guessed is told from measured times; with the same times, all is the same.
    run("run", "smoke", *HEADS, "--out", out)
    (whole, resumed) = (load_file(folder / "student" / "model.safetensors") for folder in (drafted, out))
    assert whole.keys() == resumed.keys()
    assert all(whole[name].equal(resumed[name]) for name in whole)
