"""The verdict in words, for every way in which a run can come out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mopd.recipes.report.records import Ends, read_seesaw
from mopd.recipes.report.wording import RunVerdict, between, judge, listed, percent, points

UNKNOWN = "Not known whether the seesaw is gone: the worst domain keeps {} of its teacher’s gain"


def scored(score: float) -> dict[str, Any]:
    return {"score": score, "low": score - 0.03, "high": score + 0.03, "n": 1000}


def outcome(**more: Any) -> dict[str, Any]:
    """A seesaw.json of two domains that went well; ``metrics`` and ``metrics_ci`` are updated by what is given."""
    score = {"base": (0.5, 0.6), "teachers/math": (0.9, 0.2), "teachers/code": (0.45, 0.9), "student": (0.86, 0.84)}
    metrics: dict[str, Any] = {
        "points": {"math": 0.36, "code": 0.24},
        "recovery": {"math": 0.9, "code": 0.8},
        "mean_recovery": 0.85,
        "pooled_recovery": 0.86,
        "worst_recovery": 0.8,
        "worst_recovery_estimate": 0.82,
        "max_regression": 0.0,
        "max_regression_estimate": 0.0,
        "seesaw_share": 0.02,
        "seesaw_correlation_p": 0.6,
    }
    intervals: dict[str, Any] = {
        "points": {"math": [0.3, 0.4], "code": [0.2, 0.28]},
        "recovery": {"math": [0.8, 0.95], "code": [0.7, 0.9]},
        "mean_recovery": [0.8, 0.9],
        "pooled_recovery": [0.81, 0.91],
        "worst_recovery": [0.768, 0.88],
        "max_regression": [0.0, 0.0],
    }
    return {
        "statistics": 2,
        "domains": ["math", "code"],
        "teachers": {"math": {"math": 1.0}, "code": {"code": 1.0}},
        "models": {m: {"math": scored(a), "code": scored(b)} for m, (a, b) in score.items()},
        "curve": [],
        "metrics": metrics | more.get("metrics", {}),
        "metrics_ci": intervals | more.get("metrics_ci", {}),
        **{key: value for key, value in more.items() if key not in ("metrics", "metrics_ci")},
    }


def verdict(seesaw: dict[str, Any], **more: Any) -> RunVerdict:
    return judge(read_seesaw(seesaw), **{"finished": True, "step": 200, "steps": 200, **more})


def test_a_good_run() -> None:
    judged = verdict(outcome())
    assert judged.tone == "good"
    assert judged.headline == "The seesaw is gone: one student keeps at least 76% of every specialist’s gain"
    assert list(judged.sentences) == [
        "Each specialist gains 30.0 to 40.0 points on its own domain; "
        "the worst harm to another is the math teacher’s, −40.0 points on code.",
        "The student recovers 85% of its teachers’ gains on average (95% interval 80–90%), 86% of their sum (81–91%), "
        "and 82% in the worst domain (77–88%); lowest is code.",
        "It falls below the base on no domain.",
        "Over training, 2% of the movement beyond noise was traded between domains.",
    ]
    assert [(tile.value, tile.interval) for tile in judged.tiles] == [
        ("82%", "77–88%"), ("85%", "80–90%"), ("0.0", "0.0–0.0"), ("2%", "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "tone", "headline"),
    [
        ([0.75, 0.9], "good", "The seesaw is gone: one student keeps at least 75% of every specialist’s gain"),
        # The estimate is 82% in each of them.
        ([0.749, 0.9], "mixed", UNKNOWN.format("75–90%")),
        ([0.60, 0.76], "mixed", UNKNOWN.format("60–76%")),
        ([-0.30, 0.80], "mixed", UNKNOWN.format("−30 to 80%")),
        ([0.60, 0.749], "bad", "The seesaw remains: the worst domain keeps at most 75% of its teacher’s gain"),
        ([0.2, 0.412], "bad", "The seesaw remains: the worst domain keeps at most 42% of its teacher’s gain"),
    ],
)
def test_the_ends_of_the_interval_decide_and_the_estimate_does_not(ends: list[float], tone: str, headline: str) -> None:
    judged = verdict(outcome(metrics_ci={"worst_recovery": ends}))
    assert (judged.tone, judged.headline) == (tone, headline)


def test_a_few_questions_get_an_honest_sentence() -> None:
    few = {"seesaw": "unknown", "bar": 0.75, "questions": 30, "needed": 1300}
    judged = verdict(outcome(metrics_ci={"worst_recovery": [0.21, 1.4]}, verdict=few))
    assert judged.headline == (
        "Not known from 30 questions a domain whether the seesaw is gone: the worst domain keeps 21–140% of its "
        "teacher’s gain; about 1,300 would tell whether it is 75%"
    )
    enough = verdict(outcome(metrics_ci={"worst_recovery": [0.7, 0.8]}, verdict=few | {"needed": 25}))
    assert enough.headline.endswith("keeps 70–80% of its teacher’s gain, which is too near to the bar of 75%")
    undefined = {"metrics": {"worst_recovery": None}, "metrics_ci": {"worst_recovery": None}, "verdict": few}
    assert verdict(outcome(**undefined)).headline == (
        "No recovery to report: from 30 questions a domain, no teacher is clearly better than the base; about 1,300 "
        "would show a gain of ten points"
    )


def test_a_domain_below_the_base_beyond_chance_is_a_seesaw_whatever_the_mean() -> None:
    fell = {"points": {"math": 0.4, "code": -0.066}, "max_regression": 0.066}
    beyond = {"math": [0.3, 0.5], "code": [-0.1, -0.02]}
    judged = verdict(outcome(metrics=fell, metrics_ci={"points_at_once": beyond}))
    assert (judged.tone, judged.headline) == (
        "bad", "The seesaw remains: code is 6.6 points below the model it began from"
    )  # fmt: skip
    assert "It falls below the base on code." in judged.sentences
    # Of several domains one may be below by itself: what counts holds for all of them at once.
    by_chance = {"points": beyond, "points_at_once": {"math": [0.2, 0.6], "code": [-0.12, 0.01]}}
    by_chance = verdict(outcome(metrics=fell, metrics_ci=by_chance))
    assert by_chance.tone == "good"
    assert "It falls below the base on no domain beyond chance; lowest is code by −6.6 points." in by_chance.sentences


def test_trading_on_the_way_is_told_only_where_it_is_significant() -> None:
    traded = {"seesaw_share": 0.4, "seesaw_correlation_p": 0.01}
    assert verdict(outcome(metrics=traded)).tone == "mixed"
    assert "though on the way one domain’s gain was another’s loss" in verdict(outcome(metrics=traded)).headline
    assert verdict(outcome(metrics=traded | {"seesaw_correlation_p": 0.3})).tone == "good"
    assert verdict(outcome(metrics=traded | {"seesaw_correlation_p": None})).tone == "good"


def test_what_could_not_be_measured_is_not_claimed() -> None:
    judged = verdict(outcome(metrics={"recovery": {"math": 0.8, "code": None}, "worst_recovery": 0.8}))
    assert judged.tone == "mixed"
    assert judged.headline.endswith("76% of the gain where there is one to keep; code had too little to measure")


OTHERS = ("domain", "seesaw", "specialists", "average", "traded", "teachers", "Each", "mean", "Mean", "every")


@pytest.mark.parametrize("ends", [[0.8, 0.9], [0.6, 0.9], [0.5, 0.6], None])
@pytest.mark.parametrize("change", [0.36, -0.02, -0.2])
def test_of_a_single_domain_no_sentence_speaks_of_others(ends: list[float] | None, change: float) -> None:
    both = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    recovered = None if ends is None else 0.8
    alone = outcome(
        metrics={"points": {"math": change}, "recovery": {"math": recovered}, "worst_recovery": recovered},
        metrics_ci={
            "points": {"math": [change - 0.1, change + 0.1]}, "points_at_once": {"math": [change - 0.1, change + 0.1]},
            "worst_recovery": ends,
        },
        verdict={"seesaw": "unknown", "bar": 0.75, "questions": 100, "needed": 900},
        selected={
            "step": 20, "by": "worst_recovery", "value": 0.8, "bound": 0.6, "among": 4, "as_good": 2, "needed": 700
        },
        domains=["math"],
        teachers={"math": {"math": 1.0}},
        models={name: {"math": both} for name in ("base", "teachers/math", "student")},
    )  # fmt: skip
    judged = verdict(alone)
    told = " ".join([judged.headline, *judged.sentences, *(f"{tile.label} {tile.meaning}" for tile in judged.tiles)])
    told = told.replace("on its own domain", "")
    assert [word for word in OTHERS if re.search(rf"\b{word}\b", told)] == []


def test_how_far_the_choice_of_the_step_was_noise_is_told() -> None:
    chosen = {
        "step": 60,
        "by": "worst_recovery",
        "value": 0.83,
        "bound": 0.618,
        "among": 10,
        "as_good": 7,
        "needed": 2100,
    }
    sentences = verdict(outcome(selected=chosen)).sentences
    assert sentences[-2:] == [
        "The student is that of step 60 of 200, whose worst domain’s recovery is surest on validation questions: at "
        "least 61%; its scores here are on test questions.",
        "Chance may have put it before 7 of the 9 other steps that were measured; about 2,100 validation questions a "
        "domain would tell ten points apart.",
    ]
    clear = verdict(outcome(selected=chosen | {"as_good": 0})).sentences[-1]
    assert clear == "It is ahead of the 9 other steps that were measured beyond chance."


def test_without_recovery_nothing_is_claimed() -> None:
    undefined = {"recovery": {"math": None, "code": None}, "worst_recovery": None, "mean_recovery": None}
    undefined["worst_recovery_estimate"] = None
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
