"""The prompts of a step depend on nothing but the step, whoever draws them and in whatever order."""

from __future__ import annotations

import pytest

from distill.types import Prompt
from rollouts.prompts import Prefetched, PromptSource, Supply
from rollouts.tasks import TASKS
from rollouts.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def source() -> PromptSource:
    arithmetic, ordering = TASKS["arithmetic"], TASKS["ordering"]
    examples = [
        task.example(seed=1, split="train", index=i, easy=False) for task in (arithmetic, ordering) for i in range(50)
    ]
    tokenizer = build_tokenizer([e.text + e.answer for e in examples], vocabulary=120)
    return PromptSource(
        {"math": Supply(arithmetic, prompts=5, easy_share=0.5), "reasoning": Supply(ordering, prompts=3)},
        tokenizer,
        seed=7,
    )


def test_a_step_has_its_own_prompts_domain_after_domain(source: PromptSource) -> None:
    prompts = source(4)
    assert [p.domain for p in prompts] == ["math"] * 5 + ["reasoning"] * 3
    assert source(4) == prompts
    later = source(5)
    assert not {p.id for p in later} & {p.id for p in prompts}


def test_another_seed_draws_other_prompts(source: PromptSource) -> None:
    other = PromptSource(source.supplies, source.tokenizer, seed=8)
    assert not {p.text for p in other(0)} & {p.text for p in source(0)}
    assert other.held_out("test", 4, seed=0) == source.held_out("test", 4, seed=0)


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
