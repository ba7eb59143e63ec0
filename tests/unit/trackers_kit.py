"""What trackers of accelerate have recorded, read back from their own storage; and a machine without a network."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mopd.distill.tracking.sinks import SINKS

Recorded = dict[int, dict[str, float]]
"""By step and name."""

PROJECT = "seesaws"  # of track_kit's run


def need(*names: str) -> None:
    """Skip a test where the package of a tracker is not installed."""
    for name in names:
        packages = SINKS[name].packages
        if not any(find_spec(package) for package in packages):
            pytest.skip(f"{' or '.join(packages)} is not installed")


def _tensorboard(folder: Path) -> Recorded:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    recorded: Recorded = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert tag not in recorded.setdefault(event.step, {}), f"{tag} is there twice at step {event.step}"
            recorded[event.step][tag] = event.value
    return recorded


READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
project, = sys.argv[1:]
records = SQLiteStorage.get_run_records(project)
print(json.dumps([SQLiteStorage.get_logs(project, record["name"], run_id=record["id"]) for record in records]))
"""


def trackio_runs(folder: Path) -> list[list[dict[str, Any]]]:
    """The rows of each run of the project, two of which may have one name; read in a process apart, for its folder."""
    done = subprocess.run(
        [sys.executable, "-c", READ_TRACKIO, PROJECT],
        env={**os.environ, "TRACKIO_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    runs: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return runs


def _trackio(folder: Path) -> Recorded:
    (rows,) = trackio_runs(folder)
    recorded: Recorded = {}
    for row in rows:
        values = {name: value for name, value in row.items() if name not in ("step", "timestamp")}
        at_step = recorded.setdefault(row["step"], {})
        assert not at_step.keys() & values.keys(), f"step {row['step']} has a number twice"
        at_step |= values
    return recorded


def _mlflow(folder: Path) -> Recorded:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(PROJECT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    recorded: Recorded = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert name not in recorded.setdefault(metric.step, {}), f"{name} is there twice at step {metric.step}"
            recorded[metric.step][name] = metric.value
    return recorded


def _dvclive(folder: Path) -> Recorded:
    metrics = folder / "live" / "plots" / "metrics"
    recorded: Recorded = {}
    for path in metrics.rglob("*.tsv"):
        header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
        for row in rows:
            values = dict(zip(header, row, strict=True))
            kind, name = path.relative_to(metrics).parts
            recorded.setdefault(int(values["step"]), {})[f"{kind}/{name.removesuffix('.tsv').replace('.', '/')}"] = (
                float(values[path.stem])
            )
    return recorded


def _clearml(folder: Path) -> Recorded:
    (metrics,) = folder.glob("offline/*/metrics.jsonl")
    recorded: Recorded = {}
    for event in (event for line in metrics.read_text().splitlines() for event in json.loads(line)):
        if event["type"] == "training_stats_scalar":
            title = event["metric"] if "seesaw/" in event["metric"] else f"{event['variant']}/{event['metric']}"
            assert title not in recorded.setdefault(event["iter"], {}), f"{title} is there twice"
            recorded[event["iter"]][title] = event["value"]
    return recorded


def _comet_ml(folder: Path) -> Recorded:
    (archive,) = folder.glob("*.zip")
    recorded: Recorded = {}
    for line in zipfile.ZipFile(archive).read("messages.json").decode().splitlines():
        message = json.loads(line)
        metric = message["payload"].get("metric") or {}
        if message["type"] == "metric_msg" and "/" in metric["metricName"]:  # others are of the machine
            assert metric["metricName"] not in recorded.setdefault(metric["step"], {}), metric
            recorded[metric["step"]][metric["metricName"]] = metric["metricValue"]
    return recorded


def _swanlab(folder: Path) -> Recorded:
    store: Any = importlib.import_module("swanlab.sdk.internal.core_python.store")
    messages: Any = importlib.import_module("swanlab.proto.swanlab.record.v1.record_pb2")
    (path,) = folder.glob("run-*/*.swanlab")
    reader, recorded = store.DataStoreReader(), {}
    reader.open(path)
    for text in reader:
        record = messages.Record()
        record.ParseFromString(text)
        if record.HasField("scalar"):
            at_step = recorded.setdefault(record.scalar.step, {})
            assert record.scalar.key not in at_step, record.scalar
            at_step[record.scalar.key] = record.scalar.value.number
    return recorded


def _aim(folder: Path) -> Recorded:
    """Opened to be written to: what Aim's own server has not indexed yet is not there for a run that only reads."""
    aim: Any = importlib.import_module("aim")
    repo = aim.Repo(str(folder))
    (name,) = repo.list_all_runs()
    run = aim.Run(name, repo=repo, system_tracking_interval=None, capture_terminal_logs=False, log_system_params=False)
    recorded: Recorded = {}
    for metric in run.metrics():
        for step, (value, *_) in metric.data.items():
            recorded.setdefault(step, {})[metric.name] = value
    run.close()
    return recorded


READERS: dict[str, Callable[[Path], Recorded]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "mlflow": _mlflow,
    "aim": _aim,
    "dvclive": _dvclive,
    "clearml": _clearml,
    "comet_ml": _comet_ml,
    "swanlab": _swanlab,
}
"""Given the folder of a tracker, what it holds: by the tracker's name."""


class NoNetwork:
    """A proxy that every request to another machine is sent to; it keeps what it is asked and passes nothing on."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.requests: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What sends requests here: of httpx, requests and urllib. A login is pretended, for some ask who it is."""
        url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        return dict.fromkeys(names, url) | {"HF_TOKEN": "hf_nobody"}

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection:
                self.requests.append(connection.recv(200))
