"""The prompts of a step depend on nothing but the step, whoever draws them and in whatever order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mopd.distill.types import Prompt
from mopd.rollouts.engines.generate import keyed_uniforms
from mopd.rollouts.mixture import FixedMixture
from mopd.rollouts.prompts import Prefetched, PromptSource, Supply, easy_coin
from mopd.rollouts.tasks import TASKS
from mopd.rollouts.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def source() -> PromptSource:
    arithmetic, ordering = TASKS["arithmetic"], TASKS["ordering"]
    examples = [
        task.example(seed=1, split="train", index=i, easy=False) for task in (arithmetic, ordering) for i in range(50)
    ]
    tokenizer = build_tokenizer([e.text + e.answer for e in examples], vocabulary=120)
    return PromptSource(
        {"math": Supply(arithmetic, easy_share=0.5), "reasoning": Supply(ordering)},
        tokenizer,
        seed=7,
        mixture=FixedMixture({"math": 5, "reasoning": 3}),
    )


def test_a_step_has_its_own_prompts_domain_after_domain(source: PromptSource) -> None:
    prompts = source(4)
    assert [p.domain for p in prompts] == ["math"] * 5 + ["reasoning"] * 3
    assert source(4) == prompts
    later = source(5)
    assert not {p.id for p in later} & {p.id for p in prompts}


def test_another_seed_draws_other_prompts(source: PromptSource) -> None:
    other = replace(source, seed=8)
    assert not {p.text for p in other(0)} & {p.text for p in source(0)}
    assert other.held_out("test", 4, seed=0) == source.held_out("test", 4, seed=0)


def test_domains_toss_their_own_coins_for_easy_prompts() -> None:
    """Neither another domain's coin, nor the number that draws token 0 of rollout 0, tells whether a prompt is easy."""
    n = 2000
    coins = {
        domain: np.array([easy_coin(domain, seed=7, index=i) for i in range(n)]) for domain in ("math", "reasoning")
    }
    noise = np.array([keyed_uniforms(seed=7, step=i, rollout=0, n=1)[0] for i in range(n)])
    for other in (coins["reasoning"], noise):
        assert abs(np.corrcoef(coins["math"], other)[0, 1]) < 4 / n**0.5  # four standard errors
    for share in (0.1, 0.5, 0.9):
        drawn = [np.mean(c < share) for c in coins.values()]
        assert drawn == pytest.approx([share] * 2, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_the_easy_share_is_what_was_asked_for(source: PromptSource) -> None:
    """A prompt is easy exactly where its coin says so, and held-out prompts never are."""
    task, share = source.supplies["math"].task, source.supplies["math"].easy_share
    for i in range(40):
        easy = easy_coin("math", seed=7, index=i) < share
        assert source(i // 5)[i % 5].text == task.example(seed=7, split="train", index=i, easy=easy).text
    hard = [task.example(seed=0, split="test", index=i, easy=False).text for i in range(20)]
    assert [p.text for p in source.held_out("test", 20, seed=0)["math"]] == hard


def test_prefetching_changes_nothing(source: PromptSource) -> None:
    ahead = Prefetched(source)
    for step in (0, 1, 2, 7, 8, 3, 3):
        assert ahead(step) == source(step)
    ahead.close()


def test_an_error_of_the_thread_is_the_caller_s() -> None:
    def prompts(step: int) -> list[Prompt]:
        if step == 1:
            raise LookupError("no row 1")
        return []

    ahead = Prefetched(prompts)
    assert ahead(0) == []
    with pytest.raises(LookupError, match="no row 1"):
        ahead(1)
    ahead.close()
