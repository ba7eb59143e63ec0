"""Ray for tests: a cluster of this process' own, started when it is first wanted and kept for the files that follow."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import ray

from mopd.recipes.run.cluster import start_ray, stop_ray


def begin(**options: Any) -> None:
    """Start a cluster of two CPUs in the place of the one that there is, if any."""
    stop_ray()
    start_ray(
        ExitStack(),  # never closed: it ends with this process, or with the next
        None,
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        **options,
    )


def shared() -> None:
    """Have a cluster without settings of a file's own."""
    if not ray.is_initialized():
        begin()
