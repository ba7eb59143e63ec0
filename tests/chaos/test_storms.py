"""`make chaos`: what else goes wrong around a run: its disk, its folder, the clock, W&B, an attempt beside it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "integration"))
sys.path.append(str(Path(__file__).parent))

from runs import Course, Work, assert_whole, finish, kill, left, mark, mopd, run, undisturbed, wait_for, weights
from switches import customised, switched_off

STEPS = 4
TIMES = int(os.environ.get("CHAOS_STORMS", "5"))
mounts = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small or a read-only disk")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Course]:
    """A run that nobody disturbed, and how it went, stages made."""
    return undisturbed(fresh=tmp_path_factory.mktemp("runs"))[:2]  # not per token


@pytest.fixture
def out(finished: tuple[Path, Course], tmp_path: Path) -> Path:
    """The folder of a run whose stages are there."""
    shutil.copytree(finished[0] / "stages", tmp_path / "smoke" / "stages")
    return tmp_path / "smoke"


def ends_in_plain_words(process: subprocess.Popen[str], running: str) -> int:
    """Wait for the end, which says what happened and leaves no process; at an early moment the run is refused."""
    code, printed = finish(process)
    assert code in (0, 1) or (code == 2 and "a problem to fix" in printed), printed
    assert "Traceback" not in printed, printed
    assert left(running) == []
    return code


def assert_undisturbed(out: Path, finished: Path) -> None:
    """Every step once, and the weights of the run that nobody disturbed."""
    assert_whole(out, steps=STEPS)
    assert weights(out) == weights(finished)


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *map(str, arguments)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(arguments[-1])], check=True)


@mounts
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(TIMES))
def test_the_disk_is_full_from_a_random_moment_on(finished: tuple[Path, Course], tmp_path: Path, seed: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=200m", "tmpfs", disk):
        out = disk / "smoke"
        shutil.copytree(finished[0] / "stages", out / "stages")
        process = mopd("run", "smoke", "--out", out)
        running = mark(process)
        Work(process).wait_until(random.Random(seed).uniform(0, finished[1].end))
        subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filler'}", "bs=64k"], capture_output=True, check=False)
        code = ends_in_plain_words(process, running)
        (disk / "filler").unlink()
        print(f"chaos: disk full {seed}, exit {code}", flush=True)
        run("run", "smoke", "--out", out)
        assert_undisturbed(out, finished[0])


@mounts
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(TIMES))
def test_the_folder_is_read_only_from_a_random_moment_on(finished: tuple[Path, Course], out: Path, seed: int) -> None:
    process = mopd("run", "smoke", "--out", out)
    running = mark(process)
    Work(process).wait_until(random.Random(seed).uniform(0, finished[1].end))
    with mounted("--bind", out, out):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(out)], check=True)
        code = ends_in_plain_words(process, running)
        assert finish(mopd("run", "smoke", "--out", out))[0] == (0 if code == 0 else 2)
    print(f"chaos: read-only {seed}, exit {code}", flush=True)
    run("run", "smoke", "--out", out)
    assert_undisturbed(out, finished[0])


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(TIMES))
def test_the_folder_is_gone_from_a_random_moment_on(finished: tuple[Path, Course], out: Path, seed: int) -> None:
    process = mopd("run", "smoke", "--out", out)
    running = mark(process)
    Work(process).wait_until(random.Random(seed).uniform(0, finished[1].end))
    shutil.rmtree(out, ignore_errors=True)
    code = ends_in_plain_words(process, running)
    print(f"chaos: folder deleted {seed}, exit {code}", flush=True)
    shutil.rmtree(out, ignore_errors=True)  # what it has written since
    run("run", "smoke", "--out", out)
    assert_undisturbed(out, finished[0])


CLOCK_SET_BACK = """
import os, time
real, later = time.time, float(os.environ["CHAOS_SECONDS"])
time.time = lambda: real() - (86400.0 if time.process_time() >= later else 0.0)
"""


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(TIMES))
def test_the_clock_is_set_back_a_day_amid_a_run_that_is_then_killed(
    finished: tuple[Path, Course], out: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    environment = customised(tmp_path / "clock", CLOCK_SET_BACK) | {
        "CHAOS_SECONDS": str(rng.uniform(0, finished[1].own))
    }
    process = mopd("run", "smoke", "--out", out, **environment)
    running = mark(process)
    Work(process).wait_until(rng.uniform(finished[1].end / 2, finished[1].end))
    kill(process)
    assert left(running) == []
    code, printed = finish(mopd("run", "smoke", "--out", out, **(environment | {"CHAOS_SECONDS": "0"})))
    assert code == 0, printed
    assert_undisturbed(out, finished[0])


@pytest.mark.timeout(2400)
def test_a_wandb_server_that_hangs(finished: tuple[Path, Course], out: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        logged_in = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "NO_PROXY": "127.0.0.1", "WANDB_MODE": "online"}
        process = mopd("run", "smoke", "track.wandb.mode=auto", "--out", out, **logged_in)
        running = mark(process)
        assert ends_in_plain_words(process, running) == 0
    assert_undisturbed(out, finished[0])


def two_attempts(out: Path, environment: dict[str, str]) -> str:
    """A run is stopped amid its steps; another takes its folder, as on a disk without locks, ends; the first wakes up.

    Returns:
        What the first printed.
    """
    first = mopd("run", "smoke", "--out", out, **environment)
    running = mark(first)
    wait_for(first, out / "metrics.jsonl", 2)
    os.kill(first.pid, signal.SIGSTOP)
    (out / ".lock").unlink()
    for stage in (out / "stages").glob("*/.lock"):
        stage.unlink()
    code, printed = finish(mopd("run", "smoke", "--out", out, **environment))
    assert code == 0, printed
    os.kill(first.pid, signal.SIGCONT)
    _, printed = finish(first)
    assert left(running) == []
    return printed


@pytest.mark.timeout(2400)
def test_of_two_attempts_the_later_one_alone_writes(finished: tuple[Path, Course], out: Path) -> None:
    printed = two_attempts(out, {})
    assert "no longer owns" in printed
    assert_undisturbed(out, finished[0])


@pytest.mark.timeout(2400)
def test_without_the_attempt_check_it_would_not_be_so(out: Path, tmp_path: Path) -> None:
    """A control: the test above can fail."""
    two_attempts(out, switched_off(tmp_path / "off", "module.is_current = lambda run_dir, attempt: True"))
    with pytest.raises(AssertionError):
        assert_whole(out, steps=STEPS)
