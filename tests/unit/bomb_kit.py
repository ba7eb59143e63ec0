"""What a pickle can carry: a file that runs a command where it is read as one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch


class Bomb:
    """Reading it makes the folder ``flag``."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.flag),)


def arm(file: Path, flag: Path, content: dict[str, Any], *, how: str = "zip") -> None:
    """Write a file that would make ``flag``, as torch's zip, as its legacy format or as a bare pickle; it is tried."""
    bomb = {**content, "bomb": Bomb(flag)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(bomb))
        pickle.loads(file.read_bytes())
    else:
        torch.save(bomb, file, _use_new_zipfile_serialization=how == "zip")
        torch.load(file, weights_only=False)
    flag.rmdir()
