"""Intervals over questions and seeds, against naive bootstraps written with loops and against simulated coverage."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from compare_kit import levels, write_hand_run

from mopd.distill.metrics import seesaw
from mopd.distill.metrics.bootstrap import RESAMPLES, Measured, Table, ends, measured, metrics_ci, over_seeds
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


def worst(answers: Answers, draws: dict[str, list[int]]) -> float:
    """The worst recovery on the drawn questions, by its definition."""
    recoveries = []
    for domain, (base, teacher, student) in answers.items():
        b, t, s = (fmean(one[q] for q in draws[domain]) for one in (base, teacher, student))
        recoveries.append((s - b) / (t - b))
    return min(recoveries)


def drawn(rng: random.Random, answers: Answers) -> dict[str, list[int]]:
    return {domain: [rng.randrange(len(three[0])) for _ in three[0]] for domain, three in answers.items()}


def middle(values: list[float]) -> tuple[float, float]:
    """The middle 95%."""
    ordered = sorted(values)
    return ordered[round(0.025 * len(ordered))], ordered[round(0.975 * len(ordered)) - 1]


def student_t(rng: random.Random, freedom: int) -> float:
    """Student's t, as it is defined: a normal over the root of a mean of squared normals."""
    return rng.gauss(0, 1) / math.sqrt(fmean(rng.gauss(0, 1) ** 2 for _ in range(freedom)))


def test_one_seed_has_the_interval_over_questions() -> None:
    one = table(made_up(1, 0.8))
    found = measured(one)
    assert {name: ends(found[name].spread(), ["math", "code"]) for name in metrics_ci(one)} == metrics_ci(one)
    assert found["scores"].mean.tolist() == one.means[2].tolist()


def test_the_interval_over_seeds_is_that_of_a_naive_one() -> None:
    """The same questions for all seeds, and Student's t with the seeds' own spread on top."""
    runs = [made_up(seed, level) for seed, level in ((1, 0.80), (2, 0.76), (3, 0.82))]
    everything = {domain: list(range(len(three[0]))) for domain, three in runs[0].items()}
    per_seed = [worst(run, everything) for run in runs]
    rng = random.Random(0)
    naive = []
    for _ in range(4000):
        draws = drawn(rng, runs[0])
        noise = student_t(rng, 2) * stdev(per_seed) / math.sqrt(3)
        naive.append(fmean(worst(run, draws) for run in runs) + noise)
    found = over_seeds([measured(table(run)) for run in runs])["worst_recovery"]
    assert float(found.mean) == pytest.approx(fmean(per_seed))
    low, high = middle(naive)
    assert ends(found.spread(), []) == pytest.approx([low, high], abs=0.1 * (high - low))


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

    def hand(math_: int) -> Answers:
        three = [levels(50, 60, 0), levels(90, 80, 0), levels(math_, 77, 0)]
        return {d: (three[0][d], three[1][d], three[2][d]) for d in ("math", "code")}

    rng, naive = random.Random(0), []
    for _ in range(3000):
        draws = drawn(rng, hand(86))
        naive.append(worst(hand(82), draws) - worst(hand(86), draws))
    assert [low, high] == pytest.approx(list(middle(naive)), abs=0.012)
    apart = rows["b"].metrics_ci.worst_recovery
    assert high - low < 0.8 * (apart[1] - apart[0])  # 1.4 of it, were they independent


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
    students = {("strong", 0): 70, ("strong", 1): 80, ("weak", 1): 76}
    folders = [
        write_hand_run(tmp_path / f"{name}-{seed}", {"seed": seed, "run.steps": len(name)}, student=levels(at, 75, 70))
        for (name, seed), at in students.items()
    ]
    comparison = compare(folders)
    rows: dict[str, Any] = {row.name: row for row in comparison.rows}
    assert comparison.leader == "weak-1"  # 65% against the mean of 50% and 75%
    value, low, high = rows["strong"].behind.worst_recovery
    assert value == pytest.approx(0.75 - 0.65)
    assert low <= value <= high
    level, said = headline(comparison)
    assert level == "mixed"
    assert said.endswith("strong has other seeds, so which is ahead is not known")
    assert any("Rows have different seeds" in note for note in notes(comparison))
    apart: dict[str, Any] = {row.name: row for row in compare([folders[0], folders[2]]).rows}
    assert apart["strong-0"].behind.worst_recovery is None


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


def test_three_seeds_cover_the_truth_and_resampling_them_would_not() -> None:
    """No noise of questions: the truth is 0.5, seeds spread around it by 0.1."""
    rng = np.random.default_rng(0)
    trials, covered, resampled = 400, 0, 0
    for trial in range(trials):
        values = 0.5 + 0.1 * rng.normal(size=3)
        low, high = ends(Measured(values, np.repeat(values[:, None], RESAMPLES, axis=1)).spread(trial), [])
        covered += low <= 0.5 <= high
        bootstrap = values[rng.integers(3, size=(RESAMPLES, 3))].mean(axis=1)
        resampled += np.percentile(bootstrap, 2.5) <= 0.5 <= np.percentile(bootstrap, 97.5)
    assert covered / trials == pytest.approx(0.95, abs=0.03)
    assert resampled / trials == pytest.approx(0.75, abs=0.06)


def test_a_metric_that_one_seed_lacks_is_undefined_for_the_row() -> None:
    pair = [Measured(np.array([0.5]), np.full((1, 9), 0.5)), Measured(np.array([np.nan]), np.full((1, 9), np.nan))]
    both = over_seeds([{"m": pair[0]}, {"m": pair[1]}])["m"]
    assert math.isnan(float(both.mean))
    assert ends(both.spread(), []) is None


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
    """The same answers, written down the other way round: no difference at all, in no resample."""
    folders = [write_hand_run(tmp_path / "a"), write_hand_run(tmp_path / "b", {"run.steps": 30})]
    path = folders[1] / "evaluations.jsonl"
    path.write_text("".join(line + "\n" for line in reversed(path.read_text().splitlines())))
    rows: dict[str, Any] = {row.name: row for row in compare(folders).rows}
    assert rows["b"].behind.worst_recovery == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    assert rows["b"].metrics_ci.recovery["math"] == pytest.approx(rows["a"].metrics_ci.recovery["math"])
