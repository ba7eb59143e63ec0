"""A Hub of one repository on this machine: branches that name commits, files of each commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

REPO = "org/set"


class Hub:
    """Commits by name, each with its files, and what the branches are at."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}

    def push(self, files: Mapping[str, str | bytes], *, branch: str = "main") -> str:
        """A new commit at the head of a branch; returns its name."""
        content = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        commit = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        self.commits[commit] = content
        self.branches[branch] = commit
        return commit


@contextmanager
def serving(hub: Hub, kind: Literal["datasets", "models"] = "datasets", repo: str = REPO) -> Iterator[str]:
    """Its address."""
    of_files = f"/datasets/{repo}/resolve/" if kind == "datasets" else f"/{repo}/resolve/"
    of_facts = f"/api/{kind}/{repo}"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def _answer(self, body: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, value: Any) -> None:
            self._answer(json.dumps(value).encode(), Content_Type="application/json")

        def _missing(self, what: str) -> None:
            self._answer(b"", 404, X_Error_Code=what)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(of_files):
                revision, _, name = path.removeprefix(of_files).partition("/")
                commit = hub.branches.get(revision, revision)
                if commit not in hub.commits:
                    return self._missing("RevisionNotFound")
                if name not in hub.commits[commit]:
                    return self._missing("EntryNotFound")
                body = hub.commits[commit][name]
                return self._answer(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=commit)
            path = path if path != of_facts else f"{path}/revision/main"
            api = f"{of_facts}/"
            what, _, rest = path.removeprefix(api).partition("/")
            revision, _, folder = rest.partition("/")
            commit = hub.branches.get(revision, revision)
            if not path.startswith(api) or commit not in hub.commits:
                return self._missing("RevisionNotFound" if path.startswith(api) else "RepoNotFound")
            files = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in hub.commits[commit].items()
            ]
            if what == "revision":
                return self._json(
                    {"id": repo, "sha": commit, "private": False, "siblings": [{"rfilename": f["path"]} for f in files]}
                )
            if what == "tree":
                return self._json(files if not folder else [])
            return self._missing("EntryNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            revision = self.path.rpartition("/")[2]
            commit = hub.branches.get(revision, revision)
            files = hub.commits.get(commit, {})
            paths = asked.get("paths", [])
            self._json(
                [
                    {"type": "file", "path": n, "size": len(files[n]), "oid": hashlib.sha1(files[n]).hexdigest()}
                    for n in paths
                    if n in files
                ]
            )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
