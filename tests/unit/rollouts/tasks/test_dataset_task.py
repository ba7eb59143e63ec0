"""Tasks from datasets: real files, splits that never meet, every row once an epoch, refusals that name the culprit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from dataset_kit import sums, task_of, write

from mopd.distill.recipe import Source
from mopd.distill.types import Prompt, UserError
from mopd.rollouts.tasks import Example, fingerprint, make_task
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tokenizer import build_tokenizer, to_prompt

SPLITS = ("train", "validation", "test")
TOKENIZER = build_tokenizer(["what is 1+2? user assistant: <>\n", "0123456789"], 60)


def whole(task: DatasetTask, split: str, *, seed: int = 0) -> list[Example]:
    return [task.example(seed=seed, split=split, index=i) for i in range(task.sizes[split])]


def prompt_of(example: Example) -> Prompt:
    return Prompt("math", example.id, (0,), example.text, example.answer)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_every_format_gives_every_row_in_one_split(tmp_path: Path, name: str) -> None:
    task = task_of(write(tmp_path / name, sums(300)))
    drawn = {split: {(e.text, e.answer) for e in whole(task, split)} for split in SPLITS}
    assert drawn["train"] | drawn["validation"] | drawn["test"] == {(r["prompt"], r["answer"]) for r in sums(300)}
    assert sum(map(len, drawn.values())) == 300 == sum(task.sizes.values())
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
    doubled = [*sums(80), *({"prompt": f"  {r['prompt']}\n", "answer": f"it is {r['answer']} "} for r in sums(80))]
    task = task_of(write(tmp_path / "rows.jsonl", doubled), verifier="number")
    assert sum(task.sizes.values()) == 80
    assert not any("it is" in e.answer for split in SPLITS for e in whole(task, split))


@pytest.mark.parametrize("verifier", ["exact", "number", "python_tests"])
def test_two_golds_for_one_prompt_are_refused_or_each_is_right_as_the_source_says(
    tmp_path: Path, verifier: str
) -> None:
    def gold(number: int) -> str:
        return f"assert x == {number}" if verifier == "python_tests" else str(number)

    def answer(number: int) -> str:
        return f"x = {number}" if verifier == "python_tests" else str(number)

    golds = {f"question {i}": (i, i + 1000, i + 2000) for i in range(60)}
    rows = [{"prompt": prompt, "answer": gold(number)} for place in range(3) for prompt, number in
            ((prompt, numbers[place]) for prompt, numbers in golds.items())]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"row 0: `answer` is .*row 60, which has the same prompt.*several_golds: any"):
        task_of(path, verifier=verifier)
    task = task_of(path, verifier=verifier, several_golds="any")
    assert sum(task.sizes.values()) == 60
    examples = [example for split in SPLITS for example in whole(task, split)][:12]
    asked = [(prompt_of(e), answer(n), right) for e in examples for n, right in
             [*((n, 1.0) for n in golds[e.text]), (golds[e.text][0] + 500, 0.0)]]  # fmt: skip
    verdicts = task.verify_many([prompt for prompt, *_ in asked], [text for _, text, _ in asked])
    assert verdicts == [right for *_, right in asked]


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
    rows = [{"prompt": f"question {i}: A) or B)?", "answer": ANSWERS[verifier][i % 2]} for i in range(40)]
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


def test_make_task_takes_a_source(tmp_path: Path) -> None:
    source = Source(path=write(tmp_path / "rows.jsonl", sums(60)))
    task = make_task(source, domain="math", tokenizer=TOKENIZER)
    example = task.example(seed=0, split="train", index=0)
    assert example.id.startswith("math/train/0-0-")
    assert task.verify(prompt_of(example), f" {example.answer}\n") == 1.0


def test_a_dataset_of_few_test_problems_has_a_fingerprint(tmp_path: Path) -> None:
    small = task_of(write(tmp_path / "rows.jsonl", sums(60)))
    other = task_of(write(tmp_path / "other.jsonl", [{**row, "answer": "7"} for row in sums(60)]))
    assert small.sizes["test"] < 32
    assert fingerprint(small, seed=0) == fingerprint(small, seed=0) != fingerprint(other, seed=0)
