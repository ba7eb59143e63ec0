"""Which step is a run's result: worked out by hand, through checkpoints that are spared, and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from results_kit import right, rows_of
from student_kit import ProcessRanks, furthest, make_batch, make_model, make_spec

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.metrics.results import build_seesaw, group
from mopd.distill.metrics.selection import Selected, select_step
from mopd.distill.student.driver import DeepSpeedStudent
from mopd.distill.types import RunError
from mopd.recipes.report.records import SeesawRecord, read_seesaw
from mopd.recipes.report.wording import judge

TEACHERS = {"math": {"math": 1.0}, "code": {"code": 1.0}}


def run_of(*curve: tuple[int, int], math: int = 90, code: int = 80) -> list[Evaluation]:
    """Base 50 and 60, the teachers' own domains as given, the student's scores at steps 0, 10, 20, ..."""
    rows = rows_of("base", {"math": right(50), "code": right(60)}, split="validation")
    rows += rows_of("teachers/math", {"math": right(math), "code": right(20)}, split="validation")
    rows += rows_of("teachers/code", {"math": right(30), "code": right(code)}, split="validation")
    for i, (a, b) in enumerate(curve):
        rows += rows_of("student", {"math": right(a), "code": right(b)}, step=10 * i, split="validation")
    return rows


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        # Recoveries (0.5, 0.5), (1.0, 0.25), (0.75, 0.75), (0.8, 0.7).
        ([(50, 60), (70, 70), (90, 65), (80, 75), (82, 74)], Selected(30, "worst_recovery", pytest.approx(0.75))),
        # The mean is best at step 10, the best single domain too; the worst domain is not.
        ([(50, 60), (90, 62), (60, 65)], Selected(20, "worst_recovery", pytest.approx(0.25))),
        # Of equal ones the later.
        ([(50, 60), (70, 70), (70, 75)], Selected(20, "worst_recovery", pytest.approx(0.5))),
        # The base is no candidate, however much was lost since.
        ([(50, 60), (40, 60), (30, 60)], Selected(10, "worst_recovery", pytest.approx(-0.25))),
        ([(50, 60)], None),
        ([], None),
    ],
)
def test_the_best_worst_domain_is_selected(curve: list[tuple[int, int]], expected: Selected | None) -> None:
    chosen = select_step(group(run_of(*curve)), TEACHERS)
    assert judged(chosen) == expected


def judged(chosen: Selected | None) -> Selected | None:
    """Without what it was chosen by, and how sure that is."""
    return None if chosen is None else Selected(chosen.step, chosen.by, chosen.value)


def test_a_domain_without_headroom_has_no_say_while_another_has_and_points_decide_where_none_has() -> None:
    curve = [(50, 60), (70, 30), (60, 61), (55, 66)]
    chosen = select_step(group(run_of(*curve, code=61)), TEACHERS)
    assert judged(chosen) == Selected(10, "worst_recovery", pytest.approx(0.5))
    by_points = Selected(30, "worst_points", pytest.approx(0.05))
    assert judged(select_step(group(run_of(*curve, math=51, code=61)), TEACHERS)) == by_points
    assert judged(select_step(group(run_of(*curve)), {"math": {}, "code": {}})) == by_points, "nobody teaches"


def test_a_lucky_noisy_domain_does_not_decide() -> None:
    """Of two equal minima the surer: code, of little headroom, is at 85% at step 10 and at 100% at step 20."""
    curve = [(50, 60), (84, 77), (84, 80)]
    chosen = select_step(group(run_of(*curve)), TEACHERS)
    assert chosen is not None
    assert (chosen.step, chosen.among, chosen.as_good) == (20, 2, 1)
    assert chosen.bound is not None
    assert chosen.value is not None
    assert chosen.bound < chosen.value
    assert chosen.needed is not None
    assert chosen.needed > 100, "a hundred questions do not tell these two"


def test_a_step_that_is_ahead_beyond_chance_has_no_other_as_good() -> None:
    chosen = select_step(group(run_of((50, 60), (55, 62), (88, 79), (60, 61))), TEACHERS)
    assert chosen is not None
    assert (chosen.step, chosen.among, chosen.as_good) == (20, 3, 0)


def test_test_answers_have_no_say() -> None:
    rows = run_of((50, 60), (70, 70), (60, 65))
    rows += rows_of("student", {"math": right(100), "code": right(100)}, step=20)
    chosen = select_step(group(rows), TEACHERS)
    assert chosen is not None
    assert chosen.step == 10


def test_the_checkpoint_of_the_best_step_outlives_the_newest_and_comes_back_bitwise(
    models: Path, tmp_path: Path, one: ProcessRanks
) -> None:
    spec = make_spec(make_model(models, "llama"), tmp_path, keep_checkpoints=2)
    best: list[int] = []
    settings: dict[str, Any] = {"shares": dict.fromkeys(spec.domains, 1.0), "steps": lambda: 10, "updates_per_step": 1}
    learner = DeepSpeedStudent(one.start(spec), spec, **settings, share_rule="explicit", keep_steps=lambda: best)
    weights = {}
    for step in range(1, 6):
        learner.update(make_batch(seed=step), step=step - 1)
        weights[step] = dict(learner.weights().state_dict())
        best[:] = [min(step, 2)]
        learner.save(step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004", "step-000005"]
    learner.load(2)
    assert furthest(dict(learner.weights().state_dict()), weights[2]) == 0.0
    assert furthest(weights[2], weights[5]) > 0
    assert learner.load_latest() == 5, "a resumed run goes on from the newest, not from the best"
    assert furthest(dict(learner.weights().state_dict()), weights[5]) == 0.0
    with pytest.raises(RunError, match=r"of step 1 in .*, which `evaluate.select` chose, is not there"):
        learner.load(1)


def test_the_report_says_which_step_it_is() -> None:
    rows = run_of((50, 60), (80, 75), (70, 70))
    rows += rows_of("base", {"math": right(50), "code": right(60)})
    for name, given in {"math": (90, 20), "code": (30, 80)}.items():
        rows += rows_of(f"teachers/{name}", {"math": right(given[0]), "code": right(given[1])})
    rows += rows_of("student", {"math": right(81), "code": right(76)}, step=10)
    final = build_seesaw(rows, teachers=TEACHERS, fingerprints={"math": "a", "code": "b"})
    assert final["metrics"]["worst_recovery"] == pytest.approx((81 - 50) / 40)

    def record(step: int, by: str, value: float | None) -> SeesawRecord:
        return read_seesaw({**final, "selected": {"step": step, "by": by, "value": value}})

    chosen = record(10, "worst_recovery", 0.75)
    text = " ".join(judge(chosen, finished=True, step=20, steps=20).sentences)
    assert "The student is that of step 10 of 20, whose worst domain’s recovery was the best on validation" in text
    of_a_merge = judge(chosen, finished=True, step=10, steps=200, selects=False)
    assert not any("is that of step" in sentence for sentence in of_a_merge.sentences)
    assert "step" not in " ".join(judge(record(20, "last", None), finished=True, step=20, steps=20).sentences)
