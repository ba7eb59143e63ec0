"""Commands in a terminal of 80 columns, as tmux captures it, against captures that a person has read.

Where a screen is meant to change: `UPDATE_CAPTURES=1 pytest tests/unit/recipes/test_terminal.py`, and read the
difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from compare_kit import levels, write_hand_run
from run_kit import write_run
from tmux_kit import COLUMNS, MOPD, captured, needs_tmux

pytestmark = needs_tmux
CAPTURES = Path(__file__).with_name("terminal")
LIVE = """
from mopd.distill.tracking.console import Progress
clock = [0.0]
with Progress(title="quickstart", now=lambda: clock[0]) as progress:
    stage = progress.task("instruction-following-specialist", 12000)
    stage.advance(12000, {"loss": 0.021, "score/code": 0.95})
    stage.close()
    task = progress.task("quickstart", 300)
    for step in range(1, 138):
        clock[0] += 2.0
        task.advance(step, {"loss": 0.431, "kl/math": 0.12, "kl/code": 0.3})
    task.advance(137, {"score/math": 0.9, "score/code": 0.4, "recovery/math": 0.97, "recovery/code": 0.41})
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with three runs, of which the two of a study were last written two hours ago."""
    home = tmp_path_factory.mktemp("here")
    base = levels(50, 60, 70)
    for name, rate, student in (("half-rate", 0.5, levels(80, 72, 70)), ("full-rate", 1.0, levels(88, 66, 64))):
        changes = {"name": name, "student.optimizer.lr": rate}
        write_hand_run(home / "runs" / name, changes, student=student, curve={0: base, 20: student})
    write_run(home / "runs" / "whole", n_test=60, n_validation=30)
    for path in (home / "runs").rglob("*"):
        back = path.stat().st_mtime - (7260 if "whole" not in path.parts else 0)
        os.utime(path, (back, back))
    (home / "runs" / "whole" / "finished.json").write_text(json.dumps({"steps": 200}))
    return home


def check_capture(name: str, lines: list[str]) -> None:
    path = CAPTURES / f"{name}.txt"
    if os.environ.get("UPDATE_CAPTURES"):
        path.write_text("\n".join(lines) + "\n")
    assert all(len(line) <= COLUMNS for line in lines)
    assert lines == path.read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ls", ("ls", "runs/half-rate", "--json", "runs.json")),
        ("compare", ("compare", "runs/half-rate", "runs/full-rate", "--out", "comparison")),
        ("report", ("report", "runs/whole")),
    ],
)
def test_a_command_shows_what_its_capture_has(name: str, arguments: tuple[str, ...], here: Path) -> None:
    check_capture(name, captured(MOPD, arguments, here))


def test_the_live_line_ends_as_its_capture(here: Path) -> None:
    check_capture("live", captured(LIVE, (), here))
