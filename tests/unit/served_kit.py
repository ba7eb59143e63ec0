"""A server of the completions API over a real tiny model, answering as vLLM does; it may be away, or refuse."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from mopd.distill.types import Full
from mopd.teachers.kinds.checkpoint import TeacherModel

KEY = "sk-very-secret"


@dataclass
class Faults:
    """What goes wrong, and what was asked.

    Attributes:
        away: how many more completions are answered with 503.
        status: of every completion, if not 200.
        spoil: done to every answer before it is sent.
    """

    away: int = 0
    status: int = 200
    spoil: Any = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    rejected: int = 0


class Server:
    """``url`` of a running server, and its faults."""

    def __init__(self, folder: str, *, name: str, context: int, most_logprobs: int) -> None:
        self.faults = Faults()
        self.name, self.context, self.most_logprobs = name, context, most_logprobs
        self.model = TeacherModel(folder, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=10_000)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.name, "max_model_len": self.context}]}

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        faults = self.faults
        faults.asked.append(body)
        if faults.away:
            faults.away -= 1
            return 503, {"error": {"message": "loading"}}
        if faults.status != 200:
            return faults.status, {"error": {"message": "no such thing"}}
        if body["model"] != self.name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if (body.get("prompt_logprobs") or 0) > self.most_logprobs:
            return 400, {"error": {"message": f"greater than max allowed: {self.most_logprobs}"}}
        choices = [self._choice(i, prompt, body) for i, prompt in enumerate(body["prompt"])]
        for choice in choices:
            if faults.spoil is not None:
                faults.spoil(choice)
        return 200, {"choices": choices[::-1]}  # their order is by index, and not by place

    def _choice(self, index: int, prompt: Any, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        choice: dict[str, Any] = {"index": index, "prompt_token_ids": ids, "prompt_logprobs": None}
        if (k := body.get("prompt_logprobs")) is not None:
            (full,) = self.model.score([np.array(ids, dtype=np.int32)], "full")
            assert isinstance(full, Full)
            rows = [_row(full.logprobs_TV[t], ids[t], k) for t in range(1, len(ids))]
            choice["prompt_logprobs"] = [None, *rows]
        written, told = self._write(ids, body)
        return choice | {"token_ids": written, "logprobs": {"token_logprobs": told}}

    @torch.no_grad()
    def _write(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], list[float]]:
        written: list[int] = []
        told: list[float] = []
        while len(written) < body["max_tokens"] and not set(written) & set(body.get("stop_token_ids", [])):
            logits = self.model.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1].float()
            # Who does not say how it decodes gets what the model's own generation settings say.
            logits[[*ids, *written]] -= 0.0 if body.get("repetition_penalty") == 1.0 else 20.0
            written.append(int(logits.argmax()))
            told.append(float(torch.log_softmax(logits, -1)[written[-1]]))
        return written, told


def _row(logprobs_V: np.ndarray, own: int, k: int) -> dict[str, Any]:
    ranked = np.argsort(-logprobs_V, kind="stable").tolist()
    shown = dict.fromkeys([own, *ranked[:k]])
    return {str(i): {"logprob": float(logprobs_V[i]), "rank": ranked.index(i) + 1} for i in shown}


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, told: dict[str, Any]) -> None:
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                server.faults.rejected += 1
                status, told = 401, {"error": f"Unauthorized: {self.headers.get('Authorization')}"}
            raw = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_GET(self) -> None:
            self._answer(200, server.models())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*server.complete(body))

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


@contextmanager
def serving(folder: str, *, name: str = "big", context: int = 128, most_logprobs: int = 64) -> Iterator[Server]:
    """A server on a free port, until the block ends."""
    server = Server(folder, name=name, context=context, most_logprobs=most_logprobs)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
