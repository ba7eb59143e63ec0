"""Episodes of programs that ask for completions: what asks runs beside the sampler, and an episode is its conversation.

A program sends all that was said so far and wants the next message. Here that becomes the seam of :mod:`base`: an
episode's first messages are the first request, a step answers the request that waits and gives what the next one has
more; a request that does not go on where the last one ended begins the conversation anew. When the program ends, its
reward is the episode's.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mopd.distill.types import RunError
from mopd.rollouts.environments.base import SPEAKERS, Step, Turn
from mopd.rollouts.environments.tools import Tool


class BadRequest(Exception):
    """A request that cannot be served; the message goes back to who sent it."""


class Over(Exception):
    """The session of a request is over: its episode ended by a limit, or was given up."""


@dataclass(frozen=True, slots=True)
class Request:
    """A completion that is wanted.

    Attributes:
        messages: the conversation so far, as :mod:`base` has them.
        tools: that may be called.
        reply: gets the assistant's message, or :class:`Over`.
    """

    messages: tuple[Turn, ...]
    tools: tuple[Tool, ...]
    reply: Future[Turn] = field(default_factory=Future)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools, comparably."""
        return [tool.schema for tool in self.tools]


@dataclass(frozen=True, slots=True)
class End:
    """The program is through.

    Attributes:
        reward: of the episode; None where it failed.
        why: it failed.
    """

    reward: float | None = None
    why: str = ""


class Session:
    """Where a program's requests, from any thread, meet the steps of its episode."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived: deque[Request | End] = deque()
        self._awaited: Future[Request | End] | None = None
        self._closed = False

    def ask(self, request: Request) -> Turn:
        """Wait for the assistant's message.

        Raises:
            Over: nobody will write it any more.
        """
        self.put(request)
        return request.reply.result()

    def put(self, event: Request | End) -> None:
        """Hand a request over, or the end."""
        with self._lock:
            if self._closed:
                if isinstance(event, Request):
                    event.reply.set_exception(Over("the session is over"))
                return
            awaited, self._awaited = self._awaited, None
            if awaited is not None and awaited.set_running_or_notify_cancel():
                awaited.set_result(event)
            else:
                self._arrived.append(event)

    def next(self) -> Future[Request | End]:
        """The next request, or the end, in the order in which they came."""
        future: Future[Request | End] = Future()
        with self._lock:
            if self._arrived:
                future.set_result(self._arrived.popleft())
            else:
                self._awaited = future
        return future

    def close(self) -> None:
        """Nothing is answered any more: what waits and what still comes is told so."""
        with self._lock:
            self._closed = True
            waiting = [event for event in self._arrived if isinstance(event, Request)]
            self._arrived.clear()
        for request in waiting:
            request.reply.set_exception(Over("the session is over"))


Start: TypeAlias = Callable[[Session], Callable[[], None]]
"""Begins a program whose requests come to a session, without waiting for any; returns what ends it early."""


class DialogueEpisode:
    """Satisfies :class:`base.Episode`. The program begins with the first step, and has to ask as it did before.

    Args:
        start: begins the program.
        messages, tools: of its first request, as the model was shown them.
    """

    def __init__(self, start: Start, messages: Sequence[Turn], tools: Sequence[Tool]) -> None:
        self.messages: Sequence[Turn] = tuple(messages)
        self.tools: Sequence[Tool] = tuple(tools)
        self._start = start
        self._session = Session()
        self._stop: Callable[[], None] | None = None
        self._pending: Request | None = None
        self._spoken: list[Turn] = []

    async def step(self, message: Turn) -> Step:
        """Answer the request that waits with ``message``.

        Raises:
            RunError: the program failed, or its first request is another than before.
        """
        if self._stop is None:
            self._stop = self._start(self._session)
            first = await self._next()
            if isinstance(first, End):
                raise RunError(first.why or "ended without asking for anything")
            if first.messages != self.messages or first.schemas != [tool.schema for tool in self.tools]:
                raise RunError("asked otherwise than before: its first request must follow from what it is given")
            self._pending, self._spoken = first, list(first.messages)
        if self._pending is None:
            raise RunError("is over, and was asked again")
        answered, self._pending = self._pending, None
        answered.reply.set_result(message)
        event = await self._next()
        if isinstance(event, End):
            if event.reward is None:
                raise RunError(event.why or "ended without a reward")
            return Step(done=True, reward=event.reward)
        self._pending = event
        more = continued([*self._spoken, message], event.messages)
        self._spoken = list(event.messages)
        if more is not None and event.schemas == answered.schemas:
            return Step(more)
        return Step(event.messages, restart=True, tools=event.tools)

    def close(self) -> None:
        """End the program where it has not ended."""
        if self._stop is not None:
            self._stop()
        self._session.close()
        if self._pending is not None:
            self._pending.reply.set_exception(Over("the session is over"))
            self._pending = None

    async def _next(self) -> Request | End:
        return await asyncio.wrap_future(self._session.next())


def first_request(start: Start, *, seconds: float) -> Request:
    """What a program asks first; it is ended then.

    Raises:
        TimeoutError: it asked nothing in time.
        RunError: it ended without asking.
    """
    session = Session()
    stop = start(session)
    try:
        event = session.next().result(timeout=seconds)
        if isinstance(event, End):
            raise RunError(event.why or "ended without asking for anything")
    finally:
        stop()
        session.close()
    event.reply.set_exception(Over("the session is over"))
    return event


def continued(spoken: Sequence[Turn], messages: Sequence[Turn]) -> tuple[Turn, ...] | None:
    """What ``messages`` have more than was said; None where they are no continuation of it.

    Example:
        Of ``[user, assistant]``, ``[user, assistant, tool]`` is continued by ``(tool,)``.
    """
    before, more = messages[: len(spoken)], messages[len(spoken) :]
    if [_comparable(turn) for turn in before] != [_comparable(turn) for turn in spoken] or not more:
        return None
    return None if any(turn["role"] == "assistant" for turn in more) else tuple(more)


def _comparable(turn: Turn) -> tuple[Any, ...]:
    """What of a message is the same whoever writes it down: of an assistant's, not its blanks around calls."""
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in turn.get("tool_calls") or ()]
    content = str(turn.get("content") or "")
    return turn["role"], content.strip() if turn["role"] == "assistant" else content, calls


# ---- requests as they are sent


def read_messages(sent: object) -> tuple[Turn, ...]:
    """Messages of a chat completion's request as chat templates take them.

    Raises:
        BadRequest: they are none, or hold what is no text.
    """
    if not isinstance(sent, list) or not sent:
        raise BadRequest("`messages` must be a list of messages")
    names: dict[str, str] = {}
    turns = []
    for place, message in enumerate(sent):
        role = message.get("role") if isinstance(message, dict) else None
        role = "system" if role == "developer" else role
        if role not in SPEAKERS:
            raise BadRequest(f"message {place} has the role {role!r}; it may be one of {', '.join(SPEAKERS)}")
        assert isinstance(message, dict)
        turn: dict[str, Any] = {"role": role, "content": _text(message.get("content"), place)}
        if role == "assistant" and message.get("tool_calls"):
            turn["tool_calls"] = [_read_call(call, place, names) for call in message["tool_calls"]]
        if role == "tool":
            known = names.get(str(message.get("tool_call_id")))
            turn["name"] = known or str(message.get("name") or "")
        turns.append(turn)
    return tuple(turns)


def _text(content: object, place: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise BadRequest(f"message {place} has content that is no text, and the model reads text alone")


def _read_call(call: object, place: int, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"message {place} has a tool call without a function's name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise BadRequest(f"message {place} has a tool call whose arguments are no JSON") from None
    names[str(call.get("id"))] = function["name"]
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def read_tools(sent: object) -> tuple[Tool, ...]:
    """The tools of a request. They are run by who sends it, so their function does nothing here.

    Raises:
        BadRequest: one is no function with a name.
    """
    if sent is None:
        return ()
    if not isinstance(sent, list):
        raise BadRequest("`tools` must be a list of functions")
    tools = []
    for place, each in enumerate(sent):
        function = each.get("function") if isinstance(each, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRequest(f"tool {place} is no function with a name")
        parameters: dict[str, Any] = {"type": "object", **(function.get("parameters") or {})}
        parameters["properties"] = dict(parameters.get("properties") or {})
        tools.append(Tool(function["name"], str(function.get("description") or ""), _elsewhere, parameters))
    return tuple(tools)


def _elsewhere(**arguments: Any) -> Any:
    raise RunError("this tool is run by the program that offers it")


def sent_message(message: Turn, first_id: int) -> dict[str, Any]:
    """The assistant's message as a response has it; its calls are numbered from ``first_id``."""
    calls = [
        {
            "id": f"call_{first_id + k:06d}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for k, call in enumerate(message.get("tool_calls") or ())
    ]
    content = str(message.get("content") or "")
    return {
        "role": "assistant",
        "content": content or (None if calls else ""),
        **({"tool_calls": calls} if calls else {}),
    }
