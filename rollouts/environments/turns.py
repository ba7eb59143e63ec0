"""Between messages and token ids: the prompt of an episode, what follows a message that a model wrote, and its calls.

What a model wrote is never tokenised again. The template says once, of a message that stands for any, which text comes
after an assistant's turn and before the next; that text alone is tokenised, and put after the ids that were sampled.
So a conversation always begins with the ids that were sampled. Where a template leaves out earlier thoughts, the model
would read at inference what it did not see in training; there :attr:`ChatTurns.drops` says so, and the rollout is cut.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from mopd.distill.types import UserError
from mopd.rollouts.environments.base import Turn
from mopd.rollouts.environments.tools import Tool
from mopd.rollouts.tokenizer import closing_id, encode

WRITTEN, CALLED, THOUGHT = "written4711", "called4711", "thought4711"
"""Stand for what a model wrote, for an argument of a call in it, and for a thought before it."""
THINKS = re.compile(r"</think>")


class Turns(Protocol):
    """How a conversation of one tokenizer is written."""

    def prompt(self, messages: Sequence[Turn], tools: Sequence[Tool]) -> str:
        """Messages up to where the assistant begins to write.

        Raises:
            ValueError: the template refuses them.
        """
        ...

    def after(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool]) -> tuple[int, ...]:
        """The ids after the assistant's message that follows ``messages``: what closes its turn, ``answer``, and what
        opens its next turn.

        Raises:
            ValueError: the template refuses them.
        """
        ...

    def read(self, text: str, tools: Sequence[Tool]) -> dict[str, Any]:
        """What a model wrote as an assistant's message, with its ``tool_calls``; ``malformed``: why a call is none."""
        ...

    def written(self, text: str, tools: Sequence[Tool]) -> str:
        """A message of a script, whose calls are as :func:`plain_call` reads them, as :meth:`read` reads it."""
        ...

    def drops(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool], text: str) -> bool:
        """Whether the template would leave a part of ``text``, an earlier message of the assistant, out."""
        ...


class PlainTurns:
    """Turns without a template: contents follow each other as they are, and EOS closes what a model writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Without a tokenizer, which is yet to be trained, texts alone can be had."""
        self._tokenizer = tokenizer

    def prompt(self, messages: Sequence[Turn], tools: Sequence[Tool]) -> str:
        """The contents, joined."""
        return "".join(str(message["content"]) for message in messages)

    def after(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool]) -> tuple[int, ...]:
        """The closing EOS, and the contents."""
        assert self._tokenizer is not None
        return (closing_id(self._tokenizer), *encode(self._tokenizer, self.prompt(answer, tools)))

    def read(self, text: str, tools: Sequence[Tool]) -> dict[str, Any]:
        """A message that is ``NAME(...)`` of a tool is a call; see :func:`plain_call`."""
        return plain_call(text, tools)

    def written(self, text: str, tools: Sequence[Tool]) -> str:
        """As it is."""
        return text

    def drops(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool], text: str) -> bool:
        """Nothing is left out."""
        return False


class ChatTurns:
    """Turns in a tokenizer's chat template.

    Args:
        arguments: of the template, for example ``{"enable_thinking": False}``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._arguments = dict(arguments or {})
        template = str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""
        self._tagged = "<tool_call>" in template
        self._read = tagged_calls if self._tagged else json_call
        self._closings = _closings(tokenizer)

    def prompt(self, messages: Sequence[Turn], tools: Sequence[Tool]) -> str:
        """See :class:`Turns`. Of tools that the template says nothing of, a system message or the first tells."""
        if not tools or self._writes_tools(tools):
            return self._render(messages, tools)
        why = ""
        for conversation in (with_calls_as_text(messages), as_users(messages)):
            for opening in _openings(conversation, tools_as_text(tools)):
                try:
                    text = self._render(opening, [])
                except ValueError as error:
                    why = str(error)
                    continue
                if all(str(message["content"]).strip() in text for message in opening):
                    return text
                why = "the chat template leaves out a message"
        raise ValueError(why)

    def _writes_tools(self, tools: Sequence[Tool]) -> bool:
        probe = [{"role": "user", "content": WRITTEN}]
        return self._render(probe, tools) != self._render(probe, [])

    def after(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool]) -> tuple[int, ...]:
        """See :class:`Turns`."""
        try:
            tail = self._whole_tail(messages, answer, tools)
        except ValueError:
            if all(message["role"] != "tool" for message in (*messages, *answer)):
                raise
            # A template that writes no messages of tools is given them as a user's.
            tail = self._whole_tail(as_users(messages), as_users(answer), tools)
        return encode(self._tokenizer, tail)

    def read(self, text: str, tools: Sequence[Tool]) -> dict[str, Any]:
        """Calls as the template's family writes them: tagged ``<tool_call>`` JSON, or a message that is JSON."""
        return self._read(text, tools)

    def written(self, text: str, tools: Sequence[Tool]) -> str:
        """Its calls as :meth:`read` reads them."""
        calls = plain_call(text, tools).get("tool_calls")
        if not calls:
            return text
        (call,) = (json.dumps(call["function"], ensure_ascii=False) for call in calls)
        return f"<tool_call>\n{call}\n</tool_call>" if self._tagged else call

    def drops(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool], text: str) -> bool:
        """See :class:`Turns`: whether it closes a thought, and the template leaves thoughts of earlier turns out."""
        if not THINKS.search(text):
            return False
        thinking = {"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n\n{WRITTEN}"}
        return THOUGHT not in self._render([*messages, thinking, *answer], tools)

    def _whole_tail(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool]) -> str:
        tail = self._tail(messages, answer, tools)
        for message in answer:
            written = str(message["content"]).strip()
            if written not in tail and json.dumps(written) not in tail:
                raise ValueError(f"the chat template leaves out a message of role {message['role']!r}")
        return tail

    def _tail(self, messages: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Tool]) -> str:
        """What stands after a message that the assistant wrote, from what closes its turn on."""
        call = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": CALLED}}}
        plain: dict[str, Any] = {"role": "assistant", "content": WRITTEN}
        calling = {**plain, "tool_calls": [call]}
        last = ""
        # An observation of a tool must follow a call in some templates, and a call is written otherwise in each.
        for written in [calling, plain] if any(message["role"] == "tool" for message in answer) else [plain]:
            try:
                text = self._render([*messages, written, *answer], tools)
            except ValueError as error:
                last = str(error)
                continue
            place = max(text.rfind(WRITTEN) + len(WRITTEN), text.rfind(CALLED) + len(CALLED))
            tail = text[place:]  # not per token
            starts = [start for closing in self._closings if (start := tail.find(closing)) >= 0]
            return tail[min(starts) :] if starts else tail  # not per token
        raise ValueError(last)

    def _render(self, messages: Sequence[Turn], tools: Sequence[Tool]) -> str:
        given = {"tools": [tool.schema for tool in tools]} if tools else {}
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **given,
                    **self._arguments,
                )
            )  # fmt: skip
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the chat template refuses the conversation: {error}") from error


def tools_as_text(tools: Sequence[Tool]) -> str:
    """What a model is told of its tools where its chat template says nothing of them; calls are as :func:`json_call`
    reads them.
    """
    listed = "\n".join(json.dumps(tool.schema["function"], ensure_ascii=False) for tool in tools)
    return (
        'You may call functions. A call is a message of this JSON object alone: {"name": NAME, "arguments": {...}}. '
        f"Once nothing is left to call, answer in words. These are the functions:\n{listed}"
    )


def _openings(messages: Sequence[Turn], list_of_tools: str) -> Iterator[list[Turn]]:
    """Conversations that list tools before all else."""
    first, *others = messages
    if first["role"] != "system":
        yield [{"role": "system", "content": list_of_tools}, *messages]
        yield [{**first, "content": f"{list_of_tools}\n\n{first['content']}"}, *others]
    else:
        yield [{**first, "content": f"{first['content']}\n\n{list_of_tools}"}, *others]


def with_calls_as_text(messages: Sequence[Turn]) -> list[Turn]:
    """A conversation for a template that knows no calls: they stand in the assistant's content, as JSON."""
    plain = list[Turn]()
    for message in messages:
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
        content = "\n".join(text for text in (str(message["content"]), *calls) if text)
        plain.append({**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content})
    return plain


def as_users(messages: Sequence[Turn]) -> list[Turn]:
    """A conversation for a template that knows no tools either: what they gave is a user's, and what a user says at
    once is one message, because such templates want turns that alternate.

    Example:
        ``[assistant, tool, tool]`` becomes ``[assistant, user]``.
    """
    plain = list[Turn]()
    for message in with_calls_as_text(messages):
        if message["role"] == "tool":
            message = {"role": "user", "content": message["content"]}
        if plain and plain[-1]["role"] == message["role"] == "user":
            message = {"role": "user", "content": f"{plain.pop()['content']}\n{message['content']}"}
        plain.append(message)
    return plain


def turns_of(tokenizer: PreTrainedTokenizerBase | None) -> Turns:
    """How a tokenizer's conversations are written: in its chat template, or plainly where it has none."""
    return PlainTurns(tokenizer) if tokenizer is None or not tokenizer.chat_template else ChatTurns(tokenizer)


def joined(conversation: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """What is put after a conversation whose last message a model wrote: ``after``, without the token that closes its
    turn where the model wrote that itself.

    Example:
        ``joined([5, 6, 1], [1, 7])`` is ``(7,)``, and ``joined([5, 6], [1, 7])`` is ``(1, 7)``.
    """
    closed = bool(after) and bool(conversation) and conversation[-1] == after[0]
    return tuple(after[1:] if closed else after)  # not per token


def _closings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the control tokens, any of which may close a turn."""
    marked = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(marked | {str(tokenizer.eos_token)})


def plain_call(text: str, tools: Sequence[Tool]) -> dict[str, Any]:
    """``NAME(...)`` as a call. The one text argument of a tool stands bare; others are Python literals by place or
    name.

    Example:
        ``plain_call("calculator(2+2)", [calculator])`` has the arguments ``{"text": "2+2"}``.
    """
    message: dict[str, Any] = {"role": "assistant", "content": text}
    match = re.match(r"([A-Za-z_]\w*)\(", text)
    chosen = next((tool for tool in tools if match and tool.name == match[1]), None)
    if match is None or chosen is None:
        return message
    if not text.endswith(")"):
        return {**message, "malformed": f"the call of {chosen.name} is not closed"}
    inside = text[match.end() : -1]  # not per token
    if chosen.takes_text:
        (name,) = chosen.parameters["properties"]
        return {**message, "tool_calls": [_call(chosen.name, {name: inside})]}
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        names = list(chosen.parameters["properties"])[: len(call.args)]
        by_place = {name: ast.literal_eval(value) for value, name in zip(call.args, names, strict=True)}
        by_name = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        return {**message, "malformed": f"the arguments of {chosen.name} cannot be read"}
    return {**message, "tool_calls": [_call(chosen.name, by_place | by_name)]}


def tagged_calls(text: str, tools: Sequence[Tool]) -> dict[str, Any]:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number, as Qwen and Hermes write them."""
    content, _, rest = text.partition("<tool_call>")
    message: dict[str, Any] = {"role": "assistant", "content": content.strip() if rest else text}
    if not rest:
        return message
    calls = []
    for part in rest.split("<tool_call>"):
        body, closed, _ = part.partition("</tool_call>")
        call = _json_call(body)
        if not closed or call is None:
            return {**message, "content": text, "malformed": "a <tool_call> holds no JSON with name and arguments"}
        calls.append(call)
    return {**message, "tool_calls": calls}


def json_call(text: str, tools: Sequence[Tool]) -> dict[str, Any]:
    """A message that is a JSON object with a name and arguments (or parameters), as Llama 3 writes calls."""
    body = text.strip()
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if not body.startswith("{") or not tools:
        return message
    call = _json_call(body)
    if call is None:
        return {**message, "malformed": "the message begins as JSON and holds no name and arguments"}
    return {**message, "content": "", "tool_calls": [call]}


def _json_call(body: str) -> dict[str, Any] | None:
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return None
    arguments = read.get("arguments", read.get("parameters", {}))
    return _call(read["name"], arguments) if isinstance(arguments, dict) else None


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def check_turns(turns: Turns, messages: Sequence[Turn], tools: Sequence[Tool], *, where: str) -> None:
    """Refuse a student whose template cannot write an environment's conversation.

    Raises:
        UserError: it refuses the first messages, or what a tool or the environment answers.
    """
    try:
        turns.prompt(messages, tools)
        role = "tool" if tools else "user"
        turns.after(messages, [{"role": role, "name": "f", "content": "probe"}], tools)
    except ValueError as error:
        raise UserError(f"`{where}`: {error}; take a student whose template writes it") from error
