"""Whether there is room for a plan, and which leaf asks for the most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_kit import problems, recipe

from mopd.distill.types import UserError
from mopd.recipes.check import static
from mopd.recipes.check.plan import room
from mopd.recipes.resolve.resolved import resolve


def test_the_memory_of_a_container_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = room.memory_here()
    monkeypatch.setattr(room, "CGROUP_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("max\n")
    assert room.memory_here() == machine
    (tmp_path / "memory.max").write_text("1000000\n")
    assert room.memory_here() == machine - room.psutil.virtual_memory().total + 1_000_000


@pytest.mark.parametrize(
    ("changes", "leaf"),
    [
        ({"rollout": {"workers": 4000}}, "rollout.workers"),
        ({"student": {"model": "stage:base", "engine": {"ranks": 3000}}}, "student.engine.ranks"),
        ({"teachers": {"math": {"model": "stage:math", "replicas": 5000}}}, "teachers.math.replicas"),
    ],
)
def test_a_little_too_much_is_a_warning_and_far_too_much_names_its_leaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], leaf: str
) -> None:
    needed = static.check(resolve(recipe(**changes)), tmp_path / "run", plan_only=True).memory_bytes
    monkeypatch.setattr(static, "memory_here", lambda: needed / room.FAR)
    static.check(resolve(recipe(**changes)), tmp_path / "run")
    monkeypatch.setattr(static, "memory_here", lambda: 0.9 * needed / room.FAR)
    (problem,) = problems(tmp_path / "run", **changes)
    assert f"`{leaf}` asks for the most of it" in problem
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # whose nodes have memory of their own
    static.check(resolve(recipe(**changes)), tmp_path / "run")


def test_where_no_count_asks_for_it_the_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "memory_here", lambda: 1e6)
    with pytest.raises(UserError, match=r"parameters of .* \(`stages.base.from`\); take a smaller model"):
        static.check(resolve(recipe()), tmp_path / "run")


def test_a_microbatch_is_no_larger_than_a_step(tmp_path: Path) -> None:
    """So that `microbatch_tokens: 1000000000` may mean that there is no bound."""
    plans = [
        static.check(
            resolve(recipe(student={"model": "stage:base", "engine": {"microbatch_tokens": tokens}})), tmp_path / "run"
        )
        for tokens in (100_000, 10**9)
    ]
    assert plans[0].memory_bytes == plans[1].memory_bytes


def test_the_bytes_of_a_folder_are_counted_up_to_a_bound_and_links_are_not_followed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1234")
    (tmp_path / "loop").symlink_to("loop")
    assert 12 <= room.bytes_in(tmp_path) < 100
    assert room.bytes_in(tmp_path, most=1) < 12
