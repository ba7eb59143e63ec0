"""The processes of a recipe's plan: how many live at a time, and about how many bytes each of them takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from mopd.distill.recipe import Engine, Optimizer
from mopd.distill.student.engine import model_dtype
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.plan_payload import comparing_bytes, logits_bytes
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.teachers import ResolvedTeacher

GIB = 2.0**30
PROCESS_BYTES = 0.35 * GIB
"""A process that has imported torch and transformers (measured: 325 MB after the imports)."""
RANK_BYTES = 0.5 * GIB
"""A rank of the student before its model counts: DeepSpeed imported and initialised (measured)."""
ACTIVATIONS_PER_HIDDEN = 17
"""Values that a layer keeps for its backward pass, per token and hidden unit; Korthikanti et al., arXiv 2205.05198,
eq 1 (34 bytes of two-byte values)."""
ATTENTION_MAPS = 2.5
"""Values kept per head and pair of tokens, by attention that stores its maps; same source."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """Processes of one kind that live at the same time: how many, and about how many bytes each."""

    phase: Literal["stages", "run"]
    name: str
    count: int
    bytes_each: float


def processes(
    resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]
) -> Iterator[ProcessPlan]:
    """The processes of a recipe's largest stages, and those of its run.

    Args:
        model_infos: of every model, see :func:`recipes.check.model_info.read_model_infos`.
        lengths: of every domain's prompts and answers, see :func:`recipes.check.tasks.check_tasks`.
    """
    recipe, device = resolved.recipe, resolved.device
    width = max((one.mean_prompt + one.mean_answer for one in lengths.values()), default=0.0)
    stages = [
        ProcessPlan(
            "stages",
            f"rank of stage:{name}",
            stage.engine.ranks,
            _rank_bytes(model_infos[f"stages.{name}.from"], stage.engine, stage.optimizer, width, device)
            + logits_bytes(model_infos[f"stages.{name}.from"], stage.engine, device=device),
        )
        for name, stage in recipe.stages.items()
    ]
    # Which stages meet depends on how long they take; the largest ones are the most that can.
    yield from sorted(stages, key=_minus_bytes)[: recipe.run.parallel_stages]
    engine = recipe.student.engine
    student = model_infos["student.model"]
    yield ProcessPlan(
        "run",
        "rank of the student",
        engine.ranks,
        _rank_bytes(student, engine, recipe.student.optimizer, width, device) + comparing_bytes(resolved, model_infos),
    )
    turns = resolved.turn_takers
    for names in [names for names in resolved.groups if names not in turns]:
        yield _teacher_process(resolved.teachers, model_infos, names, engine.microbatch_tokens)
    # Which of them meet depends on the step; the largest ones are the most that can.
    taking_turns = sorted(
        (_teacher_process(resolved.teachers, model_infos, names, engine.microbatch_tokens) for names in turns),
        key=_minus_bytes,
    )
    for one in taking_turns[: recipe.run.resident_teachers]:
        yield replace(one, name=f"{one.name}, or another in its place")
    if recipe.rollout.workers:
        yield ProcessPlan("run", "sampler", recipe.rollout.workers, _frozen_bytes(student, engine, device))


def _teacher_process(
    teachers: Mapping[str, ResolvedTeacher],
    model_infos: Mapping[str, ModelInfo],
    names: list[str],
    microbatch_tokens: int,
) -> ProcessPlan:
    """The processes of teachers that share them."""
    teacher = teachers[names[0]]
    one, replicas = model_infos[teacher.model.leaf], teacher.settings.replicas
    if not teacher.model.has_weights:
        return ProcessPlan("run", f"asking teacher {', '.join(names)}", replicas, PROCESS_BYTES)
    logits = microbatch_tokens * _vocabulary(one) * 12
    each = PROCESS_BYTES + one.cost.total_parameters * getattr(torch, teacher.dtype).itemsize + logits
    return ProcessPlan("run", f"teacher {', '.join(names)}", replicas, each)


def _minus_bytes(process: ProcessPlan) -> float:
    return -process.count * process.bytes_each


def _rank_bytes(model_infos: ModelInfo, engine: Engine, optimizer: Optimizer, width: float, device: str) -> float:
    """Bytes of one rank without its logits: weights, gradients, the optimizer's part by ZeRO stage, activations."""
    value = model_dtype(engine, device).itemsize
    states = 8 if optimizer.name == "adamw" else 0
    # Experts are spread over the expert-parallel group, and ZeRO shards them over what is left of the ranks.
    spread = engine.expert_parallel
    dense = model_infos.cost.total_parameters - model_infos.routed_parameters
    parts = (dense, engine.ranks), (model_infos.routed_parameters / spread, engine.ranks // spread)
    model = 0.0
    for held, group in parts:
        shard = group if engine.zero_stage >= 1 else 1
        whole = group if engine.zero_stage == 3 else 1
        model += held * 2 * value / whole + held * (4 + 4 + states) / shard
    return RANK_BYTES + model + _activation_values(model_infos.config, engine, width) * value


def _activation_values(config: Any, engine: Engine, width: float) -> float:
    text = config.get_text_config()
    layer = ACTIVATIONS_PER_HIDDEN * text.hidden_size + ATTENTION_MAPS * text.num_attention_heads * width
    kept = text.num_hidden_layers * layer
    if engine.gradient_checkpointing:
        kept = text.num_hidden_layers * text.hidden_size + layer
    return engine.microbatch_tokens * kept


def _frozen_bytes(model_infos: ModelInfo, engine: Engine, device: str) -> float:
    return PROCESS_BYTES + model_infos.cost.total_parameters * model_dtype(engine, device).itemsize


def _vocabulary(model_infos: ModelInfo) -> int:
    return int(model_infos.config.get_text_config().vocab_size)
