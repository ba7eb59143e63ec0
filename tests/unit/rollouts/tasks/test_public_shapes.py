"""Every stanza of docs/datasets.md on rows of the set's public schema: what is asked, and what is right."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from check_kit import tree
from dataset_kit import write
from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import Source
from mopd.distill.recipe.files import load_recipe, parse_yaml
from mopd.distill.types import Prompt
from mopd.recipes import SHIPPED
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tokenizer import build_tokenizer

PAGE = (Path(__file__).parents[4] / "docs" / "datasets.md").read_text()
STANZAS = dict(re.findall(r"```yaml (\S+)\n(.*?)```\n", PAGE.replace("```python\\n{prompt}```", "%FENCE%"), re.DOTALL))
FILES = dict(re.findall(r"```python (\S+)\n(.*?)```\n", PAGE, re.DOTALL))


def template(name: str) -> str:
    """A public model's chat template, of those that TRL comes with."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


def student(name: str | None) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer(["abc 123"], 60)
    if name is not None:
        tokenizer.chat_template = template(name)
    return tokenizer


def user(text: str) -> str:
    """A user's turn in Qwen3's template, up to where the student begins."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Shape:
    """Row ``i`` of a set in its schema; what row 7 asks and has as gold; answers to it that are right and wrong."""

    row: Callable[[int], dict[str, Any]]
    asked: str
    gold: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    chat: str | None = "qwen3"
    splits: tuple[str, ...] = ("train",)
    rows: int = 60
    more: dict[str, Any] = field(default_factory=dict)


def choices(i: int) -> list[str]:
    return [f"city {i + k}" for k in range(4)]


def asked_choices(line: str) -> str:
    return "\n".join(line.format(letter, option) for letter, option in zip("ABCD", choices(7), strict=True))


def sum_program(i: int) -> dict[str, str]:
    return {
        "task_id": f"HumanEval/{i}",
        "prompt": f'from typing import List\n\n\ndef add{i}(xs: List[int]) -> int:\n    """ Sum plus {i}. """\n',
        "entry_point": f"add{i}",
        "canonical_solution": f"    return sum(xs) + {i}\n",
        "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate([1]) == {i + 1}\n\n",
    }


WEATHER = {
    "name": "weather",
    "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
}


def called(i: int) -> dict[str, Any]:
    weather = {"type": "function", "function": {"name": "weather", "arguments": json.dumps({"town": f"town {i}"})}}
    return {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": f"Weather in town {i}?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": f"c{i}", **weather}]},
            {"role": "tool", "tool_call_id": f"c{i}", "name": "weather", "content": f"{i} degrees"},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
        "answer": i,
    }


def apps(i: int) -> dict[str, Any]:
    """Rows of both kinds of codeparrot/apps: whole programs, and functions with a class around them."""
    row = {"problem_id": i, "question": f"Add {i}.", "difficulty": "interview", "url": f"https://example.org/{i}"}
    if i % 2:
        program = f"n = int(input())\nfor _ in range(n):\n    print(int(input()) + {i})"
        cases = {"inputs": ["2\n1\n2\n", "1\n0\n"], "outputs": [f"{i + 1}\n{i + 2}\n", f"{i}\n"]}
        return row | {"solutions": json.dumps([program]), "input_output": json.dumps(cases), "starter_code": ""}
    starter = "class Solution:\n    def add(self, xs: List[int]) -> List[int]:\n        "
    program = f"{starter}return [x + {i} for x in xs]"
    cases = {"fn_name": "add", "inputs": [[[1, 2]], [[]]], "outputs": [[i + 1, i + 2], []]}
    return row | {"solutions": json.dumps([program]), "input_output": json.dumps(cases), "starter_code": starter}


def livecodebench(i: int) -> dict[str, Any]:
    """Rows of both kinds of livecodebench/code_generation_lite."""
    row = {"question_title": f"Add {i}", "question_content": f"Add {i}.", "platform": "atcoder", "difficulty": "easy"}
    if i % 2:
        cases = [{"input": f"{k}\n", "output": f"{k + i}\n", "testtype": "stdin"} for k in range(2)]
        return row | {"starter_code": "", "metadata": "{}", "public_test_cases": json.dumps(cases)}
    cases = [{"input": f"[{k}]\n2", "output": str([k + i, 2]), "testtype": "functional"} for k in range(2)]
    starter = "class Solution:\n    def add(self, xs: List[int], y: int) -> List[int]:\n        "
    more = {"starter_code": starter, "metadata": json.dumps({"func_name": "add"})}
    return row | more | {"public_test_cases": json.dumps(cases)}


SHAPES: dict[str, Shape] = {
    "gsm8k": Shape(
        lambda i: {
            "question": f"{i} ducks and {i} more?",
            "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}",
        },
        user("7 ducks and 7 more?\nReason step by step, and write the final number in \\boxed{}."),
        "7+7=<<7+7=14>>14\n#### 14",
        ("14", "7 and 7 are \\boxed{14}", "$14"),
        ("7", "", "\\boxed{15}"),
        splits=("train", "test"),
    ),
    "math": Shape(
        lambda i: {
            "problem": f"Halve {i}.",
            "level": "Level 5" if i != 3 else "Level 1",
            "type": "Algebra",
            "solution": f"It is $\\boxed{{\\frac{{{i}}}{{2}}}}$.",
        },
        user("Halve 7.\nPut the final answer in \\boxed{}."),
        "It is $\\boxed{\\frac{7}{2}}$.",
        ("\\boxed{3.5}", "So $\\frac{7}{2}$."),
        ("\\boxed{7}", "2"),
        splits=("train", "test"),
    ),
    "aime": Shape(
        lambda i: {
            "id": i,
            "problem": f"Count to {i}.",
            "solution": "Count.",
            "answer": f"{i:03}",
            "url": "",
            "year": "24",
        },
        "<|im_start|>system\nReason step by step, and put the final answer in \\boxed{}.<|im_end|>\n"
        + user("Count to 7."),
        "007",
        ("\\boxed{7}", "007"),
        ("70",),
    ),
    "numina": Shape(
        lambda i: {
            "source": "cn_k12",
            "problem": f"What is {i}+1?",
            "solution": f"It is $\\boxed{{{i + 1}}}$.",
            "messages": [
                {"role": "user", "content": f"What is {i}+1?"},
                {"role": "assistant", "content": f"It is $\\boxed{{{i + 1}}}$." if i != 3 else ""},
            ],
        },
        user("What is 7+1?"),
        "It is $\\boxed{8}$.",
        ("\\boxed{8}",),
        ("\\boxed{7}",),
        splits=("train", "test"),
    ),
    "verl": Shape(
        lambda i: {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"What is {i}+1?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
            "extra_info": {"split": "train", "index": i},
        },
        user("What is 7+1?"),
        "8",
        ("#### 8",),
        ("7",),
    ),
    "few-shot": Shape(
        lambda i: {"question": f"{i} + {i}?", "answer": f"#### {2 * i}"},
        "".join(f"Question: {i} + {i}?\nAnswer: #### {2 * i}\n\n" for i in range(4)) + "Question: 7 + 7?\nAnswer:",
        "#### 14",
        ("14",),
        ("7",),
        splits=("train", "test"),
    ),
    "mbpp": Shape(
        lambda i: {
            "task_id": i,
            "text": f"Write a function that adds {i}.",
            "code": f"def add(x):\r\n    return x + {i}",
            "test_list": [f"assert add(ONE) == {i + 1}", f"assert add(2) == {i + 2}"],
            "test_setup_code": "ONE = 1",
            "challenge_test_list": [],
        },
        user(
            "Write a function that adds 7.\nThe program must pass these tests:\n"
            "assert add(ONE) == 8\nassert add(2) == 9"
        ),
        "def add(x):\r\n    return x + 7",
        ("```python\ndef add(x):\n    return x + 7\n```",),
        ("def add(x):\n    return x + 1",),
        splits=("train", "validation", "test"),
    ),
    "humaneval": Shape(
        sum_program,
        user(f"Complete this function. Answer with the whole function.\n```python\n{sum_program(7)['prompt']}```"),
        "    return sum(xs) + 7\n",
        (
            "    return sum(xs) + 7\n\nprint('more')",
            f"```python\n{sum_program(7)['prompt']}    return 7 + sum(xs)\n```",
            "```python\ndef add7(xs: List[int]) -> int:\n    return sum(xs, 7)\n```",
        ),
        ("    return sum(xs)", "pass", "def other(xs):\n    return 0"),
        splits=("test",),
    ),
    "apps": Shape(
        apps,
        user("Add 7.\n"),
        "n = int(input())\nfor _ in range(n):\n    print(int(input()) + 7)",
        (
            "import sys\nxs = list(map(int, sys.stdin.read().split()))\nprint(*[x + 7 for x in xs[1:]], sep='\\n')",
            "```python\ndef main():\n    for x in [*open(0)][1:]:\n        print(int(x) + 7)\n"
            "if __name__ == '__main__':\n    main()\n```",
        ),
        ("n = int(input())\nfor _ in range(n):\n    print(int(input()) + 8)", "print('8\\n9')", "8\n9"),
        splits=("train", "test"),
    ),
    "livecodebench": Shape(
        livecodebench,
        user("Add 7.\n"),
        "",
        ("print(int(input()) + 7)", "It reads a number:\n```python\nprint(7 + int(input().strip()))\n```"),
        ("print(7)", "def add(x):\n    return x + 7"),
        splits=("test",),
    ),
    "mmlu": Shape(
        lambda i: {"question": f"Where is {i}?", "subject": "college_physics", "choices": choices(i), "answer": i % 4},
        user(f"Where is 7?\n{asked_choices('{}. {}')}\nAnswer with the letter of the right option."),
        "D",
        ("D", "The answer is (D)."),
        ("A", "3"),
        splits=("auxiliary_train", "validation", "test"),
    ),
    "arc": Shape(
        lambda i: {
            "id": f"MCAS_{i}",
            "question": f"Where is {i}?",
            "choices": {"text": choices(i), "label": list("ABCD") if i % 2 else list("1234")},
            "answerKey": "ABCD"[i % 4] if i % 2 else str(i % 4 + 1),
        },
        user(f"Where is 7?\n{asked_choices('{}. {}')}"),
        "D",
        ("D",),
        ("C",),
        splits=("train", "validation", "test"),
    ),
    "mmlu-pro": Shape(
        lambda i: {
            "question_id": i,
            "question": f"Where is {i}?",
            "options": [f"place {i + k}" for k in range(10)],
            "answer": "ABCDEFGHIJ"[i % 10],
            "answer_index": i % 10,
            "cot_content": "",
            "category": "law",
            "src": "made-up",
        },
        "",
        "H",
        ("The answer is (H).",),
        ("G",),
        splits=("test", "validation"),
    ),
    "classes": Shape(
        lambda i: {"idx": i, "sentence": f"film {i}", "label": i % 2},
        user("Is this review positive or negative?\nfilm 7"),
        "positive",
        ("positive",),
        ("negative", "1"),
        splits=("train", "validation"),
    ),
    "sharegpt": Shape(
        lambda i: {
            "system": "Think first.",
            "conversations": [
                {"from": "user" if i == 5 else "human", "value": f"What is {i}+1?"},
                {"from": "gpt", "value": f"It is \\boxed{{{i + 1}}}."},
            ],
        },
        f"<|im_start|>system\nThink first.<|im_end|>\n{user('What is 7+1?')}",
        "It is \\boxed{8}.",
        ("\\boxed{8}",),
        ("\\boxed{7}",),
    ),
    "trl": Shape(
        lambda i: {
            "prompt": [{"role": "user", "content": f"Say {i}."}],
            "completion": [{"role": "assistant", "content": f"{i}!"}],
        },
        user("Say 7."),
        "7!",
        ("7!",),
        ("7",),
    ),
    "tools": Shape(
        called,
        "",
        "7",
        ("7 degrees",),
        ("8",),
    ),
    "own-row": Shape(
        lambda i: {"source": "unwanted" if i == 3 else "x", "question": f"Q: {i}+1?", "final": f"{i}+1={i + 1}"},
        user("7+1?"),
        "8",
        ("8",),
        ("7",),
    ),
    "ifeval": Shape(
        lambda i: {
            "key": i,
            "prompt": f"Write on {i} without commas, with at least {i} words.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [
                {"relation": None, "num_words": None},
                {"relation": "at least", "num_words": i},
            ],
        },
        user("Write on 7 without commas, with at least 7 words."),
        "",
        ("one two three four five six seven",),
        ("one, two three four five six seven", "one two", ""),
    ),
}


def task_on(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> DatasetTask:
    """The task of a stanza of the page, on made-up rows."""
    shape = SHAPES[name]
    stanza = parse_yaml(STANZAS[name].replace("%FENCE%", "```python\\n{prompt}```"), name)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    rows = [shape.row(i) for i in range(shape.rows)]
    if len(shape.splits) > 1 or shape.splits != ("train",):
        # What training shares with a held-out split is left out of it; every split needs rows of its own.
        for place, split in enumerate(shape.splits):
            own = rows if place == 0 else [shape.row(1000 * place + i) for i in range(20)]
            write(tmp_path / "rows" / "data" / f"{split}-00000-of-00001.jsonl", own)
        path = "./rows"
    else:
        path = str(Path(write(tmp_path / f"rows{Path(stanza['path']).suffix or '.jsonl'}", rows)))
    stanza = {key: value for key, value in stanza.items() if key != "name"}
    domains = {"d": {"task": {**stanza, "path": path}, "teacher": "math"}}
    source = load_recipe(tree(domains=domains), shipped=SHIPPED).domains["d"].task
    assert isinstance(source, Source)
    return DatasetTask(source, student(None if stanza.get("template") == "raw" else shape.chat), domain="d")


def test_every_stanza_of_the_page_is_run() -> None:
    assert set(STANZAS) == set(SHAPES)
    assert PAGE.count("```yaml") == len(STANZAS)


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_public_shape_works_by_its_stanza_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, task = SHAPES[name], task_on(tmp_path, name, monkeypatch)
    examples = {
        example.text: example
        for split, size in task.sizes.items()
        for example in (task.example(seed=0, split=split, index=i) for i in range(size))
    }
    last = re.compile(r"(?:Where is|in town) (\d+)\?")  # where the prompt has more before it
    (example,) = [e for text, e in examples.items() if text == (shape.asked or text) and (
        shape.asked or last.findall(text)[-1] == "7")]  # fmt: skip  # not per token
    assert example.answer == shape.gold
    answers = [*((shape.gold,) if shape.gold else ()), *shape.right, *shape.wrong, task.wrong_answer(example)]
    prompt = Prompt("d", example.id, (0,), example.text, example.answer)
    verdicts = task.verify_many([prompt] * len(answers), answers)
    accepted = len(shape.right) + bool(shape.gold)
    assert verdicts == [1.0] * accepted + [0.0] * (len(answers) - accepted), list(zip(answers, verdicts, strict=True))


def test_shots_are_other_rows_and_come_as_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = task_on(tmp_path, "mmlu-pro", monkeypatch).example(seed=0, split="train", index=0).text
    assert text.count("<|im_start|>user\n") == 6
    assert [f"Where is 100{i}?" in text for i in range(6)] == [True] * 5 + [False]
    assert "(J) place 1009<|im_end|>\n<|im_start|>assistant\n" in text
    task = task_on(tmp_path / "few", "few-shot", monkeypatch) if (tmp_path / "few").mkdir() is None else None
    assert task is not None
    asked = [task.example(seed=0, split="train", index=i).text for i in range(task.sizes["train"])]
    assert not any(text.endswith(f"Question: {i} + {i}?\nAnswer:") for text in asked for i in range(4))


def test_a_call_of_a_tool_comes_out_as_the_template_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {}
    for name in ("qwen3", "qwen2_5", "llama3_1", "gptoss", "deepseekv3"):
        if name == "deepseekv3":  # its calls are written, and its template takes no tools
            monkeypatch.setitem(STANZAS, "tools", STANZAS["tools"].replace("tools: tools\n", ""))
        monkeypatch.setitem(SHAPES, "tools", Shape(called, "", "", (), (), chat=name))
        (tmp_path / name).mkdir()
        task = task_on(tmp_path / name, "tools", monkeypatch)
        texts[name] = task.example(seed=0, split="train", index=0)
    for name, example in texts.items():
        assert f"town {example.answer}" in example.text, name
        assert f"{example.answer} degrees" in example.text
        assert "None" not in example.text
        assert "weather" in example.text
    assert '"arguments": {"town": "town' in texts["qwen2_5"].text, "a mapping, and no text with quotes in it"
    number = texts["qwen3"].answer
    assert (
        f'<tool_call>\n{{"name": "weather", "arguments": {{"town": "town {number}"}}}}\n</tool_call>'
        in texts["qwen3"].text
    )
    assert "Be brief." in texts["qwen3"].text
    assert "'type'" not in texts["qwen3"].text


@pytest.mark.parametrize("name", ["qwen3_8gpu", "mimo_cluster"])
def test_the_big_recipes_ask_in_turns_and_show_the_tests(name: str, tmp_path: Path) -> None:
    domains = load_recipe(name, shipped=SHIPPED).domains
    for domain, shape in (("math", "math"), ("code", "mbpp")):
        rows = SHAPES[shape]
        for place, split in enumerate(("train", "validation", "test")):
            write(tmp_path / domain / f"{split}.jsonl", [rows.row(1000 * place + i) for i in range(60)])
        source = domains[domain].task
        assert isinstance(source, Source)
        here = source.model_copy(update={"path": str(tmp_path / domain), "name": None})
        task = DatasetTask(here, student("qwen3"), domain=domain)
        examples = [task.example(seed=0, split=s, index=i) for s, n in task.sizes.items() for i in range(n)]
        thoughts_off = "<think>\n\n</think>\n\n" if source.template_arguments else ""
        (example,) = [e for e in examples if e.text == rows.asked + thoughts_off]
        prompt = Prompt(domain, example.id, (0,), example.text, example.answer)
        assert task.verify_many([prompt] * 2, [example.answer, task.wrong_answer(example)]) == [1.0, 0.0]
