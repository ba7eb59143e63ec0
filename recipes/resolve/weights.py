"""Are a checkpoint's weights whole, and are they its model's? The headers of its files tell; no weight is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from mopd.distill.models.load import from_pretrained
from mopd.distill.types import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of a checkpoint's weights, the one that transformers prefers first; shards have NAME.index.json."""


def check_weights(folder: Path, model: PreTrainedModel) -> None:
    """Compare names and shapes of a checkpoint's weights with those of its model.

    transformers itself compares them, as it loads, so tied weights and experts stored one by one are known to it; what
    it is given are empty tensors on the meta device.

    Args:
        model: as its configuration makes it, on the meta device.

    Raises:
        UserError: a file is missing or broken, a weight is missing or of another shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        tensors |= _headers(path)
    if getattr(model.config, "quantization_config", None) is not None:
        return  # packed weights have names and shapes of their own, which only their own library knows
    config = copy.deepcopy(model.config)
    with _quiet():
        from_pretrained(type(model), None, named=folder, config=config, state_dict=tensors, device_map="meta")


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights that transformers would load, every shard of them.

    Raises:
        UserError: there are none, an index cannot be read, or a shard is missing.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise UserError(f"{folder} is no whole checkpoint: it holds no weights ({' or '.join(WEIGHTS)}, or their index)")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except Exception as error:  # whatever a broken file can be
        raise UserError(
            f"the index of weights {index} cannot be read ({error!r}); fetch the checkpoint anew"
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} is no whole checkpoint: {len(missing)} of {len(names)} shards that {index.name} names are "
            f"missing, for example {missing[0]}; fetch it anew"
        )
    return [index.parent / name for name in names]


def _headers(path: Path) -> dict[str, torch.Tensor]:
    """An empty tensor on the meta device for each of a file's."""
    try:
        if path.suffix != ".safetensors":
            return torch.load(path, map_location="meta", weights_only=True)
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  (it is no mapping)
    except Exception as error:  # the readers raise what they like
        raise UserError(f"the weights in {path} cannot be read ({error!s:.200}); fetch the checkpoint anew") from error
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar and no table of transformers': what is wrong is told by whoever looks."""
    verbosity: Any = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
