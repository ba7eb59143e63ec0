"""A row's meaning, as its settings say: paths, templates, messages, options, and golds that keep their text."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_kit import sums, task_of, write
from pydantic import ValidationError

from mopd.distill.recipe import Source
from mopd.distill.recipe.source import template_parts
from mopd.distill.types import Prompt, UserError
from mopd.rollouts.programs import continued
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tasks.row_meaning import cell, fill, read_row
from mopd.rollouts.tokenizer import build_tokenizer

ROW: dict[str, Any] = {
    "question": "2+2?",
    "choices": {"text": ["3", "4"], "label": ["1", "2"]},
    "extra": '{"index": 7, "answers": ["a", "b"]}',
    "turns": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
    "a.b": "dotted",
    "tests": ["assert 1", "assert 2"],
}


def source(**settings: Any) -> Source:
    return Source(path="./rows.jsonl", **settings)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("question", "2+2?"),
        ("choices.text.1", "4"),
        ("choices.text.-1", "4"),
        ("extra.index", 7),
        ("extra.answers.0", "a"),
        ("turns.-1.content", "yo"),
        ("a.b", "dotted"),
    ],
)
def test_a_path_walks_into_nested_cells(path: str, value: Any) -> None:
    assert cell(ROW, path) == value


@pytest.mark.parametrize(
    ("path", "missing"),
    [("nothing", "'nothing'"), ("choices.texts", "'texts'"), ("choices.text.2", "'2'"), ("question.x", "'x'")],
)
def test_a_path_that_leads_nowhere_names_the_part_that_is_missing(path: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"has no `{path}`.*no {missing}"):
        cell(ROW, path)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{question}\nTests:\n{tests}", "2+2?\nTests:\nassert 1\nassert 2"),
        ("{{{question}}} in \\boxed{}", "{2+2?} in \\boxed{}"),
        ("{choices.text.0} or {extra.index}", "3 or 7"),
        ("{ question }", "2+2?"),
        ("", ""),
    ],
)
def test_a_template_is_text_with_columns(template: str, text: str) -> None:
    assert fill(template, ROW) == text


@pytest.mark.parametrize("template", ["{question", "question}", "{a{b}}"])
def test_a_lone_brace_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="lone"):
        template_parts(template)


def test_a_template_never_shows_the_gold() -> None:
    with pytest.raises(ValidationError, match=r"\{answer\} in `system`.*write \{\{answer\}\}"):
        source(system="Write \\boxed{answer}.")
    assert read_row(source(system="Write \\boxed{{answer}}."), sums(1)[0]).system == "Write \\boxed{answer}."


# ---- golds keep their text


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "data/train.jsonl"])
@pytest.mark.parametrize("value", ["1.50", "10000000000000000000000001", "18446744073709551615", "1E5", "7", '"007"',
                                   '"2024-01-01"', '"2024-01-01T00:00:00Z"', '"1,000"'])  # fmt: skip
def test_a_gold_of_json_keeps_its_text(tmp_path: Path, name: str, value: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    lines = [f'{{"prompt": "what is {i}?", "answer": {value if i % 2 else i}}}' for i in range(40)]
    path.write_text(f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines))
    task = task_of(str(path.parent if "/" in name else path))
    golds = {e.text: e.answer for e in (task.example(seed=0, split="train", index=i) for i in range(20))}
    assert {gold for text, gold in golds.items() if int(text[8:-1]) % 2} == {value.strip('"')}
    assert all(gold == text[8:-1] for text, gold in golds.items() if not int(text[8:-1]) % 2)


def test_a_gold_of_csv_is_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer\n" + "".join(f'"what, {i}?",{i:03}\n' for i in range(40)))
    example = task_of(str(path)).example(seed=0, split="train", index=0)
    assert example.answer == f"{int(example.text[6:-1]):03}"


def test_golds_of_parquet_are_of_their_own_type(tmp_path: Path) -> None:
    days = [datetime.date(2024, 1, 1 + i) for i in range(30)]
    columns = {
        "prompt": [f"what is {i}?" for i in range(30)],
        "whole": pa.array([2**64 - 1 - i for i in range(30)], pa.uint64()),
        "day": days,
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    for answer, golds in (("whole", {str(2**64 - 1 - i) for i in range(30)}), ("day", {d.isoformat() for d in days})):
        task = task_of(str(tmp_path / "rows.parquet"), answer=answer)
        drawn = {task.example(seed=0, split=s, index=i).answer for s, n in task.sizes.items() for i in range(n)}
        assert drawn == golds


def test_a_right_answer_to_a_big_gold_scores_and_its_neighbour_does_not(tmp_path: Path) -> None:
    rows = [{"prompt": f"10^25+{i}?", "answer": 10**25 + i} for i in range(40)]
    task = task_of(write(tmp_path / "rows.jsonl", rows), verifier="number")
    example = task.example(seed=0, split="train", index=0)
    prompt = Prompt("d", example.id, (0,), example.text, example.answer)
    assert task.verify_many([prompt] * 2, [example.answer, str(int(example.answer) + 1)]) == [1.0, 0.0]


# ---- several golds, rows that can't be used


def twice(i: int) -> list[dict[str, Any]]:
    return [{"prompt": f"what is {i}?", "answer": str(i)}, {"prompt": f"what is  {i}?", "answer": str(i + 100)}]


def test_two_golds_for_one_prompt_are_refused_or_any_is_right(tmp_path: Path) -> None:
    rows = [*sums(40), *twice(7), *twice(8)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        UserError, match=r"row 40: `answer` is '7', and row 41, .* has '107'.*several_golds: any"
    ) as caught:
        task_of(path, verifier="number")
    assert any("1 more rows" in problem for problem in caught.value.problems), caught.value.problems
    left = task_of(path, verifier="number", drop_refused=0.2)
    asked = {left.example(seed=0, split=s, index=i).text for s, n in left.sizes.items() for i in range(n)}
    assert asked == {row["prompt"] for row in sums(40)}, "neither gold of a prompt that is in doubt is taken"
    task = task_of(path, verifier="number", several_golds="any")
    drawn = [task.example(seed=0, split=s, index=i) for s, n in task.sizes.items() for i in range(n)]
    (example,) = [e for e in drawn if e.text == "what is 7?"]
    prompt = Prompt("d", example.id, (0,), example.text, example.answer)
    assert task.verify_many([prompt] * 4, ["7", "107", "8", task.wrong_answer(example)]) == [1.0, 1.0, 0.0, 0.0]
    assert len(drawn) == 42


def test_one_answer_written_in_two_ways_is_one_gold(tmp_path: Path) -> None:
    rows = [*sums(40), {"prompt": "half?", "answer": "0.5"}, {"prompt": "half?", "answer": "so it is 1/2"}]
    assert sum(task_of(write(tmp_path / "rows.jsonl", rows), verifier="number").sizes.values()) == 41
    with pytest.raises(UserError, match="same prompt"):
        task_of(str(tmp_path / "rows.jsonl"), verifier="exact")


def test_a_list_of_golds_means_any_of_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"who {i}?", "answer": [f"a{i}", f"b{i}"]} for i in range(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"row 0: `answer` is a list.*several_golds: any.*`answer.0`"):
        task_of(path)
    task = task_of(path, several_golds="any")
    example = task.example(seed=0, split="train", index=0)
    number = example.text[4:-1]
    prompt = Prompt("d", example.id, (0,), example.text, example.answer)
    assert task.verify_many([prompt] * 3, [f"b{number}", f"a{number}", "a"]) == [1.0, 1.0, 0.0]


BAD = [{"prompt": "", "answer": "1"}, {"prompt": "x", "answer": None}, {"prompt": "y", "answer": "no number"}]


def test_all_rows_that_cannot_be_used_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", [*sums(97), *BAD])
    write(tmp_path / "data" / "test.jsonl", [*sums(99, start=200), {"prompt": "z", "answer": ""}])
    settings: dict[str, Any] = {"verifier": "number", "test_split": "test"}
    with pytest.raises(UserError) as caught:
        task_of(str(tmp_path / "data"), **settings)
    assert len(caught.value.problems) == 4
    assert "1 more rows like these, of 200" in caught.value.problems[3]
    assert {int(problem.split("row ")[1].split(":")[0]) for problem in caught.value.problems[:3]} <= {97, 98, 99}
    with pytest.raises(UserError, match="drop_refused"):
        task_of(str(tmp_path / "data"), **settings, drop_refused=0.019)
    task = task_of(str(tmp_path / "data"), **settings, drop_refused=0.02)
    assert sum(task.sizes.values()) == 196
    by_split = {report.split: report for report in task.reports}
    assert [number for number, _ in by_split["train"].refused] == [97, 98, 99]
    assert (by_split["test"].rows, by_split["test"].chosen, len(by_split["test"].refused)) == (100, 100, 1)
    assert [sentence.count("row ") for sentence in task.left_out] == [1, 3]


# ---- which rows


def test_filter_limit_and_a_function_choose_rows(tmp_path: Path) -> None:
    rows = [{**row, "level": i % 3, "meta": {"easy": i % 2 == 0}} for i, row in enumerate(sums(300))]
    path = write(tmp_path / "rows.jsonl", rows)

    def drawn(**settings: Any) -> list[int]:
        task = task_of(path, **settings)
        texts = [task.example(seed=0, split=s, index=i).text for s, n in task.sizes.items() for i in range(n)]
        return sorted(int(text.split()[2].split("+")[0]) for text in texts)

    assert drawn(filter={"level": [0, "1"], "meta.easy": True}) == [i for i in range(0, 300, 2) if i % 3 < 2]
    assert drawn(filter={"level": 2}, limit=50) == list(range(2, 150, 3))
    (tmp_path / "own.py").write_text("def keep(row):\n    return row if row['level'] == 1 else None\n")
    assert drawn(row=f"{tmp_path}/own.py:keep") == list(range(1, 300, 3))
    with pytest.raises(UserError, match="`filter` keeps none"):
        task_of(path, filter={"level": 9})


def test_the_first_rows_of_a_set_are_read_as_a_stream(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", [*sums(50), *({"prompt": "", "answer": ""} for _ in range(50))])
    task = task_of(str(tmp_path / "data"), streaming=True, limit=50)
    assert sum(task.sizes.values()) == 50
    assert task.reports[0].rows == 50


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def f(row):\n    raise KeyError('x')", "raises KeyError"),
        ("def f(row):\n    return 3", "returns 3"),
        ("f = 3", "is no function"),
        ("g = 3", "has no 'f'"),
    ],
)
def test_a_function_of_ones_own_that_breaks_is_named(tmp_path: Path, code: str, problem: str) -> None:
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(UserError, match=problem):
        task_of(write(tmp_path / "rows.jsonl", sums(40)), row=f"{tmp_path}/own.py:f")


# ---- programs that go on


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("    return x\n", "def f(x):\n    return x"),
        ("    return x\n\nprint(f(1))", "def f(x):\n    return x"),
        ("\n    if x:\n\n        return x\n# more", "def f(x):\n\n    if x:\n\n        return x"),
        ("```python\n    return x\n```", "def f(x):\n    return x"),
        ("def f(x):\n    return 2", "def f(x):\n\n\ndef f(x):\n    return 2"),
    ],
)
def test_a_program_goes_on_from_code_or_stands_after_it(answer: str, program: str) -> None:
    assert continued("def f(x):\n", answer, "assert f(1)") == program


# ---- messages and templates


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if fast is defined %}FAST{% endif %}{% endif %}"
)


def chat(*messages: dict[str, Any], template: str = CHATML, **settings: Any) -> str:
    """The one prompt of a dataset of one conversation."""
    tokenizer = build_tokenizer(["abc"], 60)
    tokenizer.chat_template = template
    folder = settings.pop("folder")
    rows = [{"prompt": [*messages[:-1], {**messages[-1]}], "answer": "1", "n": i} for i in range(30)]
    for i, row in enumerate(rows):
        first = row["prompt"][0]
        key = "value" if "value" in first else "content"
        row["prompt"][0] = {**first, key: f"{i} {first[key]}"}
    task = DatasetTask(Source(path=write(folder / "rows.jsonl", rows), **settings), tokenizer, domain="d")
    text = task.example(seed=0, split="test", index=0).text
    return text.replace(text.split(">")[1].split(" ")[0] + " ", "", 1)


U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_a_prompt_ends_before_the_assistants_answer(tmp_path: Path) -> None:
    assert chat(U, A, folder=tmp_path) == "<|user|>q\n<|assistant|>"
    assert chat(U, A, U, A, folder=tmp_path) == "<|user|>q\n<|assistant|>a\n<|user|>q\n<|assistant|>"
    with pytest.raises(UserError, match=r"does not end with a message of the assistant, which `prompt.-1.content`"):
        chat(U, A, U, folder=tmp_path, answer="prompt.-1.content")


def test_a_suffix_a_system_message_and_arguments_reach_the_template(tmp_path: Path) -> None:
    text = chat(U, A, U, folder=tmp_path, suffix="!", system="{n}", template_arguments={"fast": True})
    assert text.endswith("<|assistant|>a\n<|user|>q!\n<|assistant|>FAST")
    assert text.startswith("<|system|>")
    with pytest.raises(UserError, match=r"`template_arguments.thinking` does not stand in"):
        chat(U, folder=tmp_path, template_arguments={"thinking": True})


@pytest.mark.parametrize("role", ["human", "tool", "developer"])
def test_a_role_that_the_template_does_not_name_is_refused(tmp_path: Path, role: str) -> None:
    with pytest.raises(UserError, match=rf"message 1 has the role '{role}'.*does not know.*roles: {{{role}: user}}"):
        chat(U, {"role": role, "content": "x"}, folder=tmp_path)
    assert "<|user|>x" in chat(U, {"role": role, "content": "x"}, folder=tmp_path, roles={role: "user"})


def test_what_a_template_leaves_out_is_refused(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    with pytest.raises(UserError, match="calls tool 'f', which the student's chat template leaves out"):
        chat(U, call, U, folder=tmp_path)
    users = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}>"
    with pytest.raises(UserError, match="message 0 of role 'system' is left out"):
        chat({"role": "system", "content": "s"}, U, folder=tmp_path, template=users)


def test_parts_are_text_where_the_template_reads_none(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "<|user|>one\ntwo\n" in chat(U, A, {"role": "user", "content": parts}, folder=tmp_path)
    image = [*parts, {"type": "image", "url": "x"}]
    with pytest.raises(UserError, match=r"message 2, has the part.*image"):
        chat(U, A, {"role": "user", "content": image}, folder=tmp_path)


def test_keys_and_roles_of_others_are_refused_with_what_to_write(tmp_path: Path) -> None:
    human = {"from": "human", "value": "q"}
    with pytest.raises(UserError, match=r"`message_keys: {role: from, content: value}`.*`roles: {human: user"):
        chat(human, folder=tmp_path)
    keys = {"message_keys": {"role": "from", "content": "value"}, "roles": {"human": "user", "gpt": "assistant"}}
    assert chat(human, {"from": "gpt", "value": "a"}, folder=tmp_path, **keys) == "<|user|>q\n<|assistant|>"


# ---- chat or raw


def test_plain_text_becomes_a_users_turn_or_comes_after_the_tokenizers_bos(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["what is 0123456789+?"], 60)
    path = write(tmp_path / "rows.jsonl", sums(40))

    def first(**settings: Any) -> str:
        return (
            DatasetTask(Source(path=path, **settings), tokenizer, domain="d")
            .example(seed=0, split="test", index=0)
            .text
        )

    bare = first()
    assert bare.startswith("what is")
    with pytest.raises(UserError, match=r"`template: chat`.*no chat template"):
        first(template="chat")
    tokenizer.chat_template = CHATML
    assert first() == f"<|user|>{bare}\n<|assistant|>"
    assert first(template="raw") == bare
    with_bos = build_tokenizer(["what is 0123456789+?"], 60)
    from tokenizers.processors import TemplateProcessing

    with_bos.add_special_tokens({"bos_token": "<s>"})
    ids = [("<s>", with_bos.convert_tokens_to_ids("<s>"))]
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=ids)
    raw = DatasetTask(Source(path=path), with_bos, domain="d").example(seed=0, split="test", index=0).text
    assert raw == f"<s>{bare}"
    assert with_bos(raw, add_special_tokens=False)["input_ids"] == with_bos(bare)["input_ids"]


def test_shots_of_the_recipe_stand_before_each_question(tmp_path: Path) -> None:
    shot = {"prompt": "what is 1000+1000?", "answer": "2000"}
    path = write(tmp_path / "rows.jsonl", sums(40))
    text = task_of(path, shot_rows=[shot], suffix="\nA:").example(seed=0, split="test", index=0).text
    assert text.startswith("what is 1000+1000?\nA: 2000\n\nwhat is ")
    assert text.endswith("?\nA:")


def test_options_are_lettered_and_a_hidden_one_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"where is {i}?", "options": {"x": "here", "y": "there"}, "answer": "y"} for i in range(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    task = task_of(path, options="options", answer_names="label", verifier="choice")
    example = task.example(seed=0, split="train", index=0)
    assert example.text.endswith("?\nA. here\nB. there")
    assert example.answer == "B"
    with pytest.raises(UserError, match="as `answer_names: option` names no option"):
        task_of(path, options="options", answer_names="option", verifier="choice")
    bare = write(tmp_path / "bare.jsonl", [{**row, "answer": "B"} for row in rows])
    with pytest.raises(UserError, match=r"the options do not stand in `prompt`.*`options`.*'options'"):
        task_of(bare, verifier="choice")
    assert task_of(bare, verifier="choice", suffix=" Answer A or B.")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"option_labels": "x"}, "no `options`"),
        ({"answer_names": "index"}, "no `options`"),
        ({"answer": None}, "no `answer`"),
        ({"continues": "x"}, "python_tests"),
        ({"streaming": True}, "no `limit`"),
        ({"template": "raw", "tools": "x"}, "template: raw"),
        ({"shots": 1, "shot_rows": [{}]}, "both"),
        ({"shots_split": "dev"}, "no `shots`"),
        ({"prompt": "answer"}, "one column"),
        ({"option_line": "{letter}"}, "needs {letter} and {option}"),
        ({"verifier": "nothing"}, "not on offer"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        source(**settings)


def test_arrow_fills_calls_with_nulls_and_they_are_not_shown(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    tokenizer = build_tokenizer(["abc"], 60)
    tokenizer.chat_template = template
    rows = [
        {
            "prompt": [
                {"role": "user", "content": f"{i}"},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"function": {"name": "f", "arguments": {"town": "x"} if i % 2 else {"city": "y"}}}]},
                {"role": "user", "content": "and?"},
            ],
            "answer": "1",
        }
        for i in range(40)
    ]  # fmt: skip
    for name in ("rows.parquet", "rows.jsonl"):
        task = DatasetTask(Source(path=write(tmp_path / name, rows)), tokenizer, domain="d")
        texts = {task.example(seed=0, split="train", index=i).text for i in range(20)}
        assert not any("None" in text for text in texts)
        calls = {text[text.index("f{") + 1 : -4] for text in texts}  # not per token
        assert {json.dumps(json.loads(call)) for call in calls} == {'{"town": "x"}', '{"city": "y"}'}


def test_who_writes_to_a_file_changes_no_rows_that_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", sums(40))
    task = task_of(path)
    before = [task.example(seed=0, split="train", index=i) for i in range(5)]
    write(tmp_path / "rows.jsonl", sums(2, start=100))
    assert [task.example(seed=0, split="train", index=i) for i in range(5)] == before
    monkeypatch.setattr("mopd.rollouts.tasks.tables.IN_MEMORY", 100)  # a file that is too large stays on the disk
    assert sum(task_of(write(tmp_path / "more.jsonl", sums(40))).sizes.values()) == 40


def test_a_row_without_a_value_is_of_no_domain_and_passes_no_filter(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**row, "topic": "a", "meta": {"level": 1}} for row in sums(40)]
    for row in rows[:10]:
        row["topic"] = None
        row["meta"] = {"other": 2}
    for name in ("rows.jsonl", "rows.parquet"):
        path = write(tmp_path / name, rows)
        assert sum(task_of(path, filter={"meta.level": 1}).sizes.values()) == 30
        assert sum(DatasetTask(Source(path=path, domain="topic"), None, domain="a").sizes.values()) == 30
