"""Public data sets, where the machine has them; they are no part of the project.

MOPD_PUBLIC_DATA names a folder with ``gsm_test.jsonl``, ``gsm_sol.jsonl``, ``math500.jsonl``, ``math_train.json``,
``mbpp.jsonl`` and ``humaneval.jsonl``. Tests that need it are skipped where it is not set.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("MOPD_PUBLIC_DATA", "public-data"))


def public_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file, or a test that is skipped."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no public data: {path} does not exist (MOPD_PUBLIC_DATA names the folder)")
    text = path.read_text()
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
