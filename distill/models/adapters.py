"""LoRA adapters over one base: held side by side, one of them active, or trained. The one file that imports peft."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mopd.distill.recipe import LoRA
from mopd.distill.types import UserError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TRAINED = "default"
"""What peft calls the adapter that is trained."""


# ---- adapters of folders, frozen


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
    held = with_adapters(model, [folder], device="cpu")
    if not held.peft_config[_name(folder)].ensure_weight_tying:
        return held.merge_and_unload()
    state = merged_state(held, _name(folder))  # peft would add the change of tied ends twice
    plain = held.unload()
    plain.load_state_dict(state)
    return plain


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


# ---- one that is trained


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """The parameters of a model that is trained, by what becomes of them.

    Attributes:
        trained: have gradients, a place in the optimizer and in checkpoints: all of a model, or its adapter's alone.
        frozen: keep their value, and are in memory alone.
    """

    trained: int
    frozen: int


def parameter_counts(model: Any, lora: LoRA | None) -> ParameterCounts:
    """What of a model is trained, and what is not.

    Args:
        model: of transformers, on the meta device; it is changed in place and unusable afterwards.
        lora: its adapter; None: the whole model is trained.

    Raises:
        UserError: as :func:`with_trained_adapter`.
    """
    if lora is not None:
        model = with_trained_adapter(model, lora, base="")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return ParameterCounts(trained, sum(parameter.numel() for parameter in model.parameters()) - trained)


def with_trained_adapter(model: Any, lora: LoRA, *, base: str) -> Any:
    """A model of transformers, frozen, with a new adapter that is trained: peft's wrapper around it.

    ``A`` is drawn from torch's generator and ``B`` is zero, so that the model answers as its base, bit by bit.

    Args:
        model: changed in place; on the meta device the adapter is there, too.
        base: the Hub id or the folder of the model's checkpoint, which the adapter's configuration names.

    Raises:
        UserError: a target is no layer of the model, or one that is no target. The message is a predicate of ``lora``.
    """
    from peft import LoraConfig, get_peft_model

    targets = adapter_targets(model, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (peft scales by any number)
        lora_dropout=lora.dropout,
        target_modules=list(targets.layers),
        target_parameters=list(targets.experts) or None,
        ensure_weight_tying=lora.embeddings and bool(getattr(model.config, "tie_word_embeddings", False)),
        task_type="CAUSAL_LM",
    )
    try:
        on_meta = next(model.parameters()).device.type == "meta"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")  # both ends change alike
            adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False, low_cpu_mem_usage=on_meta)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise UserError(f"does not fit a {model.config.model_type}: {error!s:.300}") from error
    adapted.peft_config[TRAINED].base_model_name_or_path = base
    return adapted


@dataclass(frozen=True, slots=True)
class Targets:
    """What of a model an adapter changes: ends of names.

    Attributes:
        layers: of layers; of the ends of the model too, where these are adapted.
        experts: of experts' weights that are one tensor for all experts of a layer.
        left_out: of linear layers that all-linear would take, and peft reads as the experts of this family.
    """

    layers: tuple[str, ...]
    experts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def adapter_targets(model: Any, lora: LoRA) -> Targets:
    """What of ``model`` the adapter changes.

    Raises:
        UserError: as :func:`with_trained_adapter`.
    """
    linear, ends = _linear_layers(model), _ends(model)
    if lora.targets == "all-linear":
        named = {name.rpartition(".")[2] for name in linear if name not in ends}
    else:
        named = {*lora.targets}
        _refuse_targets(lora.targets, [name for name, _ in model.named_modules()], linear, ends)
    kept = {name for name in named if not _is_experts_to_peft(model, name)}
    if lora.targets != "all-linear" and kept != named:
        raise UserError(
            f"has {', '.join(sorted(named - kept))} in `targets`, which peft reads as the experts of a "
            f"{model.config.model_type}; write `experts: true` for these, and leave the names out"
        )
    both = {name.rpartition(".")[2] for name in ends} if lora.embeddings else set[str]()
    experts = _fused_experts(model) if lora.experts else []
    return Targets(tuple(sorted(kept | both)), tuple(experts), tuple(sorted(named - kept)))


def _is_experts_to_peft(model: Any, name: str) -> bool:
    """Whether peft takes a layer's name for that of experts, which had it in earlier versions of transformers."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it is one of several that were fused
        return True
    return name not in (config.target_modules or ())


def _linear_layers(model: Any) -> list[str]:
    """The names of all layers that multiply by a matrix."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _ends(model: Any) -> list[str]:
    """The names of the input embeddings and of the output head."""
    ends = {id(end) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    return [name for name, module in model.named_modules() if id(module) in ends]


def _refuse_targets(targets: Iterable[str], modules: Sequence[str], linear: Sequence[str], ends: Sequence[str]) -> None:
    for target in targets:
        matching = [name for name in modules if name == target or name.endswith(f".{target}")]
        if {*matching} & {*ends}:
            raise UserError(f"has {target!r} in `targets`, an end of the model; write `embeddings: true` for both ends")
        if not matching or not {*matching} <= {*linear}:
            known = sorted({name.rpartition(".")[2] for name in linear if name not in ends})
            what = "no layer has that name" if not matching else f"{matching[0]} is no linear layer"
            raise UserError(f"has {target!r} in `targets`, and {what}; take some of {', '.join(known)}")


def _fused_experts(model: Any) -> list[str]:
    """The experts' weights that are one tensor for all experts of a layer: the ends of their names."""
    names = [name for name, weight in model.named_parameters() if weight.ndim == 3 and "experts" in name.split(".")]
    if not names:
        raise UserError(
            f"has `experts`, and a {model.config.model_type} has none whose weights are one tensor; leave it out"
        )
    # From behind the layer's number on.
    return sorted({name.split(".", 1 + max(i for i, part in enumerate(name.split(".")) if part.isdigit()))[-1]
                   for name in names})  # fmt: skip


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The weights of the adapter that is trained, by peft's names, on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=TRAINED, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def load_adapter_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Take on the weights of an adapter that :func:`adapter_state` gave.

    Raises:
        ValueError: they are not those of this model's adapter.
    """
    from peft import set_peft_model_state_dict

    known = set(adapter_state(model))
    if known != set(state):
        other = sorted(known ^ set(state))
        raise ValueError(f"an adapter has {len(known)} weights and {len(state)} were given; {other[0]} is in one alone")
    set_peft_model_state_dict(model, dict(state), adapter_name=TRAINED)


def merged_state(model: Any, adapter: str = TRAINED) -> dict[str, Tensor]:
    """The weights of a plain model that answers as ``model`` does, by transformers' names, on the CPU.

    ``W + alpha / rank * B A`` is summed in float32 and given back in the dtype of ``W``, which itself stays as it is.

    Args:
        model: in peft's wrapper; its parameters must be whole.
        adapter: what peft calls it.
    """
    from peft.tuners.lora import LoraLayer

    inner = model.get_base_model()
    layers = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    own = tuple(f"{name}.{part}." for name, layer in layers.items() for part in layer.adapter_layer_names)
    state = {
        name.replace(".base_layer", ""): tensor.detach().to("cpu", copy=True)
        for name, tensor in inner.state_dict().items()
        if not name.startswith(own)
    }
    for name, layer in layers.items():
        key = f"{name.replace('.base_layer', '')}.{getattr(layer, 'parameter_name', 'weight')}"
        change: Any = layer
        delta = change.get_delta_weight(adapter).detach().to("cpu")
        state[key] = (state[key].float() + delta.float()).to(state[key].dtype)
    return state


def save_adapter(model: Any, folder: str | Path) -> None:
    """Write the adapter that is trained as peft does: its configuration, which names the base, and its weights."""
    model.save_pretrained(folder, selected_adapters=[TRAINED], save_embedding_layers=False)
