"""The intruder: a second process of the same user that tries to join a run's own Ray cluster and to run code in it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray

from mopd.distill.types import UserError
from mopd.recipes.run.cluster import GCS_PORT, locked_doors

RUN = """
import os, sys, time
from pathlib import Path
from mopd.recipes.run.cluster import ray_cluster

out = Path(sys.argv[1])
with ray_cluster(out):
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def ready(self):
            return True

    worker = Worker.remote()
    ray.get(worker.ready.remote())
    (out / "token").write_text(os.environ.get("RAY_AUTH_TOKEN", ""))
    (out / "address.tmp").write_text(ray.get_runtime_context().gcs_address)
    (out / "address.tmp").rename(out / "address")
    sys.stdin.read()
"""

INTRUDER = """
import os, sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", flush=True)
print("ran as", ray.get(ray.remote(num_cpus=0)(lambda: os.getuid()).remote(), timeout=60), flush=True)
"""


SAME_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray looks for a cluster of 127.0.0.1 at that address: it is the token alone that an intruder lacks."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run's own cluster, in a process of its own; ``home`` has the token that Ray keeps for all of a user's."""

    process: subprocess.Popen[str]
    home: Path
    address: str
    token: str

    def intrude(self, **environment: str) -> subprocess.Popen[str]:
        """A process that tries to join, of the same user, with the same files."""
        return subprocess.Popen(
            [sys.executable, "-c", INTRUDER, self.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=outside(self.home) | SAME_MACHINE | {"RAY_NUM_REDIS_GET_RETRIES": "1"} | environment,
        )


def outside(home: Path) -> dict[str, str]:
    """An environment without anything of Ray's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(home)}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    out, home = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))  # as `ray start` and `ray.init` leave it
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(out)], stdin=subprocess.PIPE, text=True, env=outside(home)
    )
    try:
        while not (out / "address").is_file():
            assert process.poll() is None, "the cluster did not start"
            time.sleep(0.05)
        yield LiveRun(process, home, (out / "address").read_text(), (out / "token").read_text())
    finally:
        process.communicate("")  # which ends it


def test_an_intruder_is_refused_and_the_holder_of_the_token_is_not(live: LiveRun) -> None:
    intruders = {
        "without a token": live.intrude(),
        "with the user's own": live.intrude(RAY_AUTH_MODE="token"),
        "with another": live.intrude(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)),
        "with the run's": live.intrude(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=live.token),
    }
    outcomes = {who: (*intruder.communicate(), intruder.returncode) for who, intruder in intruders.items()}
    for who, (printed, errors, status) in outcomes.items():
        if who == "with the run's":
            assert (status, *printed.split()[:3]) == (0, "joined", "ran", "as"), errors
        else:
            assert (status, printed) == (1, ""), (who, printed)
            assert "InvalidAuthToken" in errors, (who, errors)


def test_the_cluster_listens_to_its_own_machine_alone(live: LiveRun) -> None:
    processes = [psutil.Process(live.process.pid), *psutil.Process(live.process.pid).children(recursive=True)]
    sockets = [socket for process in processes for socket in process.net_connections(kind="tcp")]
    listening = [socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN]
    assert len(listening) >= 5  # the driver, the GCS, the raylet twice, a worker
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_no_process_of_the_cluster_serves_nobody(live: LiveRun) -> None:
    lines = [" ".join(process.cmdline()) for process in psutil.Process(live.process.pid).children(recursive=True)]
    assert sum("ray::Worker" in line for line in lines) == 1
    for daemon in ("log_monitor", "monitor.py", "dashboard.py", "ray::IDLE"):
        assert not [line for line in lines if daemon in line]


def test_the_token_is_on_no_command_line_and_in_no_file_of_rays(live: LiveRun) -> None:
    assert len(live.token) == 64
    processes = [psutil.Process(live.process.pid), *psutil.Process(live.process.pid).children(recursive=True)]
    assert not [process for process in processes if any(live.token in word for word in process.cmdline())]
    command = " ".join(word for process in processes for word in process.cmdline())
    session = next(word for word in command.replace("=", " ").split() if "/session_" in word)
    logs = next(path for path in [Path(session), *Path(session).parents] if path.name.startswith("session_"))
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if live.token.encode() in path.read_bytes()]


RANK = """
import os, psutil
from mopd.distill.student import engine

os.environ.pop("GLOO_SOCKET_IFNAME", None)
os.environ.update(engine.environment(0, 1, address="127.0.0.2", port=engine.free_port(), device="cpu"))
engine.meet("cpu")
sockets = psutil.Process().net_connections("tcp")
print(*{socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN})
print(os.environ.get("GLOO_SOCKET_IFNAME"))
"""


def test_ranks_on_several_machines_meet_at_the_address_of_the_first(tmp_path: Path) -> None:
    """Not on every interface, as torch would; what gloo takes is the user's to say. test_ranks.py has the loopback."""
    command = [sys.executable, "-c", RANK]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=outside(tmp_path)).stdout
    *addresses, interface = output.split()
    assert "127.0.0.2" in addresses
    assert not {"0.0.0.0", "::"} & {*addresses}
    assert interface == "None"


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv(GCS_PORT, str(port))
        taken = f"{GCS_PORT} is {port}, and Ray cannot listen there.*in use"
        with pytest.raises(UserError, match=taken), locked_doors():
            pass


def test_what_the_user_has_set_is_there_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever joins a cluster of their own after a run, in the same process, does so with their own token."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "mine")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    ray.shutdown()  # the cluster that tests share asks for a token, too
    before, tokens = dict(os.environ), []
    for _ in range(2):
        with locked_doors():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            assert "RAY_AUTH_TOKEN_PATH" not in os.environ
        assert dict(os.environ) == before
    assert len({*tokens}) == 2
