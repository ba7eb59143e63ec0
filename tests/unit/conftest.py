"""Ranks in processes of their own, started once for all tests of the student; they build one engine after another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from student_kit import ProcessRanks


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
