"""What a run is made with: versions, commit and machine, as others need to know to get the same numbers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mopd.distill.storage import write_atomic


def note_environment(path: Path) -> None:
    """Write what the run is made with; a later attempt in another environment is added under ``resumed``."""
    now = environment()
    if not path.is_file():
        write_atomic(path, json.dumps(now, indent=2) + "\n")
        return
    first = json.loads(path.read_text())
    resumed = first.pop("resumed", [])
    if now != (resumed or [first])[-1]:  # not per token
        write_atomic(path, json.dumps({**first, "resumed": [*resumed, now]}, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Python, packages, commit and machine of this process."""
    packages = ("mopd", "torch", "deepspeed", "transformers", "ray", "datasets", "wandb", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "commit": commit(Path(__file__).resolve().parents[2]),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def commit(repository: Path) -> str | None:
    """The commit that is checked out in ``repository``; None without git, or where it is no repository's top."""
    command = ["git", "-C", str(repository), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[1] if Path(told[0]) == repository.resolve() else None
