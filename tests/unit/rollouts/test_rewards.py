"""Rewards: each rollout is graded by its own domain's verifier, on its own tokens, in the order it came."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mopd.distill.recipe.schema.rollout import Truncated
from mopd.distill.student.plan import plan_updates
from mopd.distill.types import Prompt, Rollout, RunError, UserError
from mopd.distill.verdicts import UnjudgedScore
from mopd.rollouts.rewards import RewardGrader, TruncatedRollouts, VerifiedGrader
from mopd.rollouts.tasks import TASKS, Task
from mopd.rollouts.tokenizer import build_tokenizer, completion_ids, to_prompt

TOKENIZER = build_tokenizer(
    [
        text
        for task in TASKS.values()
        for i in range(60)
        for e in [task.example(seed=0, split="train", index=i)]
        for text in (e.text, e.answer, task.wrong_answer(e))
    ],
    160,
)


def rollout_of(prompt: Prompt, answer: str, index: int, *, closed: bool = True) -> Rollout:
    """A rollout that answers ``answer``; its prompt is masked, its EOS trained."""
    given = np.array(prompt.token_ids, dtype=np.int32)
    written = np.array(completion_ids(TOKENIZER, answer), dtype=np.int32)[: None if closed else -1]
    ids = np.concatenate([given, written])
    return Rollout(
        prompt=prompt,
        token_ids=ids,
        loss_mask=np.arange(len(ids)) >= len(given),
        sampler_logprobs=np.zeros(len(ids), dtype=np.float32),
        finish="eos" if closed else "length",
        version=(0, 0),
        group=index,
        index=index,
    )


def mixed_rollouts(count: int) -> tuple[list[Rollout], list[float]]:
    """Rollouts of all tasks, interleaved, every third wrong; with the rewards that are right."""
    rollouts, rewards = [], []
    for i in range(count):
        name, task = list(TASKS.items())[i % 3]
        example = task.example(seed=1, split="train", index=i)
        right = i % 4 != 0
        answer = example.answer if right else task.wrong_answer(example)
        rollouts.append(rollout_of(to_prompt(TOKENIZER, domain=name, example=example), answer, i))
        rewards.append(float(right))
    return rollouts, rewards


def test_every_rollout_gets_its_own_verdict_in_order() -> None:
    rollouts, rewards = mixed_rollouts(24)
    scored = RewardGrader(TASKS, TOKENIZER, truncated="learn").score([rollouts[:5], [], rollouts[5:]])
    assert [s.rollout for s in scored] == rollouts
    assert [s.reward for s in scored] == rewards
    assert all(s.scores == () for s in scored)


def test_a_gold_answer_in_the_prompt_earns_nothing() -> None:
    example = TASKS["ordering"].example(seed=1, split="train", index=0)
    prompt = to_prompt(TOKENIZER, domain="ordering", example=example)
    tempting = replace(prompt, token_ids=(*prompt.token_ids, *completion_ids(TOKENIZER, example.answer)))
    grader = RewardGrader(TASKS, TOKENIZER, truncated="learn")
    assert grader.score([[rollout_of(tempting, "", 0)]])[0].reward == 0.0
    assert grader.score([[rollout_of(prompt, example.answer, 0)]])[0].reward == 1.0
    assert grader.score([[rollout_of(prompt, example.answer, 0, closed=False)]])[0].reward == 1.0


def test_an_unknown_domain_is_named() -> None:
    example = TASKS["ordering"].example(seed=1, split="train", index=0)
    rollout = rollout_of(to_prompt(TOKENIZER, domain="law", example=example), "A", 0)
    with pytest.raises(UserError, match=r"'law'.*arithmetic, list_programs, ordering"):
        RewardGrader(TASKS, TOKENIZER, truncated="learn").score([[rollout]])


@pytest.mark.parametrize(
    ("scores", "problem"), [([0.5, 0.5], "2 scores for 1"), ([float("nan")], "nan"), ([1.5], "1.5")]
)
def test_a_broken_verifier_stops_the_run(scores: list[float], problem: str) -> None:
    class Broken(type(TASKS["ordering"])):
        def verify_many(self, prompts: object, texts: object) -> list[float]:
            return scores

    task: Task = Broken()
    example = task.example(seed=1, split="train", index=0)
    rollout = rollout_of(to_prompt(TOKENIZER, domain="reasoning", example=example), "A", 0)
    with pytest.raises(RunError, match=problem):
        RewardGrader({"reasoning": task}, TOKENIZER, truncated="learn").score([[rollout]])


def test_expert_iteration_keeps_different_right_answers_to_a_prompt_up_to_its_bound() -> None:
    """Two prompts of a task that accepts many answers; a repeated answer is one, and a wrong one is none."""
    task = TASKS["list_programs"]
    prompts = []
    for i in range(2):
        example = task.example(seed=1, split="train", index=i)
        prompts.append((to_prompt(TOKENIZER, domain="code", example=example), example))
    answers = [
        (0, prompts[0][1].answer, True),
        (0, prompts[0][1].answer, False),  # the same again
        (0, task.wrong_answer(prompts[0][1]), False),
        (0, f"({prompts[0][1].answer})", True),
        (0, f"(({prompts[0][1].answer}))", False),  # right, and beyond the bound
        (1, prompts[1][1].answer, True),
    ]
    rollouts = [
        replace(rollout_of(prompts[group][0], text, i), group=group) for i, (group, text, _) in enumerate(answers)
    ]
    grader = VerifiedGrader(RewardGrader({"code": task}, TOKENIZER, truncated="learn"), most=2)
    selected = grader.score([rollouts[:2], rollouts[2:]])
    assert [scored.rollout for scored in selected] == rollouts
    assert [scored.reward for scored in selected] == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    assert [scored.kept for scored in selected] == [kept for _, _, kept in answers]
    assert grader.metrics() == {"reward/code": pytest.approx(5 / 6), "kept/code": 0.5}
    assert grader.metrics() == {}


def cut_and_whole() -> list[Rollout]:
    """Three right answers to different prompts, of which the second was cut at the limit."""
    task = TASKS["arithmetic"]
    examples = [task.example(seed=1, split="train", index=i) for i in range(3)]
    return [
        rollout_of(to_prompt(TOKENIZER, domain="arithmetic", example=example), example.answer, i, closed=i != 1)
        for i, example in enumerate(examples)
    ]


@pytest.mark.parametrize(
    ("policy", "rewards", "kept"),
    [
        ("learn", [1.0, 1.0, 1.0], [True, True, True]),
        ("mask", [1.0, 1.0, 1.0], [True, False, True]),
        ("zero_reward", [1.0, 0.0, 1.0], [True, True, True]),
    ],
)
def test_what_was_cut_is_counted_and_learnt_from_as_the_recipe_says(
    policy: Truncated, rewards: list[float], kept: list[bool]
) -> None:
    grader = TruncatedRollouts(RewardGrader(TASKS, TOKENIZER, truncated=policy), policy=policy)
    batch = grader.score([cut_and_whole()])
    assert [scored.reward for scored in batch] == rewards
    assert [scored.kept for scored in batch] == kept
    metrics = grader.metrics()
    assert metrics["truncated/arithmetic"] == pytest.approx(1 / 3)
    assert metrics["reward/arithmetic"] == pytest.approx(sum(rewards) / 3)


def test_expert_iteration_keeps_no_cut_answer_that_earns_nothing() -> None:
    grader = VerifiedGrader(RewardGrader(TASKS, TOKENIZER, truncated="zero_reward"), most=1)
    assert [scored.kept for scored in grader.score([cut_and_whole()])] == [True, False, True]


def test_masked_rollouts_are_in_no_update_and_a_domain_of_none_but_them_has_no_part() -> None:
    rollouts = cut_and_whole()
    batch = TruncatedRollouts(RewardGrader(TASKS, TOKENIZER, truncated="mask"), policy="mask").score([rollouts])
    plans = plan_updates(batch, shares={"arithmetic": 1.0}, updates=2, ranks=1, microbatch_tokens=4096, selective=True)
    learnt = sorted(i for plan in plans for rank in plan.microbatches for microbatch in rank for i in microbatch)
    assert learnt == [0, 2]
    assert (
        plan_updates(batch[1:2], shares={"arithmetic": 1.0}, updates=1, ranks=1, microbatch_tokens=99, selective=True)
        == []
    )


def test_answers_that_no_verifier_looked_at_are_counted() -> None:
    class Silent:
        def verify_many(self, prompts: object, texts: list[str]) -> list[float]:
            return [UnjudgedScore("refused", "import os"), UnjudgedScore("no_answer", "cut"), 1.0][: len(texts)]

    grader = RewardGrader({"arithmetic": Silent()}, TOKENIZER, truncated="learn")  # type: ignore[dict-item]
    scored = grader.score([cut_and_whole()])
    assert [type(each.reward) for each in scored] == [float, float, float]
    metrics = grader.metrics()
    assert (metrics["refused/arithmetic"], metrics["no_answer/arithmetic"]) == (1.0, 1.0)
