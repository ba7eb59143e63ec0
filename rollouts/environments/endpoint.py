"""An endpoint on this machine that programs ask as they ask OpenAI's; whoever writes rollouts answers.

It serves chat completions on the loopback address to who has a session's token, one message a request. Each token is a
:class:`Session`; a name in the header ``X-Session-ID`` tells sessions of one token apart.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mopd.rollouts.environments.dialogue import (
    BadRequest,
    Over,
    Request,
    Session,
    read_messages,
    read_tools,
    sent_message,
)

MODEL = "student"
"""The model's name; any other is answered as well."""
BODY_BYTES = 16 * 2**20
"""Of a request at most."""
UNSERVED = ("logprobs", "top_logprobs", "response_format", "audio", "functions", "stop")
"""What a request may not ask for: the model would not follow it. Temperature and lengths are the recipe's."""


class StudentEndpoint:
    """The server of a process, which runs until the process ends.

    Attributes:
        url: up to and including ``/v1``.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], Session] = {}
        self._http = _Server(self)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True, name="student endpoint").start()

    def open(self, session: Session, *, token: str | None = None, name: str = "") -> str:
        """Serve a session; returns its token.

        Args:
            token: that it shares with others.
            name: of the session among those of a token.
        """
        token = token or secrets.token_urlsafe(24)
        self._sessions[token, name] = session
        return token

    def close(self, token: str, name: str = "") -> None:
        """Know a session no longer."""
        self._sessions.pop((token, name), None)

    def session(self, token: str, name: str) -> Session | None:
        """Whose request it is."""
        return self._sessions.get((token, name)) or self._sessions.get((token, ""))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, endpoint: StudentEndpoint) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint, self.numbers = endpoint, itertools.count(1)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A program that hangs up in the middle of an answer is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        if self._session() is not None:
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "mopd"}
            known = self.path.rstrip("/") == "/v1/models"
            self._send(200, {"object": "list", "data": [model]}) if known else self._unknown()

    def do_POST(self) -> None:
        body = self._body()
        session = self._session()
        if body is None or session is None:
            return
        if self.path.rstrip("/") != "/v1/chat/completions":
            self._unknown()
            return
        try:
            asked = _read(body)
            message = session.ask(Request(read_messages(asked.get("messages")), read_tools(asked.get("tools"))))
        except BadRequest as error:
            self._error(400, str(error))
        except Over as error:
            self._error(410, str(error), "session_over")
        else:
            number = next(self.server.numbers)
            response = _response(sent_message(message, 100 * number), number, str(asked.get("model") or MODEL))
            self._stream(response) if asked.get("stream") else self._send(200, response)

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_BYTES:
            self.close_connection = True
            self._error(413, f"a request needs its length, and has {BODY_BYTES} bytes at most")
            return None
        return self.rfile.read(int(length))

    def _session(self) -> Session | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        session = self.server.endpoint.session(token, self.headers.get("X-Session-ID", ""))
        if session is None:
            self._error(401, "no session has this token", "unknown_session")
        return session

    def _unknown(self) -> None:
        self._error(404, f"{self.path} is not served; POST /v1/chat/completions and GET /v1/models are")

    def _error(self, status: int, message: str, code: str = "refused") -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}})

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _stream(self, response: dict[str, Any]) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for chunk in _chunks(response):
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")


def _read(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request is no JSON") from None
    if not isinstance(asked, dict):
        raise BadRequest("the request is no JSON object")
    if asked.get("n") not in (None, 1):
        raise BadRequest("`n` may be 1: a session is one conversation")
    if unserved := [name for name in UNSERVED if asked.get(name)]:
        raise BadRequest(f"`{unserved[0]}` is not served")
    return asked


def _response(message: dict[str, Any], number: int, model: str) -> dict[str, Any]:
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    head = {"id": f"chatcmpl-{number:08d}", "object": "chat.completion", "created": int(time.time()), "model": model}
    return {**head, "choices": [choice]}


def _chunks(response: dict[str, Any]) -> list[dict[str, Any]]:
    """A response as a stream sends it: the whole message, and why it ends."""
    (choice,) = response["choices"]
    message = choice["message"]
    calls = [{"index": k, **call} for k, call in enumerate(message.get("tool_calls", ()))]
    delta = {**message, "tool_calls": calls} if calls else message
    head = {**response, "object": "chat.completion.chunk"}
    return [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
    ]


_LOCK = threading.Lock()
_ENDPOINTS: dict[int, StudentEndpoint] = {}
"""By process: a fork has none of its threads."""


def student_endpoint() -> StudentEndpoint:
    """The endpoint of this process, which is opened when it is first wanted."""
    with _LOCK:
        if os.getpid() not in _ENDPOINTS:
            _ENDPOINTS[os.getpid()] = StudentEndpoint()
        return _ENDPOINTS[os.getpid()]
