"""Studies as files: methods over one recipe, seeds, overrides, and problems told with the method that has them."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from recipe_kit import SMALL, write

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.files import dump_recipe, load_recipe
from mopd.distill.recipe.json_schema import editor_schema
from mopd.distill.recipe.study import Study, load
from mopd.distill.types import UserError
from mopd.recipes import SHIPPED

STUDY = (
    SMALL
    + """
run: {steps: 5}
methods:
  mopd:
  gold: {method: supervised, loss: {estimator: nll}, domains: {math: {teacher: null}}, teachers: null, trials: 3}
seeds: [4, 7]
"""
)


def study(folder: Path, text: str = STUDY, *overrides: str) -> Study:
    found = load(write(folder, "study", text), overrides, shipped=SHIPPED)
    assert isinstance(found, Study)
    return found


def refused(folder: Path, text: str = STUDY, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        study(folder, text, *overrides)
    return str(caught.value)


def test_every_method_runs_on_every_seed(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert (found.name, found.parallel) == ("small", 2)
    assert [child.name for child in found.children] == ["mopd-4", "gold-4", "mopd-7", "gold-7"]
    mopd, gold, again, _ = (child.recipe for child in found.children)
    assert (mopd.name, mopd.seed, again.seed, mopd.method) == ("small-mopd", 4, 7, "mopd")
    assert mopd.model_copy(update={"seed": 7}) == again
    assert (gold.name, gold.method, gold.trials, gold.teachers, gold.run.steps) == (
        "small-gold",
        "supervised",
        3,
        {},
        5,
    )


def test_a_child_is_an_ordinary_recipe(tmp_path: Path) -> None:
    for child in study(tmp_path).children:
        path = write(tmp_path, child.name, dump_recipe(child.recipe))
        assert load_recipe(path, shipped=SHIPPED) == child.recipe


def test_a_study_extends_a_recipe_and_a_recipe_stays_one(tmp_path: Path) -> None:
    found = study(tmp_path, "extends: smoke\nname: s\nmethods: {slow: {run: {steps: 9}}}\nseeds: [1]\nparallel: 3\n")
    assert found.parallel == 3
    assert found.children[0].recipe.stages == load_recipe("smoke", shipped=SHIPPED).stages
    assert found.children[0].recipe.run.steps == 9
    assert isinstance(load("smoke", shipped=SHIPPED), Recipe)


def test_overrides_change_all_runs_or_those_of_one_method_or_the_study(tmp_path: Path) -> None:
    changes = ("run.steps=2", "methods.gold.run.steps=3", "seeds=[9]", "parallel=1", "name=other")
    found = study(tmp_path, STUDY, *changes)
    assert (found.name, found.parallel) == ("other", 1)
    assert {c.name: (c.recipe.name, c.recipe.run.steps) for c in found.children} == {
        "mopd-9": ("other-mopd", 2),
        "gold-9": ("other-gold", 3),
    }
    assert [c.name for c in study(tmp_path, STUDY, "methods.gold=null").children] == ["mopd-4", "mopd-7"]


@pytest.mark.parametrize(
    ("written", "instead", "told"),
    [
        ("trials: 3", "trails: 3", "`methods.gold` in "),
        ("trials: 3", "trails: 3", "unknown key `trails`; did you mean `trials`"),
        ("steps: 5", "stesp: 5", "did you mean `run.steps`"),
        ("trials: 3", "seed: 3", "`methods.gold` in "),
        ("trials: 3", "seed: 3", "every method runs on all `seeds`"),
        ("trials: 3", "extends: smoke", "a method extends the recipe that stands around it"),
        ("seeds: [4, 7]", "seeds: [4, 4]", "`seeds` has a seed twice"),
        ("seeds: [4, 7]", "seeds: []", "`seeds` is empty"),
        ("seeds: [4, 7]", "seeds: 4", "`seeds` must be a list"),
        ("seeds: [4, 7]", "", "`seeds` is missing"),
        ("seeds: [4, 7]", "seeds: [4]\nparallel: 0", "`parallel` must be at least 1"),
        ("  mopd:", "  mo pd:", "not a usable name"),
        ("  mopd:", "  mopd: 3", "`methods.mopd` must be a mapping"),
        ("name: small", "description: small", "`name` is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, written: str, instead: str, told: str) -> None:
    assert written in STUDY
    assert told in refused(tmp_path, STUDY.replace(written, instead))


def test_a_problem_of_the_shared_recipe_is_told_once_and_blames_no_method(tmp_path: Path) -> None:
    message = refused(tmp_path, STUDY.replace("steps: 5", "stesp: 5"))
    assert message.count("run.stesp") == 1
    assert "methods." not in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("methods.gould.run.steps=3", "did you mean `gold`"),
        ("methods.gold.run.stesp=3", "did you mean `run.steps`"),
        ("seed=3", "seeds=[5]"),
        ("sedes=[3]", "unknown key `sedes`"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, told: str) -> None:
    assert told in refused(tmp_path, STUDY, override)


def test_where_one_recipe_is_needed_a_study_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a study"):
        load_recipe(write(tmp_path, "study", STUDY), shipped=SHIPPED)


def test_the_editor_schema_knows_studies() -> None:
    validator = jsonschema.Draft202012Validator(editor_schema())
    assert validator.is_valid(yaml.safe_load(STUDY))
    assert not validator.is_valid(yaml.safe_load(STUDY.replace("trials: 3", "trails: 3")))
    assert not validator.is_valid(yaml.safe_load(STUDY.replace("seeds: [4, 7]", "seeds: [a]")))
