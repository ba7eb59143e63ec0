"""Checkpoints, looked at without loading a weight: where they lie, what they are, whether they are whole."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mopd.distill.models.families import experts_of
from mopd.distill.models.flops import ModelCost, model_cost
from mopd.distill.models.load import unused_weights
from mopd.distill.recipe.model_names import hub_name, is_path
from mopd.distill.recipe.plugins import IMPORT_SECONDS, own_code
from mopd.distill.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HUB_TIMEOUT_SECONDS = 5.0
BESIDES_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken")
"""The files of a Hub model that say what it is: configuration, tokenizer, chat template, code."""


@dataclass(frozen=True, slots=True)
class ReadCheckpoint:
    """A checkpoint that was looked at.

    Attributes:
        model: on the meta device.
        cost: its parameters, and what a token costs.
        unused: names of the weights that the model has no place for.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    cost: ModelCost
    unused: tuple[str, ...] = ()


def read_checkpoint(
    folder: str, *, permit: str, trust_remote_code: bool = False, weights: bool = True
) -> ReadCheckpoint:
    """What can be said of a checkpoint without loading a weight.

    Args:
        folder: as :func:`local_folder` gives it; a Hub model that is still to be downloaded has no weights to look at.
        permit: what a user does to let code run that lies in the folder, as a sentence's end.
        weights: whether it must have any; a server's model is only named here.

    Raises:
        UserError: something of it is missing or broken.
    """
    config, tokenizer = (
        _read(folder, what, reader, permit, trust_remote_code)
        for what, reader in (("configuration", AutoConfig), ("tokenizer", AutoTokenizer))
    )
    model, cost = empty_model(config, trust_remote_code=trust_remote_code)
    unused = check_weights(Path(folder), model) if weights and Path(folder).is_dir() else []
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError(
            f"the tokenizer in {folder} has no EOS token, which closes every answer; name one as `eos_token` in its "
            f"tokenizer_config.json"
        )
    return ReadCheckpoint(tokenizer, model, cost, tuple(unused))


def empty_model(config: Any, *, trust_remote_code: bool = False) -> tuple[PreTrainedModel, ModelCost]:
    """The model that a configuration makes, on the meta device, and what it costs.

    Raises:
        UserError: none can be made, or it reads in both directions and cannot write.
    """
    what = "no language model can be built from its configuration"
    with own_code(what, seconds=BUILD_SECONDS, remedy="name a smaller one"):
        _refuse_endless(config.get_text_config())
        from transformers import AutoModelForCausalLM  # seconds that a check of known models does not spend

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        cost = model_cost(model)
    if getattr(model.config, "is_decoder", True) is False:
        raise UserError(
            f"{config.model_type} reads a text in both directions, so it cannot write one; set `is_decoder: true` in "
            f"its configuration, or take a causal architecture"
        )
    return model, cost


def _refuse_endless(text: Any) -> None:
    """Layers and experts that nobody could wait for to be made."""
    for what, size in (("layers", getattr(text, "num_hidden_layers", 0)), ("experts", experts_of(text))):
        if isinstance(size, int) and size > MOST_PARTS:
            raise UserError(f"its `config` has {size:.4g} {what}, and a language model has at most {MOST_PARTS:,}")


def local_folder(source: str, *, weights: bool = True) -> str:
    """The folder of a path's checkpoint, or of a Hub model that was downloaded before; else the Hub id and revision.

    Where its ``weights`` are not needed, what a Hub model has besides is downloaded.

    Raises:
        UserError: nothing usable is there, or the Hub doesn't have it or can't be reached.
    """
    if not is_path(source):
        name, _ = hub_name(source)
        if os.path.isdir(name):
            raise UserError(f"{name!r} is read as a Hub id, and a folder of that name is here; write ./{name}")
        return _hub_folder(source, weights)
    folder = Path(source)
    try:
        if not folder.is_dir():
            raise UserError(f"no checkpoint at {source} ({os.path.realpath(folder)} is not a folder)")
        if not (folder / "config.json").is_file():
            raise UserError(f"{source} is no Hugging Face checkpoint: it holds no config.json")
        if weights:
            weight_files(folder)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise UserError(
            f"checkpoint {source} cannot be looked at: {error.strerror}; fix the path, or its rights"
        ) from error
    return source


def _hub_folder(source: str, weights: bool) -> str:
    """A Hub model's folder in the local cache if it is whole there; else its id, after asking the Hub for it once."""
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = hub_name(source)
    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
        if weights:
            weight_files(Path(folder))
        elif not (Path(folder) / "config.json").is_file():
            raise UserError(f"{folder} holds no config.json")
        return folder
    except HFValidationError as error:
        raise UserError(f"{name!r} is neither `stage:NAME`, nor a path (./ or /), nor a Hub id: {error}") from error
    except (LocalEntryNotFoundError, UserError):
        pass  # not there, or not all of it: the rest is downloaded
    try:
        # Asked once: transformers itself would retry for half a minute.
        model_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        if not weights:
            return snapshot_download(name, revision=revision, allow_patterns=[*BESIDES_WEIGHTS])
    except RevisionNotFoundError as error:
        raise UserError(f"the Hub model {name!r} has no revision {revision!r}; name a branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the Hugging Face Hub has no model {name!r}, or it is private; a path begins with ./"
        ) from error
    except Exception as error:  # no network, no route, a proxy's refusal, a time-out
        raise UserError(
            f"Hub model {name!r} is not in the local cache, and the Hub cannot be reached ({type(error).__name__}); "
            f"download it where there is a network (`hf download {name}{_option(revision)}`), give a path that begins "
            f"with ./, or see the plan alone with `mopd check --offline`"
        ) from error
    return source


def downloaded(folder: str) -> str:
    """What :func:`local_folder` gives, on this machine: a Hub model is downloaded where it is still to be."""
    if Path(folder).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    name, revision = hub_name(folder)
    return snapshot_download(name, revision=revision)


def _option(revision: str | None) -> str:
    return "" if revision is None else f" --revision {revision}"


def commit_of(source: str) -> str | None:
    """The commit that a Hub model is at: as it lies in the local cache, else as the Hub says; None where neither does.

    Args:
        source: a Hub id, with a revision or without.
    """
    try:
        folder = Path(local_folder(source, weights=False))
    except UserError:
        return None
    return folder.name if folder.parent.name == "snapshots" else commit_on_hub(source)


def commit_on_hub(source: str) -> str | None:
    """The commit that a Hub model is at by what the Hub says now; None where it cannot be asked."""
    from huggingface_hub import model_info

    name, revision = hub_name(source)
    try:
        return model_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS).sha
    except Exception:  # no network, no route, a proxy's refusal, a time-out, or it is gone
        return None


def _read(folder: str, what: str, reader: Any, permit: str, trust_remote_code: bool) -> Any:
    own = own_code(f"the {what} in {folder} cannot be read", seconds=IMPORT_SECONDS, remedy="look at its code")
    try:
        with own if trust_remote_code else nullcontext():
            if Path(folder).is_dir():
                return reader.from_pretrained(folder, trust_remote_code=trust_remote_code)
            name, revision = hub_name(folder)
            return reader.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, JSON errors: whatever a file can be
        if "trust_remote_code" in str(error):
            raise UserError(f"the {what} in {folder} {needs_code(permit)}") from error
        raise UserError(f"the {what} in {folder} cannot be read: {error!s:.300}") from error


def needs_code(permit: str) -> str:
    """A predicate of a checkpoint whose code may not run; ``permit`` is what a user does to let it."""
    return f"needs Python code that lies beside it; read that code, and {permit} if you trust it"


def has_code(config: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a checkpoint names code that lies beside it, which runs where it is trusted."""
    return bool(getattr(config, "auto_map", None) or tokenizer.init_kwargs.get("auto_map"))


MOST_PARTS = 10_000
"""Layers of a model, and experts of a layer."""
BUILD_SECONDS = 300.0
"""That a model may take to be made without weights."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of a checkpoint's weights, the one that transformers prefers first; shards have NAME.index.json."""


def check_weights(folder: Path, model: PreTrainedModel) -> list[str]:
    """Compare names and shapes of a checkpoint's weights with those of its model.

    transformers itself compares them, as it loads, so tied weights and experts stored one by one are known to it; what
    it is given are empty tensors on the meta device.

    Args:
        model: as its configuration makes it, on the meta device.

    Returns:
        The weights that the model has no place for, by name; none of a checkpoint whose weights are packed.

    Raises:
        UserError: a file is missing or broken, a weight is missing or of another shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        tensors |= _headers(path)
    if getattr(model.config, "quantization_config", None) is not None:
        return []  # packed weights have names and shapes of their own, which only their own library knows
    config = copy.deepcopy(model.config)
    with _quiet():
        return unused_weights(type(model), tensors, named=folder, config=config)


def dropped_weights(folder: str, *, trust_remote_code: bool) -> list[str]:
    """The weights of a checkpoint that its model has no place for, by name, so that no export of the model has them.

    Raises:
        UserError: see :func:`check_weights`.
    """
    config = _read(folder, "configuration", AutoConfig, "trust it in its stanza", trust_remote_code)
    return check_weights(Path(folder), empty_model(config, trust_remote_code=trust_remote_code)[0])


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
            f"the index of weights {index} cannot be read ({error!r}); download the checkpoint again"
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} is no whole checkpoint: {len(missing)} of {len(names)} shards that {index.name} names are "
            f"missing, for example {missing[0]}; download it again"
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
        raise UserError(
            f"the weights in {path} cannot be read ({error!s:.200}); download the checkpoint again"
        ) from error
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
