"""What a rank's engine holds of the student's state, by ZeRO stage: out into a checkpoint's shard, and in again.

Stage 0 keeps parameters and optimizer states whole on every rank; 1 and 2 lay the parameters of a group end to end and
give every rank an equal part of that; 3 gives every rank an equal part of each parameter. Experts that are spread are
shared out among the ranks that hold the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mopd.distill.storage import Digest
from mopd.distill.student import moe
from mopd.distill.student.shards import WEIGHT, Piece, Place, Shards, open_shards, same_names, shard_name, write_shard


def save_shard(engine: Any, folder: Path) -> tuple[str, Digest]:
    """Write this rank's shard into a checkpoint's folder; returns its name and digest.

    Each element is in one shard, whatever the ranks hold. Frozen parameters are in none: they are those of the
    checkpoint that the student was made from. Buffers are in that of rank 0, all ranks have the same.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    pieces = [_piece(engine, owned) for owned in _owned(engine, rank, ranks)]
    name = shard_name(rank, ranks)
    return name, write_shard(folder / name, pieces, _buffers(engine.module) if rank == 0 else {})


def load_shards(engine: Any, folder: Path) -> None:
    """Restore weights, optimizer and buffers from a checkpoint's folder, whatever ranks wrote it; bitwise.

    Raises:
        RunError: it holds other parameters than the student has, or a file is not as it was written.
    """
    with open_shards(folder) as shards, torch.no_grad():
        buffers = _buffers(engine.module)
        trained = {place.name for place, parameter in _trained(engine.module).values()}
        same_names(shards.names(), trained)
        same_names(shards.buffers, buffers)
        owned = [*_owned(engine, 0, 1)]
        _prepare(engine, shards, owned)
        for part in owned:
            shards.fill(_piece(engine, part))
        for name, buffer in buffers.items():
            buffer.copy_(shards.buffers[name])
    _refresh_parameters(engine)


@dataclass(frozen=True, slots=True)
class _Owned:
    """Elements ``offset`` to ``offset + count`` of ``flat`` are those of a parameter from number ``start`` on.

    ``flat`` is what the optimizer moves: a parameter itself, or float32 parts of many, end to end.
    """

    name: str
    place: Place
    flat: Tensor
    offset: int
    start: int
    count: int


def _owned(engine: Any, share: int, shares: int) -> Iterator[_Owned]:
    """What the rank holds; where that is everything, the ``share``-th of ``shares`` equal parts of each parameter."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    for name, (place, parameter) in _trained(engine.module).items():
        if stage == 0:
            size = math.ceil(parameter.numel() / shares)
            start = min(share * size, parameter.numel())
            flat, offset, count = parameter, start, min(size, parameter.numel() - start)
        elif stage == 3:
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = optimizer._get_param_partition_rank(parameter) * size
            flat, count = optimizer.fp32_partitioned_groups_flat[group], min(size, parameter.ds_numel - start)
        elif (mapping := parameter._hp_mapping) is not None:
            flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            offset, count = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
            start = mapping.lp_fragment_address.start
        else:
            continue
        if count > 0:
            yield _Owned(name, place, flat, offset, start, count)


def _piece(engine: Any, owned: _Owned) -> Piece:
    """The part as views of what the optimizer holds, which may be read and written."""
    state = _torch_optimizer(engine).state.get(owned.flat, {})
    spread = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0}
    views = {
        key: value.detach().view(-1)[owned.offset : owned.offset + owned.count]
        for key, value in {WEIGHT: owned.flat, **spread}.items()
    }
    counts = {key: float(value) for key, value in state.items() if key not in spread}
    return Piece(owned.name, owned.place, owned.start, views, counts)


def _prepare(engine: Any, shards: Shards, owned: list[_Owned]) -> None:
    """Make the optimizer's states anew, with their counts; the rest of them is 0 where there have been steps."""
    state = _torch_optimizer(engine).state
    counts: dict[int, dict[str, float]] = {}
    for part in owned:
        state.pop(part.flat, None)
        own = counts.setdefault(id(part.flat), {})
        own |= {name: max(value, own.get(name, 0)) for name, value in shards.counts(part.place.name).items()}
    for part in owned:
        if part.flat in state or not counts[id(part.flat)]:
            continue
        kept: dict[str, Any] = {name: torch.zeros_like(part.flat) for name in sorted(shards.states)}
        # As torch keeps them: a float32 on the CPU.
        kept |= {name: torch.tensor(value, dtype=torch.float32) for name, value in counts[id(part.flat)].items()}
        state[part.flat] = kept


def _refresh_parameters(engine: Any) -> None:
    """Give the model, in its dtype, the float32 values that the optimizer holds. Collective."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
        optimizer._hp_optimizer_states_linked = False
        if any(map(len, optimizer.optimizer.state.values())):
            optimizer._lazy_init_hp_params_optimizer_state()  # else DeepSpeed would show the states of before
    if stage == 3:
        optimizer.checkpoint_event_prologue()  # small parameters, which are whole everywhere, are given up
        for own, flat in zip(
            optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
        ):
            own.data.copy_(flat.data)
        optimizer.checkpoint_event_epilogue()  # and gathered


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def _trained(model: nn.Module) -> dict[str, tuple[Place, Any]]:
    """Each trained parameter by its name on this rank, with its place in the whole model."""
    places = moe.places(model)
    return {name: (places[name], p) for name, p in model.named_parameters() if p.requires_grad}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that a checkpoint has, by Hugging Face names."""
    layers = moe.spread_layers(model)
    return {
        moe.hf_name(f"{prefix}.{name}".removeprefix("."), layers): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }
