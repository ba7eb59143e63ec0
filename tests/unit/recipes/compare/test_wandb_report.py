"""`mopd compare --wandb-report`: what a server is sent, and what is said where nothing can be sent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compare_kit import levels, write_hand_run
from deadline_kit import patience
from wandb_kit import Server

from mopd.recipes.compare.comparison import compare
from mopd.recipes.compare.wording import headline

ROOT = Path(__file__).parents[4]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of one recipe, and another recipe of another project."""
    track = {"project": "seesaws", "entity": None, "tags": []}
    other = {"name": "weak", "run.steps": 21, "track.wandb": track | {"project": "others"}}
    return [
        write_hand_run(tmp_path / "first", {"track.wandb": track}),
        write_hand_run(tmp_path / "second", {"track.wandb": track, "seed": 1}),
        write_hand_run(tmp_path / "weak", other, student=levels(60, 62, 70)),
    ]


def reported(folder: Path, runs: list[Path], **environment: str) -> subprocess.CompletedProcess[str]:
    mopd = Path(sys.executable).with_name("mopd")
    return subprocess.run(
        [mopd, "compare", *runs, "--out", folder / "out", "--wandb-report"],
        capture_output=True,
        text=True,
        timeout=patience(120),
        cwd=folder,
        env={"HOME": str(folder), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "NO_PROXY": "*", **environment},
    )


def test_a_server_is_sent_the_tables_and_the_runs_of_every_project(tmp_path: Path, runs: list[Path]) -> None:
    served = Server()
    try:
        ended = reported(tmp_path, runs, WANDB_BASE_URL=served.url, WANDB_API_KEY="a" * 40)
    finally:
        served.close()
    assert ended.returncode == 0, ended.stderr
    assert f"report: {served.url}/somebody/seesaws/reports/" in ended.stderr
    (view,) = served.views
    assert (view["entityName"], view["projectName"], view["type"]) == ("somebody", "seesaws", "runs")
    comparison = compare(runs)
    assert view["displayName"] == f"mopd: {headline(comparison)[1]}"[:128]
    blocks = [block for block in json.loads(view["spec"])["blocks"] if block["type"] != "paragraph"]
    (text,) = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert all(f"| {row.name} |" in text or f"**{row.name}**" in text for row in comparison.rows)
    (grid,) = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    sets = {each["project"]["name"]: json.dumps(each["filters"]) for each in grid["runSets"]}
    assert list(sets) == ["seesaws", "others"]
    assert '"hand"' in sets["seesaws"]
    assert '"weak"' in sets["others"]
    assert all('"stage"' in filters for filters in sets.values())
    panels = grid["panelBankSectionConfig"]["panels"]
    assert [panel["config"]["metrics"] for panel in panels] == [
        [f"over_flops/{name}"]
        for name in ("worst_recovery_estimate", "mean_recovery", "score/math", "score/code", "score/chat")
    ]
    assert {panel["config"]["xAxis"] for panel in panels} == {"cost/flops"}


def test_logged_out_the_page_is_there_and_it_says_what_to_do(tmp_path: Path, runs: list[Path]) -> None:
    ended = reported(tmp_path, runs)
    assert ended.returncode == 2, ended.stderr
    assert "W&B is not logged in; `wandb login` does that" in ended.stderr
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_runs_of_two_teams_are_refused_by_name(tmp_path: Path, runs: list[Path]) -> None:
    track = {"project": "seesaws", "entity": "a-team", "tags": []}
    theirs = write_hand_run(tmp_path / "theirs", {"track.wandb": track, "run.steps": 22})
    ended = reported(tmp_path, [*runs, theirs], WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert ended.returncode == 2, ended.stderr
    assert "theirs of a-team" in " ".join(ended.stderr.split())
