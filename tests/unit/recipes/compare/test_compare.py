"""The comparison of hand-made runs, against tables worked out on paper."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from compare_kit import BASE, LEDGER, TEACHERS, levels, no_teachers, write_hand_run
from rich.console import Console

import mopd.recipes.compare.comparison
from mopd.distill.tracking.jsonl import truncate_jsonl
from mopd.recipes.compare.comparison import ComparedTask, Comparison, SeedSpread, compare
from mopd.recipes.compare.console import console_tables
from mopd.recipes.compare.cost import Cost
from mopd.recipes.compare.markdown import markdown
from mopd.recipes.compare.page import render
from mopd.recipes.compare.reference import MeasuredAgainst
from mopd.recipes.compare.wording import headline, notes, sentences
from mopd.rollouts.tasks import TASKS, fingerprint


def rows(comparison: Comparison) -> dict[str, Any]:
    """Rows by name; Any, for what a test knows to be defined."""
    return {row.name: row for row in comparison.rows}


def test_one_run_worked_out_by_hand(tmp_path: Path) -> None:
    comparison = compare([write_hand_run(tmp_path / "one")])
    assert comparison.split == "test"
    assert comparison.tasks["math"] == ComparedTask(fingerprint="feed", questions=100)
    row = rows(comparison)["one"]
    measured = row.metrics
    assert measured.recovery == {"math": pytest.approx(0.75), "code": pytest.approx(0.75), "chat": None}
    assert measured.scores == {"math": pytest.approx(0.8), "code": pytest.approx(0.75), "chat": pytest.approx(0.64)}
    assert (measured.mean_recovery, measured.worst_recovery) == (pytest.approx(0.75), pytest.approx(0.75))
    assert (measured.imbalance, measured.max_regression) == (pytest.approx(0.0), pytest.approx(0.06))
    assert measured.forgetting == {"math": 0.0, "code": 0.0, "chat": 0.0}
    assert measured.seesaw_share == 0.0
    assert 0.0 <= measured.seesaw_noise < 0.1
    assert (row.n, row.seeds, row.step, row.steps, row.behind) == (1, [0], 20, 20, None)
    assert row.taught_by == ["code", "math"]
    # Numbers and intervals are those that the run's own seesaw.json has, by the same names.
    seesaw = json.loads((tmp_path / "one" / "seesaw.json").read_text())
    record = json.loads(json.dumps(comparison.record(), allow_nan=False))["rows"][0]
    of_teachers = ("teacher_transfer", "teacher_points")
    for section in ("metrics", "metrics_ci"):
        known = {name: value for name, value in seesaw[section].items() if name not in of_teachers}
        assert {name: record[section][name] for name in known} == known
    assert record["verdict"] == seesaw["verdict"]
    assert record["at_least"] == seesaw["metrics_ci"]["worst_recovery"][0]
    assert measured.seesaw_noise == seesaw["metrics"]["seesaw_noise"]
    # 40/40, -40/20; -20/40, 20/20.
    transfer = {teacher.name: teacher.transfer for teacher in comparison.transfer}
    assert transfer["math"] == {"math": pytest.approx(1.0), "code": pytest.approx(-2.0), "chat": None}
    assert transfer["code"] == {"math": pytest.approx(-0.5), "code": pytest.approx(1.0), "chat": None}


def test_cost_is_told_with_and_without_the_making_of_the_teachers(tmp_path: Path) -> None:
    row = compare([write_hand_run(tmp_path / "one")]).rows[0]
    assert asdict(row.cost) == {
        "training": {"flops": 450.0, "seconds": 3.0},
        "teachers": {"flops": 140.0, "seconds": 28.0},
        "with_teachers": {"flops": 590.0, "seconds": 31.0},
        "base": {"flops": 7000.0, "seconds": 70.0},
        "evaluation": {"flops": 1000.0, "seconds": 10.0},
    }
    # 20 FLOP a step, as metrics.jsonl of the kit has it.
    assert [(point.step, point.flops) for point in row.curve] == [(0, 0.0), (10, 200.0), (20, 400.0)]
    assert row.curve[1].scores["math"] == SeedSpread(mean=0.7, lowest=0.7, highest=0.7)


def test_teachers_made_elsewhere_cost_what_their_own_ledger_says_or_it_is_unknown(tmp_path: Path) -> None:
    made = tmp_path / "elsewhere"
    (made / "student").mkdir(parents=True)
    (made / "ledger.json").write_text(json.dumps({"format": 1, "roles": LEDGER}))
    known = {"teachers.math.model": str(made / "student"), "teachers.code.model": str(made / "student")}
    known["student.model"] = str(made / "student")
    unknown = {"teachers.math.model": "some/hub-model"}
    comparison = compare([write_hand_run(tmp_path / "a", known), write_hand_run(tmp_path / "b", unknown)])
    # One model that is two teachers was made once.
    assert rows(comparison)["a"].cost.teachers == Cost(flops=450.0, seconds=3.0)
    assert rows(comparison)["a"].cost.base == Cost(flops=450.0, seconds=3.0)
    assert rows(comparison)["b"].cost.teachers is None
    assert rows(comparison)["b"].cost.with_teachers is None
    assert "unknown" in shown(comparison)


def test_seeds_of_one_recipe_are_one_row(tmp_path: Path) -> None:
    first = write_hand_run(tmp_path / "mopd-0")
    other = levels(70, 80, 70)
    second = write_hand_run(tmp_path / "mopd-1", {"seed": 1, "name": "hand-1"}, student=other)
    comparison = compare([second, first])
    (row,) = comparison.rows
    assert (row.name, row.n, row.seeds, row.runs) == ("mopd", 2, [1, 0], ["mopd-1", "mopd-0"])
    # (30/40 + 20/40) / 2, (15/20 + 20/20) / 2; the mean of the worst, not the worst of the means.
    assert row.metrics.recovery["math"] == pytest.approx(0.625)
    assert row.metrics.recovery["code"] == pytest.approx(0.875)
    assert row.metrics.worst_recovery == pytest.approx((0.75 + 0.5) / 2)
    assert row.metrics.max_regression == pytest.approx(0.03)
    assert row.metrics_ci.max_regression.low == 0.0  # of two seeds, t alone would go far below
    assert row.cost.training == Cost(flops=450.0, seconds=3.0)
    assert [run.metrics.worst_recovery for run in comparison.runs] == [pytest.approx(0.5), pytest.approx(0.75)]
    assert not any("One seed only" in note for note in notes(comparison))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 0}, ["a", "b"]),  # a repetition is no second seed
        ({"seed": 1, "student.optimizer.lr": 0.25}, ["a", "b"]),
        ({"seed": 1, "run.steps": 40}, ["a", "b"]),
        ({"seed": 1, "track.wandb.tags": ["x"], "description": "again"}, ["hand"]),
    ],
)
def test_what_makes_another_row(tmp_path: Path, change: dict[str, Any], names: list[str]) -> None:
    comparison = compare([write_hand_run(tmp_path / "a"), write_hand_run(tmp_path / "b", change)])
    assert sorted(row.name for row in comparison.rows) == names
    assert ("student.optimizer.lr" in comparison.differing) == ("student.optimizer.lr" in change)


def test_a_path_that_holds_the_seed_is_the_same_setting(tmp_path: Path) -> None:
    folders = [
        write_hand_run(tmp_path / f"mix-{seed}", {"seed": seed, "teachers.math.model": f"/runs/math-{seed}/student"})
        for seed in (3, 14)
    ]
    assert [row.name for row in compare(folders).rows] == ["mix"]


def test_a_method_without_teachers_is_measured_against_those_of_its_base(tmp_path: Path) -> None:
    taught = write_hand_run(tmp_path / "taught")
    bare = write_hand_run(tmp_path / "bare", no_teachers(), teachers={}, student=levels(70, 80, 70))
    comparison = compare([bare, taught])
    assert rows(comparison)["bare"].metrics.recovery == {
        "math": pytest.approx(0.5), "code": pytest.approx(1.0), "chat": None
    }  # fmt: skip
    assert rows(comparison)["bare"].cost.teachers == Cost(flops=0.0, seconds=0.0)
    against = {run.name: run.against["math"] for run in comparison.runs}
    assert against["bare"] == against["taught"] == MeasuredAgainst("taught", {"math": 1.0})
    assert [run.borrowed for run in comparison.runs if run.name == "bare"] == [["math", "code"]]
    assert any(
        "On math and code, bare is measured against the teachers of taught" in note for note in notes(comparison)
    )
    # Another base: nothing to borrow.
    stranger = write_hand_run(
        tmp_path / "stranger", no_teachers(), teachers={}, base=levels(51, 60, 70), student=levels(70, 80, 70)
    )
    apart = compare([stranger, taught])
    assert rows(apart)["stranger"].metrics.recovery == {"math": None, "code": None, "chat": None}
    assert rows(apart)["stranger"].metrics.points["math"] == pytest.approx(0.19)
    assert any("No teacher to measure stranger against on math" in note for note in notes(apart))
    assert any("different bases" in note for note in notes(apart))
    assert "+19.0 pt" in shown(apart)


def test_one_teacher_for_all_is_held_against_the_specialists(tmp_path: Path) -> None:
    """Its own teacher of code is worse than the base, which would leave no recovery there."""
    everything = {"domains.code.teacher": "math", "teachers": {"math": {"model": "stage:math"}}}
    alone = write_hand_run(
        tmp_path / "alone", everything, teachers={"math": TEACHERS["math"]}, student=levels(90, 50, 70)
    )
    comparison = compare([write_hand_run(tmp_path / "mopd"), alone])
    assert rows(comparison)["alone"].metrics.recovery["code"] == pytest.approx(-0.5)
    assert rows(comparison)["alone"].taught_by == ["math"]
    assert [t.name for t in comparison.transfer] == ["math", "code"]


def test_gold_answers_are_told_where_others_had_none(tmp_path: Path) -> None:
    gold = write_hand_run(tmp_path / "gold", {"method": "supervised"})
    told = "gold learnt from gold answers, which no other method sees: a bound, not a rival."
    assert told in notes(compare([write_hand_run(tmp_path / "mopd"), gold]))
    better = {"method": "supervised", "run.steps": 30}
    bound = write_hand_run(tmp_path / "bound", better, student=levels(95, 90, 70))
    comparison = compare([bound, write_hand_run(tmp_path / "second", {"run.steps": 40}), gold])
    assert comparison.leader == "second"
    assert headline(comparison)[1] == "second keeps at least 41% of its teachers’ gain in the worst domain"
    assert "The highest mean" not in " ".join(sentences(comparison))  # of one rival nothing is compared
    assert rows(comparison)["bound"].behind.worst_recovery.value == pytest.approx(1.125 - 0.75, abs=0.01)
    assert told not in notes(compare([gold]))


def test_the_difference_to_the_leader_and_the_words(tmp_path: Path) -> None:
    ahead = write_hand_run(tmp_path / "ahead", {"student.optimizer.lr": 0.1}, student=levels(88, 79, 70))
    hand = write_hand_run(tmp_path / "hand", student=levels(68, 69, 56))
    comparison = compare([hand, ahead])
    assert comparison.leader == "ahead"
    assert rows(comparison)["ahead"].behind is None
    value, low, high = rows(comparison)["hand"].behind.worst_recovery
    assert value == pytest.approx(0.45 - 0.95, abs=0.01)
    assert low < value < high < 0
    tone, sentence = headline(comparison)
    floor = rows(comparison)["ahead"].at_least
    # Two rows were looked at: what the leader keeps at least is lower than its own interval's end.
    assert floor < rows(comparison)["ahead"].metrics_ci.worst_recovery.low
    assert tone == "good"
    assert sentence.startswith(f"ahead keeps at least {math.floor(100 * floor)}% of its teachers’ gain in the worst")
    assert "50 points more than hand (95% interval" in sentence
    by_domain = rows(comparison)["hand"].behind.points
    assert {d: round(difference.value, 3) for d, difference in by_domain.items()} == {
        "math": -0.2, "code": -0.1, "chat": -0.14
    }  # fmt: skip
    assert all(difference.low < difference.value < difference.high < 0 for difference in by_domain.values())
    told = " ".join(sentences(comparison))
    assert "The highest mean recovery is ahead’s, 95%." in told
    assert "hand falls below its base on chat." in told
    assert "Training took 450 FLOP (ahead)" in told


def test_a_difference_that_chance_may_explain_is_called_so(tmp_path: Path) -> None:
    near = write_hand_run(tmp_path / "near", {"run.steps": 30}, student=levels(80, 74, 70))
    comparison = compare([write_hand_run(tmp_path / "hand"), near])
    level, told = headline(comparison)
    assert level == "mixed"
    assert told.startswith("hand keeps at least 44% of its teachers’ gain in the worst domain, 2 points more than near")
    assert "which chance may explain (95% interval −14 to 24)" in told


@pytest.mark.parametrize(("chat", "level"), [(70, "good"), (55, "mixed")])
def test_one_run_is_good_if_it_keeps_the_gains_and_pays_nowhere(tmp_path: Path, chat: int, level: str) -> None:
    comparison = compare([write_hand_run(tmp_path / "one", student=levels(90, 80, chat))])
    assert headline(comparison) == (level, "one keeps at least 84% of its teachers’ gain in the worst domain")


def test_a_seesaw_over_training_is_called_one(tmp_path: Path) -> None:
    """Math and code take turns by 40 points, far beyond noise."""
    curve = {10 * i: levels(50 + 40 * (i % 2), 90 - 40 * (i % 2), 70) for i in range(9)}
    comparison = compare([write_hand_run(tmp_path / "one", curve=curve)])
    row = comparison.rows[0]
    assert (row.seesaws, row.metrics.seesaw_share) == (1, pytest.approx(1.0))
    assert row.metrics.forgetting == {"math": pytest.approx(0.4), "code": pytest.approx(0.0), "chat": 0.0}
    noise = 100 * row.metrics.seesaw_noise
    assert (
        f"one is a seesaw: 100% (noise alone: {noise:.1f}%) of the movement beyond noise" in sentences(comparison)[-2]
    )
    assert headline(comparison)[0] == "mixed"


SINGLE = {"domains": {"math": {"task": "arithmetic", "teacher": "math", "teachers": {}, "evaluate_only": False}}}


def single(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    return {"math": scores["math"]}


def test_of_a_single_domain_nothing_is_told_of_others(tmp_path: Path) -> None:
    folders = []
    for name, student in (("a", 80), ("b", 70)):
        own = levels(student, 0, 0)
        folders.append(
            write_hand_run(
                tmp_path / name,
                SINGLE | {"student.optimizer.lr": float(student)},
                base=single(BASE),
                teachers={"math": single(TEACHERS["math"])},
                student=single(own),
                curve={0: single(BASE), 10: single(BASE), 20: single(own)},
            )
        )
    for comparison in (compare(folders), compare(folders[:1])):
        text = " ".join([headline(comparison)[1], *sentences(comparison), *notes(comparison)])
        for word in ("domain", "mean", "worst", "seesaw", "imbalance"):
            assert word not in text.replace("Their intervals are over questions, not over seeds", ""), text
        table = shown(comparison)
        assert "worst" not in table
        assert "imbalance" not in table
        html = render(comparison, ["math"])
        for heading in ("<th>Mean</th>", "<th>Worst</th>", "<th>Imbalance</th>", "Worst domain"):
            assert heading not in html
        assert "Worst domain" not in markdown(comparison)


def test_a_target_of_0_is_none(tmp_path: Path) -> None:
    """Nobody has right answers on validation: whoever has not begun is there, and no multiple of nothing is told."""
    nothing = {0: levels(0, 0, 0), 10: levels(0, 0, 0)}
    folders = [write_hand_run(tmp_path / f"r{n}", {"run.steps": n}, curve=nothing) for n in (10, 20)]
    comparison = compare(folders)
    for parity in (row.parity[measure] for row in comparison.rows for measure in ("worst_score", "mean_score")):
        assert (parity.ratio, parity.ratio_ci, parity.tried) == (None, None, None)
        assert parity.with_teachers is None or parity.with_teachers.ratio is None
    text = " ".join(
        [*sentences(comparison), shown(comparison), markdown(comparison), render(comparison, ["math", "code"])]
    )
    assert "The last validation score of" in text
    for wrong in ("-1.0%", "−1.0%", "-1%", "−1%", "1×", "0×"):
        assert wrong not in text


def test_what_an_adapter_or_a_class_of_ones_own_cost_is_not_known(tmp_path: Path) -> None:
    for name, leaf in (("adapted", "adapter"), ("own", "scorer")):
        run = write_hand_run(tmp_path / name, {f"teachers.math.{leaf}": "./x"})
        assert rows(compare([run]))[name].cost.teachers is None


def test_a_trajectory_too_short_to_test_is_not_called_none(tmp_path: Path) -> None:
    short = write_hand_run(tmp_path / "short", curve={0: BASE, 10: levels(90, 30, 70), 20: levels(80, 75, 70)})
    told = " ".join(sentences(compare([short])))
    assert "No trajectory is a seesaw" not in told
    assert "Too few evaluations to test whether it is one" in told


def test_a_teacher_no_better_than_the_base_is_told(tmp_path: Path) -> None:
    weak = write_hand_run(tmp_path / "weak", teachers={"math": levels(51, 60, 70), "code": TEACHERS["code"]})
    assert any("On math, the teacher of weak is not clearly better" in note for note in notes(compare([weak])))


def test_a_run_under_way_puts_everything_on_validation(tmp_path: Path) -> None:
    tasks = {"math": "arithmetic", "code": "list_programs", "chat": "ordering"}
    known = {domain: fingerprint(TASKS[task], seed=0) for domain, task in tasks.items()}
    done = write_hand_run(tmp_path / "done", fingerprints=known)
    curve = {0: BASE, 10: levels(70, 66, 70)}
    going = write_hand_run(tmp_path / "going", {"seed": 1}, curve=curve, finished=False)
    comparison = compare([done, going])
    assert comparison.split == "validation"
    assert rows(comparison)["going"].metrics.recovery["math"] == pytest.approx(20 / 40)
    assert (rows(comparison)["going"].step, rows(comparison)["going"].finished) == (10, False)
    # From metrics.jsonl and exams.jsonl: ten steps of 20 FLOP, and one exam.
    assert rows(comparison)["going"].cost.training == Cost(flops=200.0, seconds=5.0)
    assert rows(comparison)["going"].cost.evaluation == Cost(flops=900.0, seconds=9.0)
    assert rows(comparison)["done"].metrics.recovery["math"] == pytest.approx(30 / 40)
    assert any("Not finished: going (step 10 of 20)." in note for note in notes(comparison))
    assert headline(comparison)[0] == "pending"


def test_settings_are_chosen_on_validation_prompts(tmp_path: Path) -> None:
    """Where the test prompts were asked too, and say something else."""
    curve = {0: BASE, 10: levels(70, 66, 70), 20: levels(60, 60, 70)}
    run = write_hand_run(tmp_path / "run", curve=curve, student=levels(90, 80, 70))
    tested, chosen = compare([run]), compare([run], validation=True)
    assert (tested.split, chosen.split) == ("test", "validation")
    math = [rows(told)["run"].metrics.recovery["math"] for told in (tested, chosen)]
    assert math == [pytest.approx(40 / 40), pytest.approx(10 / 40)]
    assert "Scores are on validation questions, which are fewer than those of a test." in notes(chosen)


def test_an_evaluation_cut_off_by_a_kill_does_not_count(tmp_path: Path) -> None:
    run = write_hand_run(tmp_path / "going", finished=False)
    truncate_jsonl(run / "evaluations.jsonl", lambda row: row["step"] < 20 or row["prompt_id"] == "math/validation/0")
    assert compare([run]).rows[0].step == 10


def shown(comparison: Comparison, width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(console_tables(comparison))
    return captured.get()


def test_the_console_shows_every_number_in_eighty_columns(tmp_path: Path) -> None:
    text = shown(compare([write_hand_run(tmp_path / "one")]), width=80)
    line = next(line for line in text.splitlines() if line.startswith("│ one"))
    assert [word for word in line.split() if word.endswith("%")] == ["75%", "75%", "75%", "75%", "0%"]
    assert "−6.0 pt" in line
    assert re.search(r"│ one +│ +5\.9 │ +0\.0 │ +0% │ +450 │ +3 s │", text)
    assert re.search(r"│ +590 │ +31 s │", text)
    assert max(map(len, text.splitlines())) <= 80


def test_every_key_of_comparison_json_is_documented(tmp_path: Path) -> None:
    record = compare([write_hand_run(tmp_path / "a"), write_hand_run(tmp_path / "b", {"run.steps": 30})]).record()
    documented = set(re.findall(r"[a-z_]+", str(mopd.recipes.compare.comparison.__doc__)))
    row = record["rows"][1]
    parts = (record, row, record["runs"][0], record["transfer"][0], row["cost"], record["tasks"]["math"])
    assert [key for part in parts for key in part if key not in documented] == []


def test_comparison_json_keeps_its_format(tmp_path: Path) -> None:
    """Whoever reads it finds the same keys in the same order, and pairs and triples as lists."""
    runs = [
        write_hand_run(tmp_path / "a"),
        write_hand_run(tmp_path / "b", {"run.steps": 30}, student=levels(70, 75, 64)),
    ]
    record = json.loads(json.dumps(compare(runs).record(), allow_nan=False))
    assert list(record) == [
        "format", "statistics", "split", "domains", "tasks", "rows", "leader", "parity", "runs", "levels", "transfer",
        "differing", "tried",
    ]  # fmt: skip
    row, run = record["rows"][1], record["runs"][0]
    assert list(row) == [
        "name", "method", "runs", "seeds", "trials", "n", "finished", "step", "steps", "taught_by", "metrics",
        "metrics_ci", "seesaws", "cost", "curve", "behind", "parity", "at_least", "verdict",
    ]  # fmt: skip
    assert list(row["metrics"]) == [
        "points", "recovery", "mean_recovery", "worst_recovery", "imbalance", "max_regression", "pareto_gap", "scores",
        "forgetting", "seesaw_share", "seesaw_noise", "seesaw_correlation", "seesaw_correlation_p", "pooled_recovery",
        "worst_recovery_estimate", "worst_by_seed", "imbalance_estimate", "max_regression_estimate",
        "pareto_gap_estimate", "forgetting_estimate",
    ]  # fmt: skip
    assert row["curve"][1] == {
        "step": 10,
        "flops": 200.0,
        "scores": {"math": [0.7] * 3, "code": [0.5] * 3, "chat": [0.7] * 3},
    }
    value, low, high = row["behind"]["worst_recovery"]
    assert low < value < high
    assert value == pytest.approx(0.5 - 0.75, abs=0.02)
    assert len(row["parity"]["mean_score"]["ratio_ci"]) == 2
    assert list(run["models"]["student"]["math"].values())[::3] == [0.8, 100]
    assert run["against"] == {
        "math": {"run": "a", "teachers": {"math": 1.0}}, "code": {"run": "a", "teachers": {"code": 1.0}}, "chat": None
    }  # fmt: skip


def tried_runs(tmp_path: Path, scores: dict[float, int]) -> list[Path]:
    """Runs with a learning rate each, whose students score so much on math."""
    return [
        write_hand_run(tmp_path / f"lr{lr:g}", {"student.optimizer.lr": lr}, curve={0: BASE, 20: levels(score, 75, 70)})
        for lr, score in scores.items()
    ]


def test_the_best_of_what_was_tried_is_told_with_the_edge_and_the_noise(tmp_path: Path) -> None:
    folders = tried_runs(tmp_path, {1e-3: 85, 5e-4: 60, 2.5e-4: 55})
    comparison = compare(folders, validation=True)
    (tried,) = comparison.tried
    assert (tried.leaf, tried.values) == ("student.optimizer.lr", [2.5e-4, 5e-4, 1e-3])
    assert tried.rows == ["lr0.00025", "lr0.0005", "lr0.001"]
    assert (tried.best, tried.edge, tried.next) == ("lr0.001", "highest", "lr0.0005")
    assert tried.ahead is not None
    (line,) = [line for line in notes(comparison) if line.startswith("Of `student.optimizer.lr`")]
    assert "0.00025, 0.0005, 0.001 the best is 0.001 (lr0.001), the highest that was tried, so a better one may" in line
    assert f"it is {100 * tried.ahead.value:.1f} points of worst recovery ahead of lr0.0005" in line
    assert ("which chance may explain" in line) == (tried.ahead.low <= 0)
    assert not any(line.startswith("Of `student") for line in notes(compare(folders))), (
        "on test questions none is chosen"
    )


def test_inside_of_the_grid_and_beside_other_changes_nothing_is_said_of_an_edge(tmp_path: Path) -> None:
    folders = tried_runs(tmp_path, {1e-3: 55, 5e-4: 85, 2.5e-4: 60})
    other = {"student.optimizer.lr": 2e-3, "run.steps": 40}
    folders.append(write_hand_run(tmp_path / "other", other, curve={0: BASE, 20: levels(89, 79, 70)}))
    (tried,) = compare(folders, validation=True).tried
    assert (tried.best, tried.edge) == ("lr0.0005", None)
    assert len(tried.rows) == 3, "a row that differs in more than one leaf was not tried beside them"
