"""What `mopd check` shows of the questions, what it asks of verifiers of one's own, and rows that it leaves out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from check_kit import check, problems, recipe
from dataset_kit import sums, task_of, write
from rich.console import Console

from mopd.distill.recipe import DomainRecipe, Source
from mopd.recipes.check.samples import Questions, print_samples, samples
from mopd.recipes.check.tasks import chance_of
from mopd.rollouts.sandbox.bubblewrap.choice import bubblewrap_problem, chosen_sandbox
from mopd.rollouts.sandbox.run import end_idle_servers
from mopd.rollouts.tasks import TASKS
from mopd.rollouts.tokenizer import build_tokenizer

HELD_OUT = {"validation_prompts": 3, "test_prompts": 3}


def domain(path: str, **task: Any) -> dict[str, Any]:
    return {"math": {"task": {"path": path, **task}, "teacher": "math"}}


def test_a_prompt_of_each_domain_is_shown_with_its_gold_in_other_clothes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", sums(40))
    tokenizer = build_tokenizer(["what is 0123456789+?"], 60)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}:"
    tasks = {"math": task_of(path, tokenizer=tokenizer, verifier="number"), "sums": TASKS["arithmetic"]}
    domains = {
        "math": DomainRecipe(task=Source(path=path, verifier="number")),
        "sums": DomainRecipe(task="arithmetic"),
    }
    questions = Questions(domains, tasks, tokenizer, seed=3)
    of_dataset, of_shipped = samples(questions)
    assert of_dataset.prompt == tasks["math"].example(seed=3, split="train", index=0).text
    assert of_dataset.prompt.startswith("<|user|>what is")
    assert of_dataset.tokens == len(tokenizer(of_dataset.prompt, add_special_tokens=False)["input_ids"])
    gold = of_dataset.gold
    verdicts = dict(of_dataset.verdicts)
    assert verdicts == {
        gold: 1.0,
        rf"The answer is \boxed{{{gold}}}.": 1.0,
        f"**{gold}**": 1.0,
        str(int(gold) + 1): 0.0,
    }
    assert [score for _, score in of_shipped.verdicts] == [1.0, 0.0]
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    print_samples(questions, console)
    shown = console.file.getvalue()
    assert "\x1b[1;35m<|user|>\x1b[0m" in shown, "special tokens stand apart"
    assert f"gold: '{gold}'" in shown


@pytest.mark.parametrize(
    ("verifier", "gold", "right"),
    [
        ("choice", "B", ["(B)", "The answer is B.", r"\boxed{B}"]),
        ("math", r"\frac{1}{2}", [r"The answer is $\frac{1}{2}$.", r"\boxed{\frac{1}{2}}"]),
        ("exact", "Rome", [" Rome\n"]),
    ],
)
def test_the_clothes_of_a_gold_fit_its_verifier(tmp_path: Path, verifier: str, gold: str, right: list[str]) -> None:
    rows = [{"prompt": f"A or B, {i}?", "answer": gold} for i in range(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    source = Source.model_validate({"path": path, "verifier": verifier})
    questions = Questions({"d": DomainRecipe(task=source)}, {"d": task_of(path, domain="d", verifier=verifier)})
    (sample,) = samples(questions)
    verdicts = dict(sample.verdicts)
    assert [verdicts[text] for text in [gold, *right]] == [1.0] * (len(right) + 1)
    assert list(verdicts.values())[-1] == 0.0


OWN: dict[str, tuple[str, str | None]] = {
    "sound": ("return float(text.strip() == row['answer'])", None),
    "raises": ("return float(int(text) == 1)", "ValueError"),
    "no number": ("return 'yes'", "must give a number from 0 to 1"),
    "beyond 1": ("return 2.0", "must give a number from 0 to 1"),
    "takes everything": ("return 1.0", "accepts every text"),
    "takes nothing": ("return 0.0", "refuses 32 of 32 gold answers"),
    "ends the process": ("raise SystemExit(3)", "ends the process"),
    "forgetful": ("import random\n    return random.random() / 2", "two scores"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_verifier_of_ones_own_is_asked_before_anything_is_spent(tmp_path: Path, case: str) -> None:
    body, problem = OWN[case]
    (tmp_path / "own.py").write_text(f"def f(text, row):\n    {body}\n")
    domains = domain(write(tmp_path / "rows.jsonl", sums(200)), verifier=f"{tmp_path}/own.py:f")
    if problem is None:
        assert check(recipe(domains=domains, evaluate=HELD_OUT), tmp_path / "run")
        return
    assert any(problem in found for found in problems(tmp_path / "run", domains=domains, evaluate=HELD_OUT))


def test_a_domain_without_gold_answers_is_checked_and_not_trained_on_them(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(text, row):\n    return float('7' in text)\n")
    domains = domain(write(tmp_path / "rows.jsonl", sums(200)), verifier=f"{tmp_path}/own.py:f", answer=None)
    found = problems(tmp_path / "run", domains=domains, evaluate=HELD_OUT)
    assert len(found) == 2
    assert all("trains on the gold answers of domain 'math'" in problem for problem in found)


def test_rows_that_are_left_out_are_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*sums(199), {"prompt": "x", "answer": "none"}])
    domains = domain(path, verifier="number", drop_refused=0.01)
    plan = check(recipe(domains=domains, evaluate=HELD_OUT), tmp_path / "run")
    (warning,) = [text for text in plan.warnings if "left out" in text]
    assert "`domains.math`: dataset" in warning
    assert "1 of 200 rows" in warning
    assert "row 199: `answer`, 'none', has no number" in warning
    (found,) = problems(tmp_path / "run", domains=domain(path, verifier="number"), evaluate=HELD_OUT)
    assert "row 199" in found


def test_a_few_refused_golds_are_a_warning_where_rows_may_be_dropped(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"add {i}",
            "answer": f"def f(x): return x + {i}",
            "tests": f"assert f(0) == {i if i % 25 else i + 1}",
        }
        for i in range(200)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    settings = {"tests": "tests", "verifier": "python_tests"}
    found = problems(tmp_path / "run", domains=domain(path, **settings), evaluate=HELD_OUT)
    assert any("gold answers" in problem for problem in found), "this seed draws one that its tests refuse"
    plan = check(recipe(domains=domain(path, **settings, drop_refused=0.05), evaluate=HELD_OUT), tmp_path / "run")
    assert any("gold answers" in warning for warning in plan.warnings)


def test_the_chance_of_so_many_is_that_of_counting() -> None:
    assert chance_of(0, 32, 0.02) == pytest.approx(1.0)
    assert chance_of(1, 2, 0.5) == pytest.approx(0.75)
    assert chance_of(2, 2, 0.1) == pytest.approx(0.01)


def test_a_row_of_arguments_goes_through_yaml(tmp_path: Path) -> None:
    from mopd.distill.recipe.files import dump_recipe, load_recipe

    task = {
        "path": write(tmp_path / "rows.jsonl", sums(40)),
        "labels": {"0": "no"},
        "filter": {"level": [4, "5", True]},
        "template_arguments": {"enable_thinking": False},
        "shot_rows": [{"prompt": "a", "answer": "b"}],
    }
    made = recipe(domains={"math": {"task": task, "teacher": "math"}})
    (tmp_path / "again.yaml").write_text(dump_recipe(made))
    assert load_recipe(str(tmp_path / "again.yaml"), shipped=tmp_path) == made
    assert json.loads(made.model_dump_json())["domains"]["math"]["task"]["filter"] == {"level": [4, "5", True]}


def test_where_programs_are_run_is_shown(tmp_path: Path) -> None:
    rows = [{"prompt": f"return {n}", "answer": f"assert f() == {n}"} for n in range(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    for wanted in ("whitelist", "auto"):
        task = task_of(path, verifier="python_tests", sandbox=wanted)
        source = Source(path=path, verifier="python_tests", sandbox=wanted)
        questions = Questions({"math": DomainRecipe(task=source)}, {"math": task}, None, seed=3)
        console = Console(file=io.StringIO(), width=200)
        print_samples(questions, console)
        assert f"its verifier says, of answers run in sandbox {chosen_sandbox(wanted)}:" in console.file.getvalue()
        assert questions.sandboxes == {"math": chosen_sandbox(wanted)}


def test_a_sandbox_that_this_machine_has_not_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"return {n}", "answer": f"assert f() == {n}"} for n in range(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    domains = domain(path, verifier="python_tests", sandbox="bubblewrap")
    monkeypatch.setenv("PATH", str(tmp_path))
    end_idle_servers()
    bubblewrap_problem.cache_clear()
    try:
        listed = problems(tmp_path / "run", domains=domains, evaluate=HELD_OUT)
    finally:
        bubblewrap_problem.cache_clear()
    (problem,) = [each for each in listed if "sandbox" in each]
    assert "no bwrap is on the PATH; install it" in problem
    assert "or take `sandbox: whitelist`" in problem
    with pytest.raises(ValueError, match="has `sandbox`, and verifier exact runs no programs in it"):
        Source(path=path, sandbox="whitelist")
