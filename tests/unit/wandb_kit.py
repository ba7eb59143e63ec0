"""W&B seen from outside: its offline files read as what they are, and a server that remembers what it was sent."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deadline_kit import Deadline
from http_kit import Headers, StandIn
from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7  # of a LevelDB log; the file begins with 7 bytes of W&B's own


def records(path: Path) -> Iterator[Any]:
    """The ``Record`` messages of a .wandb file: a LevelDB log of blocks of fragments (crc, length, type).

    W&B's own process may still be writing: what is not whole yet at the file's end is left out.
    """
    data, position, message = path.read_bytes(), 7, b""
    assert not data or data.startswith(b":W&B"), path
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        fragment = data[position + _HEADER : position + _HEADER + length]
        if len(fragment) < length:
            return
        position += _HEADER + length
        message = fragment if kind in (1, 2) else message + fragment  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record


class OfflineRun:
    """What one offline folder holds. ``finish()`` returns before the file is whole, so the end is waited for."""

    def __init__(self, folder: Path) -> None:
        (self.path,) = folder.glob("run-*.wandb")
        self.folder = folder
        deadline = Deadline(10)
        self.records = list(records(self.path))
        while not any(r.HasField("exit") for r in self.records) and deadline.waits(0.05):
            self.records = list(records(self.path))
        (self.run,) = [r.run for r in self.records if r.HasField("run")]
        self.config = {u.key: json.loads(u.value_json) for u in self.run.config.update if u.key != "_wandb"}
        self.metrics = {r.metric.name or r.metric.glob_name: r.metric for r in self.records if r.HasField("metric")}
        self.exit_codes = [r.exit.exit_code for r in self.records if r.HasField("exit")]

    def history(self) -> list[dict[str, Any]]:
        """Rows of numbers, W&B's own keys and tables left out."""
        rows = []
        for record in self.records:
            if record.HasField("history"):
                items = {"/".join([i.key, *i.nested_key]).strip("/"): i for i in record.history.item}
                numbers = {k: json.loads(i.value_json) for k, i in items.items() if len(i.nested_key) < 2}
                rows.append({k: v for k, v in numbers.items() if not k.startswith("_")})
        return rows

    def summary(self) -> dict[str, Any]:
        """The last value of every key of the summary."""
        last_values: dict[str, Any] = {}
        for record in self.records:
            for update in record.summary.update:
                value = json.loads(update.value_json)
                nested = value if isinstance(value, dict) else {"": value}
                name = "/".join([update.key, *update.nested_key]).strip("/")
                last_values |= {f"{name}/{key}".strip("/"): number for key, number in nested.items()}
        return last_values

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Every table by name, in the order in which they were logged."""
        tables: dict[str, list[dict[str, Any]]] = {}
        named = [
            (re.fullmatch(r"(.+)_(\d+)_\w+\.table\.json", p.name), p) for p in self.folder.glob("files/media/table/*")
        ]
        for match, path in sorted(((m, p) for m, p in named if m), key=lambda pair: int(pair[0][2])):
            tables.setdefault(match[1], []).append(json.loads(path.read_text()))
        return tables


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline runs of a run's folder, oldest first."""
    return [OfflineRun(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]


class Server(StandIn):
    """As much of a W&B server as it takes to open, feed, resume and end a run. Remembers the rows of each run id."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.views: list[dict[str, Any]] = []
        self.charts: list[dict[str, Any]] = []
        self.takes_charts = True
        super().__init__()

    def respond(self, method: str, path: str, headers: Headers, body: bytes) -> tuple[int, Any]:
        """See :class:`StandIn`."""
        try:
            asked = json.loads(body)
        except ValueError:
            asked = {}
        return 200, self.answer(path, asked)

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        if match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows.setdefault(match[1], []).extend(map(json.loads, lines))
            return {}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", body.get("query", ""))
        if operation and operation[1] == "CreateCustomChart" and not self.takes_charts:
            return {"data": None, "errors": [{"message": "a chart of that name exists", "path": ["createCustomChart"]}]}
        data = getattr(self, f"_{operation[1]}", lambda _: {})(body.get("variables") or {}) if operation else {}
        return {"data": data}

    def _RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        rows = self.rows.get(asked["name"])
        tail = json.dumps([json.dumps(rows[-1])]) if rows else "[]"
        bucket = {"id": "1", "name": asked["name"], "historyLineCount": len(rows or []), "historyTail": tail}
        bucket |= {"summaryMetrics": "{}", "config": "{}", "tags": [], "wandbConfig": '{"t":1}'}
        bucket |= {"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"}
        return {"model": {"id": "1", "name": "p", "entity": _ENTITY, "bucket": bucket if rows else None}}

    def _UpsertBucket(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.runs.setdefault(asked["name"], asked)
        project = {"id": "1", "name": asked["project"], "entity": _ENTITY}
        bucket = {"id": "1", "name": asked["name"], "displayName": asked["name"], "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _UpsertView2(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.views.append(asked)
        return {"upsertView": {"view": {"id": "1", "name": asked["name"]}, "inserted": True}}

    def _ProjectInternalId(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"id": "1", "internalId": base64.b64encode(b"Project:1").decode()}}

    def _GetProjects(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project = {"id": "1", "entityName": asked["entity"], "createdAt": "", "isBenchmark": False, "user": None}
        edges = [{"node": project | {"name": name}} for name in ("others", "seesaws")]
        return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}}

    def _upsertView(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.views.append(asked)
        kept = {name: asked[name] for name in ("type", "name", "displayName", "description", "spec")}
        project = {"id": "1", "name": asked["projectName"], "entityName": asked["entityName"]}
        view = {"id": "Vmlldzox", "updatedAt": "2026-01-01T00:00:00", "project": project} | kept
        return {"upsertView": {"view": view, "inserted": True}}

    def _CreateCustomChart(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.charts.append(asked)
        return {"createCustomChart": {"chart": {"id": f"{asked['entity']}/{asked['chartName']}"}}}

    def _Viewer(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {
            "viewer": {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []}}
        }

    _GetDefaultEntity = _Viewer

    def _CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}


_ENTITY = {"id": "1", "name": "somebody"}
