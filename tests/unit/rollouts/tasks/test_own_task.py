"""A user's own task, ``./file.py:NAME``: the shipped example, its promises checked, and what a changed file does."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from check_kit import check, recipe, tree

from mopd.distill.recipe import Recipe
from mopd.distill.recipe.files import load_recipe
from mopd.distill.recipe.study import Study, load
from mopd.distill.types import Prompt, UserError
from mopd.recipes import SHIPPED
from mopd.recipes.resolve.run_folder import note_recipe, refuse_changed_recipe
from mopd.recipes.resolve.stages import stage_fingerprint
from mopd.rollouts.tasks import TASKS, Example, Generated, fingerprint, own_task

ROOT = Path(__file__).parents[4]
FOURTH = ROOT / "docs" / "fourth"
TASK = """
from mopd.rollouts.tasks import Example, Generated
class Doubles(Generated):
    def draw(self, rng, easy):
        n = rng.randint(10000, 99999)
        return f"math {n}=", f"{2 * n}", str(n)
"""


def own(folder: Path, source: str, name: str = "Doubles") -> str:
    """A reference to a task that is written into the folder."""
    (folder / "task.py").write_text(source)
    return f"{folder}/task.py:{name}"


def with_task(reference: str) -> Recipe:
    return recipe(domains={"doubles": {"task": reference, "teacher": "math", "prompts": 4}})


# ---- the shipped example


def test_a_fourth_domain_takes_six_lines_and_a_task_of_sixty_at_most() -> None:
    assert len((FOURTH / "fourth.yaml").read_text().splitlines()) <= 6
    assert len((FOURTH / "walk.py").read_text().splitlines()) <= 60


def test_the_fourth_domain_passes_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fourth = load_recipe(str(FOURTH / "fourth.yaml"), shipped=SHIPPED)
    assert list(fourth.domains) == ["math", "code", "reasoning", "walks"]
    check(fourth, tmp_path / "run")


def test_the_example_walks() -> None:
    task = own_task(f"{FOURTH}/walk.py:Walk", where="here")
    for index in range(50):
        example = task.example(seed=3, split="train", index=index)
        start, steps = example.text[5], re.findall(r"\d", example.text)
        assert example.text == f"walk {start}{''.join(steps)}="
        ends = [chr((ord(start) - 65 + sum(map(int, steps[: n + 1]))) % 26 + 65) for n in range(6)]  # not per token
        assert example.answer == "".join(ends)
        assert task.verify(Prompt("any", example.id, (0,), example.text, example.answer), start + example.answer) == 0


@pytest.mark.parametrize(
    ("name", "task"), [("Arithmetic", "arithmetic"), ("Programs", "list_programs"), ("Ordering", "ordering")]
)
def test_the_hinted_problems_are_the_tasks_own_behind_their_answers(name: str, task: str) -> None:
    hinted = own_task(f"{ROOT}/docs/tutored/hinted.py:Hinted{name}", where="here")
    for index in range(20):
        example = hinted.example(seed=3, split="train", index=index)
        question = example.text.removeprefix(f"{example.answer}, ")
        assert question.split()[0] in ("math", "code", "rank")
        prompt = Prompt("any", example.id, (0,), example.text, example.answer)
        assert hinted.verify_many([prompt] * 2, [example.answer, hinted.wrong_answer(example)]) == [1.0, 0.0]
        alone = Prompt("any", example.id, (0,), question, example.answer)
        assert TASKS[task].verify(alone, example.answer) == 1.0


def test_the_study_of_hints_passes_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load(str(ROOT / "docs" / "tutored" / "tutored.yaml"), shipped=SHIPPED)
    assert isinstance(study, Study)
    tutored, gold = (child.recipe for child in study.children)
    assert tutored.stages == gold.stages
    assert all(tutored.domains[name].prompts == gold.domains[name].prompts for name in ("math", "code", "reasoning"))
    check(tutored, tmp_path / "tutored")
    check(gold, tmp_path / "gold")


# ---- the door


@pytest.mark.parametrize("line", ["", "\nDoubles = Doubles()"], ids=["class", "object"])
def test_a_class_or_an_object_is_a_task(tmp_path: Path, line: str) -> None:
    check(with_task(own(tmp_path, TASK + line)), tmp_path / "run")


def changed(old: str, new: str) -> str:
    assert old in TASK
    return TASK.replace(old, new)


STATEFUL = "import itertools\nCOUNT = itertools.count()\n" + changed("rng.randint(10000, 99999)", "20000 + next(COUNT)")
LEAKING = """
from mopd.rollouts.tasks import Example, Generated
class Doubles(Generated):
    def example(self, *, seed, split, index, easy=False):
        return Example(f"{split}-{index}", f"math {index}=", f"{2 * index}")
"""
REPEATING = (
    TASK
    + """
    def example(self, *, seed, split, index, easy=False):
        drawn = super().example(seed=seed, split=split, index=index, easy=easy)
        return Example(f"{split}-{index % 4}", drawn.text, drawn.answer)
"""
)
REFUSED: dict[str, tuple[str, str]] = {
    "a syntax error": ("class Doubles(", "cannot be imported: it raises SyntaxError"),
    "an import that fails": ("import nothing_of_this_name", "cannot be imported: it raises ModuleNotFoundError"),
    "no such name": ("class Double: ...", "has no 'Doubles'; it has Double"),
    "arguments needed": ("class Doubles:\n    def __init__(self, size): ...", "Doubles() fails: it raises TypeError"),
    "no methods": ("class Doubles:\n    def verify(self): ...", "has no example, verify_many, wrong_answer"),
    "no draw": (
        "from mopd.rollouts.tasks import Generated\nclass Doubles(Generated): ...",
        "raises NotImplementedError",
    ),
    "a draw that raises": (changed("rng.randint(10000, 99999)", "1 // 0"), "raises ZeroDivisionError"),
    "too small a space": (changed("10000, 99999", "1, 2"), "its space is too small"),
    "no text": (changed('f"{2 * n}"', '""'), "must be texts that are not empty"),
    "state": (STATEFUL, "it must depend on nothing but what it is asked"),
    "splits that meet": (LEAKING, "which is in split 'train' too"),
    "an id of two problems": (REPEATING, "answers are kept by id, so two problems need two"),
    "a verifier that raises": (
        TASK + "    def verify(self, prompt, text):\n        return float(int(text) == int(prompt.answer))\n",
        "which may never raise",
    ),
    "a verdict that is none": (TASK + "    def verify(self, prompt, text):\n        return 'right'\n", "from 0 to 1"),
    "two verdicts": (
        TASK + "    def verify_many(self, prompts, texts):\n        return [1.0 for _ in texts]\n",
        "they must agree",
    ),
    "a verifier that takes anything": (
        TASK + "    def verify(self, prompt, text):\n        return 1.0\n",
        "the verifier accepts 32 of 32 wrong answers",
    ),
    "a verifier that takes nothing": (
        TASK + "    def verify(self, prompt, text):\n        return 0.0\n",
        "the verifier refuses 32 of 32 gold answers",
    ),
    "a long answer": (changed('f"{2 * n}"', 'f"{2 * n}" * 40'), "`rollout.max_new_tokens` is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_task_is_told_with_its_leaf(tmp_path: Path, case: str) -> None:
    source, message = REFUSED[case]
    with pytest.raises(UserError) as refused:
        check(with_task(own(tmp_path, source)), tmp_path / "run")
    (problem,) = [p for p in refused.value.problems if message in p]
    assert "doubles" in problem


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`domains\.doubles\.task` is .* and there is no file"):
        check(with_task(f"{tmp_path}/gone.py:Doubles"), tmp_path / "run")


# ---- the base of tasks


class Numbers(Generated):
    """Numbers, whose parity is their split's content: every second draw makes no problem."""

    def draw(self, rng: random.Random, easy: bool) -> tuple[str, str, str] | None:
        number = rng.randrange(10 if easy else 1000)
        return None if number % 2 else (f"say {number}=", str(number), str(number // 2))


def test_a_generated_task_has_its_class_name_its_splits_and_a_wrong_answer() -> None:
    assert (Numbers.name, Numbers().example(seed=0, split="test", index=1).id.split("/")[0]) == ("Numbers", "Numbers")
    texts = [
        {Numbers().example(seed=0, split=s, index=i).text for i in range(200)} for s in ("train", "validation", "test")
    ]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert Numbers().wrong_answer(Example("id", "say 12=", "12")) == "1212"


# ---- a file that changes


def test_a_changed_file_changes_stages_and_is_refused_in_an_old_folder(tmp_path: Path) -> None:
    reference = own(tmp_path, TASK)
    made = with_task(reference)
    made_of = Recipe.model_validate(tree(domains={"doubles": made.domains["doubles"].model_dump()}))
    before = stage_fingerprint(made_of, "base"), fingerprint(own_task(reference, where="here"), seed=0)
    out = tmp_path / "run"
    out.mkdir()
    note_recipe(made, out)
    refuse_changed_recipe(made, out)
    own(tmp_path, TASK.replace("2 * n", "3 * n"))
    after = stage_fingerprint(made_of, "base"), fingerprint(own_task(reference, where="here"), seed=0)
    assert all(was != now for was, now in zip(before, after, strict=True))
    with pytest.raises(UserError, match=r"the content of .*task\.py:Doubles: \w{16} -> \w{16}"):
        refuse_changed_recipe(made, out)
    own(tmp_path, TASK)
    refuse_changed_recipe(made, out)


def test_a_recipe_without_files_of_its_own_notes_none(tmp_path: Path) -> None:
    note_recipe(recipe(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
