"""Files of sums to make tasks from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mopd.distill.recipe import Source
from mopd.rollouts.tasks.dataset import DatasetTask


def sums(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"what is {i}+{i}?", "answer": str(2 * i)} for i in range(start, start + count)]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a file in the format that its name says; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task_of(path: str, *, domain: str = "math", tokenizer: Any = None, **source: Any) -> DatasetTask:
    return DatasetTask(Source(path=path, **source), tokenizer, domain=domain)
