"""Models of the Hub by branch and commit, over the wire to a Hub on this machine, with the libraries' own code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from check_kit import CONFIG, recipe, save_model, tokenizer_of
from deadline_kit import patience
from hub_kit import REPO, Hub, serving

from mopd.distill.recipe import Architecture
from mopd.distill.types import UserError
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.run_folder import note_recipe, refuse_changed_recipe
from mopd.recipes.resolve.sources import hub_models
from mopd.recipes.resolve.stages import stage_fingerprint

CODE = """
import json, sys
from pathlib import Path
from mopd.distill.recipe import Recipe
from mopd.distill.types import UserError
from mopd.recipes.check.static import check
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.sources import MODELS, moved_models, note_models
from mopd.recipes.run.launch import on_disk
settings, out, steps = json.loads(sys.argv[1])
out = Path(out)
for step in steps:
    try:
        resolved = resolve(Recipe.model_validate(settings))
        models = resolved.models
        if step == "check":
            check(resolved, out)
            print(json.dumps(moved_models(models.values(), out / MODELS)))
        elif step == "note":
            print(json.dumps(note_models(models.values(), out / MODELS)))
        else:
            print(json.dumps(on_disk(models[step].source)))
    except UserError as error:
        print(json.dumps({"refused": error.problems}))
"""


def asked(address: str, cache: Path, settings: Any, out: Path, *steps: str) -> list[Any]:
    """What a fresh process does with a recipe, step by step."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([settings, str(out), steps])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def checkpoint(folder: Path, seed: int) -> dict[str, bytes]:
    """The files of a tiny model, whose weights a seed says."""
    torch.manual_seed(seed)
    save_model(folder, tokenizer_of("arithmetic"))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def settings(**changes: Any) -> dict[str, Any]:
    return recipe(
        student={"model": REPO},
        teachers={"math": {"model": REPO}},
        stages={},
        evaluate={"validation_prompts": 3, "test_prompts": 3, "graded_prompts": 0},
        **changes,
    ).model_dump(mode="json", by_alias=True)


def test_a_model_is_noted_by_its_commit_and_a_branch_that_moved_is_told(tmp_path: Path) -> None:
    hub, out = Hub(), tmp_path / "run"
    out.mkdir()
    first = hub.push(checkpoint(tmp_path / "a", 0))
    with serving(hub, "models") as address:
        plain = settings()
        warnings, sentences, student = asked(address, tmp_path / "one", plain, out, "check", "note", "student.model")
        assert (warnings, sentences) == ([], [])
        assert Path(student).name == first
        assert (Path(student) / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
        noted = json.loads((out / "models.json").read_text())
        entry = {"model": REPO, "revision": None, "commit": first}
        assert noted == {"student.model": entry, "teachers.math.model": entry}

        second = hub.push(checkpoint(tmp_path / "b", 1))
        # On the machine that has the first commit the run goes on with it, and tells.
        checked, sentences, student = asked(address, tmp_path / "one", plain, out, "check", "note", "student.model")
        assert len(sentences) == 2
        assert sentences[0] == (
            f"`student.model`: main of {REPO} has moved to commit {second}; the run goes on with {first}, which it "
            "began with and which is on this machine"
        )
        assert checked == sentences
        assert Path(student).name == first
        # On another machine it would be the second one: refused, by what pins the first.
        (refused,) = asked(address, tmp_path / "two", plain, out, "note")
        assert refused["refused"][0] == (
            f"`student.model`: main of {REPO} was at commit {first} when the run began, and is at {second} now; give "
            f"it back by `student.revision: {first}`, give another folder with --out, or start from scratch with "
            "--restart"
        )
        assert f"`teachers.math.revision: {first}`" in refused["refused"][1]
        pinned = settings()
        pinned["student"]["revision"] = pinned["teachers"]["math"]["revision"] = first
        sentences, student = asked(address, tmp_path / "three", pinned, out, "note", "teachers.math.model")
        assert sentences == []
        assert Path(student).name == first
    assert json.loads((out / "models.json").read_text()) == noted


def test_branch_and_commit_are_taken_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    hub = Hub()
    first = hub.push(checkpoint(tmp_path / "a", 0), branch="release")
    second = hub.push(checkpoint(tmp_path / "b", 1))
    with serving(hub, "models") as address:
        made = settings()
        made["student"]["revision"], made["teachers"]["math"]["revision"] = "release", second
        student, teacher, checked = asked(
            address, tmp_path / "cache", made, tmp_path / "run", "student.model", "teachers.math.model", "check"
        )
        assert (Path(student).name, Path(teacher).name) == (first, second)
        assert checked == []
        made["student"]["revision"] = "nothing"
        (refused,) = asked(address, tmp_path / "cache", made, tmp_path / "run", "check")
    (problem,) = refused["refused"]
    assert f"`student.model`: the Hub model {REPO!r} has no revision 'nothing'; name a branch, tag or commit" in problem


def test_a_revision_stands_beside_a_model_of_the_hub_alone() -> None:
    for source in ("stage:base", "./folder", {"architecture": "llama", "config": CONFIG}):
        with pytest.raises(ValueError, match="has `revision` 'v1', and `model` is no model of the Hub"):
            recipe(student={"model": source, "revision": "v1"})
    with pytest.raises(ValueError, match="has `revision` 'v1', and `model` is no model of the Hub"):
        recipe(teachers={"math": {"model": "self", "revision": "v1"}})
    with pytest.raises(ValueError, match="has `tokenizer_revision` 'v1', and `tokenizer` is no model of the Hub"):
        Architecture(architecture="llama", tokenizer="stage:base", tokenizer_revision="v1")
    with pytest.raises(ValueError, match="write what follows the @ as `revision`"):
        recipe(student={"model": "org/model@v1"})


def test_every_model_of_the_hub_has_its_revision() -> None:
    architecture = {"architecture": "llama", "config": CONFIG, "tokenizer": "org/t", "tokenizer_revision": "v3"}
    made = recipe(
        student={"model": "stage:base"},
        teachers={"math": {"model": "org/m", "revision": "v2"}, "anchor": {"model": "self"}},
        stages={
            "base": {"from": architecture},
            "more": {"from": "org/s", "revision": "v4"},
            "last": {"from": "stage:more"},
        },
    )
    assert hub_models(resolve(made).models.values()) == {
        "teachers.math.model": "org/m@v2",
        "stages.base.from.tokenizer": "org/t@v3",
        "stages.more.from": "org/s@v4",
    }
    other = recipe(**{**made.model_dump(mode="json", by_alias=True), "stages": {"base": {"from": "org/s"}}})
    assert stage_fingerprint(made, "base") != stage_fingerprint(other, "base")
    text = made.model_dump(mode="json", by_alias=True)
    text["stages"]["more"]["revision"] = "v5"
    assert stage_fingerprint(recipe(**text), "last") != stage_fingerprint(made, "last")


def test_a_revision_may_be_named_when_a_run_goes_on(tmp_path: Path) -> None:
    """Its commit is in models.json, which is what the models are held against."""
    note_recipe(recipe(student={"model": "org/m"}, stages={}), tmp_path)
    refuse_changed_recipe(recipe(student={"model": "org/m", "revision": "abc"}, stages={}), tmp_path)
    with pytest.raises(UserError, match=r"student.model"):
        refuse_changed_recipe(recipe(student={"model": "org/other"}, stages={}), tmp_path)
