"""A small recipe, written to a file and read from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.files import load_recipe
from mopd.distill.types import UserError
from mopd.recipes import SHIPPED

SMALL = """
name: small
student: {model: ./student}
domains:
  math: {task: arithmetic, teacher: math}
teachers:
  math: {model: ./math}
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    return load_recipe(write(folder, "recipe", text), overrides, shipped=SHIPPED)


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)
