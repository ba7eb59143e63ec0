"""Evaluation rows, scores and their intervals, against scipy, simulation and tables worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from scipy.stats import binomtest

from mopd.distill.metrics.evaluate import Evaluation, evaluate, health, interval, repetition, scores
from mopd.distill.types import Prompt, Rollout, RunError, Weights


def question(domain: str, number: int) -> Prompt:
    return Prompt(domain=domain, id=f"{domain}/test/{number}", token_ids=(7, number), text="", answer=str(number % 2))


class Parrot:
    """A sampler that answers every question ``1``; in the domain "long" it never ends."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def load_weights(self, weights: Weights, *, version: int) -> None:
        raise AssertionError("evaluation uses the weights that are there")

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        self.asked.append((step, greedy))
        rollouts = [self.answer(prompt, index) for index, prompt in enumerate(prompts)]
        for start in range(0, len(rollouts), 2):
            yield rollouts[start : start + 2]

    def answer(self, prompt: Prompt, index: int) -> Rollout:
        completion = [11] * 6 if prompt.domain == "long" else [11, 1]
        ids = np.array([*prompt.token_ids, *completion], dtype=np.int32)
        mask = np.arange(len(ids)) >= len(prompt.token_ids)
        return Rollout(
            prompt=prompt,
            token_ids=ids,
            loss_mask=mask,
            sampler_logprobs=np.zeros(len(ids), dtype=np.float32),
            finish="length" if prompt.domain == "long" else "eos",
            version=(0, 0),
            group=index,
            index=index,
        )


def decode(rollout: Rollout) -> str:
    return "".join(str(token - 10) for token in rollout.token_ids[rollout.loss_mask] if token != 1)


def verify(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [float(prompt.answer == text) for prompt, text in zip(prompts, texts, strict=True)]


def test_evaluate_asks_greedily_and_reports_one_row_a_question() -> None:
    sampler = Parrot()
    asked = {"math": [question("math", n) for n in range(5)], "long": [question("long", n) for n in range(2)]}
    rows = evaluate(sampler, asked, verify, decode, 40, model="student", split="validation")
    assert sampler.asked == [(40, True)]
    assert [row.record() for row in rows[:2]] == [
        {
            "model": "student",
            "step": 40,
            "split": "validation",
            "domain": "math",
            "prompt_id": f"math/test/{n}",
            "correct": float(n == 1),
        }
        for n in range(2)
    ]
    assert [row.correct for row in rows] == [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert {domain: found.score for domain, found in scores(rows).items()} == {"math": 0.4, "long": 0.0}
    measured = health(rows)
    assert measured["score/math"] == 0.4
    assert (measured["length/math"], measured["length/long"]) == (2.0, 6.0)
    assert (measured["truncation/math"], measured["truncation/long"]) == (0.0, 1.0)
    assert measured["repetition/long"] == repetition("111111")
    assert Evaluation(**rows[3].record()).record() == rows[3].record()


def test_evaluate_refuses_answers_to_other_questions() -> None:
    class Shuffled(Parrot):
        def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
            yield from super().sample(list(reversed(prompts)), step=step, greedy=greedy)

    asked = {"math": [question("math", n) for n in range(3)]}
    with pytest.raises(RunError, match="in the order asked"):
        evaluate(Shuffled(), asked, verify, decode, 0, model="base", split="test")


@pytest.mark.parametrize("verdict", [float("nan"), -0.1, 1.5])
def test_evaluate_refuses_a_verdict_that_is_no_fraction(verdict: float) -> None:
    asked = {"math": [question("math", 1)]}
    with pytest.raises(RunError, match=r"math/test/1 .* not 0\.\.1"):
        evaluate(Parrot(), asked, lambda p, t: [verdict], decode, 0, model="base", split="test")
    with pytest.raises(RunError, match="2 scores for 1 answers"):
        evaluate(Parrot(), asked, lambda p, t: [1.0, 1.0], decode, 0, model="base", split="test")


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (86, 100), (1, 1000), (500, 1000), (1000, 1000)])
def test_interval_is_wilsons(right: int, n: int) -> None:
    found = interval([1.0] * right + [0.0] * (n - right))
    oracle = binomtest(right, n).proportion_ci(method="wilson")
    assert (found.score, found.n) == (right / n, n)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-7)
    assert found.low <= found.score <= found.high


def test_interval_covers_the_truth() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        found = interval([float(rng.random() < 0.9) for _ in range(200)])
        covered += found.low <= 0.9 <= found.high
    assert 0.93 < covered / 2000 < 0.97


def test_interval_needs_an_answer_and_scores_need_one_evaluation() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval([])
    rows = [Evaluation("student", step, "test", "math", "q", 1.0) for step in (0, 20)]
    with pytest.raises(ValueError, match="several evaluations"):
        scores(rows)


def test_repetition_tells_a_loop_from_a_sentence() -> None:
    assert repetition("") == 0.0
    assert repetition("abcdefgh") == 0.0
    assert repetition("ab" * 100) == pytest.approx(0.975)
    assert repetition("The quick brown fox jumps over the lazy dog.") < 0.1
