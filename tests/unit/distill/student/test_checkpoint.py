"""Whole or absent, and one live attempt per folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mopd.distill import storage
from mopd.distill.student import checkpoint
from mopd.distill.types import RunError, UserError

HOLD = """
import sys, time
from mopd.distill.storage import claim
with claim(sys.argv[1]) as attempt:
    print(attempt, flush=True)
    time.sleep(60)
"""


def hold(run_dir: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_second_live_run_is_refused_and_a_killed_one_is_not(tmp_path: Path) -> None:
    process, attempt = hold(tmp_path)
    try:
        assert storage.is_current(tmp_path, attempt)
        with pytest.raises(UserError, match=f"process {process.pid} is running"), storage.claim(tmp_path):
            pass
        assert storage.is_current(tmp_path, attempt)  # the refused one changed nothing
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with storage.claim(tmp_path) as mine:
        assert mine != attempt
        assert storage.is_current(tmp_path, mine)
        assert not storage.is_current(tmp_path, attempt)
    with storage.claim(tmp_path) as again:  # given back when the context ends
        assert again != mine


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match=r"file/run: cannot be written .*--out"),
        storage.claim(tmp_path / "file" / "run"),
    ):
        pass


def test_only_the_current_attempt_publishes(tmp_path: Path) -> None:
    with storage.claim(tmp_path) as old:
        pass
    with storage.claim(tmp_path) as new:
        for attempt in (old, new):
            folder = tmp_path / f"x.tmp-{attempt}"
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "weights").write_text(attempt)
        with pytest.raises(RunError, match=f"attempt {old} no longer owns"):
            storage.publish(tmp_path, old, tmp_path / f"x.tmp-{old}", tmp_path / "x")
        assert not (tmp_path / "x").exists()
        storage.publish(tmp_path, new, tmp_path / f"x.tmp-{new}", tmp_path / "x")
        assert (tmp_path / "x" / "deep" / "weights").read_text() == new
        again = tmp_path / "again"
        again.mkdir()
        (again / "other").write_text("newer")
        storage.publish(tmp_path, new, again, tmp_path / "x")
        assert [*storage.files_of(tmp_path / "x")] == ["other"]  # besides its seal
    assert {path.name for path in tmp_path.iterdir()} == {"x", "attempt", ".lock", ".publish-lock"}


def test_whole_checkpoints_and_pruning(tmp_path: Path) -> None:
    assert checkpoint.whole_checkpoints(tmp_path / "none") == []
    for name in (
        "step-000005",
        "step-000100",
        "step-000020",
        "step-1000000",
        "step-000030.tmp-mine",
        "step-000030.tmp-old",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    assert checkpoint.whole_checkpoints(tmp_path) == [5, 20, 100, 1000000]
    run_dir = tmp_path.parent / f"{tmp_path.name}-run"
    run_dir.mkdir()
    (run_dir / "attempt").write_text("newer")
    with pytest.raises(RunError, match="no longer owns"):
        checkpoint.prune(run_dir, tmp_path, keep=2, attempt="mine")
    assert (tmp_path / "step-000030.tmp-old").exists()
    (run_dir / "attempt").write_text("mine")
    checkpoint.prune(run_dir, tmp_path, keep=2, attempt="mine")
    left = ["step-000030.tmp-mine", "step-000100", "step-1000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    checkpoint.prune(run_dir, tmp_path, keep=1, attempt="mine", keep_steps={100, 7})
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_write_atomic_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    storage.write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            storage.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]
    storage.write_atomic(path, b"new")
    assert path.read_text() == "new"
