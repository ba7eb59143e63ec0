"""seesaw.json and its intervals, against tables worked out by hand and naive loops."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from results_kit import right, rows_of
from scipy import stats

from mopd.distill.metrics.against_teachers import AGAINST_TEACHERS, ESTIMATES, METRICS, Table, metrics, metrics_ci
from mopd.distill.metrics.episodes import measured_episodes
from mopd.distill.metrics.evaluate import Evaluation, health, interval
from mopd.distill.metrics.results import build_seesaw, group, headrooms
from mopd.distill.verdicts import EpisodeRecord

TEACHERS = {"math": {"math": 1.0}, "code": {"code": 1.0}, "chat": {}}
FINGERPRINTS = {"math": "aa", "code": "bb", "chat": "cc"}


def a_run() -> list[Evaluation]:
    rows = rows_of("base", {"math": right(50), "code": right(60), "chat": right(70)})
    rows += rows_of("teachers/math", {"math": right(90), "code": right(20), "chat": right(65)})
    rows += rows_of("teachers/code", {"math": right(30), "code": right(80), "chat": right(70)})
    for step, (math_, code) in enumerate([(50, 60), (70, 50), (80, 75)]):
        given = {"math": right(math_), "code": right(code), "chat": right(70)}
        rows += rows_of("student", given, step=step * 10, split="validation")
    return rows + rows_of("student", {"math": right(80), "code": right(75), "chat": right(64)}, step=20)


def test_seesaw_json_of_a_run_worked_out_by_hand() -> None:
    found = build_seesaw(a_run(), teachers=TEACHERS, fingerprints=FINGERPRINTS)
    assert (found["format"], found["statistics"]) == (1, 2)
    assert found["domains"] == ["math", "code", "chat"]
    assert found["tasks"] == {
        "math": {"fingerprint": "aa"},
        "code": {"fingerprint": "bb"},
        "chat": {"fingerprint": "cc"},
    }
    assert list(found["models"]) == ["base", "teachers/math", "teachers/code", "student"]
    assert found["models"]["student"]["math"] == {
        "score": 0.8,
        "low": pytest.approx(0.7112, abs=1e-4),
        "high": pytest.approx(0.8666, abs=1e-4),
        "n": 100,
    }
    assert found["curve"] == [
        {"step": 0, "scores": {"math": 0.5, "code": 0.6, "chat": 0.7}},
        {"step": 10, "scores": {"math": 0.7, "code": 0.5, "chat": 0.7}},
        {"step": 20, "scores": {"math": 0.8, "code": 0.75, "chat": 0.7}},
    ]
    measured = found["metrics"]
    # 30/40 and 15/20; chat has no teacher.
    assert measured["recovery"] == {"math": pytest.approx(0.75), "code": pytest.approx(0.75), "chat": None}
    assert measured["points"] == {"math": pytest.approx(0.3), "code": pytest.approx(0.15), "chat": pytest.approx(-0.06)}
    assert measured["mean_recovery"] == pytest.approx(0.75)
    assert measured["worst_recovery"] == pytest.approx(0.75)
    assert measured["imbalance"] == pytest.approx(0.0)
    assert measured["pareto_gap"] == pytest.approx(0.25)
    assert measured["max_regression"] == pytest.approx(0.06)
    assert measured["forgetting"] == {"math": 0.0, "code": 0.0, "chat": 0.0}
    # Steps 0-10: +20 in math counts (SE of the difference 6.8), -10 in code doesn't (7.0).
    assert measured["seesaw_share"] == 0.0
    assert measured["seesaw_correlation"] is None
    # 40/40, -40/20; -20/40, 20/20.
    assert measured["teacher_transfer"] == {
        "math": {"math": pytest.approx(1.0), "code": pytest.approx(-2.0), "chat": None},
        "code": {"math": pytest.approx(-0.5), "code": pytest.approx(1.0), "chat": None},
    }
    assert measured["pooled_recovery"] == pytest.approx(45 / 60)
    low, high = found["metrics_ci"]["worst_recovery"]
    assert low < 0.75 <= high
    assert found["metrics_ci"]["imbalance"][0] == 0.0, "equality is not rejected"
    assert found["verdict"] == {"seesaw": "unknown", "bar": 0.75, "questions": 100, "needed": 2000}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_an_unfinished_run_has_what_is_there_and_null_for_the_rest() -> None:
    rows = [row for row in a_run() if row.model != "student" or row.step == 0]
    found = build_seesaw(rows, teachers=TEACHERS, fingerprints=FINGERPRINTS)
    assert list(found["models"]) == ["base", "teachers/math", "teachers/code"]
    assert len(found["curve"]) == 1
    assert set(found["metrics"]) == set(build_seesaw(a_run(), teachers=TEACHERS, fingerprints=FINGERPRINTS)["metrics"])
    assert set(found["metrics"].values()) == {None}
    assert {name for name, value in found["metrics_ci"].items() if value is not None} == {"teacher_points"}
    nothing = build_seesaw([], teachers=TEACHERS, fingerprints=FINGERPRINTS)
    assert nothing["models"] == {}
    assert nothing["curve"] == []


def test_a_teachers_change_has_the_interval_that_a_student_would_have_and_about_that_of_a_paired_t_test() -> None:
    rng = random.Random(0)
    drawn = {
        m: {d: [float(rng.random() < p) for _ in range(200)] for d in TEACHERS} for m, p in (("b", 0.4), ("t", 0.7))
    }
    rows = rows_of("base", drawn["b"]) + rows_of("teachers/math", drawn["t"])
    changes = build_seesaw(rows, teachers=TEACHERS, fingerprints=FINGERPRINTS)["metrics_ci"]["teacher_points"]
    assert list(changes) == ["math"]
    alone = rows_of("base", drawn["b"]) + rows_of("student", drawn["t"])
    untaught: dict[str, dict[str, float]] = {domain: {} for domain in TEACHERS}
    student = build_seesaw(alone, teachers=untaught, fingerprints=FINGERPRINTS)["metrics_ci"]["points"]
    for domain in TEACHERS:
        assert changes["math"][domain] == pytest.approx(student[domain], abs=1e-9)
        paired = stats.ttest_rel(drawn["t"][domain], drawn["b"][domain]).confidence_interval(0.95)
        assert changes["math"][domain] == pytest.approx([paired.low, paired.high], abs=0.005)
    # Of a teacher that was not asked about every domain, what it was asked.
    fewer = [row for row in rows if (row.model, row.domain) != ("teachers/math", "chat")]
    asked = build_seesaw(fewer, teachers=TEACHERS, fingerprints=FINGERPRINTS)["metrics_ci"]["teacher_points"]
    assert asked["math"] == {d: ends for d, ends in changes["math"].items() if d != "chat"}


def test_a_missing_teacher_leaves_its_domain_undefined() -> None:
    rows = [row for row in a_run() if row.model != "teachers/code"]
    measured = build_seesaw(rows, teachers=TEACHERS, fingerprints=FINGERPRINTS)["metrics"]
    assert measured["recovery"] == {"math": pytest.approx(0.75), "code": None, "chat": None}


def test_several_teachers_count_by_their_weights() -> None:
    weights = {"math": {"math": 0.75, "code": 0.25}, "code": {"code": 1.0}, "chat": {}}
    measured = build_seesaw(a_run(), teachers=weights, fingerprints=FINGERPRINTS)["metrics"]
    # 0.75 * 0.9 + 0.25 * 0.3 = 0.75 is the teachers' level: 30 points of 25.
    assert measured["recovery"]["math"] == pytest.approx(1.2)


def test_models_with_other_questions_are_not_compared() -> None:
    rows = [row for row in a_run() if (row.model, row.prompt_id) != ("teachers/math", "math/test/3")]
    with pytest.raises(ValueError, match="'teachers/math' answered 99 test questions of domain 'math'"):
        build_seesaw(rows, teachers=TEACHERS, fingerprints=FINGERPRINTS)


def test_a_repeated_evaluation_counts_once_and_the_last_step_is_final() -> None:
    once = a_run()
    assert group(once + once[:40]) == group(once)
    early = rows_of("student", {"math": right(1), "code": right(1), "chat": right(1)}, step=10)
    found = build_seesaw(once + early, teachers=TEACHERS, fingerprints=FINGERPRINTS)
    assert found == build_seesaw(once, teachers=TEACHERS, fingerprints=FINGERPRINTS)


def a_table(seed: int, questions: int = 60) -> Table:
    rng = np.random.default_rng(seed)
    level = np.array([0.3, 0.9, 0.7])[:, None]
    return Table({d: (rng.random((3, questions)) < level).astype(float) for d in ("math", "code")})


def test_the_worst_domain_is_not_resampled() -> None:
    """A bootstrap of the minimum, written with loops, ends below the truth; the interval here holds it."""
    table, rng = a_table(0), random.Random(1)
    worst: list[float] = []
    for _ in range(2000):
        recoveries = []
        for answers in table.answers.values():
            drawn = [rng.randrange(answers.shape[1]) for _ in range(answers.shape[1])]
            base, teacher, student = (sum(row[q] for q in drawn) / len(drawn) for row in answers)
            recoveries.append((student - base) / (teacher - base))
        worst.append(min(recoveries))
    low, high = metrics_ci(table)["worst_recovery"]
    assert high > np.percentile(worst, 97.5) + 0.02
    assert low == pytest.approx(np.percentile(worst, 2.5), abs=0.08)


def test_intervals_are_paired_and_always_the_same() -> None:
    table = a_table(0)
    assert metrics_ci(table) == metrics_ci(table)
    # A student that answers exactly as the base does: what 60 questions say of all others.
    same = Table({d: a[[0, 1, 0]] for d, a in table.answers.items()})
    for low, high in metrics_ci(same)["points"].values():
        assert -3 / 60 < low < 0 < high < 3 / 60


def test_the_interval_of_a_difference_is_the_paired_one() -> None:
    table = a_table(3, questions=1000)
    found = metrics_ci(table)["points"]
    for domain, answers in table.answers.items():
        difference = answers[2] - answers[0]
        half = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
        low, high = found[domain]
        assert (high - low) / 2 == pytest.approx(half, rel=0.01)
        assert (high + low) / 2 == pytest.approx(difference.mean(), abs=1e-9)


def test_every_metric_has_an_interval_around_it() -> None:
    table = a_table(0)
    found, intervals = metrics(table), metrics_ci(table)
    assert (tuple(found), tuple(intervals)) == (METRICS, AGAINST_TEACHERS)
    assert set(found) == {name for name in intervals if name != "points_at_once"} | set(ESTIMATES)
    for name in ("mean_recovery", "pooled_recovery", *ESTIMATES):
        low, high = intervals[name.removesuffix("_estimate")]
        assert low <= found[name] <= high
    for domain, (low, high) in intervals["points"].items():
        assert intervals["points_at_once"][domain][0] < low < found["points"][domain] < high
    with pytest.raises(ValueError, match="questions"):
        Table({"math": np.zeros((3, 0))})


def test_sampled_scores_and_unjudged_answers_stand_beside_the_greedy_scores() -> None:
    earlier = [replace(row, sampled=0.0) for row in rows_of("student", {"math": [0.0, 0.0]}, step=1)]
    student = rows_of("student", {"math": [1.0, 0.0]}, step=2)
    student = [replace(student[0], sampled=0.75), replace(student[1], sampled=0.25, unjudged="refused", reason="os")]
    base = rows_of("base", {"math": [0.0, 0.0]})
    base[1] = replace(base[1], unjudged="no_answer", reason="cut")
    rows = [Evaluation(**row.record()) for row in [*base, *earlier, *student]]
    seesaw = build_seesaw(rows, teachers={"math": {}}, fingerprints={"math": "f"})
    assert seesaw["sampled"] == {"student": {"math": asdict(interval([0.75, 0.25]))}}
    assert seesaw["models"]["student"]["math"]["score"] == 0.5
    assert seesaw["unjudged"] == {
        "base": {"math": {"no_answer": 1, "refused": 0, "first_reason": "cut"}},
        "student": {"math": {"no_answer": 0, "refused": 1, "first_reason": "os"}},
    }
    assert health(student)["sampled_score/math"] == 0.5
    assert health(student)["refused/math"] == 1.0
    assert not {"sampled_score/math", "no_answer/math"} & health(rows_of("base", {"math": [1.0]})).keys()


def test_headroom_is_what_teachers_are_above_the_base_on_validation_prompts() -> None:
    validation = [
        *rows_of("base", {"math": right(50), "code": right(60), "chat": right(70)}, split="validation"),
        *rows_of("teachers/math", {"math": right(90), "code": right(20), "chat": right(65)}, split="validation"),
        *rows_of("teachers/code", {"math": right(30), "code": right(55), "chat": right(70)}, split="validation"),
    ]
    rows = group([*validation, *a_run()])
    found = headrooms(rows, TEACHERS)
    assert found == {"math": pytest.approx(0.4), "code": pytest.approx(-0.05)}, "chat has no teacher"
    both = {"math": {"math": 0.75, "code": 0.25}}
    assert headrooms(rows, both) == {"math": pytest.approx(0.75 * 0.9 + 0.25 * 0.3 - 0.5)}
    assert headrooms(rows, {"math": {"math": 0.5, "served": 0.5}}) == {}, "measured on nothing"
    assert headrooms(group(a_run()), TEACHERS) == {}, "test prompts do not count"


def test_how_episodes_went_stands_beside_the_scores() -> None:
    record = EpisodeRecord(1.0, "done", turns=3, tool_calls=2, failed_first=True)
    earlier = [replace(row, episode=replace(record, turns=9)) for row in rows_of("student", {"code": [0.0]}, step=1)]
    student = [replace(row, episode=record) for row in rows_of("student", {"code": [1.0]}, step=2)]
    rows = [Evaluation(**row.record()) for row in [*rows_of("base", {"code": [0.0]}), *earlier, *student]]
    seesaw = build_seesaw(rows, teachers={"code": {}}, fingerprints={"code": "f"})
    assert seesaw["episodes"] == {"student": {"code": asdict(measured_episodes([record]))}}
