"""When training ends because no domain learns any more: hand-made evaluations."""

from __future__ import annotations

from typing import Any

from mopd.distill.metrics.stop_rule import RunLength, affordable, learning, settled_at, training_flops
from mopd.distill.recipe import PlateauRecipe

RULE = PlateauRecipe(evaluations=2, points=1.0, behind=3.0, fall=0.1)


def rows(scores: dict[str, list[float]], gaps: dict[str, list[float | None]] | None = None) -> list[dict[str, Any]]:
    """Evaluations 20 steps apart, from step 0."""
    n = len(next(iter(scores.values())))
    return [
        {"step": 20 * i}
        | {f"score/{domain}": values[i] for domain, values in scores.items()}
        | {f"held_out_kl/{domain}": values[i] for domain, values in (gaps or {}).items()}
        for i in range(n)
    ]


def test_it_is_settled_once_no_score_has_risen_for_as_many_evaluations() -> None:
    curve = [0.2, 0.5, 0.7, 0.705, 0.69, 0.9]
    assert settled_at(RULE, rows({"math": curve[:4]}), ["math"]) is None, "0.7 is among the last two"
    assert settled_at(RULE, rows({"math": curve}), ["math"]) == 80
    assert settled_at(RULE, rows({"math": [0.2, 0.5, 0.7, 0.72, 0.9, 0.9, 0.9]}), ["math"]) == 120
    assert settled_at(RULE, rows({"math": [0.5, 0.5]}), ["math"]) is None, "too few to tell"
    assert settled_at(RULE, rows({"math": [0.5, 0.4, 0.3]}), ["math"]) == 40, "what falls does not learn"


def test_the_last_domain_that_rises_decides() -> None:
    scores = {"math": [0.9] * 7, "code": [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5]}
    assert settled_at(RULE, rows(scores), ["math", "code"]) == 120
    assert settled_at(RULE, rows(scores), ["math"]) == 40, "of trained domains alone"


def test_a_gap_far_above_the_others_that_falls_goes_on_and_one_that_stays_does_not() -> None:
    scores = {"math": [0.9] * 5, "code": [0.5] * 5, "reasoning": [0.9] * 5}
    near: list[float | None] = [0.01] * 5
    falling: dict[str, list[float | None]] = {"math": near, "code": [0.2, 0.15, 0.12, 0.1, 0.08], "reasoning": near}
    assert settled_at(RULE, rows(scores, falling), list(scores)) is None
    found = learning(RULE, rows(scores, falling), list(scores))
    assert list(found) == ["code"]
    assert "is 0.09 nats a token, others' 0.01" in found["code"]
    level: dict[str, list[float | None]] = {**falling, "code": [0.1] * 5}
    assert settled_at(RULE, rows(scores, level), list(scores)) == 40
    close: dict[str, list[float | None]] = {**falling, "code": [0.05, 0.04, 0.03, 0.025, 0.02]}
    assert settled_at(RULE, rows(scores, close), list(scores)) == 60, "at most three times the others'"
    unknown: dict[str, list[float | None]] = {**falling, "code": [None] * 5}
    assert settled_at(RULE, rows(scores, unknown), list(scores)) == 40
    assert settled_at(RULE, rows({"code": [0.5] * 5}, {"code": falling["code"]}), ["code"]) == 40, "no others"


def test_a_ceiling_ends_it_once_any_domain_has_it() -> None:
    rule = PlateauRecipe(evaluations=2, points=1.0, ceiling=75)
    scores = {"math": [0.1, 0.2, 0.3, 0.4], "code": [0.2, 0.5, 0.75, 0.9]}
    assert settled_at(rule, rows(scores), ["math", "code"]) == 40
    assert settled_at(rule, rows(scores), ["math"]) is None, "of trained domains alone"
    assert settled_at(rule, rows({"math": [0.1, 0.2, 0.2, 0.2]}), ["math"]) == 60, "a plateau still ends it"
    assert settled_at(rule, rows({"math": [0.8, 0.1]}), ["math"]) is None, "what it begins with does not count"
    length = RunLength(300, rule, domains=["math", "code"], decay=15)
    length.see(rows(scores))
    assert length.steps == 55


def test_the_run_goes_on_for_its_decay_and_never_beyond_its_steps() -> None:
    evaluations = rows({"math": [0.2, 0.5, 0.5, 0.5]})
    length = RunLength(300, RULE, domains=["math"], decay=15)
    length.see(evaluations[:3])
    assert length.steps == 300
    length.see(evaluations)
    assert length.steps == 75
    length.see(rows({"math": [0.2, 0.5, 0.5, 0.5, 0.9, 0.95]}))
    assert length.steps == 75, "it was told once"
    short = RunLength(70, RULE, domains=["math"], decay=15)
    short.see(evaluations)
    assert short.steps == 70
    fixed = RunLength(300, None, domains=["math"], decay=15)
    fixed.see(evaluations)
    assert fixed.steps == 300


def test_a_budget_ends_with_the_step_that_reaches_it_and_is_guessed_from_the_last_ones() -> None:
    assert affordable([], 100.0, most=50) == 50, "nothing is known yet"
    assert affordable([10.0], 100.0, most=50) == 10
    assert affordable([10.0] * 3, 95.0, most=50) == 10, "the step that reaches it is taken"
    assert affordable([10.0] * 9, 90.0, most=50) == 9
    assert affordable([10.0] * 12, 90.0, most=50) == 9, "whatever came after"
    assert affordable([10.0], 1e9, most=50) == 50
    assert affordable([0.0, 0.0], 100.0, most=50) == 50
    assert affordable([30.0] * 10 + [10.0] * 20, 600.0, most=500) == 40, "the last twenty cost 10 each"


def row_of(flops: float) -> dict[str, float | None]:
    return {"flops/update": flops, "flops/teacher/math": 1.0, "flops/generation": None, "flops/evaluation": 1e9}


def test_what_a_run_spends_ends_it_and_a_resumed_one_comes_to_the_same() -> None:
    assert training_flops(row_of(4.0)) == 5.0
    length, seen = RunLength(300, None, domains=["math"], decay=0, flops=52.0), []
    for step in range(1, 12):
        length.spend(step, row_of(4.0 if step < 6 else 2.0))
        seen.append(length.steps)
    assert seen[:5] == [11] * 5
    assert seen[-1] == 14  # 25 + 27 / 3
    resumed = RunLength(300, None, domains=["math"], decay=0, flops=52.0)
    for step in (1, 2, 3, 4, 5, 6, 7, 8):
        resumed.spend(step, row_of(9.0))
    for step in range(1, 12):
        resumed.spend(step, row_of(4.0 if step < 6 else 2.0))
    assert resumed.steps == length.steps, "steps that are taken again count once"


def test_a_plateau_or_a_budget_whichever_comes_first() -> None:
    length = RunLength(300, RULE, domains=["math"], decay=15, flops=300.0)
    length.see(rows({"math": [0.2, 0.5, 0.5, 0.5]}))
    assert length.steps == 75
    length.spend(1, row_of(9.0))
    assert length.steps == 30
