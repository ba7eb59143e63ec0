"""Intervals of rows over questions and seeds; that they cover the truth is shown in tests/coverage."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from compare_kit import levels, write_hand_run
from scipy import stats

from mopd.distill.metrics import seesaw
from mopd.distill.metrics.against_teachers import Table, measure, metrics_ci
from mopd.recipes.compare.comparison import compare
from mopd.recipes.compare.wording import headline, notes

Answers = dict[str, tuple[list[float], list[float], list[float]]]
"""Domain -> answers of base, teacher and student."""


def made_up(seed: int, student: float, n: int = 120) -> Answers:
    rng = random.Random(seed)

    def answered(level: float) -> list[float]:
        return [float(rng.random() < level) for _ in range(n)]

    return {d: (answered(0.4), answered(0.9), answered(student - 0.1 * (d == "code"))) for d in ("math", "code")}


def table(answers: Answers) -> Table:
    return Table({domain: np.array(three) for domain, three in answers.items()})


def recovery(answers: Answers, domain: str) -> float:
    base, teacher, student = map(fmean, answers[domain])
    return (student - base) / (teacher - base)


def test_of_one_seed_a_row_says_what_its_run_does() -> None:
    one = table(made_up(1, 0.8))
    measured = measure([one])
    assert {name: measured.intervals[name] for name in metrics_ci(one)} == metrics_ci(one)
    assert measured.values["scores"] == dict(zip(("math", "code"), one.means[2].tolist(), strict=True))
    assert measured.values["worst_by_seed"] == measured.values["worst_recovery_estimate"]


def test_the_least_of_the_means_stands_beside_the_mean_of_the_least() -> None:
    """Code is worst in two seeds and math in one: no domain is as low on average as the seeds' worst are."""
    runs = [made_up(seed, level) for seed, level in ((1, 0.80), (2, 0.76), (3, 0.82))]
    runs[0] = {"math": runs[0]["code"], "code": runs[0]["math"]}
    measured = measure([table(run) for run in runs])
    by_domain = {d: [recovery(run, d) for run in runs] for d in ("math", "code")}
    minima = [min(pair) for pair in zip(*by_domain.values(), strict=True)]
    assert measured.values["worst_recovery"] == pytest.approx(fmean(minima))
    means = {d: fmean(of_seeds) for d, of_seeds in by_domain.items()}
    assert measured.values["recovery"] == pytest.approx(means)
    assert min(means.values()) - 1e-9 <= measured.values["worst_recovery_estimate"] <= fmean(means.values()) + 1e-9
    assert measured.values["worst_by_seed"] < min(means.values())
    low, high = measured.intervals["worst_recovery"]
    assert low == min(low for low, _ in measured.intervals["recovery"].values())
    assert low < min(means.values()) < high
    low, high = measured.intervals["worst_by_seed"]
    assert low < measured.values["worst_by_seed"] < high


def test_the_difference_of_two_methods_is_paired_by_question(tmp_path: Path) -> None:
    """Two students that differ in a few questions: their difference is far surer than either score."""
    folders = [
        write_hand_run(tmp_path / "a", student=levels(86, 77, 70)),
        write_hand_run(tmp_path / "b", {"run.steps": 30}, student=levels(82, 77, 70)),
    ]
    rows: dict[str, Any] = {row.name: row for row in compare(folders).rows}
    value, low, high = rows["b"].behind.worst_recovery
    # (32/40 - 0.85) and code is 17/20 in both.
    assert value == pytest.approx(0.80 - 0.85)

    assert low < value < high
    value, low, high = rows["b"].behind.mean_recovery
    apart = rows["b"].metrics_ci.mean_recovery
    assert low < value < high
    assert high - low < 0.8 * (apart[1] - apart[0])  # 1.4 of it, were they independent
    # In points of math: four questions of a hundred, all one way; two rows of three domains are looked at together.
    half = -stats.t.ppf(0.025 / 3, 99) * math.sqrt((0.04 - 0.04**2) / 99 + 2 / 100**2)
    assert rows["b"].behind.points["math"] == pytest.approx((-0.04, -0.04 - half, -0.04 + half))


def test_methods_with_the_same_seeds_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """Seeds differ by much and methods by a constant: the difference is as sure as if there were one seed."""
    folders = []
    for seed, level in ((0, 70), (1, 80), (2, 90)):
        for name, less in (("strong", 0), ("weak", 4)):
            student = levels(level - less, 60 + (level - less - 50) // 2, 70)
            changes = {"seed": seed, "student.optimizer.lr": 1.0 + less}
            folders.append(write_hand_run(tmp_path / f"{name}-{seed}", changes, student=student))
    strong, weak = folders[::2], folders[1::2]
    comparison = compare([*strong, weak[2], weak[0], weak[1]])
    rows: dict[str, Any] = {row.name: row for row in comparison.rows}
    assert {name: row.n for name, row in rows.items()} == {"strong": 3, "weak": 3}
    value, low, high = rows["weak"].behind.mean_recovery
    assert value == pytest.approx(-0.1)
    assert high - low < 0.3
    alone = rows["weak"].metrics_ci.mean_recovery
    assert alone[1] - alone[0] > 1.0
    assert low < value < high < 0


def test_differences_are_of_common_seeds_alone(tmp_path: Path) -> None:
    """The one's lucky seed is not held against the other's unlucky ones."""
    students = {("strong", 0): 60, ("strong", 1): 80, ("weak", 1): 76}
    folders = [
        write_hand_run(tmp_path / f"{name}-{seed}", {"seed": seed, "run.steps": len(name)}, student=levels(at, 75, 70))
        for (name, seed), at in students.items()
    ]
    comparison = compare(folders)
    rows: dict[str, Any] = {row.name: row for row in comparison.rows}
    assert comparison.leader == "weak-1"  # 65% against the mean of 25% and 75%
    value, low, high = rows["strong"].behind.worst_recovery
    assert value == pytest.approx(0.75 - 0.65)
    assert low <= value <= high
    level, said = headline(comparison)
    assert level == "mixed"
    assert said.endswith("strong has other seeds, so which is ahead is not known")
    assert any("Rows have different seeds" in note for note in notes(comparison))
    apart: dict[str, Any] = {row.name: row for row in compare([folders[0], folders[2]]).rows}
    assert apart["strong-0"].behind.worst_recovery is None


def test_a_row_whose_seeds_share_one_base_says_so(tmp_path: Path) -> None:
    def noted(name: str, **more: Any) -> list[str]:
        folders = [
            write_hand_run(tmp_path / f"{name}-{seed}", {"seed": seed, **more}, student=levels(70, 75, 70))
            for seed in (0, 1)
        ]
        return [note for note in notes(compare(folders)) if "share one base" in note]

    assert noted("apart") == []
    (sentence,) = noted("shared", stages_seed=5)
    assert sentence.startswith("The seeds of shared share one base")


def test_seeds_over_one_base_have_teachers_of_their_own(tmp_path: Path) -> None:
    """A student that equals its own teacher keeps all, however good another seed's is."""
    folders = []
    for seed, at in ((0, 80), (1, 90)):
        teachers = {"math": levels(at, 20, 65), "code": levels(30, 80, 70)}
        folders.append(
            write_hand_run(tmp_path / f"m-{seed}", {"seed": seed}, teachers=teachers, student=levels(at, 80, 70))
        )
    comparison = compare(folders)
    assert [run.metrics.recovery["math"] for run in comparison.runs] == [1.0, 1.0]
    assert not any("measured against" in note for note in notes(comparison))


def test_a_metric_that_one_seed_lacks_is_undefined_for_the_row() -> None:
    runs = [made_up(1, 0.8), made_up(2, 0.8)]
    runs[1]["code"] = (runs[1]["code"][0], runs[1]["code"][0], runs[1]["code"][2])  # a teacher no better than the base
    both = measure([table(run) for run in runs])
    assert both.values["recovery"]["code"] is None
    assert both.intervals["recovery"]["code"] is None
    assert both.values["worst_recovery"] == pytest.approx(fmean(recovery(run, "math") for run in runs))
    runs[0]["math"] = (runs[0]["math"][0], runs[0]["math"][0], runs[0]["math"][2])
    neither = measure([table(run) for run in runs])
    for name in ("worst_recovery", "mean_recovery", "pooled_recovery", "imbalance", "pareto_gap", "worst_by_seed"):
        assert (neither.values[name], neither.intervals[name]) == (None, None)


def test_runs_of_an_older_version_are_compared_by_their_answers(tmp_path: Path) -> None:
    """Whatever their seesaw.json holds of intervals, or does not."""
    folders = [write_hand_run(tmp_path / "a"), write_hand_run(tmp_path / "b", {"run.steps": 30})]
    anew = compare(folders).record()
    for folder in folders:
        old = json.loads((folder / "seesaw.json").read_text())
        old["metrics_ci"] = {"worst_recovery": [0.1, 0.2]}
        del old["statistics"], old["verdict"], old["metrics"]["pooled_recovery"]
        (folder / "seesaw.json").write_text(json.dumps(old))
    assert compare(folders).record() == anew


def test_a_few_questions_leave_points_within_what_there_can_be() -> None:
    answers = {"math": np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])}
    measured = measure([Table(answers)])
    assert measured.intervals["points"]["math"] == [-1.0, 1.0]
    assert measured.intervals["max_regression"] == [0.0, 1.0]
    assert measured.intervals["recovery"]["math"] is None


def test_twenty_rows_are_looked_at_with_more_care_than_one(tmp_path: Path) -> None:
    students = {20 + i: levels(80, 75, 60 - i) for i in range(4)}
    folders = [write_hand_run(tmp_path / f"r{n}", {"run.steps": n}, student=given) for n, given in students.items()]
    alone, among = (compare(of).rows[0] for of in (folders[:1], folders))
    assert among.metrics_ci.worst_recovery == alone.metrics_ci.worst_recovery
    floors = [row.at_least or 0.0 for row in (alone, among)]
    assert alone.metrics_ci.worst_recovery is not None
    assert floors[1] < floors[0] == alone.metrics_ci.worst_recovery.low
    both = [row.metrics_ci.points_at_once["chat"] for row in (alone, among)]
    assert both[1].low < both[0].low < both[0].high < both[1].high


def test_the_share_that_noise_alone_gives_is_that_of_a_naive_simulation() -> None:
    errors = [[0.03, 0.02, 0.03]] * 8
    rng, shares = random.Random(0), []
    for _ in range(3000):
        curve = [[rng.gauss(0, se) for se in row] for row in errors]
        traded = moved = 0.0
        for t in range(len(curve) - 1):
            gain = loss = 0.0
            for d, (now, then) in enumerate(zip(curve[t], curve[t + 1], strict=True)):
                if abs(then - now) >= 2 * math.hypot(errors[t][d], errors[t + 1][d]):
                    gain, loss = gain + max(0.0, then - now), loss + max(0.0, now - then)
            traded, moved = traded + min(gain, loss), moved + max(gain, loss)
        shares.append(traded / moved if moved else 0.0)
    assert seesaw.noise_share(np.array(errors)) == pytest.approx(fmean(shares), abs=4 * stdev(shares) / math.sqrt(2000))
    assert 0.0 < fmean(shares) < 0.05
    assert seesaw.noise_share(np.zeros((5, 3))) == 0.0


def test_the_order_in_which_questions_were_asked_does_not_matter(tmp_path: Path) -> None:
    """The same answers, written down the other way round: no difference at all."""
    folders = [write_hand_run(tmp_path / "a"), write_hand_run(tmp_path / "b", {"run.steps": 30})]
    path = folders[1] / "evaluations.jsonl"
    path.write_text("".join(line + "\n" for line in reversed(path.read_text().splitlines())))
    rows: dict[str, Any] = {row.name: row for row in compare(folders).rows}
    value, low, high = rows["b"].behind.worst_recovery
    assert value == pytest.approx(0.0, abs=1e-12)
    assert low == pytest.approx(-high)
    assert rows["b"].metrics_ci.recovery["math"] == pytest.approx(rows["a"].metrics_ci.recovery["math"])
