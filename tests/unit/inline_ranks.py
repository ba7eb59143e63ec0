"""A single rank of the student in this process, without Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mopd.distill.student import engine
from mopd.distill.student.rank import StudentRank
from mopd.distill.student.spec import StudentSpec


class InlineRanks:
    """Satisfies :class:`distill.student.driver.Ranks`."""

    size = 1

    def __init__(self, spec: StudentSpec) -> None:
        os.environ.update(engine.environment(0, 1, address="127.0.0.1", port=engine.free_port(), device=spec.device))
        self._rank = StudentRank(spec)

    def call(self, method: str, per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run the method here."""
        (args,) = per_rank
        return [getattr(self._rank, method)(*args)]

    def close(self) -> None:
        """Leave the process group."""
        self._rank.close()
