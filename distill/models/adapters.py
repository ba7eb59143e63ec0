"""LoRA adapters over one base: held side by side, one of them active at a time. The one file that imports peft."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mopd.distill.types import UserError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def with_adapters(model: Any, folders: Sequence[str], *, device: str) -> Any:
    """A model of transformers with the adapters in ``folders`` beside its own weights, frozen; see :func:`active`.

    Args:
        model: the base; it is changed in place.
        device: where the adapters go. On a base without weights (the meta device) they are only compared with it.

    Raises:
        UserError: a folder holds no LoRA adapter, or one whose weights are not those that this base needs.
    """
    if not folders:
        return model
    from peft import PeftModel  # seconds that whoever has no adapters does not spend

    held: Any = None
    for folder in dict.fromkeys(folders):
        config = _config(folder)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*meta parameter in the current model")  # as it should be
                if held is None:
                    held = PeftModel(model, config, adapter_name=_name(folder), autocast_adapter_dtype=False)
                loaded = held.load_adapter(folder, _name(folder), torch_device=device, autocast_adapter_dtype=False)
        except (ValueError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(f"adapter {folder} does not fit its base: {str(error).splitlines()[0]:.300}") from error
        for keys, what in (
            (loaded.missing_keys, "lacks"),
            (loaded.unexpected_keys, "has, and its base has no place for,"),
        ):
            if keys:
                raise UserError(
                    f"adapter {folder} {what} {len(keys)} weights (for example {sorted(keys)[0]}); take a whole "
                    f"adapter, and the base that it was trained on"
                )
    return held.eval()


def merged(model: Any, folder: str) -> Any:
    """A base with one adapter added into its weights: a plain model of transformers again.

    Raises:
        UserError: as :func:`with_adapters`.
    """
    return with_adapters(model, [folder], device="cpu").merge_and_unload()


@contextmanager
def active(model: Any, folder: str | None) -> Iterator[None]:
    """Let ``model`` answer with the adapter that came from ``folder``; with None, as the base itself."""
    if not hasattr(model, "peft_config"):
        if folder is not None:
            raise ValueError(f"adapter {folder} was never loaded")
        yield
    elif folder is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(_name(folder), inference_mode=True)
        yield


def _config(folder: str) -> Any:
    from peft import PeftConfig

    files = [CONFIG, next((name for name in WEIGHTS if (Path(folder) / name).is_file()), WEIGHTS[0])]
    for name in files:
        if not (Path(folder) / name).is_file():
            raise UserError(f"no adapter at {folder}: it holds no {name}; name the folder that peft saved it in")
    try:
        config: Any = PeftConfig.from_pretrained(folder)
    except Exception as error:  # whatever a broken file can be
        raise UserError(f"{folder}/{CONFIG} cannot be read: {error!s:.200}") from error
    if getattr(config.peft_type, "value", config.peft_type) != "LORA":
        raise UserError(f"adapter {folder} is of the kind {config.peft_type}; only LORA is known here")
    config.inference_mode = True
    return config


def _name(folder: str) -> str:
    """What peft calls an adapter; it takes no dots, so not the folder's own name."""
    return "from_" + hashlib.sha256(folder.encode()).hexdigest()[:12]
