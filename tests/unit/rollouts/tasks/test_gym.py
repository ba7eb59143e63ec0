"""Generators of reasoning-gym as tasks: the package itself is the oracle of what is asked and what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from house_kit import REPOSITORY
from reasoning_gym.factory import DATASETS
from recipe_kit import load, refused

from mopd.distill.recipe import GymSource
from mopd.distill.types import Prompt, UserError
from mopd.recipes.check.settings import idle_leaves
from mopd.recipes.check.tasks import check_tasks, make_tasks
from mopd.recipes.resolve.resolved import resolve
from mopd.rollouts.tasks import make_task
from mopd.rollouts.tasks.base import Example, split_of
from mopd.rollouts.tasks.gym import GymTask
from mopd.rollouts.tokenizer import build_tokenizer

RUN_TEXT = [
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24"),
    *("simple_integration", "spiral_matrix", "string_insertion"),
]
"""Their verifiers give an answer to eval, or to sympy's parser, which does."""
SLOW = {"knight_swap", "quantum_lock", "futoshiki", "zebra_puzzles", "arc_agi"}
"""A problem of theirs takes seconds to draw; the others stand for them."""
ACCEPTS_ANYTHING = "game_of_life_halting"
"""Its verifier, in reasoning-gym 0.1.25, gives 1 to wrong answers: the check of a recipe refuses it."""
NO_GOLD = ["boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some generators write files into the working folder."""
    monkeypatch.chdir(tmp_path)


def task_of(name: str, **leaves: Any) -> GymTask:
    return GymTask(GymSource.model_validate({"reasoning_gym": name, **leaves}), None)


def prompt_of(example: Example) -> Prompt:
    return Prompt("logic", example.id, (0,), example.text, example.answer)


@pytest.mark.parametrize("name", sorted(DATASETS.keys() - {"composite", ACCEPTS_ANYTHING} - SLOW))
def test_every_generator_is_served_or_refused_by_name(name: str) -> None:
    if name in RUN_TEXT or name in NO_GOLD:
        with pytest.raises(UserError, match=f"reasoning_gym:{name} "):
            task_of(name)
        return
    task = task_of(name)
    example = task.example(seed=3, split="train", index=5)
    assert task.verify(prompt_of(example), example.answer) == 1.0
    assert task.verify(prompt_of(example), task.wrong_answer(example)) < 0.5
    assert task.example(seed=3, split="train", index=5) == example


def test_what_is_asked_is_a_problem_of_the_package_and_scored_as_it_does() -> None:
    settings: dict[str, Any] = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    task = task_of("chain_sum", config=settings)
    of_package = {
        (entry["question"], entry["answer"]): entry
        for entry in reasoning_gym.create_dataset("chain_sum", seed=0, size=20_000, **settings)
    }
    dataset = reasoning_gym.create_dataset("chain_sum", seed=0, size=1, **settings)
    found = 0
    for index in range(50):
        example = task.example(seed=1, split="train", index=index)
        entry = of_package.get((example.text, example.answer))
        if entry is None:
            continue  # one of the two million that were not listed
        found += 1
        for text in (example.answer, "7", f"It is {example.answer}.", "", "seven"):
            assert task.verify(prompt_of(example), text) == dataset.score_answer(text, entry)
    assert found > 40


def test_an_answer_is_scored_in_a_process_that_never_drew_its_problem() -> None:
    drawn = task_of("knights_knaves").example(seed=0, split="test", index=2)
    other = task_of("knights_knaves")
    first, second = drawn.answer.rstrip(".").split(", and ")
    assert other.verify(prompt_of(drawn), drawn.answer) == 1.0
    assert other.verify(prompt_of(drawn), f"{second}, and {first}.") == 1.0  # its own verifier, not the gold's text
    with pytest.raises(UserError, match="its settings have changed"):
        task_of("knights_knaves", config={"n_people": 3}).verify(prompt_of(drawn), drawn.answer)


def test_splits_are_disjoint_and_the_easy_form_has_settings_of_its_own() -> None:
    task = task_of("spell_backward", config={"min_word_len": 6}, easy={"min_word_len": 3, "max_word_len": 3})
    asked = {split: {task.example(seed=s, split=split, index=i).text for s in range(2) for i in range(60)}
             for split in ("train", "validation", "test")}  # fmt: skip
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["validation"]
    assert {split_of(text) for text in asked["test"]} == {"test"}
    easy = task.example(seed=0, split="train", index=0, easy=True)
    assert len(easy.answer) == 3
    assert task.verify(prompt_of(easy), easy.answer) == 1.0
    assert min(len(task.example(seed=0, split="train", index=i).answer) for i in range(20)) >= 6


def test_a_question_is_a_users_turn_where_the_student_has_a_chat_template() -> None:
    tokenizer = build_tokenizer(["State the final answer: 4 - 1 - 7 ="], 120)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    source = GymSource(reasoning_gym="chain_sum", suffix=" Be brief.", system="Give only the answer.")
    asked = GymTask(source, tokenizer).example(seed=0, split="train", index=0)
    bare = GymTask(source.model_copy(update={"suffix": "", "system": None}), None).example(
        seed=0, split="train", index=0
    )
    turns = [{"role": "system", "content": source.system}, {"role": "user", "content": f"{bare.text} Be brief."}]
    assert asked.text == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert asked.answer == bare.answer


def test_a_verifier_that_raises_gives_nothing() -> None:
    task = task_of("game_of_life")
    example = task.example(seed=0, split="train", index=0)
    for text in ("", "[[", "[[1, 2], 3]", "None", "9" * 5000, "\x00", "{}"):
        assert 0.0 <= task.verify(prompt_of(example), text) < 1.0


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        ({"reasoning_gym": "chain_sums"}, "did you mean `chain_sum`"),
        ({"reasoning_gym": "composite"}, "has no generator"),
        ({"reasoning_gym": "chain_sum", "config": {"max_term": 3}}, "did you mean `max_terms`"),
        ({"reasoning_gym": "chain_sum", "config": {"min_terms": 9}}, "refuses its settings"),
        ({"reasoning_gym": "chain_sum", "template": "chat"}, None),
        ({"reasoning_gym": "countdown"}, "runs what a model writes"),
    ],
)
def test_what_a_generator_lacks_is_named(leaves: dict[str, Any], words: str | None) -> None:
    source = GymSource.model_validate(leaves)
    if words is None:
        GymTask(source, None)  # no student is known yet
        return
    with pytest.raises(UserError, match=words):
        GymTask(source, None)


def test_a_space_without_problems_of_a_split_is_told() -> None:
    task = task_of("chain_sum", config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    words = {task.example(seed=0, split="test", index=i).text for i in range(300)}
    assert 10 < len(words) < 60  # a fifth of 162 sums of two digits
    with pytest.raises(UserError, match="its space is too small"):
        task_of("calendar_arithmetic", config={"tasks": ["is_leap_year"], "leap_year_range": 1}).example(
            seed=0, split="validation", index=0
        )


RECIPE = """
name: gym
student: {model: ./student}
domains:
  sums: {task: "reasoning_gym:chain_sum", teacher: t}
  words:
    task: {reasoning_gym: spell_backward, config: {max_word_len: 5}, easy: {max_word_len: 3}}
    teacher: t
    easy_share: 0.5
  logic: {task: {reasoning_gym: syllogism}, teacher: t, easy_share: 0.5}
teachers: {t: {model: ./t}}
rollout: {max_new_tokens: 8}
"""


def test_the_short_form_and_the_mapping_in_a_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    assert recipe.domains["sums"].task == GymSource(reasoning_gym="chain_sum")
    tasks, problems = make_tasks(recipe.domains, None, seed=0)
    assert problems == []
    assert set(tasks) == {"sums", "words", "logic"}
    _, problems, _ = check_tasks(recipe.domains, tasks, None, seed=0, evaluate=recipe.evaluate, max_new_tokens=8)
    assert problems == []
    broken, _ = make_tasks(
        {"halts": load(tmp_path, RECIPE.replace("syllogism", ACCEPTS_ANYTHING)).domains["logic"]}, None, seed=0
    )
    _, problems, _ = check_tasks(
        {"halts": recipe.domains["logic"]}, broken, None, seed=0, evaluate=recipe.evaluate, max_new_tokens=8
    )
    assert any("wrong answers" in problem for problem in problems)
    idle = [line for line in idle_leaves(resolve(recipe)) if "easy_share" in line]
    assert len(idle) == 1
    assert "domains.logic" in idle[0]


def test_the_stanza_of_the_page_is_read(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "datasets.md").read_text()
    block = page.split("how its question is put\n")[-1].split("mopd[reasoning-gym]")[1].split("\n\n", 2)[1]
    stanza = "\n".join(line[4:] for line in block.splitlines())
    recipe = load(
        tmp_path,
        f"name: page\nstudent: {{model: ./s}}\n{stanza}\nteachers: {{sums: {{model: ./t}}, words: {{model: ./t}}}}",
    )
    tasks, problems = make_tasks(recipe.domains, None, seed=0)
    assert problems == []
    assert len(tasks["words"].example(seed=0, split="train", index=0, easy=True).answer) <= 4


def test_what_a_recipe_says_wrongly_of_a_generator_is_refused(tmp_path: Path) -> None:
    assert "config.seed" in refused(
        tmp_path, RECIPE.replace("{reasoning_gym: syllogism}", "{reasoning_gym: syllogism, config: {seed: 1}}")
    )
    assert "sufix" in refused(
        tmp_path, RECIPE.replace("{reasoning_gym: syllogism}", "{reasoning_gym: syllogism, sufix: a}")
    )
    with pytest.raises(UserError, match="no generator"):
        make_task(GymSource(reasoning_gym="nothing"), domain="a", tokenizer=None)
