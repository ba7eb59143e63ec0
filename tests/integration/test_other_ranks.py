"""A run that was killed on two ranks goes on with one, and under another ZeRO stage: nothing is lost, nothing twice."""

import shutil

import pytest
import torch
from runs import assert_whole, kill, mopd, rows, run, wait_for
from safetensors.torch import load_file

SPREAD = "student.engine.ranks=2"


def learnt(out):
    """By step, the numbers of its training row that say what was learnt and from what."""
    names = ("loss", "kl/", "grad_norm", "lr", "share/", "prompts/", "tokens/generation", "reward/", "length/")
    trained = [row for row in rows(out / "metrics.jsonl") if row["kind"] == "train"]
    return {row["step"]: {k: v for k, v in row.items() if k.startswith(names)} for row in trained}


def test_a_run_killed_on_two_ranks_goes_on_with_one(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    run("run", "smoke", SPREAD, "--out", whole)
    shutil.copytree(whole / "stages", out / "stages", symlinks=True)
    process = mopd("run", "smoke", SPREAD, "--out", out)
    wait_for(process, out / "checkpoints" / "step-000002" / "layout.json", 0)
    kill(process)
    before = learnt(out)
    assert max(before) < 4
    printed = run("run", "smoke", "student.engine.ranks=1", "student.engine.zero_stage=3", "--out", out)
    assert "student.engine.ranks: 2 -> 1" in " ".join(printed.split())
    assert_whole(out, steps=4)
    expected, found = learnt(whole), learnt(out)
    assert len(expected[1]) > 10
    assert {step: found[step] for step in (1, 2)} == {step: expected[step] for step in (1, 2)}, "before it was killed"
    for step in (3, 4):
        assert found[step] == pytest.approx(expected[step], rel=1e-4, abs=1e-6)
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (out, whole))
    assert ours.keys() == theirs.keys()
    furthest = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    moved = load_file(out / "stages" / "base" / "student" / "model.safetensors")
    assert furthest < 1e-5 < max(float((ours[name] - moved[name]).abs().max()) for name in ours) / 10
    assert all(torch.isfinite(tensor).all() for tensor in ours.values())
    again = run("run", "smoke", "student.engine.ranks=1", "student.engine.zero_stage=3", "--out", out)
    assert "spread anew" not in again, "the folder's recipe is that of now"
