"""The verdict in words, for every way in which a run can come out."""

from __future__ import annotations

from typing import Any

import pytest

from mopd.recipes.report.records import Ends, read_seesaw
from mopd.recipes.report.wording import RunVerdict, between, judge, listed, percent, points


def scored(score: float) -> dict[str, Any]:
    return {"score": score, "low": score - 0.03, "high": score + 0.03, "n": 1000}


def outcome(**more: Any) -> dict[str, Any]:
    """A seesaw.json of two domains that went well; ``metrics`` and ``metrics_ci`` are updated by what is given."""
    score = {"base": (0.5, 0.6), "teachers/math": (0.9, 0.2), "teachers/code": (0.45, 0.9), "student": (0.86, 0.84)}
    metrics: dict[str, Any] = {
        "points": {"math": 0.36, "code": 0.24},
        "recovery": {"math": 0.9, "code": 0.8},
        "mean_recovery": 0.85,
        "worst_recovery": 0.8,
        "max_regression": 0.0,
        "seesaw_share": 0.02,
        "seesaw_correlation_p": 0.6,
    }
    intervals: dict[str, Any] = {
        "points": {"math": [0.3, 0.4], "code": [0.2, 0.28]},
        "recovery": {"math": [0.8, 0.95], "code": [0.7, 0.9]},
        "mean_recovery": [0.8, 0.9],
        "worst_recovery": [0.7, 0.88],
        "max_regression": [0.0, 0.0],
    }
    return {
        "domains": ["math", "code"],
        "teachers": {"math": {"math": 1.0}, "code": {"code": 1.0}},
        "models": {m: {"math": scored(a), "code": scored(b)} for m, (a, b) in score.items()},
        "curve": [],
        "metrics": metrics | more.get("metrics", {}),
        "metrics_ci": intervals | more.get("metrics_ci", {}),
    }


def verdict(seesaw: dict[str, Any], **more: Any) -> RunVerdict:
    return judge(read_seesaw(seesaw), **{"finished": True, "step": 200, "steps": 200, **more})


def test_a_good_run() -> None:
    judged = verdict(outcome())
    assert judged.tone == "good"
    assert judged.headline == "The seesaw is gone: one student keeps at least 80% of every specialist’s gain"
    assert list(judged.sentences) == [
        "Each specialist gains 30.0 to 40.0 points on its own domain; "
        "the worst harm to another is the math teacher’s, −40.0 points on code.",
        "The student recovers 85% of its teachers’ gains on average (95% interval 80–90%) "
        "and 80% in the worst domain, code (70–88%).",
        "It falls below the base on no domain.",
        "Over training, 2% of the movement beyond noise was traded between domains.",
    ]
    assert [(tile.value, tile.interval) for tile in judged.tiles] == [
        ("80%", "70–88%"), ("85%", "80–90%"), ("0.0", "0.0–0.0"), ("2%", "")
    ]  # fmt: skip


def test_a_domain_below_the_base_beyond_chance_is_a_seesaw_whatever_the_mean() -> None:
    fell = {"points": {"math": 0.4, "code": -0.066}, "max_regression": 0.066}
    judged = verdict(outcome(metrics=fell, metrics_ci={"points": {"math": [0.3, 0.5], "code": [-0.1, -0.02]}}))
    assert (judged.tone, judged.headline) == (
        "bad", "The seesaw remains: code is 6.6 points below the model it began from"
    )  # fmt: skip
    assert "It falls below the base on code." in judged.sentences
    by_chance = verdict(outcome(metrics=fell, metrics_ci={"points": {"math": [0.3, 0.5], "code": [-0.1, 0.01]}}))
    assert by_chance.tone == "good"
    assert "It falls below the base on no domain beyond chance; lowest is code by −6.6 points." in by_chance.sentences


def test_trading_on_the_way_is_a_seesaw_only_where_it_is_significant() -> None:
    traded = {"seesaw_share": 0.4, "seesaw_correlation_p": 0.01}
    assert verdict(outcome(metrics=traded)).tone == "bad"
    assert "one domain’s gain was another’s loss" in verdict(outcome(metrics=traded)).headline
    assert verdict(outcome(metrics=traded | {"seesaw_correlation_p": 0.3})).tone == "good"
    assert verdict(outcome(metrics=traded | {"seesaw_correlation_p": None})).tone == "good"


@pytest.mark.parametrize(("worst", "level"), [(0.75, "good"), (0.74, "mixed"), (-0.1, "mixed")])
def test_a_weak_worst_domain_is_named(worst: float, level: str) -> None:
    recovery = {"math": worst, "code": 0.9}
    measured = {"recovery": recovery, "worst_recovery": worst, "points": {"math": worst * 0.4, "code": 0.3}}
    judged = verdict(outcome(metrics=measured))
    assert judged.tone == level
    if level == "mixed":
        below = "math is 4.0 points below the model it began from, which chance may explain"
        kept = "No domain falls below the model it began from beyond chance, but math keeps only 74%"
        assert judged.headline.startswith(below if worst < 0 else kept)


def test_what_could_not_be_measured_is_not_claimed() -> None:
    judged = verdict(outcome(metrics={"recovery": {"math": 0.8, "code": None}, "worst_recovery": 0.8}))
    assert judged.tone == "mixed"
    assert judged.headline.endswith("80% of the gain where there is one to keep; code had too little to measure")


def test_without_recovery_nothing_is_claimed() -> None:
    undefined = {"recovery": {"math": None, "code": None}, "worst_recovery": None, "mean_recovery": None}
    judged = verdict(outcome(metrics=undefined, metrics_ci={"worst_recovery": None, "mean_recovery": None}))
    assert judged.tone == "mixed"
    assert judged.headline.startswith("No recovery to report")
    assert [tile.value for tile in judged.tiles][:2] == ["–", "–"]


def test_a_run_under_way_is_not_judged() -> None:
    judged = verdict(outcome(), finished=False, step=40)
    assert (judged.tone, judged.headline) == ("pending", "Under way: step 40 of 200")
    unmeasured = outcome()
    del unmeasured["models"]["student"]
    assert verdict(unmeasured).tone == "pending"


def test_a_specialist_that_gains_nothing_is_not_said_to() -> None:
    final = outcome()
    final["models"]["teachers/math"]["math"]["score"] = 0.48
    assert verdict(final).sentences[0].startswith("Specialists change by −2.0 to +30.0 points on their own domains;")


def test_numbers_as_text() -> None:
    assert [percent(x) for x in (0.814, -0.35, None)] == ["81%", "−35%", "–"]
    assert [points(x) for x in (0.228, -0.066, None)] == ["+22.8", "−6.6", "–"]
    assert [between(x) for x in (Ends(0.74, 0.88), Ends(-0.62, -0.13), None)] == ["74–88%", "−62 to −13%", ""]
    assert [listed(x) for x in (["a"], ["a", "b"], ["a", "b", "c"], [])] == ["a", "a and b", "a, b and c", ""]
