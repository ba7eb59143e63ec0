"""DeepSpeed's files, as it writes and reads them here: tensors and plain values alone, hashed as they are written.

DeepSpeed itself reads its files as pickles, which may run whatever they name. Here nothing is called but what
:data:`KNOWN` lists, so a checkpoint from elsewhere can at worst be wrong. Imports deepspeed as it is imported itself.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mopd.distill.storage import Digest, HashingFile
from mopd.distill.types import RunError

KNOWN: tuple[type, ...] = (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)
"""What is neither a tensor nor a plain value in DeepSpeed's files: rows of numbers, and an enumeration."""


class PlainFiles(TorchCheckpointEngine):
    """Writes and reads a file of a checkpoint; takes the place of the engine that DeepSpeed makes.

    Attributes:
        digests: of the files that this process has written, by their paths.
    """

    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[Path, Digest] = {}

    def save(self, state_dict: Any, path: str) -> None:
        """Write ``state_dict``.

        Raises:
            RunError: it holds something that :meth:`load` would refuse.
        """
        with open(path, "wb") as file:
            hashing = HashingFile(file)
            torch.save(state_dict, hashing)  # pyright: ignore[reportArgumentType]  (all that it needs is `write`)
        self.digests[Path(path)] = hashing.digest()
        known = {f"{kind.__module__}.{kind.__qualname__}" for kind in KNOWN}
        if unknown := {*get_unsafe_globals_in_checkpoint(path)} - known:
            raise RunError(
                f"{path} would hold more than tensors and plain values ({', '.join(sorted(unknown))}), and could not "
                "be read again; install the version of DeepSpeed in constraints.txt"
            )

    def load(self, path: str, map_location: Any = None) -> Any:
        """What :meth:`save` wrote.

        Raises:
            RunError: it holds anything else, which is not run, or cannot be read.
        """
        try:
            with safe_globals([*KNOWN]):
                return torch.load(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            # torch's own first lines say how to run it all the same.
            lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
            raise RunError(
                f"{path} is not what mopd wrote: it holds more than tensors and plain values, or cannot be read "
                f"({(lines or [type(error).__name__])[0]:.200}); nothing in it was run"
            ) from None
