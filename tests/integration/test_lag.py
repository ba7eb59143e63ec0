"""A run whose rollouts are written with the weights of the step before: killed, it goes on to the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import assert_whole, kill, mopd, rows, run, texts, wait_for, weights

SETTINGS = ("run.lag=1", "student.updates_per_step=1", "loss={estimator: policy_gradient}")
BESIDE = "rollout.workers=1"
DOMAINS = ("math", "code", "reasoning")


def trained(out: Path) -> list[dict[str, Any]]:
    """The rows of steps, without what the machine decides."""
    rows_of_steps = [row for row in rows(out / "metrics.jsonl") if row["kind"] == "train"]
    by_machine = ("seconds/", "idle/", "teacher_")
    return [{name: value for name, value in row.items() if not name.startswith(by_machine)} for row in rows_of_steps]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, whose rollouts are written in a process beside the rank."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run("run", "smoke", *SETTINGS, BESIDE, "--out", out)
    assert_whole(out, steps=4)
    return out


def test_the_weights_that_wrote_are_recorded_and_the_ratio_tells_them_from_those_that_learn(whole: Path) -> None:
    steps = trained(whole)
    assert [row["staleness"] for row in steps] == [0, 1, 1, 1]
    assert {(sample["step"], *sample["version"]) for sample in rows(whole / "rollouts.jsonl")} == {(2, 0, 0), (4, 2, 2)}
    ratios = [[row[f"ratio/{domain}"] for domain in DOMAINS] for row in steps]
    assert ratios[0] == pytest.approx([1.0] * 3, abs=1e-6), "the first step is learnt from with what wrote it"
    assert all(abs(ratio - 1) > 1e-5 for later in ratios[1:] for ratio in later)


@pytest.mark.parametrize("writers", [BESIDE, "rollout.workers=0"])
def test_a_killed_run_goes_on_to_the_same_weights(whole: Path, tmp_path: Path, writers: str) -> None:
    """Also with the rank's own sampler, which writes the same."""
    out = tmp_path / "killed"
    shutil.copytree(whole / "stages", out / "stages", symlinks=True)
    process = mopd("run", "smoke", *SETTINGS, writers, "--out", out)
    wait_for(process, out / "checkpoints" / "step-000002" / "layout.json", 0)
    kill(process)
    assert (out / "checkpoints" / "step-000002" / "rollouts-000002.npz").exists()
    assert not (out / "finished.json").exists()
    run("run", "smoke", *SETTINGS, writers, "--out", out)
    assert_whole(out, steps=4)
    assert weights(out) == weights(whole)
    assert texts(out) == texts(whole)
    assert trained(out) == trained(whole)
