"""DeepSpeed, as the student uses it: the one file that knows its configuration and its ways."""

from __future__ import annotations

import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from mopd.distill.models.adapters import with_trained_adapter
from mopd.distill.models.load import load_whole
from mopd.distill.recipe import Engine, LoRA, Optimizer, PlainSGD
from mopd.distill.student import moe
from mopd.distill.student.spec import StudentSpec
from mopd.distill.types import UserError


def environment(rank: int, ranks: int, *, address: str, port: int, device: str) -> dict[str, str]:
    """Environment variables of a rank's process; they must be there before it imports torch or deepspeed.

    A rank sees one GPU, its own, so it is the first of its node as far as devices go.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0" if device == "cuda" else str(rank),
        "LOCAL_WORLD_SIZE": "1" if device == "cuda" else str(ranks),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": device,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


LOOPBACK = "127.0.0.1"


def listen(address: str, port: int = 0) -> socket.socket:
    """A socket at which rank 0 meets the others: at ``address`` alone, so that no other network of the machine sees it.

    Args:
        port: any free one if 0.
    """
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def free_port() -> int:
    """A TCP port of this machine that nobody listens at now."""
    with listen(LOOPBACK) as server:
        return server.getsockname()[1]


def meet(device: str, listener: socket.socket | None = None) -> None:
    """Join the ranks of this run, at the address and in the order that :func:`environment` gives; once in a process.

    torch alone would have rank 0 listen on every interface. Whoever reaches its store, or what ranks send each other,
    can run code in them: neither asks who is there. So all of it stays on the loopback where the ranks do, and where
    they don't, the store is at rank 0's address and GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME say the rest.

    Args:
        listener: where rank 0 listens already, which it takes over; it opens one where there is none.
    """
    if dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if address == LOOPBACK:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        os.environ["NCCL_SOCKET_IFNAME"] = "=lo"  # that one, and none whose name begins so
    first = (listener or listen(address, port)).detach() if rank == 0 else None
    make: Any = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    store = make(address, port, ranks, is_master=rank == 0, timeout=default_pg_timeout, master_listen_fd=first)
    settings: dict[str, Any] = {"store": store, "rank": rank, "world_size": ranks, "timeout": default_pg_timeout}
    if device == "cuda" and ranks > 1:  # as DeepSpeed would
        settings["device_id"] = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", **settings)


def model_dtype(settings: Engine, device: str) -> torch.dtype:
    """The dtype of the weights: bfloat16 on a GPU and float32 elsewhere, unless the recipe says."""
    if settings.dtype == "auto":
        return torch.bfloat16 if device == "cuda" else torch.float32
    return getattr(torch, settings.dtype)


def check_engine(config: Any, settings: Engine, optimizer: Optimizer, *, device: str, lora: LoRA | None = None) -> None:
    """Refuse what DeepSpeed gets wrong or cannot do.

    Raises:
        UserError: naming every problem.
    """
    problems: list[str] = []
    try:
        moe.check_expert_parallel(config, settings.ranks, settings.expert_parallel)
    except UserError as error:
        problems.extend(error.problems)
    if settings.zero_stage == 0 and settings.expert_parallel > 1:
        # Every rank would see the norm of its own experts alone: it clips by it, and judges by it what is finite.
        problems.append("zero_stage 0 with expert_parallel has no global gradient norm; use zero_stage 1 or 2")
    if settings.zero_stage < 2 and model_dtype(settings, device) == torch.bfloat16:
        kept = "float32 weights" if settings.zero_stage == 0 else "float32 gradients over microbatches"
        problems.append(f"zero_stage {settings.zero_stage} keeps no {kept} in bfloat16 training; use zero_stage 2")
    if lora is not None and settings.expert_parallel > 1:
        problems.append(
            f"expert_parallel is {settings.expert_parallel}, and AutoEP replaces the layers that an adapter (`lora`) "
            "lies on; set it to 1"
        )
    if problems:
        raise UserError(*problems)


def build(spec: StudentSpec, listener: socket.socket | None = None) -> tuple[Any, moe.LoadBalance]:
    """Join the other ranks, load the checkpoint and make the engine; returns it with its load balance.

    Args:
        listener: where rank 0 waits for the others; see :func:`meet`.
    """
    deepspeed = import_deepspeed(spec.device)
    if spec.device == "cpu":
        torch.set_num_threads(1)  # two threads under contention were 16 times slower
    meet(spec.device, listener)
    backend = "nccl" if spec.device == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    torch.manual_seed(spec.seed)
    dtype = model_dtype(spec.engine, spec.device)
    model = load_whole(
        spec.model,
        dtype=dtype,
        trust_remote_code=spec.trust_remote_code,
        attention=spec.engine.attn_implementation,
    )
    check_engine(model.config, spec.engine, spec.optimizer, device=spec.device, lora=spec.lora)
    if spec.engine.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    biases = moe.router_biases(model)
    if spec.lora is not None:
        torch.manual_seed(spec.seed)  # again: what loading draws is no part of it
        model = with_trained_adapter(model, spec.lora, base=spec.base or spec.model)
    if spec.engine.expert_parallel > 1:
        moe.prepare_autoep()
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(spec.optimizer, spec.engine, spec.device), config=_config(spec, dtype)
    )
    moe.keep_router_float32(engine.module, biases)
    # A base under an adapter keeps every bit, the biases of its routers too.
    return engine, moe.LoadBalance(engine.module, 0.0 if spec.lora is not None else spec.engine.expert_bias_rate)


def learning_rate(optimizer: Optimizer, k: int, total: int) -> float:
    """Learning rate of optimizer step ``k`` of ``total``: a pure function, so a resumed run draws the same curve.

    wsd (warm-up, stable, decay) is Haegele et al., arXiv 2405.18392: until its decay it does not depend on ``total``,
    so a run may find out late where it ends.

    Linear warm-up over ``warmup_steps`` steps (step 0 already moves, the last of them is at the peak), then the
    schedule from the peak down to ``final_lr_fraction`` of it, which the last step has.

    Args:
        optimizer: the recipe's optimizer.
        k: number of the optimizer step in the run, from 0.
        total: optimizer steps of the whole run.
    """
    warmup_steps = optimizer.warm_up(total)
    if k < warmup_steps:
        return optimizer.lr * (k + 1) / warmup_steps
    progress = min(1.0, (k - warmup_steps) / max(1, total - 1 - warmup_steps))
    match optimizer.schedule:
        case "constant":
            remaining = 1.0
        case "linear":
            remaining = 1.0 - progress
        case "wsd":
            remaining = min(1.0, max(0, total - 1 - k) / optimizer.decay_steps)
        case "cosine":
            remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    final = 1.0 if optimizer.schedule == "constant" else optimizer.final_lr_fraction
    return optimizer.lr * (final + (1.0 - final) * remaining)


def step(engine: Any, lr: float) -> float | None:
    """Move the weights at ``lr``; returns the global gradient norm before clipping.

    Returns None, with the weights where they were, if the gradient is NaN or infinite; all ranks agree on it.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    if not engine.zero_optimization():
        # Stage 0 keeps whole gradients and checks nothing.
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
        if not math.isfinite(norm):
            return None
        engine.step()
        return norm
    engine.step()
    norm = engine.get_global_grad_norm()
    if engine.optimizer.overflow or norm is None or not math.isfinite(float(norm)):
        return None
    return float(norm)


@contextmanager
def gathered(engine: Any) -> Iterator[None]:
    """Whole parameters on every rank while the context lasts; ZeRO-3 keeps a part of each.

    They are gathered once. DeepSpeed's hooks are off meanwhile: they would free each submodule after its forward, and
    gather it again for the next token. So ranks may take unequally many forwards in the context.
    """
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(engine.module.parameters()), modifier_rank=None), _without_hooks(engine):
        yield


@contextmanager
def _without_hooks(engine: Any) -> Iterator[None]:
    """Take ZeRO-3's hooks off the modules, and put them back in their places among those of others.

    DeepSpeed's own way, to register new ones, would have it record the order of modules again.
    """
    offload = engine.optimizer.parameter_offload
    handles = [offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks]
    own = {handle.id for handle in handles}  # unique among all hooks of the process
    hooks = {id(held): held for held in (handle.hooks_dict_ref() for handle in handles) if held is not None}
    before = {key: dict(held) for key, held in hooks.items()}
    for held in hooks.values():
        for number in own & held.keys():
            del held[number]
    try:
        yield
    finally:
        for key, held in hooks.items():
            kept = {number: hook for number, hook in before[key].items() if number in own or number in held}
            added = {number: hook for number, hook in held.items() if number not in kept}
            held.clear()
            held.update(kept | added)


def _config(spec: StudentSpec, dtype: torch.dtype) -> dict[str, Any]:
    settings = spec.engine
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # microbatches vary in number, so the boundary is set by hand
        "gradient_clipping": spec.optimizer.clip,
        "zero_optimization": {"stage": settings.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        # Summed in bfloat16, late microbatches would vanish beside the sum, and the gradient depend on the packing.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if settings.expert_parallel > 1:
        config["expert_parallel"] = {"enabled": True, "autoep_size": settings.expert_parallel}
    return config


def aligned(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Parameters in an order that ZeRO can flatten: each that fills whole units of 16 bytes begins at one.

    ZeRO lays a group's parameters end to end. One of 6 bytes (the sinks of 3 attention heads) would move all later ones
    off the addresses that a GPU's grouped matrix product takes, and the experts fail; so such parameters go last.
    """
    return sorted(parameters, key=lambda parameter: parameter.numel() * parameter.element_size() % 16 != 0)


def _optimizer(recipe: Optimizer, settings: Engine, device: str) -> Callable[[Iterable[Any]], torch.optim.Optimizer]:
    """A callable, because spread experts do not exist before DeepSpeed has replaced their layers."""

    def make(parameters: Iterable[Any]) -> torch.optim.Optimizer:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        groups: Any = trained if device == "cpu" else aligned(trained)
        if settings.expert_parallel > 1:
            from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as split

            groups = split({"params": groups, "name": "parameters"})
        if isinstance(recipe, PlainSGD):
            return torch.optim.SGD(groups, lr=recipe.lr)
        return torch.optim.AdamW(
            groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay
        )

    return make


def import_deepspeed(device: str) -> Any:
    """The library, quiet, for one kind of device."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("DS_ACCELERATOR", device)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    __compatible_ops__["deepspeed_shm_comm"] = False  # a minute of compiling for an op that only inference uses
    return deepspeed
