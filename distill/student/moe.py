"""Mixtures of experts: expert parallelism, load balance, and the way back to Hugging Face names.

Experts are spread over ranks by DeepSpeed's AutoEP, which replaces each mixture's block by its own layer. Everything
here works on both forms: transformers' routers return (logits, weights, indices), AutoEP's (weights, indices, counts).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from mopd.distill.models.families import FAMILIES, experts_of, family_of, is_router
from mopd.distill.student.shards import Place, Stretch
from mopd.distill.types import Metrics, UserError

_BIAS = "e_score_correction_bias"
_WHICH = ("w1", "w2", "w3")
"""An expert's matrices, as AutoEP names them."""


def check_expert_parallel(config: Any, ranks: int, expert_parallel: int) -> None:
    """Refuse what cannot be spread: ``expert_parallel`` must divide the ranks and the model's experts.

    Raises:
        UserError: with what there is and what would do.
    """
    if expert_parallel == 1:
        return
    problems = []
    experts, family = experts_of(config), config.model_type
    if experts == 0:
        problems.append(f"expert_parallel is {expert_parallel}, but {family} has no experts; set it to 1")
    elif not family_of(config).can_spread:
        problems.append(
            f"expert_parallel is {expert_parallel}, but the experts of {family} cannot be spread over ranks "
            f"(those of {', '.join(name for name, row in FAMILIES.items() if row.can_spread)} can); set it to 1"
        )
    elif experts % expert_parallel:
        divisors = ", ".join(str(n) for n in range(1, experts + 1) if experts % n == 0)
        problems.append(
            f"expert_parallel is {expert_parallel}, which does not divide the {experts} experts of {family}; "
            f"set it to one of {divisors}"
        )
    if ranks % expert_parallel:
        problems.append(
            f"expert_parallel is {expert_parallel}, which does not divide the engine's {ranks} ranks; "
            f"set ranks to a multiple of {expert_parallel}"
        )
    if problems:
        raise UserError(*problems)


def prepare_autoep() -> None:
    """Teach AutoEP what it lacks: presets of some families, and transformers 5's registry of recorded outputs."""
    from deepspeed.module_inject.auto_ep_presets import base, registry

    for name, family in FAMILIES.items():
        if family.autoep_preset is not None and name not in registry.PRESET_MODELS:
            registry.PRESET_MODELS[name] = base.MoEModelPreset(**family.autoep_preset, hf_model_types=(name,))
    # Retargeting transformers' output recorders fails on its new registry class, and nothing here asks the model
    # for router logits: the counts come from hooks.
    base.TransformersTopLevelRouterLogitsAdapter.retarget_transformers_output_recorders = (  # pyright: ignore
        lambda self, *args, **kwargs: None
    )


class LoadBalance:
    """Counts where tokens go and, in families with a correction bias, pulls the experts level.

    The bias moves by ``rate`` towards the experts that got fewer tokens than the mean, after each optimizer step
    (DeepSeek-V3 report, arXiv 2412.19437, section 2.1.2; MiMo-V2-Flash report, arXiv 2601.02780). It is a buffer of the
    model, so it is in its checkpoint, and equal on all ranks because the counts are.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.routers = [module for module in model.modules() if is_router(module)]
        self._rows_N: torch.Tensor | None = None
        device = next(model.parameters()).device
        experts = max((_experts(router) for router in self.routers), default=0)
        self.counts_LE = torch.zeros(len(self.routers), experts, dtype=torch.float64, device=device)
        for layer, router in enumerate(self.routers):
            router.register_forward_hook(self._counter(layer))

    def count(self, attention_mask_BT: torch.Tensor) -> None:
        """Count the tokens of the next forward, whose mask this is; padding is left out."""
        self._rows_N = attention_mask_BT.reshape(-1).nonzero().squeeze(1)

    def pause(self) -> None:
        """Count no more: generation and recomputed forwards are not training tokens."""
        self._rows_N = None

    def apply(self, counts_LE: torch.Tensor) -> Metrics:
        """Move the biases by the counts of all ranks and forget them; returns the load's statistics."""
        self.counts_LE.zero_()
        if not self.routers or not counts_LE.any():
            return {}
        mean_L1 = counts_LE.mean(dim=1, keepdim=True)
        step_LE = self.rate * torch.sign(mean_L1 - counts_LE)
        for layer, router in enumerate(self.routers):
            bias = getattr(router, _BIAS, None)
            if self.rate > 0 and bias is not None:
                bias.data.add_(step_LE[layer].to(bias))
        share_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True)
        entropy_L = torch.special.entr(share_LE).sum(dim=1)
        return {
            "router/max_load": float((counts_LE / mean_L1).max()),
            "router/min_load": float((counts_LE / mean_L1).min()),
            "router/entropy": float(entropy_L.mean()),
            "router/dead_experts": float((counts_LE == 0).sum()),
        }

    def _counter(self, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
            if self._rows_N is None:
                return
            indices_NK = output[1] if _is_autoep(_module) else output[2]
            chosen = indices_NK.detach().index_select(0, self._rows_N).reshape(-1)
            self.counts_LE[layer] += torch.bincount(chosen, minlength=self.counts_LE.shape[1])

        return hook


def keep_router_float32(model: nn.Module, biases: Sequence[torch.Tensor | None]) -> None:
    """After a cast of the model to bfloat16: biases back to float32 values, AutoEP's router logits in float32.

    A step of 1e-4 would be lost in a bfloat16 bias, and transformers' own routers of this kind compute in float32.

    Args:
        model: the engine's module.
        biases: each router's bias as it was loaded (see :func:`router_biases`), in the order of the modules.
    """
    routers = [module for module in model.modules() if is_router(module)]
    for router, bias in zip(routers, biases, strict=True):
        if bias is not None:
            current = getattr(router, _BIAS)
            current.data = bias.to(device=current.device, dtype=torch.float32)
        if _is_autoep(router):
            gate = router.gate
            assert isinstance(gate, nn.Linear)
            gate.forward = partial(_float32_linear, gate)


def _float32_linear(linear: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return F.linear(input.float(), linear.weight.float(), None if linear.bias is None else linear.bias.float())


def router_biases(model: nn.Module) -> list[torch.Tensor | None]:
    """A copy of each router's correction bias, None where a family has none."""
    biases = (getattr(module, _BIAS, None) for module in model.modules() if is_router(module))
    return [None if bias is None else bias.detach().clone() for bias in biases]


def has_correction_bias(model: nn.Module) -> bool:
    """Whether routers have the bias that levels the load of experts."""
    return any(bias is not None for bias in router_biases(model))


def gather_state_dict(model: nn.Module, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """The whole model under Hugging Face names, on the CPU. Collective: every rank must call it.

    Where ``keep`` is false nothing is copied, and nothing is returned: this rank only gives its experts to the others.

    Experts are gathered over their group and fused as transformers stores them: ``gate_up_proj`` is AutoEP's w1 and w3.
    Under ZeRO-3 the parameters must be gathered around the call.
    """
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items() if keep}
    layers = spread_layers(model)
    for prefix, layer in layers.items():
        experts = {which: _gather_experts(getattr(layer.experts, which), layer.ep_group, keep) for which in _WHICH}
        if not keep:
            continue
        # AutoEP may offer its router a second time, under the name `gate`.
        for name in [name for name in state if name.startswith((f"{prefix}.experts.", f"{prefix}.gate."))]:
            del state[name]
        state[f"{prefix}.experts.gate_up_proj"] = torch.cat([experts["w1"], experts["w3"]], dim=1)
        state[f"{prefix}.experts.down_proj"] = experts["w2"]
        for name in [name for name in state if name.startswith(f"{prefix}.router.")]:
            state[hf_name(name, layers)] = state.pop(name)
    return state


def places(model: nn.Module) -> dict[str, Place]:
    """Where each of this rank's parameters lies in the whole model, by its name here.

    Experts that are spread are some of a whole parameter, and their ``w1`` and ``w3`` halves of ``gate_up_proj``.
    """
    layers = spread_layers(model)
    place_of = {}
    for name, parameter in model.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves the parameter itself empty
        prefix, part, which = name.rpartition(".experts.")
        if part and prefix in layers:
            place_of[name] = _experts_place(f"{prefix}.experts", which, shape, first=layers[prefix].ep_rank * shape[0])
        else:
            place_of[name] = Place(hf_name(name, layers), (Stretch(0, 0, shape.numel()),))
    return place_of


def hf_name(name: str, layers: Container[str]) -> str:
    """The name that transformers has for a tensor of a model whose experts may be spread; not for the experts.

    Args:
        layers: names of its :func:`spread_layers`.
    """
    prefix, router, tail = name.rpartition(".router.")
    return f"{prefix}.gate.{tail.removeprefix('gate.')}" if router and prefix in layers else name


def _experts_place(experts: str, which: str, shape: torch.Size, *, first: int) -> Place:
    """Where experts from number ``first`` on lie, of which this rank has ``w1``, ``w2`` or ``w3``."""
    size = shape[1] * shape[2]
    if which == "w2":
        return Place(f"{experts}.down_proj", (Stretch(0, first * size, shape.numel()),))
    half = {"w1": 0, "w3": size}[which]
    stretches = (Stretch(e * size, (first + e) * 2 * size + half, size) for e in range(shape[0]))
    return Place(f"{experts}.gate_up_proj", tuple(stretches))


def spread_layers(model: nn.Module) -> dict[str, Any]:
    """The layers whose experts DeepSpeed spreads over ranks (AutoEP), by name."""
    return {prefix: layer for prefix, layer in model.named_modules() if getattr(layer, "_is_autoep_layer", False)}


def _gather_experts(local: torch.Tensor, group: Any, keep: bool) -> torch.Tensor:
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local.detach().contiguous(), group=group)
    return torch.cat(parts).cpu() if keep else local


def _is_autoep(router: nn.Module) -> bool:
    return type(router).__name__ == "TokenChoiceTopKRouter"


def _experts(router: nn.Module) -> int:
    count = router.num_experts
    assert isinstance(count, int)
    return count
