"""A conversation is the ids that were sampled and the ids between them: held against templates as published."""

from __future__ import annotations

from typing import Any

import pytest
from templates_kit import CLOSINGS, tokenizer_of

from mopd.rollouts.environments.tools import tool
from mopd.rollouts.environments.turns import ChatTurns, PlainTurns, joined, plain_call, turns_of
from mopd.rollouts.tokenizer import closing_id, encode

QUESTION = [{"role": "user", "content": "What is 2 plus 3, and then times 4?"}]
WROTE = ["Let me see: 5 comes first", "and 20 at last", "You are welcome", "Bye"]
ANSWERS = ["go  on", "Thanks!\nAnd now?", "ünï 漢字 🙂"]


def add(a: int, b: int = 1) -> str:
    """The sum of two numbers."""
    return str(a + b)


ADD = tool(add)


@pytest.mark.parametrize("family", CLOSINGS)
def test_four_turns_are_what_the_template_writes_of_them_and_begin_with_what_was_sampled(family: str) -> None:
    tokenizer = tokenizer_of(family)
    turns = ChatTurns(tokenizer)
    messages: list[Any] = list(QUESTION)
    conversation = list(encode(tokenizer, turns.prompt(messages, [])))
    for place, text in enumerate(WROTE):
        # Sampled one byte at a time: no tokenizer would write it so, and it has to stay.
        sampled = [*(i for letter in text for i in encode(tokenizer, letter)), closing_id(tokenizer)]
        before = [*conversation, *sampled]
        answer = [{"role": "user", "content": ANSWERS[place]}] if place < len(ANSWERS) else []
        conversation = [*before, *(joined(before, turns.after(messages, answer, [])) if answer else ())]
        assert conversation[: len(before)] == before
        messages += [{"role": "assistant", "content": text}, *answer]
        if answer:
            expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if family == "deepseekv3":  # its generation prompt opens a thought, which earlier turns are written without
                expected = str(expected).replace("</think>Let", "<think>\nLet")
            got = tokenizer.decode(conversation)
            if family in ("glm4moe", "nemotron_3_nano", "deepseekv3"):
                # These write an empty thought into earlier turns; what was sampled has none, and stays as it is.
                assert got.endswith(str(expected).rpartition(text)[2])
            else:
                assert got == expected


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_1", "nemotron_3_nano"])
def test_a_tools_answer_is_written_as_the_template_does(family: str) -> None:
    tokenizer = tokenizer_of(family)
    turns = ChatTurns(tokenizer)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    observed = {"role": "tool", "name": "add", "content": "5"}
    whole = str(
        tokenizer.apply_chat_template(
            [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, observed],
            tools=[ADD.schema], tokenize=False, add_generation_prompt=True,
        )
    )  # fmt: skip
    prompt = turns.prompt(QUESTION, [ADD])
    assert whole.startswith(prompt.removesuffix("<think>\n"))
    after = tokenizer.decode(turns.after(QUESTION, [observed], [ADD]))
    assert whole.endswith(after)
    assert after.startswith(CLOSINGS[family])
    written = whole.removeprefix(prompt.removesuffix("<think>\n")).removesuffix(after)
    if family != "nemotron_3_nano":  # whose calls are no JSON
        message = turns.read(written, [ADD])
        assert [c["function"] for c in message["tool_calls"]] == [call["function"]]
    conversation = [*encode(tokenizer, prompt + written), closing_id(tokenizer)]
    assert tokenizer.decode([*conversation, *joined(conversation, turns.after(QUESTION, [observed], [ADD]))]) in (
        whole,
        prompt + written + after,
    )


@pytest.mark.parametrize(
    ("family", "role", "drops"),
    [
        ("qwen3", "user", True),
        ("qwen3", "tool", False),
        ("qwen2_5", "user", False),
        ("deepseekv3", "user", True),
        ("nemotron_3_nano", "user", True),
        ("nemotron_3_nano", "tool", False),
    ],
)
def test_a_template_that_leaves_thoughts_out_is_known(family: str, role: str, drops: bool) -> None:
    turns = ChatTurns(tokenizer_of(family))
    answer = [{"role": role, "name": "add", "content": "5"}]
    assert turns.drops(QUESTION, answer, [ADD], "<think>\nhm\n</think>\n\n5") is drops
    assert turns.drops(QUESTION, answer, [ADD], "5") is False


def test_a_template_without_tools_is_given_their_answers_as_a_users() -> None:
    tokenizer = tokenizer_of("gemma3")
    after = ChatTurns(tokenizer).after(QUESTION, [{"role": "tool", "name": "add", "content": "5"}], [ADD])
    assert tokenizer.decode(after) == ("<end_of_turn>\n<start_of_turn>user\n5<end_of_turn>\n<start_of_turn>model\n")


@pytest.mark.parametrize(
    ("text", "arguments", "malformed"),
    [
        ("add(2, 3)", {"a": 2, "b": 3}, None),
        ("add(a=2)", {"a": 2}, None),
        ("add(2", None, "the call of add is not closed"),
        ("add(two)", None, "the arguments of add cannot be read"),
        ("add(1, 2, 3)", None, "the arguments of add cannot be read"),
        ("the sum is add(2)", None, None),
        ("other(2)", None, None),
    ],
)
def test_plain_calls(text: str, arguments: dict[str, int] | None, malformed: str | None) -> None:
    message = plain_call(text, [ADD])
    assert message.get("malformed") == malformed
    calls = message.get("tool_calls", [])
    assert [call["function"]["arguments"] for call in calls] == ([] if arguments is None else [arguments])


def test_tagged_and_json_calls_that_are_none_say_why() -> None:
    tagged, written = ChatTurns(tokenizer_of("qwen3")), ChatTurns(tokenizer_of("llama3_1"))
    assert "malformed" in tagged.read('<tool_call>{"name": "add"</tool_call>', [ADD])
    assert "malformed" in tagged.read('<tool_call>{"name": "add", "arguments": {}}', [ADD])
    two = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n' * 2
    assert len(tagged.read(two, [ADD])["tool_calls"]) == 2
    assert "malformed" in written.read('{"name": "add', [ADD])
    assert written.read('{"name": "add", "parameters": {"a": 1}}', [ADD])["tool_calls"]
    assert "tool_calls" not in tagged.read("5", [ADD])


def test_a_tokenizer_without_a_template_writes_contents_alone() -> None:
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = None
    turns = turns_of(tokenizer)
    assert isinstance(turns, PlainTurns)
    after = turns.after(QUESTION, [{"role": "tool", "content": "5;"}], [])
    assert after == (closing_id(tokenizer), *encode(tokenizer, "5;"))


@pytest.mark.parametrize("family", CLOSINGS)
def test_every_template_shows_the_tools_and_reads_the_calls_of_a_script(family: str) -> None:
    turns = ChatTurns(tokenizer_of(family))
    for messages in (QUESTION, [{"role": "system", "content": "Be brief."}, *QUESTION]):
        text = turns.prompt(messages, [ADD])
        assert text.count("The sum of two numbers.") == 1
        assert all(message["content"] in text for message in messages)
    read = turns.read(turns.written("add(2, b=3)", [ADD]), [ADD])
    assert [call["function"] for call in read["tool_calls"]] == [{"name": "add", "arguments": {"a": 2, "b": 3}}]
    assert turns.written("5 at last", [ADD]) == "5 at last"
    assert "tool_calls" not in turns.read("5 at last", [ADD])


def test_a_template_that_refuses_system_messages_has_the_tools_in_the_first_of_the_user() -> None:
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    text = ChatTurns(tokenizer).prompt(QUESTION, [ADD])
    assert text.startswith("<|im_start|>user\nYou may call functions.")
    assert text.index("The sum of two numbers.") < text.index(QUESTION[0]["content"])
    assert "functions" not in ChatTurns(tokenizer).prompt(QUESTION, [])


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}
GAVE = [{"role": "tool", "name": "add", "content": "five"}, {"role": "tool", "name": "add", "content": "seven"}]


@pytest.mark.parametrize("family", CLOSINGS)
def test_a_conversation_with_calls_behind_it_goes_on_in_every_template(family: str) -> None:
    turns = ChatTurns(tokenizer_of(family))
    behind = [*QUESTION, CALL, *GAVE, {"role": "assistant", "content": "So it is 12."}]
    again = turns.prompt([*behind, {"role": "user", "content": "And now?"}], [ADD])
    assert all(text in again for text in ("five", "seven", "So it is 12.", "And now?"))
    assert "add" in again.partition(QUESTION[0]["content"])[2]
    answer = [{"role": "user", "content": "And now?"}]
    assert "And now?" in tokenizer_of(family).decode(turns.after([*QUESTION, CALL, *GAVE], answer, [ADD]))
    two = tokenizer_of(family).decode(turns.after([*behind, *answer], GAVE, [ADD]))
    assert two.index("five") < two.index("seven")
