"""Static checks of tasks: verifiers proven on gold and wrong answers, caps on length, datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from check_kit import CONFIG, check, problems, recipe

from mopd.distill.types import Prompt
from mopd.recipes.check.tasks import check_tasks, make_tasks
from mopd.rollouts.tasks import Example
from mopd.rollouts.tasks.base import split_of


class Broken:
    """A task whose verifier accepts what it says it does."""

    def __init__(self, accepts_gold: bool, accepts_wrong: bool) -> None:
        self.accepts = {"gold": accepts_gold, "wrong": accepts_wrong}

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        return Example(f"broken/{split}/{index}", "question", "gold")

    def verify(self, prompt: Prompt, text: str) -> float:
        return float(self.accepts[text])

    def verify_many(self, prompts: Any, texts: Any) -> list[float]:
        return [self.verify(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def wrong_answer(self, example: Example) -> str:
        return "wrong"


@pytest.mark.parametrize(("gold", "wrong", "told"), [(True, False, None), (False, False, "refuses 32 of 32 gold"),
                                                     (True, True, "accepts 32 of 32 wrong")])  # fmt: skip
def test_a_verifier_is_proven_on_gold_and_wrong_answers(gold: bool, wrong: bool, told: str | None) -> None:
    made = recipe()
    _, found, _ = check_tasks(
        made.domains,
        {"math": Broken(gold, wrong)},
        None,
        seed=made.seed,
        evaluate=made.evaluate,
        max_new_tokens=made.rollout.max_new_tokens,
    )
    assert [told in problem for problem in found] == ([True] if told else [])


def test_a_cap_below_the_longest_answer_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, rollout={"max_new_tokens": 5})
    assert "`rollout.max_new_tokens` is 5, and a gold answer of domain 'math' has" in found
    longest = int(found.split("raise it to ")[1].split()[0])
    assert check(recipe(rollout={"max_new_tokens": longest}), tmp_path)


def dataset(folder: Path, rows: int, **source: str) -> dict[str, Any]:
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"math 1+{i}=", "answer": f"{i + 1}"}) + "\n" for i in range(rows)))
    return {"math": {"task": {"path": str(path), "verifier": "number", **source}, "teacher": "math"}}


def test_a_dataset_is_checked_like_a_shipped_task(tmp_path: Path) -> None:
    held_out = {"validation_prompts": 5, "test_prompts": 10}
    plan = check(recipe(domains=dataset(tmp_path, 200), evaluate=held_out), tmp_path / "run")
    assert plan.steps[0].rollouts == 64
    (found,) = problems(tmp_path / "run", domains=dataset(tmp_path, 200), evaluate={**held_out, "test_prompts": 500})
    assert "lower `evaluate.test_prompts`" in found


LONG = "1+" * 65 + "1"
"""A sum beyond the context of the small recipe's models: its digits are tokens of their own."""


@pytest.mark.parametrize("place", ["prompt", "answer"])
def test_one_long_row_of_a_dataset_is_found(tmp_path: Path, place: str) -> None:
    domains = dataset(tmp_path, 1000)
    held_out = {"validation_prompts": 5, "test_prompts": 10}
    check(recipe(domains=domains, evaluate=held_out), tmp_path / "run")
    asked = f"math {LONG}+{{}}=" if place == "prompt" else "math 0+{}="
    prompt = next(text for text in map(asked.format, range(100)) if split_of(text) == "train")
    row = {"prompt": prompt, "answer": f"{LONG}=66" if place == "answer" else "1"}
    with open(tmp_path / "sums.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    found = problems(tmp_path / "run", domains=domains, evaluate=held_out)
    (trained,) = [
        problem for problem in found if "training prompt of domain 'math' with its gold answer has" in problem
    ]
    assert "beyond the context of 128 tokens" in trained
    assert "`stages.base.from`" in trained
    sampled = [problem for problem in found if "`rollout.max_new_tokens`" in problem]
    assert len(sampled) == (place == "prompt"), found  # what is written is capped, whatever the gold answer


def test_gold_answers_of_a_supervised_run_must_fit(tmp_path: Path) -> None:
    given = {"method": "supervised", "loss": {"estimator": "nll"}, "teachers": {}, "rollout": {"max_new_tokens": 70}}
    context = {**CONFIG, "max_position_embeddings": 30}
    base = {"model": {"architecture": "llama", "config": context, "vocabulary": 100}}
    domains = {"math": {"task": "arithmetic"}}
    found = problems(tmp_path, **given, student=base, domains=domains, stages={})
    assert any("with its gold answer has" in problem and "`student.model`" in problem for problem in found)


def test_a_stage_is_not_trained_on_unit_tests(tmp_path: Path) -> None:
    domains = dataset(tmp_path, 0, verifier="python_tests")
    lines = (json.dumps({"prompt": f"a function f that gives {i}", "answer": f"assert f() == {i}"}) for i in range(100))
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    found = problems(tmp_path / "run", domains=domains, evaluate={"validation_prompts": 1, "test_prompts": 1})
    assert [f"`stages.{name}` trains on the gold answers of domain 'math'" in p for name, p in zip(
        ("base", "math"), found, strict=True)] == [True, True]  # fmt: skip


def test_an_unknown_task_is_left_to_the_routes() -> None:
    made = recipe(domains={"math": {"task": "nothing", "teacher": "math"}})
    assert make_tasks(made.domains, None, seed=made.seed) == ({}, [])
