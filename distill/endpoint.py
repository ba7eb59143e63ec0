"""A server of the OpenAI API, such as vLLM's, asked with token ids or messages; lost and refused are told apart.

Two things are done about them: what was lost is asked again, and what was refused would be refused again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from mopd.distill.errors import RunError, UserError

Answer = TypeVar("Answer")
LATER = (408, 425, 429)
"""Answers of the 400s that another time would turn out otherwise: time-outs and too many requests."""
CONNECT_SECONDS = 10.0
"""Until a connection stands; how long an answer may take is the fault policy's."""


class EndpointLost(RunError):
    """No answer, or one that another time would be another: the server is away, overloaded or broke."""


class EndpointRefused(RunError):
    """The server answered that it will not, or something that it should not."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a served model is. Hashable, and sent to processes; its key shows in no text that is made of it.

    Attributes:
        url: up to and including ``/v1``.
        model: its name there.
        key: sent as a bearer token; None: none is sent.
    """

    url: str
    model: str
    key: SecretStr | None = field(default=None)

    @classmethod
    def reach(cls, url: str, model: str, *, key_env: str | None, where: str) -> Endpoint:
        """With the key that an environment variable of this process holds.

        Args:
            where: the leaf of the recipe that names the variable.

        Raises:
            UserError: the variable is not set, or holds what no header can carry; or it is no variable's name.
        """
        if key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", key_env, re.ASCII):
            raise UserError(
                f"`{where}` is no name of an environment variable (and is not shown: it may be the key itself); export "
                "the key, and give the variable's name"
            )
        key = os.environ.get(key_env) if key_env is not None else None
        if key_env is not None and not key:
            raise UserError(f"`{where}` is {key_env}, and no environment variable of that name is set; export it")
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError(
                f"`{where}` is {key_env}, and what that holds is no key: it has a space, a line break or a letter "
                "outside of ASCII in it; export the key alone"
            )
        return cls(url.rstrip("/"), model, SecretStr(key) if key else None)

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"

    def models(self) -> list[dict[str, Any]]:
        """What the server says that it serves: ``id`` and, with vLLM, ``max_model_len`` of each.

        Raises:
            EndpointLost, EndpointRefused: see those.
        """
        with self._client(30.0) as client:
            listed = self._json(lambda: client.get("/models"))
        if not isinstance(listed.get("data"), list):
            raise EndpointRefused(f"{self.url}/models lists no models; is this an OpenAI-compatible server?")
        return listed["data"]

    def complete(
        self, prompts: Sequence[Sequence[int]] | Sequence[str], *, seconds: float | None = None, **settings: Any
    ) -> list[dict[str, Any]]:
        """One request for several prompts; returns the choice of each, in order.

        Args:
            prompts: token ids, or texts, which the server takes apart by its own tokenizer.
            seconds: how long it may take; None: as long as whoever waits for this process bears.
            settings: of the completions API.

        Raises:
            EndpointLost, EndpointRefused: see those.
        """
        body = {"model": self.model, "prompt": [*prompts], "add_special_tokens": False, **settings}
        with self._client(seconds) as client:
            reply = self._json(lambda: client.post("/completions", json=body))
        choices = sorted(reply.get("choices", []), key=lambda choice: choice.get("index", 0))
        if [choice.get("index") for choice in choices] != [*range(len(prompts))]:
            raise EndpointRefused(f"{self} gave {len(choices)} choices for {len(prompts)} prompts; one each is needed")
        return choices

    def chat(self, messages: Sequence[Mapping[str, Any]], *, seconds: float | None, **settings: Any) -> dict[str, Any]:
        """One request of the chat API; returns its choice, with what was used (``usage``).

        Args:
            messages: role and content of each.
            seconds: how long it may take; None: as long as it does.
            settings: of the chat API.

        Raises:
            EndpointLost, EndpointRefused: see those.
        """
        body = {"model": self.model, "messages": [dict(message) for message in messages], **settings}
        with self._client(seconds) as client:
            reply = self._json(lambda: client.post("/chat/completions", json=body))
        choices = reply.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0].get("message"), dict):
            raise EndpointRefused(f"{self} gave no message; is this a server of the OpenAI chat API?")
        return {**choices[0], "usage": reply.get("usage") or {}}

    def _words(self, answer: httpx.Response) -> str:
        """What the server said, shortened; some repeat the key that they refuse."""
        words = _server_message(answer)
        if self.key is not None:
            words = words.replace(self.key.get_secret_value(), "[the key]")
        return words[:300]

    def _client(self, seconds: float | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key is not None else {}
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def _json(self, ask: Any) -> dict[str, Any]:
        try:
            answer: httpx.Response = ask()
        except httpx.LocalProtocolError as error:  # its words may quote a header, and so the key
            raise EndpointRefused(f"no request could be made to {self.url} ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise EndpointLost(f"no answer from {self.url} ({type(error).__name__}: {error})") from None
        if answer.status_code in LATER or answer.status_code >= 500:
            raise EndpointLost(f"{self} answered {answer.status_code}: {self._words(answer)}")
        if answer.status_code >= 300:
            raise EndpointRefused(f"{self} answered {answer.status_code}: {self._words(answer)}")
        try:
            content = answer.json()
        except ValueError:
            raise EndpointRefused(f"{self} answered with no JSON: {self._words(answer)!r}") from None
        if not isinstance(content, dict):
            raise EndpointRefused(f"{self} answered with a {type(content).__name__}; a JSON object is needed")
        return content


def asked_again(ask: Callable[[], Answer], *, retries: int, backoff_seconds: float) -> Answer:
    """What ``ask`` gives; asked again where that is lost, after a pause that doubles each time.

    Raises:
        EndpointLost: the last attempt was lost, too.
    """
    for attempt in range(retries):
        try:
            return ask()
        except EndpointLost:
            time.sleep(backoff_seconds * 2**attempt)
    return ask()


def _server_message(answer: httpx.Response) -> str:
    """The server's own words."""
    try:
        error = answer.json().get("error", answer.text)
    except (ValueError, AttributeError):
        error = answer.text
    return str(error.get("message", error) if isinstance(error, dict) else error)
