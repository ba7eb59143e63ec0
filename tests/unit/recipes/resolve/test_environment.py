"""What a run is made with is told once, and again where a later attempt is made with something else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mopd.recipes.resolve import run_folder


def test_a_resumed_run_keeps_its_first_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "environment.json"
    for commit in ("a", "a", "b", "b", "a"):
        monkeypatch.setattr(run_folder, "commit", lambda _, commit=commit: commit)
        run_folder.note_environment(path)
    told = json.loads(path.read_text())
    assert told["commit"] == "a"
    assert [later["commit"] for later in told["resumed"]] == ["b", "a"]
    assert told["packages"]["torch"]


def test_the_commit_is_that_of_the_repository_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert run_folder.commit(tmp_path) is None  # nothing is committed
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = (tmp_path / ".git" / "refs" / "heads").iterdir()
    assert run_folder.commit(tmp_path) == next(head).read_text().strip()
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert run_folder.commit(inside) is None, "the commit of a repository that merely surrounds the package"
    monkeypatch.setenv("PATH", "")
    assert run_folder.commit(tmp_path) is None, "a machine without git"
