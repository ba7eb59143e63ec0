"""The Ray cluster of a command that trains: one of its own, or the one that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mopd.distill.types import RunError, UserError

ATTEMPTS = 3
"""How often a node is started: Ray gives it 30 s to come up, which a machine with other work may not keep."""

PATIENCE = {"RAY_gcs_server_port_wait_time_s": "120", "RAY_worker_register_timeout_seconds": "600"}
"""Ray's own deadlines (30 s and 60 s), which a process that waits for a core would miss; a dead one shows at once."""


@contextmanager
def ray_cluster(out: Path) -> Iterator[None]:
    """A Ray cluster of this run's own, or the one that RAY_ADDRESS names.

    Raises:
        UserError: there is no cluster at RAY_ADDRESS.
        RunError: Ray does not start.
    """
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # "local": without an address Ray would join whatever cluster somebody has started on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        start_ray(
            address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            namespace=str(out),
        )  # fmt: skip
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster at RAY_ADDRESS={address}: {error}; start one, unset RAY_ADDRESS, or, where its nodes ask "
            "for a token (`ray start` may set one up in ~/.ray), set RAY_AUTH_MODE=token"
        ) from error
    try:
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
