"""A teacher's own prompt: what it reads of shipped tasks and of datasets, and what a check refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from check_kit import check, problems, recipe, save_model, tokenizer_of
from pydantic import ValidationError

from mopd.distill.recipe import Recipe, Source, TeacherPromptRecipe
from mopd.distill.types import Prompt, UserError
from mopd.recipes.check.teachers import hint_warnings
from mopd.recipes.resolve.resolved import resolve
from mopd.recipes.resolve.teacher_prompts import filled, reads_of
from mopd.rollouts.tasks import TASKS
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tokenizer import encode, to_prompt

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TERSE = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}>"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"template": "{prompt} {hint}"}, "it has no `hint`"),
        ({"hint": "answer"}, "{prompt} and {hint}"),
        ({"hint": "answer", "template": "{hint} {hint} {prompt}"}, "once each"),
        ({"template": "{prompt} {"}, "a lone '{'"),
        ({"template": "{question}"}, "once each"),
    ],
)
def test_a_prompt_that_could_not_be_filled_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why.replace("{", "\\{").replace("}", "\\}")):
        TeacherPromptRecipe.model_validate(settings)


def test_text_is_filled_in_as_it_is() -> None:
    assert filled("{{so}} {hint}: {prompt}", "a{hint}b", "{prompt}") == "{so} {prompt}: a{hint}b"


def test_a_shipped_task_is_read_with_its_gold_answer_before_it() -> None:
    tokenizer = tokenizer_of("arithmetic")
    settings = TeacherPromptRecipe(system="math ", template="{hint}{prompt}", hint="answer")
    prompt = to_prompt(tokenizer, domain="math", example=TASKS["arithmetic"].example(seed=0, split="train", index=0))
    text = reads_of("me", settings, {"math": TASKS["arithmetic"]}, tokenizer)(prompt)
    assert text.text == f"math {prompt.answer}{prompt.text}"
    assert text.token_ids == encode(tokenizer, text.text)
    assert (text.hint, text.hint_ids) == (prompt.answer, encode(tokenizer, prompt.answer))


def chats(folder: Path, **more: Any) -> tuple[DatasetTask, Any]:
    """A dataset of questions with a solution each, rendered by a chat template."""
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": str(2 * i), "solution": f"{i} and {i} make {2 * i}"}
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tokenizer_of("arithmetic")
    tokenizer.chat_template = CHATML
    source = Source(path=str(folder / "rows.jsonl"), prompt="question", answer="answer", suffix=" Say it.", **more)
    return DatasetTask(source, tokenizer, domain="sums"), tokenizer


def asked(task: DatasetTask) -> Prompt:
    example = task.example(seed=0, split="train", index=0)
    return Prompt("sums", example.id, (0,), example.text, example.answer)


def test_a_dataset_is_read_in_chat_turns_with_a_column_as_the_hint(tmp_path: Path) -> None:
    task, tokenizer = chats(tmp_path, system="Be brief.")
    prompt = asked(task)
    n = int(prompt.answer) // 2
    assert prompt.text == f"<|system|>Be brief.<|end|><|user|>What is {n} plus {n}? Say it.<|end|><|assistant|>"
    settings = TeacherPromptRecipe(system="Look.", template="{prompt}\n({hint})", hint="solution")
    text = reads_of("me", settings, {"sums": task}, tokenizer)(prompt)
    question = f"What is {n} plus {n}? Say it.\n({n} and {n} make {2 * n})"
    assert text.text == f"<|system|>Look.<|end|><|user|>{question}<|end|><|assistant|>"
    plain = reads_of("me", TeacherPromptRecipe(template="Q: {prompt}"), {"sums": task}, tokenizer)(prompt)
    assert plain.text.startswith("<|system|>Be brief.<|end|><|user|>Q: What")
    assert plain.hint is None


def test_another_chat_template_of_the_same_tokenizer(tmp_path: Path) -> None:
    task, tokenizer = chats(tmp_path)
    (tmp_path / "terse.jinja").write_text(TERSE)
    settings = TeacherPromptRecipe(chat_template=str(tmp_path / "terse.jinja"))
    prompt = asked(task)
    n = int(prompt.answer) // 2
    assert reads_of("me", settings, {"sums": task}, tokenizer)(prompt).text == f"[What is {n} plus {n}? Say it.]>"
    assert tokenizer.chat_template == CHATML
    with pytest.raises(UserError, match="No such file"):
        reads_of("me", TeacherPromptRecipe(chat_template="./none.jinja"), {"sums": task}, tokenizer)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    task, tokenizer = chats(tmp_path)
    settings = TeacherPromptRecipe(template="{hint} {prompt}", hint="steps")
    with pytest.raises(UserError, match=r"`teachers\.me\.prompt\.hint`: has no `steps`"):
        reads_of("me", settings, {"sums": task}, tokenizer)(asked(task))


def teacher(folder: Path, **prompt: Any) -> dict[str, Any]:
    model = save_model(folder / "model", tokenizer_of("arithmetic"))
    return {
        "student": {"model": model},
        "stages": {},
        "domains": {"math": {"task": "arithmetic", "teacher": "math", "prompts": 4}},
        "teachers": {"math": {"model": "self", "prompt": prompt}},
        "evaluate": {"validation_prompts": 4, "test_prompts": 4},
    }


def test_a_student_that_sees_its_gold_answer_may_teach_itself(tmp_path: Path) -> None:
    plan = check(recipe(**teacher(tmp_path, template="{hint}{prompt}", hint="answer")), tmp_path / "run")
    assert any("token_bound" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ({"template": "Guess: {prompt}"}, "characters that the tokenizer does not know"),
        ({"template": "{hint}{prompt}", "hint": "steps"}, "is 'steps', a column"),
        ({"system": "1" * 80}, "beyond the teacher's context of 128 tokens"),
        ({"chat_template": "./none.jinja"}, "No such file"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(tmp_path: Path, prompt: dict[str, Any], why: str) -> None:
    (problem,) = problems(tmp_path, **teacher(tmp_path, **prompt))
    assert why in problem
    assert "`teachers.math.prompt" in problem


def test_a_method_without_graders_reads_no_prompt(tmp_path: Path) -> None:
    changes = teacher(tmp_path, system="1") | {"method": "supervised", "loss": {"estimator": "nll"}}
    changes["domains"] = {"math": {"task": "arithmetic", "prompts": 4}}
    assert any("`teachers.math.prompt` is read by who grades" in problem for problem in problems(tmp_path, **changes))


def warned(made: Recipe) -> list[str]:
    resolved = resolve(made)
    return list(hint_warnings(resolved.teachers, resolved.loss))


def test_a_hint_without_a_bound_is_warned_of() -> None:
    prompt = {"template": "{hint}{prompt}", "hint": "answer"}
    teachers = {"math": {"model": "self", "prompt": prompt}}
    (warning,) = warned(recipe(teachers=teachers))
    assert "`loss.token_bound` bounds no token" in warning
    bounded = {"estimator": "full_reverse_kl", "token_bound": 2.0}
    assert warned(recipe(teachers=teachers, loss=bounded)) == []
    assert warned(recipe(teachers=teachers, loss={"estimator": "policy_gradient"})) == []
    (hidden,) = warned(recipe(teachers=teachers, loss=bounded | {"payload": "hidden"}))
    assert "hidden states do not tell" in hidden
