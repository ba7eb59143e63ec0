"""A model behind a chat API writes conversations: what is right is kept, the rest is counted, nothing is paid twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from dialogue_kit import CLOSING, TOKENIZER, prompts_of, task_of
from http_kit import Headers, StandIn
from rich.console import Console
from typer.testing import CliRunner

from mopd.distill.types import RunError, UserError
from mopd.recipes.cli import app
from mopd.recipes.evaluation.write import Order, write
from mopd.rollouts.environments.episodes import gold_episodes

KEY = "sk-very-secret"
QUICK = {"retries": 1, "backoff_seconds": 0.01, "microbatch_seconds": 30}


class Chat(StandIn):
    """A server of the chat API; ``says`` gives the choice for messages, or a status and words."""

    def __init__(self, says: Callable[[list[dict[str, Any]]], Any]) -> None:
        super().__init__()
        self.says, self.lists, self.url = says, True, f"{self.url}/v1"
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    def respond(self, method: str, path: str, headers: Headers, body: bytes) -> tuple[int, Any]:
        if method == "GET":
            self.keys.add(headers.get("Authorization"))
            return (200, {"data": [{"id": "sage"}]}) if self.lists else (500, {})
        self.asked.append(json.loads(body))
        said = self.says(self.asked[-1]["messages"])
        if isinstance(said, tuple):
            return said[0], {"error": {"message": said[1]}}
        choice = said if isinstance(said, dict) else {"message": {"role": "assistant", "content": said}}
        return 200, {"choices": [{"finish_reason": "stop", **choice}], "usage": {"total_tokens": 7}}


@contextmanager
def chatting(says: Callable[[list[dict[str, Any]]], Any]) -> Iterator[Chat]:
    chat = Chat(says)
    try:
        yield chat
    finally:
        chat.close()


def recipe(folder: Path, domain: dict[str, Any]) -> str:
    path = folder / "asked.yaml"
    smoke: dict[str, Any] = {"extends": "smoke", "name": "asked", "faults": QUICK}
    path.write_text(yaml.safe_dump(smoke | {"domains": {"asked": domain | {"evaluate_only": True}}}))
    return str(path)


def order(chat: Chat, folder: Path, domain: dict[str, Any], **changes: Any) -> Order:
    usual: dict[str, Any] = {
        "prompts": 12, "samples": 1, "temperature": 0.7, "max_tokens": None, "keep": "right", "together": 3,
        "key_env": None,
    }  # fmt: skip
    path = recipe(folder, domain)
    return Order(path, "asked", chat.url, "sage", out=folder / "written.jsonl", **usual | changes)


def done(asked: Order) -> dict[str, Any]:
    return write(asked, Console(file=StringIO()))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "written.jsonl").read_text().splitlines()]


def sum_of(messages: list[dict[str, Any]]) -> str:
    """What a model that can add says to `a+b=`."""
    return str(eval(re.sub(r"[^0-9+*-]", "", messages[-1]["content"])))


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A domain of sums, judged by the last number of an answer."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    path.write_text("".join(json.dumps({"q": f"{n}+{n * n}=", "a": str(n + n * n)}) + "\n" for n in range(1, 200)))
    return {"task": {"path": str(path), "prompt": "q", "answer": "a", "verifier": "number"}}


def test_right_answers_are_kept_and_can_be_learnt_from(tmp_path: Path, sums: dict[str, Any]) -> None:
    def says(messages: list[dict[str, Any]]) -> Any:
        right = sum_of(messages)
        return right if int(right) % 3 else f"not {right}"

    with chatting(says) as chat:
        record = done(order(chat, tmp_path, sums, prompts=60, samples=2))
    assert record["conversations"] == len(chat.asked) == 120
    assert record["prompts"] == 60
    assert record["kept"] == record["repeated"] == len(rows(tmp_path))  # both samples of a prompt say the same
    assert record["right"] == 2 * record["kept"]
    assert 0 < record["kept"] < 60
    assert record["ended"]["answered"] == 120
    assert record["tokens"] == 7 * 120
    assert {body["seed"] for body in chat.asked} == {0, 1}
    assert {(body["temperature"], body["max_tokens"], body["model"]) for body in chat.asked} == {(0.7, 48, "sage")}
    for row in rows(tmp_path):
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert answer["content"] == sum_of([question])
        assert row["reward"] == 1
    task = task_of({"conversations": str(tmp_path / "written.jsonl")})
    for batch in gold_episodes({"played": task}, TOKENIZER, CLOSING).sample(prompts_of(task, 10), step=0):
        for rollout in batch:
            written = TOKENIZER.decode(rollout.token_ids[rollout.loss_mask]).removesuffix("<eos>")
            assert written == sum_of([{"content": rollout.prompt.text}])


def test_a_server_that_goes_away_loses_nothing_and_is_not_paid_twice(tmp_path: Path, sums: dict[str, Any]) -> None:
    answered: list[str] = []

    def says(messages: list[dict[str, Any]]) -> Any:
        if len(answered) >= 5:
            return 503, "loading"
        answered.append(messages[-1]["content"])
        return f"\u2028{sum_of(messages)}"  # a line's end to some, and not to JSON

    with chatting(says) as chat:
        asked = order(chat, tmp_path, sums)
        with pytest.raises(
            RunError, match=r"answered 503: loading; what was written is kept.*the same command goes on"
        ):
            done(asked)
        notes = Path(f"{asked.out}.asked")
        assert notes.read_bytes().count(b"\n") == 1 + 5
        with notes.open("a") as file:
            file.write('{"asked": {"index": 3')  # a crash in the middle of a line
        answered.clear()
        chat.says = sum_of
        chat.asked.clear()
        assert done(asked)["kept"] == 12
        assert len(chat.asked) == 7
        assert done(replace(asked, prompts=14))["kept"] == 14
        assert len(chat.asked) == 9
        before = asked.out.read_bytes()
        done(replace(asked, prompts=14))
        assert (len(chat.asked), asked.out.read_bytes()) == (9, before)
        with pytest.raises(UserError, match=r"begun on other terms \(temperature was 0.7\)"):
            done(replace(asked, temperature=0.1))
        notes.write_text("[]\n[]\n")
        with pytest.raises(UserError, match="is no record of conversations"):
            done(asked)


def test_what_is_no_answer_is_counted_by_its_reason(tmp_path: Path, sums: dict[str, Any]) -> None:
    odd: list[Any] = [
        "1",
        {"message": {"role": "assistant", "content": "12"}, "finish_reason": "length"},
        {"message": {"role": "assistant", "content": None}},
        (400, "content filter"),
    ]

    def says(messages: list[dict[str, Any]]) -> Any:
        return odd[(len(chat.asked) - 1) % 4]

    with chatting(says) as chat:
        out = StringIO()
        record = write(order(chat, tmp_path, sums, together=1, keep="all"), Console(file=out, width=200))
        assert record["ended"] == {"answered": 3, "cut": 3, "empty": 3, "turns": 0, "failed": 0, "refused": 3}
        assert record["kept"] == 3
        for words in ("answered", "cut at --max-tokens", "empty message", "the server refused", "content filter"):
            assert words in out.getvalue()
        (tmp_path / "other").mkdir()
        chat.says = lambda messages: (400, "no such parameter")
        with pytest.raises(RunError, match="answered 400: no such parameter"):
            done(order(chat, tmp_path / "other", sums))


def test_a_dataset_of_chats_is_asked_as_it_is(tmp_path: Path) -> None:
    chats = [
        [
            {"role": "system", "content": "Answer with a number."},
            {"role": "user", "content": f"{n}?"},
            {"role": "assistant", "content": "what of it"},
            {"role": "user", "content": "the next"},
        ]
        for n in range(60)
    ]
    lines = [json.dumps({"asked": messages, "gold": str(n + 1)}) for n, messages in enumerate(chats)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    source = {"path": str(tmp_path / "chats.jsonl"), "prompt": "asked", "answer": "gold", "verifier": "number"}
    with chatting(lambda messages: f"It is {int(messages[1]['content'][:-1]) + 1}.") as chat:
        assert done(order(chat, tmp_path, {"task": source}))["kept"] == 12
    for body in chat.asked:
        assert body["messages"] in chats
    for row in rows(tmp_path):
        assert row["messages"][:-1] in chats
        assert row["messages"][-1]["content"].startswith("It is ")


def test_programs_are_judged_side_by_side(tmp_path: Path) -> None:
    lines = [
        {"ask": f"Add {n}.", "code": f"def f(x):\n    return x + {n}", "t": f"assert f(1) == {n + 1}"}
        for n in range(60)
    ]
    (tmp_path / "programs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"path": str(tmp_path / "programs.jsonl"), "prompt": "ask", "answer": "code", "tests": "t"}

    def says(messages: list[dict[str, Any]]) -> str:
        n = int(messages[0]["content"][4:-1])
        return f"```python\ndef f(x):\n    return x + {n if n % 2 else n + 1}\n```"

    with chatting(says) as chat:
        done(order(chat, tmp_path, {"task": source | {"verifier": "python_tests"}}, prompts=20, together=8))
    asked = [int(body["messages"][0]["content"][4:-1]) for body in chat.asked]
    kept = [int(row["messages"][0]["content"][4:-1]) for row in rows(tmp_path)]
    assert sorted(kept) == sorted(n for n in asked if n % 2)


def test_next_turns_of_conversations_are_written_where_the_user_says_what_the_row_says(tmp_path: Path) -> None:
    said = [("user", "count"), ("assistant", "1"), ("user", "on"), ("assistant", "2")]
    made = [
        {"messages": [{"role": role, "content": f"{text} from {n}" if role == "user" else text} for role, text in said]}
        for n in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    domain = {"environment": {"conversations": str(tmp_path / "chats.jsonl")}, "max_tokens_turn": 9}
    with chatting(lambda messages: f"turn {len(messages)}") as chat:
        assert done(order(chat, tmp_path, domain))["kept"] == 0  # the row's own words, or none
        assert done(order(chat, tmp_path, domain, keep="all"))["kept"] == 12
    assert {body["max_tokens"] for body in chat.asked} == {9}
    for row in rows(tmp_path):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
        assert [message["content"] for message in row["messages"][1::2]] == ["turn 1", "turn 3"]


def test_what_cannot_be_written_is_refused_before_anything_is_spent(
    tmp_path: Path, sums: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGE_KEY", KEY)
    with chatting(lambda messages: "1") as chat:
        (tmp_path / "tools").mkdir()
        tools = order(chat, tmp_path / "tools", {"environment": "calculator"})
        adds = order(chat, tmp_path, sums)
        for asked, why in (
            (tools, r"domain 'asked' is an environment with tools"),
            (replace(adds, domain="maths"), r"no domain is called 'maths'.*math"),
            (replace(adds, model="seer"), r"serves sage, and not 'seer'"),
            (replace(adds, endpoint="http://127.0.0.1:9/v1"), r"no answer from http://127.0.0.1:9/v1"),
            (replace(adds, keep="left"), r"--keep is 'left'; it may be right or all"),
            (replace(adds, samples=2, temperature=0.0), r"--samples with --temperature 0"),
            (replace(adds, key_env="NO_SUCH"), r"`--api-key-env` is NO_SUCH, and no environment variable"),
            (replace(adds, recipe_name="seesaw"), r"seesaw is a study"),
        ):
            with pytest.raises(UserError, match=why):
                done(asked)
        assert chat.asked == []
        assert not adds.out.exists()
        done(replace(adds, key_env="SAGE_KEY"))
        assert f"Bearer {KEY}" in chat.keys
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()]


def test_a_server_that_lists_no_models_is_asked_for_a_token(tmp_path: Path, sums: dict[str, Any]) -> None:
    """As `transformers serve` 5.23 does on a machine without a cache of the Hub: `/v1/models` is a 500 there."""
    with chatting(sum_of) as chat:
        chat.lists = False
        assert done(order(chat, tmp_path, sums, prompts=3))["kept"] == 3
        assert [body["max_tokens"] for body in chat.asked] == [1, 48, 48, 48]
        chat.says = lambda messages: (404, "no such model")
        with pytest.raises(UserError, match=r"--endpoint: sage at .* answered 404: no such model; start the server"):
            done(order(chat, tmp_path, sums, prompts=4))


def test_the_command_says_what_became_of_all(tmp_path: Path, sums: dict[str, Any]) -> None:
    with chatting(sum_of) as chat:
        command = ["write", recipe(tmp_path, sums), "--domain", "asked", "--endpoint", chat.url, "--model", "sage"]
        command += ["--prompts", "4", "--out", str(tmp_path / "written.jsonl")]
        told = CliRunner().invoke(app, command)
        result = CliRunner().invoke(app, [*command, "--json", "-"])
    assert told.exit_code == result.exit_code == 0, told.output
    assert "kept in" in told.stdout
    record = json.loads(result.stdout)
    assert (record["conversations"], record["kept"]) == (4, 4)
