"""The loader of checkpoints: damage is named and the newest whole one is taken; nothing that lies in one is run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bomb_kit import arm
from damage_kit import KINDS, PLACES, harm
from student_kit import ProcessRanks, engine_of, furthest, make_batch, make_model, make_spec, student, train

from mopd.distill import storage
from mopd.distill.student.spec import StudentSpec
from mopd.distill.types import RunError, UserError


def two_checkpoints(spec: StudentSpec, ranks: ProcessRanks) -> dict[int, dict[str, torch.Tensor]]:
    """A run with two checkpoints, and the weights of each."""
    learner = student(ranks.start(spec), spec)
    weights = {}
    for step in (1, 2):
        learner.update(make_batch(seed=step), step=step - 1)
        learner.save(step)
        weights[step] = dict(learner.weights().state_dict())
    assert furthest(weights[1], weights[2]) > 0
    return weights


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_whole_checkpoint_is_taken(kind: str, models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    run = tmp_path / "run"
    spec = make_spec(make_model(models), run, engine=engine_of(2, expert_parallel=2))
    weights = two_checkpoints(spec, two)
    lines: list[str] = []
    learner = student(two, spec)
    learner._say = lines.append
    whole = Path(shutil.copytree(run / "checkpoints" / "step-000002", tmp_path / "whole"))
    for place in range(PLACES):
        folder = run / "checkpoints" / "step-000002"
        if not folder.exists():
            shutil.copytree(whole, folder)
        lines.clear()
        name = harm(folder, run / "checkpoints" / "step-000001", kind=kind, place=place)
        assert learner.load_latest() == 1
        assert furthest(dict(learner.weights().state_dict()), weights[1]) == 0
        assert len(lines) == 1
        assert name in lines[0]
        assert "step-000002 is damaged" in lines[0]
        assert "going on from step 1" in lines[0]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000001", "step-000002.damaged"]
    shutil.copytree(whole, run / "checkpoints" / "step-000002")
    assert learner.load_latest() == 2
    assert furthest(dict(learner.weights().state_dict()), weights[2]) == 0
    learner.save(3)  # which tidies up
    assert "step-000002.damaged" not in [path.name for path in (run / "checkpoints").iterdir()]


def test_files_beside_a_checkpoint_come_back_and_are_checked_with_it(
    models: Path, tmp_path: Path, one: ProcessRanks
) -> None:
    spec = make_spec(make_model(models), tmp_path)
    learner = student(one.start(spec), spec)
    learner._say = lambda _: None
    for step in (1, 2):
        learner.save(step, {"rollouts-000002.npz": bytes([step] * 100)})
    assert learner.beside(2, "rollouts-000002.npz") == bytes([2] * 100)
    assert learner.beside(2, "rollouts-000003.npz") is None
    (tmp_path / "checkpoints" / "step-000002" / "rollouts-000002.npz").write_bytes(bytes([3] * 100))
    assert learner.load_latest() == 1
    assert learner.beside(1, "rollouts-000002.npz") == bytes([1] * 100)


def test_the_run_says_how_to_go_on_where_no_checkpoint_is_whole(
    models: Path, tmp_path: Path, one: ProcessRanks
) -> None:
    spec = make_spec(make_model(models), tmp_path)
    two_checkpoints(spec, one)
    folder = tmp_path / "checkpoints"
    learner = student(one, spec)
    harm(folder / "step-000001", folder / "step-000002", kind="flipped", place=0)
    with pytest.raises(RunError, match=r"step 1 in .*is damaged \(.* has other bytes"):
        learner.load(1)  # as `evaluate.select` would
    (folder / "step-000002").rename(folder / "step-000003")  # a whole checkpoint under another name
    with pytest.raises(UserError) as refusal:
        learner.load_latest()
    assert [problem.partition(": ")[0].rpartition("/")[2] for problem in refusal.value.problems[:2]] == [
        "step-000003",
        "step-000001",
    ]
    assert "it is the checkpoint of step 2 under another name" in refusal.value.problems[0]
    assert "remove that folder and the same command begins again" in refusal.value.problems[2]
    assert len(list(folder.iterdir())) == 2  # nothing is renamed, nothing is lost


def test_a_checkpoint_of_an_earlier_version_is_read_with_a_note(
    models: Path, tmp_path: Path, one: ProcessRanks
) -> None:
    spec = make_spec(make_model(models), tmp_path)
    two_checkpoints(spec, one)
    for name in (storage.MANIFEST, storage.SEAL):
        (tmp_path / "checkpoints" / "step-000002" / name).unlink()
    lines: list[str] = []
    learner = student(one, spec)
    learner._say = lines.append
    assert learner.load_latest() == 2
    assert len(lines) == 1
    assert "not verified" in lines[0]


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_not_run(how: str, models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """Whoever can write a checkpoint can seal it, too."""
    run = tmp_path / "run"
    spec = make_spec(make_model(models), run)
    learner = student(one.start(spec), spec)
    learner.save(1)
    folder, flag = run / "checkpoints" / "step-000001", tmp_path / "ran"
    (file,) = folder.glob("*.safetensors")
    content = file.read_bytes()
    arm(tmp_path / "bomb.pt", flag, {"module": {}, "optimizer_state_dict": {}}, how=how)
    shutil.copy(tmp_path / "bomb.pt", file)
    storage.seal(folder)
    with pytest.raises(RunError, match=f"{file.name} is not what mopd wrote.*nothing in it was run"):
        learner.load_latest()
    assert not flag.exists()
    file.write_bytes(content)
    storage.seal(folder)
    assert learner.load_latest() == 1


@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": 0}, {"zero_stage": 1}, {"dtype": "bfloat16"}, {"expert_parallel": 2, "zero_stage": 3}],
    ids=str,
)
def test_every_kind_of_engine_saves_what_it_can_read(
    settings: dict[str, Any], models: Path, tmp_path: Path, two: ProcessRanks
) -> None:
    """The digests are those of the files as they were written, and the weights are the same bits."""
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, **settings))
    weights, _ = train(two, spec, steps=1)
    student(two, spec).save(1)
    folder = tmp_path / "checkpoints" / "step-000001"
    assert storage.damage(folder) == ()
    assert storage.is_sealed(folder)
    again = student(two.start(spec), spec)
    assert again.load_latest() == 1
    assert furthest(dict(again.weights().state_dict()), weights) == 0
