"""Results and adapters prove that they are whole before they are used, and nothing that lies beside weights is run."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from adapter_kit import make_adapter
from bomb_kit import arm
from check_kit import recipe
from damage_kit import KINDS, PLACES, harm
from run_kit import write_run
from safetensors.torch import load_file
from student_kit import make_model
from transformers import AutoConfig

from mopd.distill import storage
from mopd.distill.models.adapters import with_adapters
from mopd.distill.models.load import load_model, load_whole
from mopd.distill.recipe.files import dump_recipe
from mopd.distill.types import UserError
from mopd.recipes.audit_command import audit
from mopd.recipes.compare.comparison import compare
from mopd.recipes.report.page import write_report
from mopd.recipes.resolve.checkpoints import check_weights, empty_model
from mopd.recipes.resolve.damage import note_adapters, refuse_damaged, result_damage, write_marker
from mopd.recipes.resolve.run_folder import refuse_changed_recipe
from mopd.recipes.resolve.stages import finished, mark_finished, stage_folder


def export(model: str, run: Path) -> Path:
    """What a run's export leaves in ``student/``."""
    student = Path(shutil.copytree(model, run / "student"))
    storage.seal(student)
    return student


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_student_of_a_stage_is_named_and_never_used(kind: str, models: Path, tmp_path: Path) -> None:
    stage = stage_folder(tmp_path, "base")
    student = export(make_model(models, "llama", seed=1), stage)
    other = export(make_model(models, "llama", seed=2), tmp_path / "other")
    mark_finished(tmp_path, "base", "feed", steps=3)
    assert finished(tmp_path, "base", "feed")
    assert result_damage(stage) == ()
    whole = Path(shutil.copytree(student, tmp_path / "whole"))
    for place in range(PLACES):
        name = harm(student, other, kind=kind, place=place)
        (problem,) = result_damage(stage)
        assert name in problem
        with pytest.raises(UserError, match=r"student is damaged: .*; do something"):
            refuse_damaged(student, "do something")
        shutil.rmtree(student)
        assert result_damage(stage) == ("student is missing",)
        shutil.copytree(whole, student)
    assert result_damage(stage) == ()


def test_a_whole_student_of_another_run_is_not_the_one_that_was_made(models: Path, tmp_path: Path) -> None:
    student = export(make_model(models, "llama", seed=1), tmp_path)
    write_marker(tmp_path, steps=3)
    shutil.rmtree(student)
    other = export(make_model(models, "llama", seed=2), tmp_path)
    assert storage.damage(other) == ()
    assert result_damage(tmp_path) == ("it is not the one that finished.json names",)


def test_a_marker_that_cannot_be_read_and_one_of_an_earlier_version(models: Path, tmp_path: Path) -> None:
    """The first has the end made again, and is no traceback; what an earlier version left is taken as it is."""
    stage = stage_folder(tmp_path, "base")
    shutil.copytree(make_model(models, "llama"), stage / "student")
    (stage / "finished.json").write_text(json.dumps({"stage": "base", "fingerprint": "feed", "steps": 3}))
    assert finished(tmp_path, "base", "feed")
    assert result_damage(stage) == ()
    for content in ("", "{", "[]", '{"fingerprint": "fe'):
        (stage / "finished.json").write_text(content)
        assert not finished(tmp_path, "base", "feed")
        assert result_damage(stage) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_changes_during_a_run_is_named(kind: str, models: Path, tmp_path: Path) -> None:
    base = make_model(models, "llama")
    adapter, other = (make_adapter(base, tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b")))
    for name in ("README.md",):  # not of the adapter
        for folder in (adapter, other):
            (Path(folder) / name).unlink(missing_ok=True)
    run = tmp_path / "run"
    run.mkdir()
    note_adapters([adapter], run)
    note_adapters([adapter], run)
    whole = shutil.copytree(adapter, tmp_path / "whole")
    exchangeable = Path(shutil.copytree(other, tmp_path / "exchangeable"))
    (exchangeable / "adapter_config.json").write_text("{}")
    for place in range(PLACES):
        name = harm(Path(adapter), exchangeable, kind=kind, place=place)
        with pytest.raises(UserError, match=f"adapter {adapter}: {name} .* since the run began; put it back"):
            note_adapters([adapter], run)
        shutil.rmtree(adapter)
        shutil.copytree(whole, adapter)
    (Path(adapter) / "README.md").write_text("a note of the user's")
    note_adapters([adapter], run)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_pickles_beside_a_model_are_not_run(how: str, models: Path, tmp_path: Path) -> None:
    folder, flag = Path(shutil.copytree(make_model(models, "llama"), tmp_path / "llama")), tmp_path / "ran"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    arm(folder / "pytorch_model.bin", flag, dict(weights), how=how)
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read"):
        check_weights(folder, empty_model(AutoConfig.from_pretrained(folder))[0])
    with pytest.raises(Exception, match=r"(?i)weights.only|pickle"):
        load_whole(folder, dtype=torch.float32)
    base = make_model(models, "llama")
    adapter = Path(make_adapter(base, tmp_path / "adapter", seed=0))
    lora = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    arm(adapter / "adapter_model.bin", flag, dict(lora), how=how)
    with pytest.raises(UserError, match="does not fit its base"):
        with_adapters(load_model(base, device="cpu", dtype="float32"), [str(adapter)], device="cpu")
    assert not flag.exists()


def test_files_that_a_runs_recipe_names_are_not_imported_by_whoever_reads_it(tmp_path: Path) -> None:
    """A folder from somebody else may name any file: it is the recipe of the command line that is imported."""
    run = write_run(tmp_path / "run", n_test=20, n_validation=20, steps=20)
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    own = f"{run}/own.py:NAME"
    (run / "own.py").write_text("import os\nos.mkdir(os.path.join(os.path.dirname(__file__), 'ran'))\nNAME = 1\n")
    tree |= {"method": own, "loss": {"estimator": own}, "rollout": tree["rollout"] | {"engine": own}}
    tree |= {"track": {"sinks": [own]}}
    tree["domains"]["math"]["task"] = own
    tree["teachers"]["code"] = {"model": "stage:code", "scorer": own}
    tree["teachers"]["reasoning"] = {"model": "stage:reasoning", "kind": own}
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    write_report(run)
    with suppress(UserError):
        compare([run])
    with suppress(UserError):
        audit(run)
    domains = {"math": {"task": own, "teacher": "math", "prompts": 4}}
    begun = recipe(domains=domains, loss=tree["loss"], rollout={"engine": own}, track=tree["track"], method=own)
    (run / "recipe.yaml").write_text(dump_recipe(begun))
    with pytest.raises(UserError, match=r"domains\.math\.task: .*own.py:NAME\" -> \"arithmetic"):
        refuse_changed_recipe(recipe(), run)
    assert not (run / "ran").exists()
