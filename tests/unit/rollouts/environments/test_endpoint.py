"""The endpoint speaks as OpenAI's does: to plain HTTP, and to their own client where it is installed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from deadline_kit import patience

from mopd.rollouts.environments.dialogue import End, Over, Request, Session, continued, read_messages, sent_message
from mopd.rollouts.environments.endpoint import BODY_BYTES, student_endpoint

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def answering(session: Session, answer: Callable[[Request], Mapping[str, Any]], times: int) -> threading.Thread:
    def answers() -> None:
        for _ in range(times):
            event = session.next().result(timeout=patience(60))
            assert isinstance(event, Request)
            event.reply.set_result(answer(event))

    thread = threading.Thread(target=answers, daemon=True)
    thread.start()
    return thread


def post(token: str, body: Any, path: str = "/chat/completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {token}", **headers}
    return httpx.post(student_endpoint().url + path, content=content, headers=sent, timeout=patience(60))


HELLO = {"model": "any", "messages": [{"role": "user", "content": "hello"}]}
PICTURE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "no JSON"),
    "a list": ([], "no JSON object"),
    "no messages": ({}, "`messages` must be a list"),
    "messages of text": ({"messages": "hello"}, "`messages` must be a list"),
    "a message of text": ({"messages": ["hello"]}, "message 0 has the role None"),
    "an unknown role": ({"messages": [{"role": "critic", "content": "a"}]}, "has the role 'critic'"),
    "a picture": (PICTURE, "no text"),
    "content that is a number": ({"messages": [{"role": "user", "content": 5}]}, "no text"),
    "two answers": ({**HELLO, "n": 2}, "`n` may be 1"),
    "log-probabilities": ({**HELLO, "logprobs": True}, "`logprobs` is not served"),
    "a form": ({**HELLO, "response_format": {"type": "json_object"}}, "`response_format` is not served"),
    "tools of text": ({**HELLO, "tools": "add"}, "`tools` must be a list"),
    "a tool without a name": ({**HELLO, "tools": [{"type": "function"}]}, "no function with a name"),
    "a call without a name": ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "without a function's name"),
    "arguments that are no JSON": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "no JSON",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_and_the_session_goes_on(name: str) -> None:
    body, told = REFUSED[name]
    session = Session()
    token = student_endpoint().open(session)
    response = post(token, body)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]
    thread = answering(session, lambda request: {"role": "assistant", "content": "hi"}, 1)
    assert post(token, HELLO).json()["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    thread.join()


def test_keys_paths_and_sizes() -> None:
    session = Session()
    token = student_endpoint().open(session)
    assert post("other", HELLO).status_code == 401
    assert httpx.post(student_endpoint().url + "/chat/completions", json=HELLO).status_code == 401
    assert post(token, HELLO, "/embeddings").status_code == 404
    assert post(token, b" " * (BODY_BYTES + 1)).status_code == 413
    listed = httpx.get(student_endpoint().url + "/models", headers={"Authorization": f"Bearer {token}"})
    assert [model["id"] for model in listed.json()["data"]] == ["student"]
    session.close()
    assert post(token, HELLO).status_code == 410
    student_endpoint().close(token)
    assert post(token, HELLO).status_code == 401
    with pytest.raises(Over):
        session.ask(Request((), ()))


def test_sessions_of_one_token_are_told_apart_by_name() -> None:
    sessions = {name: Session() for name in ("a", "b")}
    token = None
    for name, session in sessions.items():
        token = student_endpoint().open(session, token=token, name=name)
    assert token is not None
    threads = [
        answering(session, lambda request, name=name: {"role": "assistant", "content": name}, 1)
        for name, session in sessions.items()
    ]
    said = {name: post(token, HELLO, **{"X-Session-ID": name}).json() for name in ("b", "a")}
    assert {name: each["choices"][0]["message"]["content"] for name, each in said.items()} == {"a": "a", "b": "b"}
    for thread in threads:
        thread.join()
    assert post(token, HELLO, **{"X-Session-ID": "c"}).status_code == 401


def test_a_stream_holds_the_same_message() -> None:
    session = Session()
    token = student_endpoint().open(session)
    answering(session, lambda request: {"role": "assistant", "content": "", "tool_calls": [CALL]}, 1)
    response = post(token, {**HELLO, "stream": True})
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    first, last = (json.loads(line)["choices"][0] for line in lines[:2])
    (call,) = first["delta"]["tool_calls"]
    assert (call["index"], call["function"]) == (0, {"name": "add", "arguments": '{"a": 1}'})
    assert (first["finish_reason"], last["finish_reason"]) == (None, "tool_calls")


def test_a_conversation_goes_on_where_it_ended_or_does_not() -> None:
    user, more = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
    said = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    sent = sent_message(said, 100)
    assert sent["content"] is None
    result = {"role": "tool", "tool_call_id": "call_000100", "content": "2"}
    messages = read_messages([user, sent, result])
    assert messages[2] == {"role": "tool", "content": "2", "name": "add"}
    assert continued([user, said], messages) == (messages[2],)
    assert continued([user, said], messages[:2]) is None  # nothing new
    assert continued([more, said], messages) is None  # another beginning
    assert continued([user, {**said, "tool_calls": []}], messages) is None  # another answer
    assert continued([user], messages) is None  # words put into the assistant's mouth


def test_what_waits_when_a_session_ends_is_told_so() -> None:
    session = Session()
    request = Request((), ())
    session.put(request)
    session.close()
    with pytest.raises(Over):
        request.reply.result(timeout=1)
    session.put(End(1.0))  # of a program that ends afterwards; nobody waits for it


def test_with_the_client_of_openai() -> None:
    openai = pytest.importorskip("openai", reason="the package openai is not installed: pip install 'mopd[envs]'")
    session = Session()
    token = student_endpoint().open(session)
    client = openai.OpenAI(base_url=student_endpoint().url, api_key=token, max_retries=0)

    def answer(request: Request) -> Mapping[str, Any]:
        calls = {} if request.messages[-1]["role"] == "tool" else {"tool_calls": [CALL]}
        return {"role": "assistant", "content": f"{len(request.messages)}", **calls}

    thread = answering(session, answer, 3)
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    first = client.chat.completions.create(model="student", messages=messages, tools=[tool]).choices[0]
    assert (first.finish_reason, first.message.content) == ("tool_calls", "1")
    assert first.message.tool_calls[0].function.arguments == '{"a": 1}'
    messages += [first.message, {"role": "tool", "tool_call_id": first.message.tool_calls[0].id, "content": "2"}]
    second = client.chat.completions.create(model="student", messages=messages, tools=[tool]).choices[0]
    assert (second.finish_reason, second.message.content) == ("stop", "3")
    streamed = client.chat.completions.create(model="student", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "3"
    thread.join()
    session.close()
    with pytest.raises(openai.APIStatusError, match="the session is over"):
        client.chat.completions.create(model="student", messages=messages)
