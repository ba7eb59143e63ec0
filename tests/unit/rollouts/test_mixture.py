"""How many prompts of each domain a step takes: a pure function of what the steps before it measured."""

from __future__ import annotations

import random

import pytest

from mopd.rollouts.mixture import MOST, WINDOW, FixedMixture, GapFollowingMixture, share_out

PROMPTS = {"math": 10, "code": 10, "reasoning": 20}


def row(**gaps: float) -> dict[str, float]:
    return {f"kl/{domain}": gap for domain, gap in gaps.items()}


def test_fixed_takes_the_recipes_number_and_none_twice() -> None:
    mixture = FixedMixture(PROMPTS)
    assert mixture.places(0) == {"math": range(10), "code": range(10), "reasoning": range(20)}
    assert mixture.places(3)["reasoning"] == range(60, 80)


def test_shares_by_hand() -> None:
    assert share_out(PROMPTS, []) == PROMPTS
    assert share_out(PROMPTS, [dict.fromkeys(PROMPTS, 0.0)]) == PROMPTS
    assert share_out(PROMPTS, [dict.fromkeys(PROMPTS, 0.3)]) == PROMPTS
    # The mean is 0.2: code has the root of 2, the others, which are nearer, what the recipe says.
    assert share_out(PROMPTS, [{"math": 0.1, "code": 0.4, "reasoning": 0.1}]) == PROMPTS | {"code": 14}
    assert share_out(PROMPTS, [{"math": 0.0, "code": 1.0, "reasoning": 0.0}]) == PROMPTS | {"code": 17}
    five = dict.fromkeys("abcde", 10)
    assert share_out(five, [dict.fromkeys(five, 0.0) | {"e": 5.0}])["e"] == 20  # the root of 5 is above the bound


def test_never_fewer_than_the_recipe_says_and_at_most_twice_as_many() -> None:
    draw = random.Random(0)
    for _ in range(300):
        prompts = {f"d{i}": draw.randint(1, 9) for i in range(draw.randint(2, 6))}
        gaps = [{domain: draw.expovariate(1) ** 4 for domain in prompts} for _ in range(draw.randint(0, 5))]
        shared = share_out(prompts, gaps)
        assert all(n <= shared[domain] <= MOST * n for domain, n in prompts.items())


def test_a_step_follows_the_gaps_of_the_window_that_was_finished_one_step_before() -> None:
    mixture = GapFollowingMixture(PROMPTS)
    for step in range(30):
        far = "math" if step < 15 else "code"
        counts = {domain: len(places) for domain, places in mixture.places(step).items()}
        if step < 2:
            assert counts == PROMPTS
        elif step < 17:
            assert counts["math"] > 10 == counts["code"]
        elif step >= 16 + WINDOW:
            assert counts["code"] > 10 == counts["math"]
        mixture.see(row(**{domain: 1.0 if domain == far else 0.1 for domain in PROMPTS}))


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_no_prompt_is_left_out_or_taken_twice_and_a_resumed_run_takes_the_same(lag: int) -> None:
    draw = random.Random(1)
    rows = [row(**{domain: draw.random() for domain in PROMPTS} | {"math": step / 10}) for step in range(40)]
    straight, taken = GapFollowingMixture(PROMPTS, lag=lag), []
    for measured in rows:
        straight.places(len(taken) + lag + 1)  # those that are drawn while this step is under way
        taken.append(straight.places(len(taken)))
        straight.see(measured)
    for domain in PROMPTS:
        numbers = [number for step in taken for number in step[domain]]
        assert numbers == list(range(len(numbers)))
    assert len({len(step["math"]) for step in taken}) > 3, "else nothing moved"
    resumed = GapFollowingMixture(PROMPTS, lag=lag)
    resumed.resume(rows[:25])
    assert [resumed.places(step) for step in (25, 26)] == taken[25:27]


@pytest.mark.parametrize("lost", [None, float("-inf"), -0.2])
def test_a_gap_that_is_no_number_or_negative_by_chance_counts_as_none(lost: float | None) -> None:
    mixture = GapFollowingMixture(PROMPTS)
    for _ in range(3):
        mixture.see({**row(math=0.2, reasoning=0.2), "kl/code": lost})  # type: ignore[dict-item]
    # The mean is 2/3 of 0.2.
    assert {domain: len(places) for domain, places in mixture.places(3).items()} == {
        "math": 12,
        "code": 10,
        "reasoning": 24,
    }
