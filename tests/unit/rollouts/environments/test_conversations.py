"""Conversations of a dataset as episodes: rows as public sets write them, what is refused, and who goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dialogue_kit import CLOSING, TOKENIZER, Policy, played, prompts_of, task_of

from mopd.distill.types import UserError
from mopd.recipes.resolve.data import note_data
from mopd.rollouts.environments.episodes import EpisodeSampler, gold_episodes
from mopd.rollouts.environments.prefixes import PrefixSampler, turn_starts

SHAREGPT = {"message_keys": {"role": "from", "content": "value"}, "roles": {"human": "user", "gpt": "assistant"}}


def chat(number: int) -> list[dict[str, str]]:
    said = [f"count {number}", f"{number + 1}", "and then", f"{number + 2}", "thanks", "bye"]
    return [{"role": "assistant" if k % 2 else "user", "content": text} for k, text in enumerate(said)]


def written(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As UltraChat has them: a list of role and content under `messages`, beside columns that nobody asks for."""
    made = [{"prompt": f"count {n}", "prompt_id": str(n), "messages": chat(n)} for n in range(60)]
    return written(tmp_path_factory.mktemp("chats") / "chats.jsonl", made)


def test_what_the_row_says_is_played_and_is_right(rows: str) -> None:
    task = task_of({"conversations": rows})
    asked = prompts_of(task, 20)
    rollouts = [r for batch in gold_episodes({"played": task}, TOKENIZER, CLOSING).sample(asked, step=0) for r in batch]
    for rollout in rollouts:
        number = int(rollout.prompt.text.removeprefix("count "))
        text = TOKENIZER.decode(rollout.token_ids)
        assert text == f"count {number}{number + 1}<eos>and then{number + 2}<eos>thanksbye<eos>"
        assert len(turn_starts(rollout)) == 3
        assert rollout.episode is not None
        assert (rollout.episode.reward, rollout.episode.ended, rollout.episode.turns) == (1.0, "done", 3)
    wrong = played(task, lambda text: "no", asked)
    assert {r.episode.reward for r in wrong if r.episode is not None} == {0.0}
    splits = [{task.example(seed=0, split=s, index=i).text for i in range(n)} for s, n in (("train", 40), ("test", 5))]
    assert not splits[0] & splits[1]
    assert [prompt.id for prompt in prompts_of(task, 20)] == [prompt.id for prompt in asked]


def test_the_student_answers_what_the_row_leads_to(rows: str) -> None:
    task = task_of({"conversations": rows})
    student = EpisodeSampler(
        Policy(lambda text: "?"), {"played": task}, TOKENIZER, samples_per_prompt=1, max_new_tokens=16,
        end_token_ids=(CLOSING,),
    )  # fmt: skip
    scripts = gold_episodes({"played": task}, TOKENIZER, CLOSING)
    sampler = PrefixSampler(student, {"dataset": scripts}, parts={"played": {"dataset": 1.0}}, seed=0)
    seen = set[str]()
    for batch in sampler.sample(prompts_of(task, 30), step=0):
        for rollout in batch:
            number = int(rollout.prompt.text.removeprefix("count "))
            text = TOKENIZER.decode(rollout.token_ids)
            whole = f"count {number}{number + 1}<eos>and then{number + 2}<eos>thanksbye<eos>"
            assert text.endswith("?<eos>")
            assert whole.startswith(text.removesuffix("?<eos>"))
            seen.add(text.removesuffix("?<eos>").removeprefix(f"count {number}"))
    assert len(seen) > 20


def test_sharegpt_rows_a_system_message_and_what_the_file_was(tmp_path: Path) -> None:
    told = {"user": "human", "assistant": "gpt"}
    made = [
        {"conversations": [{"from": "system", "value": "Short."}]
         + [{"from": told[m["role"]], "value": m["content"]} for m in chat(n)]} for n in range(60)
    ]  # fmt: skip
    path = written(tmp_path / "sharegpt.jsonl", made)
    task = task_of({"conversations": path, "args": {"messages": "conversations", **SHAREGPT}})
    assert all(prompt.text.startswith("Short.count ") for prompt in prompts_of(task, 5))
    note_data({"played": task}, tmp_path / "data.json")
    (report,) = json.loads((tmp_path / "data.json").read_text())["played"]
    assert (report["split"], report["rows"], report["chosen"], report["refused"]) == ("train", 60, 60, 0)
    written(tmp_path / "sharegpt.jsonl", made[:59])
    other = task_of({"conversations": path, "args": {"messages": "conversations", **SHAREGPT}})
    with pytest.raises(UserError, match="with 60 rows when the run began"):
        note_data({"played": other}, tmp_path / "data.json")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": "hello"}, "`messages` is 'hello', and a list of messages is needed"),
        ({"messages": []}, "needs a message, and one of the assistant after it"),
        ({"messages": chat(1)[:1]}, "needs a message, and one of the assistant after it"),
        ({"messages": chat(1)[1:]}, "needs a message, and one of the assistant after it"),
        ({"messages": [*chat(1)[:2], *chat(1)[1:]]}, "has two messages of the assistant in a row"),
        ({"messages": [*chat(1), {"role": "critic", "content": "x"}, chat(1)[1]]}, "has the role 'critic'"),
        ({"messages": [*chat(1)[:1], {"role": "assistant", "content": " "}]}, "message 1 is empty"),
        ({"messages": [chat(1)[0], {"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}]},
         "message 1 calls tools, which nobody runs here"),
        ({"messages": [{"from": "human", "value": "x"}]}, "set `message_keys: {role: from, content: value}`"),
    ],
)  # fmt: skip
def test_rows_that_are_no_conversations_are_refused_or_left_out_and_told(
    tmp_path: Path, row: dict[str, Any], why: str
) -> None:
    path = written(tmp_path / "rows.jsonl", [*({"messages": chat(n)} for n in range(60)), row])
    with pytest.raises(UserError) as refused:
        task_of({"conversations": path})
    assert "split 'train', row 60: " in str(refused.value)
    assert why in str(refused.value)
    task = task_of({"conversations": path, "args": {"drop_refused": 0.1}})
    (sentence,) = task.left_out
    assert "1 of 61 rows are left out (`drop_refused`): row 60: " in sentence
    assert why in sentence


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"column": "x"}, "`args` of conversations:.*: unknown column; there are messages, name"),
        ({"messages": "talk"}, "has no `talk`: the row has"),
        ({"validation_split": "train"}, "two of its splits are the same"),
        ({"limit": 1}, "and none is left for"),
        ({"drop_refused": 2.0}, "drop_refused: Input should be less than 1"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(rows: str, args: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        task_of({"conversations": rows, "args": args})


def test_what_a_split_does_not_have_is_refused(rows: str) -> None:
    task = task_of({"conversations": rows})
    with pytest.raises(UserError, match=r"lower `evaluate.test_prompts` to \d+"):
        task.example(seed=0, split="test", index=60)
    with pytest.raises(UserError, match="has no split 'dev'"):
        task.example(seed=0, split="dev", index=0)
    assert task.example(seed=0, split="train", index=200).text.startswith("count ")
