"""A stand-in of the Hub on this machine: as much of its API as it takes to receive a commit, and to say what came."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

from http_kit import Headers, StandIn

TOKEN = "hf_writes"


class Hub(StandIn):
    """Files by repository, branch and path.

    Attributes:
        private: whether each repository was made so.
        spoils: a path whose bytes are changed as they arrive.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[dict[str, Any]] = []
        self.spoils: str | None = None
        super().__init__()

    def respond(self, method: str, path: str, headers: Headers, body: bytes) -> tuple[int, Any]:
        """See :class:`StandIn`."""
        if not path.startswith("/upload/") and headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        return self.answer(method, path, body)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of the answer to one request."""
        path = unquote(path.partition("?")[0])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":  # of the model card
            return 200, {"errors": [], "warnings": []}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit|paths-info)/(.+)", path):
            return getattr(self, f"_{match[2].replace('-', '_')}")(match[1], match[3], body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, self._batch(json.loads(body))
        if match := re.fullmatch(r"/upload/([0-9a-f]{64})", path):
            self.large[match[1]] = body
            return 200, {}
        return 404, {"error": f"{method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        known = name in self.private
        self.private.setdefault(name, asked.get("visibility") == "private" or bool(asked.get("private")))
        self.files.setdefault((name, "main"), {})
        return (409 if known else 200), {"url": f"{self.url}/{name}", "name": name, "id": name}

    def _branch(self, repo: str, branch: str, body: bytes) -> tuple[int, Any]:
        self.files.setdefault((repo, branch), dict(self.files[repo, "main"]))
        return 200, {}

    def _preupload(self, repo: str, revision: str, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)["files"]
        modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked}
        return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        actions = ({"upload": {"href": f"{self.url}/upload/{o['oid']}"}} for o in asked["objects"])
        objects = [{**o, "actions": action} for o, action in zip(asked["objects"], actions, strict=True)]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repo: str, revision: str, body: bytes) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.decode().splitlines() if line]
        branch = self.files[repo, revision]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                branch[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                branch[value["path"]] = self.large[value["oid"]]
        if self.spoils is not None:
            branch[self.spoils] = branch[self.spoils][:-1] + b"?"
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        self.commits.append({"repo": repo, "branch": revision, **header})
        oid = hashlib.sha1(body).hexdigest()
        self.files[repo, oid] = branch
        url = f"{self.url}/{repo}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}

    def _paths_info(self, repo: str, revision: str, body: bytes) -> tuple[int, Any]:
        asked = parse_qs(body.decode())["paths"]  # a form, unlike the others
        branch = self.files[repo, revision]
        return 200, [_described(path, branch[path]) for path in asked if path in branch]


def _described(path: str, content: bytes) -> dict[str, Any]:
    info: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    info["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.endswith(".safetensors"):
        info["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return info
