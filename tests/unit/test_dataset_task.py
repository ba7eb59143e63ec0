"""Tasks from datasets: real files, splits that never meet, every row once an epoch, refusals that name the culprit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.recipe import Source
from distill.types import Prompt, UserError
from rollouts.tasks import Example, make_task
from rollouts.tasks.dataset import DatasetTask
from rollouts.tokenizer import build_tokenizer, to_prompt

SPLITS = ("train", "validation", "test")
TOKENIZER = build_tokenizer(["what is 1+2? user assistant: <>\n", "0123456789"], 60)


def sums(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"what is {i}+{i}?", "answer": str(2 * i)} for i in range(start, start + count)]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a file in the format that its name says; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task_of(path: str, *, domain: str = "math", tokenizer: Any = None, **source: Any) -> DatasetTask:
    return DatasetTask(Source(path=path, **source), tokenizer, domain=domain)


def whole(task: DatasetTask, split: str, *, seed: int = 0) -> list[Example]:
    return [task.example(seed=seed, split=split, index=i) for i in range(task.sizes[split])]


def prompt_of(example: Example) -> Prompt:
    return Prompt("math", example.id, (0,), example.text, example.answer)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_every_format_gives_every_row_in_one_split(tmp_path: Path, name: str) -> None:
    task = task_of(write(tmp_path / name, sums(300)))
    found = {split: {(e.text, e.answer) for e in whole(task, split)} for split in SPLITS}
    assert found["train"] | found["validation"] | found["test"] == {(r["prompt"], r["answer"]) for r in sums(300)}
    assert sum(map(len, found.values())) == 300 == sum(task.sizes.values())
    assert 30 < task.sizes["test"] < 90  # 20% by hash
    assert 12 < task.sizes["validation"] < 50  # 10%


def test_every_row_comes_once_an_epoch_in_an_order_of_seed_and_epoch(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", sums(60))
    task = task_of(path)
    n = task.sizes["train"]
    epochs = [[task.example(seed=3, split="train", index=e * n + i).text for i in range(n)] for e in range(3)]
    assert all(Counter(epoch) == Counter(epochs[0]) and max(Counter(epoch).values()) == 1 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != [e.text for e in whole(task, "train", seed=4)]
    again = task_of(path)  # a pure function: of a new task, in another order of asking
    backwards = [again.example(seed=3, split="train", index=n + i) for i in reversed(range(n))]
    assert [e.text for e in backwards][::-1] == epochs[1]
    assert again.example(seed=3, split="train", index=5, easy=True) == task.example(seed=3, split="train", index=5)


def test_ids_are_unique_across_epochs_and_splits(tmp_path: Path) -> None:
    task = task_of(write(tmp_path / "rows.jsonl", sums(60)))
    ids = [task.example(seed=0, split="train", index=i).id for i in range(3 * task.sizes["train"])]
    ids += [e.id for split in ("validation", "test") for e in whole(task, split)]
    assert len(set(ids)) == len(ids)


def test_the_split_of_a_prompt_depends_on_what_it_says_alone(tmp_path: Path) -> None:
    few = task_of(write(tmp_path / "few.jsonl", sums(200)))
    more = task_of(write(tmp_path / "more.jsonl", [*sums(300, start=500), *sums(200)][::-1]))
    for split in SPLITS:
        assert {e.text for e in whole(few, split)} <= {e.text for e in whole(more, split)}


def test_repeated_prompts_count_once_whatever_their_white_space(tmp_path: Path) -> None:
    doubled = [*sums(80), *({"prompt": f"  {r['prompt']}\n", "answer": "another"} for r in sums(80))]
    task = task_of(write(tmp_path / "rows.jsonl", doubled))
    assert sum(task.sizes.values()) == 80
    assert "another" not in {e.answer for split in SPLITS for e in whole(task, split)}


def test_named_splits_are_taken_and_training_leaves_out_what_they_hold(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", sums(50))
    write(tmp_path / "data" / "validation.jsonl", sums(10, start=45))
    write(tmp_path / "data" / "test.jsonl", sums(10, start=53))
    task = task_of(str(tmp_path / "data"), validation_split="validation", test_split="test")
    texts = {split: {e.text for e in whole(task, split)} for split in SPLITS}
    assert texts["test"] == {r["prompt"] for r in sums(10, start=53)}
    assert texts["validation"] == {r["prompt"] for r in sums(8, start=45)}  # test holds the other two
    assert texts["train"] == {r["prompt"] for r in sums(45)}


def test_one_named_split_leaves_the_other_to_the_hash(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", sums(100))
    write(tmp_path / "data" / "test.jsonl", sums(20, start=90))
    task = task_of(str(tmp_path / "data"), test_split="test")
    texts = {split: {e.text for e in whole(task, split)} for split in SPLITS}
    assert task.sizes["test"] == 20
    assert texts["train"] | texts["validation"] == {r["prompt"] for r in sums(90)}
    assert texts["validation"]
    assert not texts["train"] & texts["validation"]


def test_a_domain_column_chooses_rows(tmp_path: Path) -> None:
    rows = [{**row, "topic": "math" if i % 2 else "law"} for i, row in enumerate(sums(120))]
    path = write(tmp_path / "rows.parquet", rows)
    both = [DatasetTask(Source(path=path, domain="topic"), None, domain=domain) for domain in ("math", "law")]
    texts = [{e.text for split in SPLITS for e in whole(task, split)} for task in both]
    assert texts == [{r["prompt"] for r in rows if r["topic"] == domain} for domain in ("math", "law")]
    with pytest.raises(UserError, match=r"no row whose 'topic' is 'chess'; it has 'law', 'math'"):
        DatasetTask(Source(path=path, domain="topic"), None, domain="chess")


CHAT = [
    {"prompt": [{"role": "system", "content": "add"}, {"role": "user", "content": f"{i}+1"}], "answer": str(i + 1)}
    for i in range(60)
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.parquet"])
def test_chat_messages_go_through_the_students_template(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, CHAT)
    tokenizer = build_tokenizer(["<user>add 0123456789+ system assistant\n"], 60)
    with pytest.raises(UserError, match=r"column 'prompt' holds chat messages.*no\s+chat template"):
        task_of(path, tokenizer=tokenizer)
    tokenizer.chat_template = TEMPLATE
    task = task_of(path, tokenizer=tokenizer)
    example = task.example(seed=0, split="test", index=0)
    number = int(example.answer) - 1
    assert example.text == f"<system>add\n<user>{number}+1\n<assistant>"
    assert to_prompt(tokenizer, domain="math", example=example).text == example.text
    assert task_of(path).example(seed=0, split="test", index=0).text == f"add\n{number}+1"
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(UserError, match=r"refuses the messages.*no system messages"):
        task.example(seed=0, split="test", index=0)


ANSWERS = {
    "exact": ["Paris", "Rome"],
    "number": [12, 13.5],
    "choice": ["A", "B"],
    "math": [r"\frac{1}{2}", r"\{1,2\}"],
}


@pytest.mark.parametrize("verifier", list(ANSWERS))
def test_gold_is_accepted_and_a_wrong_answer_refused(tmp_path: Path, verifier: str) -> None:
    rows = [{"prompt": f"question {i}", "answer": ANSWERS[verifier][i % 2]} for i in range(40)]
    task = task_of(write(tmp_path / "rows.jsonl", rows), verifier=verifier)
    examples = whole(task, "test")
    prompts = [prompt_of(e) for e in examples]
    texts = [text for e in examples for text in (e.answer, task.wrong_answer(e))]
    verdicts = task.verify_many([p for p in prompts for _ in range(2)], texts)
    assert verdicts == [1.0, 0.0] * len(examples)
    assert task.verify(prompts[0], examples[0].answer) == 1.0


def test_programs_are_verified_by_the_tests_of_their_own_row(tmp_path: Path) -> None:
    rows = [
        {"ask": f"add {i}", "code": f"def f(x): return x + {i}", "checks": [f"assert f(1) == {i + 1}", "assert 1"]}
        for i in range(40)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    columns = {"prompt": "ask", "answer": "code", "tests": "checks", "verifier": "python_tests"}
    task = task_of(path, **columns)
    first, second = whole(task, "test")[:2]
    prompts = [prompt_of(first), prompt_of(second), prompt_of(second), prompt_of(second)]
    texts = [first.answer, first.answer, f"```python\n{second.answer}\n```", task.wrong_answer(second)]
    assert task.verify_many(prompts, texts) == [1.0, 0.0, 1.0, 0.0]
    assert "assert" not in first.answer
    bare = task_of(path, **{**columns, "answer": "checks", "tests": None})
    example = bare.example(seed=0, split="test", index=0)
    assert example.answer == f"assert f(1) == {int(example.text[4:]) + 1}\nassert 1"
    right = f"def f(x): return x + {example.text[4:]}"
    assert bare.verify_many([prompt_of(example)] * 2, [right, example.answer]) == [1.0, 0.0]


def test_held_out_problems_are_asked_once(tmp_path: Path) -> None:
    task = task_of(write(tmp_path / "rows.jsonl", sums(60)))
    n = task.sizes["test"]
    with pytest.raises(UserError, match=rf"has {n} problems of domain 'math' for test.*`evaluate.test_prompts` to {n}"):
        task.example(seed=0, split="test", index=n)
    with pytest.raises(UserError, match="no split 'dev'; it has test, validation, train"):
        task.example(seed=0, split="dev", index=0)


BAD_ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "column": (sums(40), {"prompt": "question"}, r"no column 'question'; it has 'prompt', 'answer'; set `prompt`"),
    "two columns": (sums(40), {"answer": "gold", "prompt": "ask"}, r"no column 'ask'(.|\n)*no column 'gold'"),
    "nothing": ([{"prompt": "a", "answer": "b"}], {}, "1 usable rows.*none is left for"),
    "no answer": ([*sums(40), {"prompt": "a", "answer": None}], {}, "row 40: `answer` is None"),
    "blank": ([*sums(40), {"prompt": " ", "answer": "b"}], {}, "row 40: `prompt` is ' ', which is neither text nor"),
    "empty answer": ([*sums(40), {"prompt": "a", "answer": ""}], {}, "row 40: `answer`, '', is empty"),
    "no number": (
        [*sums(40), *({"prompt": f"a{i}", "answer": "none"} for i in range(5))],
        {"verifier": "number"},
        r"row 40: `answer`, 'none', has no number in it \(verifier 'number'\)(.|\n)*and 2 more rows",
    ),
    "no option": (sums(40), {"verifier": "choice"}, "row 0: `answer`, '0', names no option"),
    "tests": ([{"prompt": "a", "answer": "assert f("}], {"verifier": "python_tests"}, "row 0: .*not Python"),
    "tests for another": (
        sums(40),
        {"tests": "answer"},
        "names a column of unit tests, 'answer', for verifier 'exact'",
    ),
    "message": ([{"prompt": [{"role": "user"}], "answer": "b"}], {}, "row 0: `prompt` has {'role': 'user'} in it"),
    "split of a file": (sums(40), {"test_split": "test"}, "is one file.*split 'test'"),
    "same split": (sums(40), {"test_split": "train"}, r"the same \(train, train\)"),
}


@pytest.mark.parametrize("case", list(BAD_ROWS))
def test_bad_data_is_refused_by_name(tmp_path: Path, case: str) -> None:
    rows, source, problem = BAD_ROWS[case]
    with pytest.raises(UserError, match=problem):
        task_of(write(tmp_path / "rows.jsonl", rows), **source)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere.jsonl' does not exist"):
        task_of(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "answer"\n')
    with pytest.raises(UserError, match=r"broken.jsonl'.*can't be read"):
        task_of(str(tmp_path / "broken.jsonl"))
    (tmp_path / "rows.csv").write_text("prompt,answer\na,b\n")
    with pytest.raises(UserError, match=r"ends in .jsonl, .json, .parquet"):
        task_of(str(tmp_path / "rows.csv"))
    write(tmp_path / "train.jsonl", sums(9))
    with pytest.raises(UserError, match=r"split 'holdout', can't be read"):
        task_of(str(tmp_path), split="holdout")


def test_make_task_takes_a_source(tmp_path: Path) -> None:
    source = Source(path=write(tmp_path / "rows.jsonl", sums(60)))
    task = make_task(source, domain="math", tokenizer=TOKENIZER)
    example = task.example(seed=0, split="train", index=0)
    assert example.id.startswith("math/train/0-0-")
    assert task.verify(prompt_of(example), f" {example.answer}\n") == 1.0
