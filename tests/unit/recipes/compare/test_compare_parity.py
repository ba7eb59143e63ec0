"""Compute to parity in a comparison, by hand; runs without a curve, selected steps, and folders of studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compare_kit import levels, write_hand_run
from rich.console import Console

from mopd.distill.types import UserError
from mopd.recipes.compare.comparison import Comparison, RowPoint, SeedSpread, compare
from mopd.recipes.compare.console import console_tables
from mopd.recipes.compare.page import render
from mopd.recipes.compare.wording import sentences

SLOW = {0: levels(50, 60, 70), 10: levels(60, 62, 70), 20: levels(75, 76, 70)}
WEAK = {0: levels(50, 60, 70), 10: levels(52, 60, 70), 20: levels(51, 61, 70)}


def rows(comparison: Comparison) -> dict[str, Any]:
    return {row.name: row for row in comparison.rows}


def shown(comparison: Comparison) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(console_tables(comparison))
    return console.export_text()


def other(folder: Path, method: str, **given: Any) -> Path:
    return write_hand_run(folder, {"method": method}, **given)


def test_parity_by_hand(tmp_path: Path) -> None:
    # 20 FLOP a step. The kit's student has a worst score of 50, 50, 70 at 0, 200, 400 FLOP: 69 at 390 FLOP.
    runs = [
        write_hand_run(tmp_path / "mopd"),
        other(tmp_path / "slow", "mix_rl", curve=SLOW, student=levels(75, 76, 70)),
    ]
    runs.append(other(tmp_path / "weak", "cascade", curve=WEAK, student=levels(51, 61, 70)))
    comparison = compare(runs)
    assert comparison.parity.reference == "mopd"
    assert comparison.parity.levels == pytest.approx({"worst_score": 0.69, "mean_score": 0.74})
    told = {name: row.parity["worst_score"] for name, row in rows(comparison).items()}
    assert told["mopd"].flops == pytest.approx(390.0)
    assert told["slow"].flops == pytest.approx(380.0)  # 50, 60, 70: 69 at 200 + 0.9 * 200
    assert told["slow"].ratio == pytest.approx(380 / 390)
    assert told["slow"].with_teachers.ratio == pytest.approx((380 + 140) / (390 + 140))
    assert (told["weak"].flops, told["weak"].ratio, told["weak"].spent) == (None, None, 400.0)
    assert told["weak"].tried == pytest.approx(400 / 390)
    said = "To score 69% in the worst domain, as mopd did within a point, slow takes 0.97× its compute; "
    said += "weak (in 1×) never does."
    assert said in sentences(comparison)
    assert "0.97× (" in shown(comparison)
    assert "never (in 1×)" in shown(comparison)
    page = render(comparison, ["math", "code"])
    assert "Compute to parity" in page
    assert "0.97×" in page


def test_the_making_of_teachers_that_nobody_knows_has_no_ratio(tmp_path: Path) -> None:
    away = {"teachers": {"math": {"model": "./elsewhere"}, "code": {"model": "stage:code"}}}
    comparison = compare([write_hand_run(tmp_path / "mopd"), write_hand_run(tmp_path / "away", away)])
    told = rows(comparison)["away"].parity["worst_score"]
    assert told.ratio == pytest.approx(1.0)
    assert told.with_teachers is None
    assert "unknown" in shown(comparison)


def test_a_merge_has_one_point_and_no_movement(tmp_path: Path) -> None:
    merged = other(tmp_path / "merge", "merge", curve={0: levels(75, 70, 70)}, student=levels(75, 70, 70), ledger={})
    comparison = compare([write_hand_run(tmp_path / "mopd"), merged])
    row = rows(comparison)["merge"]
    assert row.metrics.forgetting is None
    assert row.metrics.seesaw_share is None
    scores = {"math": 0.75, "code": 0.7, "chat": 0.7}
    assert row.curve == [RowPoint(0, 0.0, {d: SeedSpread(score, score, score) for d, score in scores.items()})]
    assert row.parity["worst_score"].ratio == 0.0
    assert "merge" in shown(comparison)
    assert "merge" in render(comparison, ["math", "code"])


def test_seeds_whose_results_are_of_different_steps_are_one_row(tmp_path: Path) -> None:
    runs = [write_hand_run(tmp_path / "a-0"), write_hand_run(tmp_path / "a-1", {"seed": 1}, selected=10)]
    comparison = compare(runs)
    assert [row.n for row in comparison.rows] == [2]
    assert [(run.step, run.selected) for run in comparison.runs] == [(20, 20), (20, 10)]


def test_trials_are_told_and_make_no_row_of_their_own(tmp_path: Path) -> None:
    runs = [write_hand_run(tmp_path / "a-0"), write_hand_run(tmp_path / "a-1", {"seed": 1})]
    assert compare(runs).rows[0].trials == 0
    tuned = write_hand_run(tmp_path / "tuned", {"trials": 6})
    comparison = compare([tuned])
    assert comparison.rows[0].trials == 6
    assert "6 tried" in shown(comparison)
    assert "6 settings tried" in render(comparison, ["math", "code"])


def study(folder: Path, *runs: str) -> Path:
    folder.mkdir(exist_ok=True)
    told = {name: {"method": name[:-2], "seed": 0} for name in runs}
    (folder / "study.json").write_text(json.dumps({"format": 1, "name": "s", "runs": told}))
    return folder


def test_a_study_stands_for_those_of_its_runs_that_were_measured(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", "one-0", "other-0", "waits-0")
    write_hand_run(folder / "one-0")
    other(folder / "other-0", "mix_rl")
    (folder / "waits-0").mkdir()
    alone = write_hand_run(tmp_path / "alone", {"run.steps": 30})
    assert [run.name for run in compare([folder, alone]).runs] == ["one-0", "other-0", "alone"]
    with pytest.raises(UserError, match="no run of the study"):
        compare([study(tmp_path / "empty", "waits-0")])
