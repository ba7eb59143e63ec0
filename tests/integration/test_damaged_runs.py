"""Whole resumes of damaged runs, with a served teacher whose key must be nowhere afterwards.

Every kind of damage at every place is tried on the loader (test_damaged_checkpoints.py), in whole runs in tests/chaos.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from check_kit import recipe, save_model, tokenizer_of
from damage_kit import harm
from rich.console import Console
from runs import rows, weights
from served_kit import KEY, serving

from mopd.distill.recipe import Recipe
from mopd.distill.storage import claim
from mopd.distill.tracking.console import Progress
from mopd.recipes.audit_command import audit
from mopd.recipes.resolve.damage import result_damage
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.run.cluster import ray_cluster
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.launch import carry_out

STEPS = 2


@dataclass(frozen=True, slots=True)
class Runs:
    """A finished run in ``whole``, and a way to go on in copies of it.

    Attributes:
        printed: everything that a person was shown.
    """

    folder: Path
    whole: Path
    recipe: Recipe
    printed: list[str]

    def go_on(self, out: Path) -> str:
        """What the same command does: go on with what is there; returns what it printed."""
        console = Console(record=True, width=400, file=open(os.devnull, "w"))  # noqa: SIM115
        with claim(out) as attempt, Progress(console) as progress:
            context = RunContext(out, self.recipe.name, "cpu", progress, threading.Event())
            carry_out(resolve(self.recipe), context, attempt)
        text = console.export_text()
        self.printed.append(text)
        return text


def served_recipe(base: str, big: str, url: str) -> Recipe:
    """A stage, and a student that is made of it and graded by a server."""
    optimizer = {"warmup_steps": 0}
    settings: dict[str, Any] = {
        "device": "cpu",
        "student": {"model": "stage:base", "optimizer": optimizer, "updates_per_step": 1},
        "domains": {"math": {"task": "arithmetic", "teacher": "big", "prompts": 4}},
        "teachers": {"big": {"model": big, "endpoint": url, "served_model": "big", "api_key_env": "MOPD_TEST_KEY"}},
        "loss": {"estimator": "policy_gradient", "gate": [1e-6, 1e6]},
        "stages": {"base": {"from": base, "steps": 1, "save_every": 1, "prompts": 4, "optimizer": optimizer}},
        "rollout": {"max_new_tokens": 40},
        "evaluate": {"validation_prompts": 2, "test_prompts": 2, "graded_prompts": 2},
        "run": {"steps": STEPS, "evaluate_every": STEPS, "save_every": 1, "keep_checkpoints": 2},
        "track": {"wandb": {"mode": "offline"}},
    }
    return recipe(**settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    base, big = (save_model(folder / name, tokenizer_of("arithmetic")) for name in ("base", "big"))
    ray.shutdown()  # the cluster that tests share
    logging.getLogger("httpx").setLevel(logging.DEBUG)
    os.environ["MOPD_TEST_KEY"] = KEY
    try:
        with serving(big) as server, ray_cluster(folder):
            made = Runs(folder, folder / "whole", served_recipe(base, big, server.url), [])
            made.go_on(made.whole)
            yield made
    finally:
        del os.environ["MOPD_TEST_KEY"]


def begun(runs: Runs, out: Path) -> Path:
    """The run as it was before its end: both checkpoints are there, and the results are not."""
    shutil.copytree(runs.whole, out, symlinks=True)
    shutil.rmtree(out / "student")
    for name in ("finished.json", "seesaw.json"):
        (out / name).unlink()
    return out


@pytest.mark.parametrize("kind", ["flipped"])
def test_a_run_with_a_damaged_checkpoint_ends_as_if_nothing_had_been(kind: str, runs: Runs, tmp_path: Path) -> None:
    out = begun(runs, tmp_path / "run")
    checkpoints = out / "checkpoints"
    name = harm(checkpoints / "step-000002", checkpoints / "step-000001", kind=kind, place=0)
    printed = runs.go_on(out)
    assert "checkpoint step-000002 is damaged" in printed
    assert name in printed
    assert "going on from step 1" in printed
    assert weights(out) == weights(runs.whole)
    assert [row["step"] for row in rows(out / "metrics.jsonl") if row["kind"] == "train"] == [1, STEPS]
    assert {row.state for row in audit(out)} == {"whole"}  # what was set aside went as step 2 was saved again


def test_a_stage_with_a_damaged_student_is_made_again_and_never_used(runs: Runs, tmp_path: Path) -> None:
    out = begun(runs, tmp_path / "run")
    student = out / "stages" / "base" / "student"
    file = student / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # one bit of a weight: it would load, and train on
    file.write_bytes(content)
    assert weights(out) != {name: digest for name, digest in weights(runs.whole).items() if "stages" in name}
    printed = runs.go_on(out)
    assert "stage base: its student is damaged (model.safetensors has other bytes than were written)" in printed
    assert weights(out) == weights(runs.whole)
    assert result_damage(out / "stages" / "base") == ()


def test_the_key_of_a_served_teacher_is_nowhere(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    """In no file of the run, of W&B and of Ray, and on no console; Ray's workers print into files of its own."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for top in (runs.folder, logs) for path in top.rglob("*") if path.is_file()]
    assert len([path for path in files if "wandb" in path.parts]) > 3
    assert len([path for path in files if path.is_relative_to(logs)]) > 5
    known = (KEY.encode(), base64.b64encode(KEY.encode()), os.environ.get("RAY_AUTH_TOKEN", "-" * 64).encode())
    assert [path for path in files if any(secret in path.read_bytes() for secret in known)] == []
    shown = "".join([*runs.printed, *capfd.readouterr()])
    assert KEY not in shown
    environment = json.loads((runs.whole / "environment.json").read_text())
    assert "MOPD_TEST_KEY" not in json.dumps(environment)
