"""A teacher that a real vLLM holds: scores as here, a whole run over it, and one whose server is away for five seconds.

`make test-vllm` installs vLLM in an environment of its own and runs this; elsewhere it is skipped.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

sys.path.append(str(Path(__file__).parent))

from pydantic import SecretStr
from real_vllm_kit import PYTHON, environment, tiny_models
from runs import finish, mopd, rows, wait_for

from mopd.distill.endpoint import Endpoint
from mopd.distill.payloads import Support
from mopd.distill.types import Full, TopK
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.kinds.served import Served
from mopd.teachers.scorer import Conditions
from mopd.teachers.validate import sampled_of

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed; `make test-vllm` does that")

KEY = secrets.token_hex(16)
START_SECONDS, AWAY_SECONDS = 300.0, 5.0
TOLERANCE = 1e-3
"""Nats between two float32 ways to one log-probability, as a run's preflight bears."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Proxy:
    """A port that leads to the server, until it is told that there is none."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._open: list[socket.socket] = []
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """As if the server had died: nothing listens, and what was under way is cut off."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for one in [self._listener, *self._open]:
            one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                ours, _ = listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self.target))
            self._open += [ours, theirs]
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Student and teacher: one tokenizer, other weights."""
    return tiny_models(tmp_path_factory.mktemp("models"), ("student", "teacher"))


@pytest.fixture(scope="module")
def server(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", models["teacher"]]
    command += ["--served-model-name", "big", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
    command += ["--max-model-len", "128", "--max-logprobs", "64"]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment() | {"VLLM_API_KEY": KEY}, start_new_session=True
        )
    try:
        wait_until_healthy(port, process, log)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail(f"vLLM did not start:\n{log.read_text()[-3000:]}")


def test_served_scores_are_the_local_ones(server: int, models: dict[str, str]) -> None:
    support = Support(k=8, forced=(0, 1, 2))
    here = TeacherModel(
        models["teacher"], device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=10_000, support=support
    )
    there = Served(Endpoint(f"http://127.0.0.1:{server}/v1", "big", SecretStr(KEY)), here.vocabulary).open(
        Conditions(1.0, 10_000, support), []
    )
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, here.vocabulary, n).astype(np.int32) for n in (5, 40, 17, 100)]
    full = [one.logprobs_TV for one in here.score(ids, "full") if isinstance(one, Full)]
    for payload in ("sampled", "topk"):
        for ids_T, full_TV, theirs in zip(ids, full, there.score(ids, payload), strict=True):
            own_T = np.take_along_axis(full_TV, ids_T[:, None].astype(np.int64), 1)[:, 0]
            if isinstance(theirs, TopK):
                expected_TK = np.take_along_axis(full_TV, theirs.ids_TK.astype(np.int64), 1)
                np.testing.assert_allclose(theirs.logprobs_TK[1:], expected_TK[1:], atol=TOLERANCE)
                least = np.sort(full_TV, -1)[:, -(support.k + 3)]  # not per token: the last of the likeliest
                among = (expected_TK >= least[:, None] - TOLERANCE) | (theirs.ids_TK == ids_T[:, None])
                assert among[1:].all()
            np.testing.assert_allclose(sampled_of(theirs, ids_T)[1:], own_T[1:], atol=TOLERANCE)


def test_it_ignores_temperature_which_is_why_another_one_is_refused(server: int) -> None:
    endpoint = Endpoint(f"http://127.0.0.1:{server}/v1", "big", SecretStr(KEY))
    hot, cold = (
        endpoint.complete([[5, 6, 7, 8]], max_tokens=1, temperature=t, prompt_logprobs=0)[0]["prompt_logprobs"]
        for t in (2.0, 0.5)
    )
    assert hot == cold


def recipe(models: dict[str, str], url: str) -> dict[str, Any]:
    return {
        "name": "served",
        "device": "cpu",
        "student": {"model": models["student"], "optimizer": {"lr": 1.0e-3, "warmup_steps": 1}},
        "domains": {
            "math": {"task": "arithmetic", "teacher": "big", "prompts": 8},
            "code": {"task": "list_programs", "teacher": "big", "prompts": 8},
        },
        "teachers": {
            "big": {"model": models["teacher"], "endpoint": url, "served_model": "big", "api_key_env": "BIG_KEY"}
        },
        "loss": {"estimator": "topk_reverse_kl", "k": 16},
        "rollout": {"max_new_tokens": 48, "batch_size": 16},
        "evaluate": {"validation_prompts": 8, "test_prompts": 8},
        "run": {"steps": 12, "evaluate_every": 6, "save_every": 6},
        "track": {"wandb": {"mode": "offline"}},
    }


def test_a_run_ends_within_tolerance_though_its_server_was_away(
    server: int, models: dict[str, str], tmp_path: Path
) -> None:
    proxy, settled, disturbed = Proxy(server), tmp_path / "settled", tmp_path / "disturbed"
    path = tmp_path / "served.yaml"
    path.write_text(yaml.safe_dump(recipe(models, proxy.url)))
    status, output = finish(mopd("run", path, "--out", settled, BIG_KEY=KEY))
    assert status == 0, output
    process = mopd("run", path, "--out", disturbed, BIG_KEY=KEY)
    wait_for(process, disturbed / "metrics.jsonl", 3)
    proxy.stop()
    time.sleep(AWAY_SECONDS)
    proxy.start()
    status, output = finish(process)
    proxy.stop()
    assert status == 0, output
    mine, theirs = ([r for r in rows(out / "metrics.jsonl") if "loss" in r] for out in (settled, disturbed))
    assert len(mine) == len(theirs) == 12
    for one, other in zip(mine, theirs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
    assert sum(row["teacher_retries/big"] for row in mine) == 0
    assert sum(row["teacher_retries/big"] for row in theirs) > 0
    assert theirs[-1]["loss"] < theirs[0]["loss"]
    for file in [*settled.rglob("*"), *disturbed.rglob("*")]:
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in output
