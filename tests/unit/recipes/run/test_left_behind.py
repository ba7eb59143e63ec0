"""What a killed run has left of its Ray cluster goes with the next; its folder must have room for sockets' names."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from deadline_kit import patience

from mopd.distill.guard import MARK
from mopd.distill.types import UserError
from mopd.recipes.resolve.placement import RAY_PREFIX, temporary_folder
from mopd.recipes.run.cluster import FOLDERS, own_processes, remove_abandoned


def sleeper(folder: Path) -> psutil.Popen:
    """A process of the cluster that writes to ``folder``."""
    return psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, MARK: str(folder)})


def test_only_what_belongs_to_no_live_run_is_ended(tmp_path: Path) -> None:
    dead, alive, foreign = (tmp_path / f"{RAY_PREFIX}{name}" for name in ("dead", "alive", "foreign"))
    for folder in (dead, alive, foreign):
        folder.mkdir()
    (dead / "owner").touch()
    of_dead, of_alive = sleeper(dead), sleeper(alive)
    with open(alive / "owner", "w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, foreign.name]
    assert of_dead.wait(timeout=patience(60)) == -9
    assert of_alive.poll() is None
    of_alive.kill()


def test_a_clusters_folder_and_processes_end_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as base:  # tmp_path has too long a name for sockets
        monkeypatch.setenv("RAY_TMPDIR", base)
        with ExitStack() as closing:
            settings = own_processes(closing, 7)
            folder = Path(settings[MARK])
            process = sleeper(folder)
            assert (folder.parent, settings["RAY_worker_niceness"]) == (Path(base), "7")
            assert {folder} == FOLDERS
            remove_abandoned(Path(base))  # as another run would
            assert folder.is_dir()
        assert process.wait(timeout=patience(60)) == -9
        assert list(Path(base).iterdir()) == []
        assert set() == FOLDERS


def test_names_that_leave_no_room_for_a_socket_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that Ray would make is counted, down to the byte."""
    made = "/mopd-r12345678/ray/session_2026-11-29_03-35-05_918248_1234567/sockets/plasma_store"
    for length, refused in ((107 - len(made), False), (108 - len(made), True)):
        monkeypatch.setenv("RAY_TMPDIR", "/" + "d" * (length - 1))
        if refused:
            with pytest.raises(UserError, match=rf"RAY_TMPDIR is /d+, of {length} bytes.* set RAY_TMPDIR to a folder"):
                temporary_folder()
        else:
            temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("d" * 60)))
    with pytest.raises(UserError, match="TMPDIR is"):
        temporary_folder()
