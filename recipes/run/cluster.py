"""The Ray cluster of a command that trains: one of its own, or the one that RAY_ADDRESS names."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mopd.distill.types import RunError, UserError

ATTEMPTS = 3
"""How often a node is started: Ray gives it 30 s to come up, which a machine with other work may not keep."""

PATIENCE = {"RAY_gcs_server_port_wait_time_s": "120", "RAY_worker_register_timeout_seconds": "600"}
"""Ray's own deadlines (30 s and 60 s), which a process that waits for a core would miss; a dead one shows at once."""


@contextmanager
def ray_cluster(out: Path) -> Iterator[None]:
    """A Ray cluster of this run's own, behind a token and on the loopback alone, or the one that RAY_ADDRESS names.

    Raises:
        UserError: there is no cluster at RAY_ADDRESS, or a port that the environment names is taken.
        RunError: Ray does not start, or starts a cluster that anybody may join.
    """
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # "local": without an address Ray would join whatever cluster somebody has started on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    with locked_doors() if address == "local" else nullcontext():
        try:
            start_ray(
                address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                namespace=str(out),
            )  # fmt: skip
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster at RAY_ADDRESS={address}: {error}; start one, unset RAY_ADDRESS, or, where its nodes "
                "ask for a token (`ray start` may set one up in ~/.ray), set RAY_AUTH_MODE=token"
            ) from error
        try:
            if address == "local":
                refuse_open_cluster()
            yield
        finally:
            ray.shutdown()


def start_ray(**options: Any) -> None:
    """``ray.init(**options)``, and once more where the node was not up in time.

    Raises:
        ConnectionError: there is no cluster at the address.
        RunError: no node came up.
    """
    import ray

    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    for attempt in range(ATTEMPTS):
        try:
            ray.init(**options)
        except ConnectionError:
            raise
        except Exception as error:  # Ray raises bare exceptions of any class here
            ray.shutdown()
            if attempt == ATTEMPTS - 1:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RunError(f"Ray did not start in {ATTEMPTS} attempts: {first}") from error
        else:
            return


GCS_PORT = "RAY_GCS_SERVER_PORT"
"""The environment variable that gives a cluster's first port; Ray takes any free port without it."""


@contextmanager
def locked_doors() -> Iterator[None]:
    """What a cluster that is started meanwhile asks of whoever joins it: a token that it alone has, from this machine.

    Ray's own default is one token for all clusters of a user, in a file of theirs, and ports on every interface. Both
    settings are made in the environment, which the cluster's processes inherit; the token is on no command line. Ray
    reads them as it is imported, so they are given to what was imported before as well.

    Raises:
        UserError: the port that RAY_GCS_SERVER_PORT names is taken.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    def reread() -> None:
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    _refuse_taken_port(os.environ.get(GCS_PORT))
    # Named after the systems whose firewalls it was made for; on any, it has a cluster listen to its own machine.
    loopback = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in [*loopback, *token, "RAY_AUTH_TOKEN_PATH"]}
    many_machines = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(loopback | token)
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    reread()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        ray_constants.ENABLE_RAY_CLUSTER = many_machines
        reread()


def refuse_open_cluster() -> None:
    """Whether the doors are locked is asked of Ray: another version may read other settings.

    Raises:
        RunError: the cluster of this process asks for no token, or listens to other machines.
    """
    import ray
    from ray._raylet import AuthenticationMode, get_authentication_mode

    asks = get_authentication_mode() == AuthenticationMode.TOKEN
    address = ray.get_runtime_context().gcs_address
    if not (asks and ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback):
        raise RunError(
            f"Ray {ray.__version__} started a cluster at {address} that asks for {'a' if asks else 'no'} token, where "
            "one at 127.0.0.1 that asks for one was needed; install the version in constraints.txt, or start a cluster "
            "of your own and name it in RAY_ADDRESS"
        )


def _refuse_taken_port(port: str | None) -> None:
    if not port:
        return
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(
                f"{GCS_PORT} is {port}, and Ray cannot listen there ({why}); name a free port, or unset it and any "
                "free one is taken"
            ) from error
