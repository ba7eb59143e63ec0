"""`make gpu` tried small on a CPU, where nothing is installed that a card's machine need not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_THERE = ("ray", "deepspeed", "wandb", "datasets", "pyarrow")
HIDDEN = f"""
import runpy, sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {NOT_THERE} else found(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
sys.argv[1:] = ["small=1", "json=" + sys.argv[1]]
runpy.run_module("tests.benchmarks.one_gpu", run_name="__main__")
"""


def test_every_part_is_measured_and_the_student_learns(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", HIDDEN, str(target)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads(target.read_text())
    assert json.loads(done.stdout) == figures
    assert list(figures) == [
        "card", "torch", "model", "sizes", "gemm_flops", "sampling", "scoring", "distilling", "publishing",
    ]  # fmt: skip
    losses = figures["distilling"]["loss_by_step"]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] > 0
    assert figures["publishing"]["merged_bytes"] > figures["publishing"]["adapter_bytes"] > 0


def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.benchmarks.one_gpu", f"json={tmp_path / 'none.json'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())
