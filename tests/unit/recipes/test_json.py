"""`--json` of the commands: what is printed, as values for programs; of `-` standard output has nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_kit import mopd, refused
from run_kit import write_run


def test_check_writes_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = mopd("check", "smoke", "--json", "-")
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    assert (written["name"], written["unchecked"], written["findings"]) == ("smoke", [], [])
    assert written["plan"]["memory_bytes"] > written["plan"]["disk_bytes"] > 0
    assert {model["name"] for model in written["plan"]["models"]} >= {"stage:base", "teacher math"}


def test_compare_writes_its_record_beside_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(write_run(tmp_path / "run", n_test=60, n_validation=30))
    result = mopd("compare", run, "--json", "found.json")
    assert result.exit_code == 0, result.output
    assert "recovery" in result.stdout
    record = json.loads(Path("found.json").read_text())
    assert record == json.loads(Path("runs/comparison/comparison.json").read_text())
    alone = mopd("compare", run, "--json", "-")
    assert json.loads(alone.stdout) == record


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(write_run(tmp_path / "run", n_test=60, n_validation=30))
    assert "no/such/file.json cannot be written" in refused("compare", run, "--json", "no/such/file.json")
