"""The part of `make bench` that plays episodes: its few steps of the recipe `agents` are a recipe that can be run."""

from __future__ import annotations

from pathlib import Path

from check_kit import check

from mopd.distill.recipe.files import load_recipe
from mopd.recipes import SHIPPED
from tests.benchmarks.episodes import QUICKLY


def test_its_recipe_passes_every_check(tmp_path: Path) -> None:
    check(load_recipe("agents", QUICKLY, shipped=SHIPPED), tmp_path / "run")
