"""What `mopd check` says of a lag: with which weights rollouts are written, and what goes on meanwhile."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from check_kit import check, recipe
from rich.console import Console

from mopd.recipes.check.plan.room import Room
from mopd.recipes.check.plan.view import print_plan


@pytest.mark.parametrize(
    ("run", "rollout", "said"),
    [
        ({"lag": 1}, {"workers": 1}, "with the weights of 1 step before, and graded, while the ranks learn"),
        ({"lag": 2}, {}, "with the weights of 2 steps before, by the ranks, before they learn; only grading goes on"),
        ({}, {"workers": 1}, ""),
    ],
)
def test_the_plan_says_with_which_weights_rollouts_are_written(
    tmp_path: Path, run: dict[str, Any], rollout: dict[str, Any], said: str
) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_plan(check(recipe(run=run, rollout=rollout), tmp_path / "run"), console, Room(None, None))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert said in shown
    assert ("lag: " in shown) == bool(said)
