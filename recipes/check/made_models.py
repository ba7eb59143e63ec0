"""What a configuration makes, remembered from one check to the next: finding it out loads all of transformers' models.

A file for each configuration lies under ``MOPD_CACHE`` (:func:`folder` says where that is). Its name is a digest of the
configuration, of the libraries' versions and of the code that finds out, so that a file never has to be doubted. Only
models made from scratch are remembered: of a checkpoint the weights are looked at, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import mopd.distill.models
import mopd.distill.student
import mopd.recipes.check
import mopd.recipes.resolve
from mopd.distill.models.attention import AttentionOffer, attention_offer
from mopd.distill.models.flops import ModelCost
from mopd.distill.storage import write_atomic
from mopd.distill.student.moe import has_correction_bias
from mopd.recipes.resolve.checkpoints import empty_model

CACHE = "MOPD_CACHE"
"""The environment variable of the folder; empty: nothing is remembered."""
CHOSEN = ("_attn_implementation", "_experts_implementation")


@dataclass(frozen=True, slots=True)
class MadeModel:
    """What is known of the model that a configuration makes.

    Attributes:
        cost: its parameters, total and active, and what a token costs.
        correction_bias: whether its routers have the bias that levels the load of experts.
        attention: how it can compute attention.
        chosen: what transformers writes into the configuration as it makes the model: how it computes.
    """

    cost: ModelCost
    correction_bias: bool
    attention: AttentionOffer
    chosen: Mapping[str, str | None]


def made_model(config: Any, *, probe: Callable[[Any, int], None]) -> MadeModel:
    """The model that a transformers configuration makes: remembered, or made on the meta device and then kept in mind.

    Of a configuration that holds others (a vision tower's) nothing is remembered.

    Args:
        probe: tries the configuration, whose model has so many parameters; one that fails is not remembered.

    Raises:
        UserError: none can be made, or the probe's.
    """
    path = _path(config)  # first: making a model writes into its configuration
    if path is not None and (known := _read(path)) is not None:
        for name, value in known.chosen.items():
            setattr(config, name, value)
        return known
    model, cost = empty_model(config)
    chosen = {name: getattr(config, name) for name in CHOSEN}
    made = MadeModel(cost, has_correction_bias(model), attention_offer(model), chosen)
    probe(config, cost.total_parameters)
    if path is not None:
        _keep(path, made)
    return made


def folder() -> Path | None:
    """``MOPD_CACHE``, else ``mopd`` in the user's folder of caches; None where nothing is to be remembered."""
    if (named := os.environ.get(CACHE)) is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mopd"


def _read(path: Path) -> MadeModel | None:
    try:
        return _FORMAT.validate_json(path.read_bytes())
    except (OSError, ValidationError):  # not there, not readable, cut off: it is found out anew
        return None


def _keep(path: Path, made: MadeModel) -> None:
    """Where it cannot be written, later checks take as long as this one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _FORMAT.dump_json(made))
    except OSError:
        return


_FORMAT = TypeAdapter(MadeModel)


def _path(config: Any) -> Path | None:
    home = folder()
    if home is None or config.sub_configs:
        return None
    hashed = "\n".join([_code(), type(config).__name__, config.to_json_string(use_diff=False)])
    return home / "models" / f"{hashlib.sha256(hashed.encode()).hexdigest()}.json"


@cache
def _code() -> str:
    """A digest of all that decides what is found out: libraries by version, the code of this project by its bytes."""
    digest = hashlib.sha256("".join(version(name) for name in ("torch", "transformers")).encode())
    for package in (mopd.distill.models, mopd.distill.student, mopd.recipes.check, mopd.recipes.resolve):
        for source in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()
