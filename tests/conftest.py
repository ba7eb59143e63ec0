"""Processes that are started once for all tests: ranks, which build one engine after another, and a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from deadline_kit import pytest_timeout_set_timer  # noqa: F401  (a hook: timeouts count quiet seconds)
from student_kit import ProcessRanks

os.environ["MOPD_CACHE"] = ""  # no test sees what another found out of a model
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: beside busy processes its workers stand still


@pytest.fixture(scope="module")
def cluster() -> None:
    """Ray, shared with the files before and after."""
    import ray_kit

    ray_kit.shared()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def one() -> Iterator[ProcessRanks]:
    ranks = ProcessRanks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two() -> Iterator[ProcessRanks]:
    ranks = ProcessRanks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def fresh() -> Iterator[ProcessRanks]:
    """Processes that hold nothing of what ``two`` did."""
    ranks = ProcessRanks(2)
    yield ranks
    ranks.close()
