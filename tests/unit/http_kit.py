"""A server on this machine that stands in for one elsewhere and answers in JSON."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol


class Headers(Protocol):
    """Of a request, by names in any case."""

    def get(self, name: str) -> str | None:
        """None where there is none of that name."""
        ...


class StandIn:
    """Serves until it is closed; what a request gets, :meth:`respond` says."""

    def __init__(self) -> None:
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()

    def respond(self, method: str, path: str, headers: Headers, body: bytes) -> tuple[int, Any]:
        """Status and JSON of the answer to one request."""
        raise NotImplementedError


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the base class prints every request

    def do_POST(self) -> None:
        status, answer = self.stand_in.respond(self.command, self.path, self.headers, self._body())
        reply = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_PUT = do_POST
