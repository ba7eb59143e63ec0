"""What a recipe will take: models, processes and their memory, tokens of a step, disk. All of it is estimated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.models.attention import by_blocks
from mopd.distill.payload_rows import RowSizes, payload_spec
from mopd.distill.recipe import (
    DomainRecipe,
    Engine,
    LoRA,
    ModelReference,
    Optimizer,
    Recipe,
    RolloutRecipe,
    StageRecipe,
    StudentRecipe,
)
from mopd.distill.student.engine import model_dtype
from mopd.distill.student.forward import CHUNKS
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.samples import Questions
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import METHODS
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.stages import stage_domains
from mopd.recipes.resolve.teachers import ResolvedTeacher, describe
from mopd.rollouts.tokenizer import control_ids

GIB = 2.0**30
ROLLOUT_BYTES = 16
"""A token of a rollout in the process that holds it: its id, its mask, its log-probability, and what graded it."""
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
    width = max((length.mean_prompt + length.mean_answer for length in lengths.values()), default=0.0)
    stages = []
    for name, stage in recipe.stages.items():
        trained = [lengths[domain] for domain in stage_domains(stage, recipe.trained_domains)]
        info, most = model_infos[f"stages.{name}.from"], _most_tokens_of(stage, trained, recipe.rollout.max_new_tokens)
        engine = _at_once(stage.engine, most)
        each = _rank_bytes(info, stage, engine, width, device) + logits_bytes(info, engine, device=device)
        stages.append(ProcessPlan("stages", f"rank of stage:{name}", engine.ranks, each + most * ROLLOUT_BYTES))
    # Which stages meet depends on how long they take; the largest ones are the most that can.
    yield from sorted(stages, key=_minus_bytes)[: recipe.run.parallel_stages]
    steps = _steps(recipe.trained_domains, recipe.rollout, lengths, dict.fromkeys(resolved.teachers, 0))
    engine = _at_once(recipe.student.engine, sum(step.most_tokens for step in steps))
    student = model_infos["student.model"]
    yield ProcessPlan(
        "run",
        "rank of the student",
        engine.ranks,
        _rank_bytes(student, recipe.student, engine, width, device)
        + comparing_bytes(resolved.loss, resolved.teachers.values(), engine, model_infos, device=device),
    )
    turns = resolved.turn_takers
    for names in [names for names in resolved.groups if names not in turns]:
        yield _teacher_process(resolved.teachers, model_infos, names, engine.microbatch_tokens)
    # Which of them meet depends on the step; the largest ones are the most that can.
    taking_turns = sorted(
        (_teacher_process(resolved.teachers, model_infos, names, engine.microbatch_tokens) for names in turns),
        key=_minus_bytes,
    )
    for process in taking_turns[: recipe.run.resident_teachers]:
        yield replace(process, name=f"{process.name}, or another in its place")
    if recipe.rollout.workers:
        yield ProcessPlan("run", "sampler", recipe.rollout.workers, _frozen_bytes(student, engine, device))


def _at_once(engine: Engine, most_tokens: int) -> Engine:
    """An engine whose microbatches are no larger than all that there is in a step."""
    return engine.model_copy(update={"microbatch_tokens": min(engine.microbatch_tokens, max(1, most_tokens))})


def _most_tokens_of(stage: StageRecipe, lengths: Iterable[Lengths], max_new_tokens: int) -> int:
    """Tokens of a stage's step at most; ``lengths`` of its domains."""
    written = max_new_tokens if METHODS[stage.method].samples else 0
    rollouts = stage.prompts * (stage.samples_per_prompt if METHODS[stage.method].samples else 1)
    return rollouts * sum(max(length.longest_pair, length.longest_prompt + written) for length in lengths)


def _teacher_process(
    teachers: Mapping[str, ResolvedTeacher],
    model_infos: Mapping[str, ModelInfo],
    names: list[str],
    microbatch_tokens: int,
) -> ProcessPlan:
    """The processes of teachers that share them."""
    teacher = teachers[names[0]]
    info, replicas = model_infos[teacher.model.leaf], teacher.settings.replicas
    if not teacher.model.has_weights:
        return ProcessPlan("run", f"asking teacher {', '.join(names)}", replicas, PROCESS_BYTES)
    logits = microbatch_tokens * _vocabulary(info) * 12
    each = PROCESS_BYTES + info.cost.total_parameters * getattr(torch, teacher.dtype).itemsize + logits
    return ProcessPlan("run", f"teacher {', '.join(names)}", replicas, each)


def _minus_bytes(process: ProcessPlan) -> float:
    return -process.count * process.bytes_each


def _rank_bytes(
    model_infos: ModelInfo, trained: StudentRecipe | StageRecipe, engine: Engine, width: float, device: str
) -> float:
    """Bytes of one rank without its logits: weights, gradients, the optimizer's part by ZeRO stage, activations.

    Args:
        engine: that of ``trained``, with the microbatches that there are.
    """
    value = model_dtype(engine, device).itemsize
    states = 8 if trained.optimizer.name == "adamw" else 0
    if trained.lora is not None:  # experts are not spread then
        counts, whole = model_infos.parameters(trained.lora), engine.ranks if engine.zero_stage == 3 else 1
        weights = (counts.frozen + 2 * counts.trained) * value / whole
        updates = counts.trained * (4 + 4 + states) / (engine.ranks if engine.zero_stage >= 1 else 1)
        return RANK_BYTES + weights + updates + _activation_values(model_infos.config, engine, width) * value
    # Experts are spread over the expert-parallel group, and ZeRO shards them over what is left of the ranks.
    spread = engine.expert_parallel
    dense = model_infos.cost.total_parameters - model_infos.routed_parameters
    parts = (dense, engine.ranks), (model_infos.routed_parameters / spread, max(1, engine.ranks // spread))
    model = 0.0
    for held, group in parts:
        shard = group if engine.zero_stage >= 1 else 1
        whole = group if engine.zero_stage == 3 else 1
        model += held * 2 * value / whole + held * (4 + 4 + states) / shard
    return RANK_BYTES + model + _activation_values(model_infos.config, engine, width) * value


def _activation_values(config: Any, engine: Engine, width: float) -> float:
    text = config.get_text_config()
    if by_blocks(config, engine.attn_implementation, width):
        width = 0.0
    layer = ACTIVATIONS_PER_HIDDEN * text.hidden_size + ATTENTION_MAPS * text.num_attention_heads * width
    kept = text.num_hidden_layers * layer
    if engine.gradient_checkpointing:
        kept = text.num_hidden_layers * text.hidden_size + layer
    return engine.microbatch_tokens * kept


def _frozen_bytes(model_infos: ModelInfo, engine: Engine, device: str) -> float:
    return PROCESS_BYTES + model_infos.cost.total_parameters * model_dtype(engine, device).itemsize


def _vocabulary(model_infos: ModelInfo) -> int:
    return int(model_infos.config.get_text_config().vocab_size)


WORKING_TENSORS = 6
"""Chunks of tokens x vocabulary that the divergence from hidden states holds at a time."""


def shipped_bytes(loss: BoundLoss, teacher: ResolvedTeacher, model_infos: Mapping[str, ModelInfo]) -> int:
    """Bytes that a teacher ships of one token under a loss."""
    if loss.payload is None:
        return 0
    text, support = model_infos[teacher.model.leaf].config.get_text_config(), 0
    if loss.support is not None:
        tokenizer = model_infos["student.model"].tokenizer
        forced = 0 if tokenizer is None else len(control_ids(tokenizer))
        support = loss.support.k * (2 if loss.support.whose == "union" else 1) + forced
    sizes = RowSizes(
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        support=support,
        value_bytes=_value_bytes(teacher),
    )
    return payload_spec(loss.payload).row_bytes(sizes)


def logits_bytes(model_infos: ModelInfo, engine: Engine, *, device: str) -> float:
    """Bytes of a rank for the logits of a microbatch and what is computed of them."""
    vocabulary = model_infos.config.get_text_config().vocab_size
    return 3.0 * engine.microbatch_tokens * vocabulary * model_dtype(engine, device).itemsize


def comparing_bytes(
    loss: BoundLoss,
    teachers: Iterable[ResolvedTeacher],
    engine: Engine,
    model_infos: Mapping[str, ModelInfo],
    *,
    device: str,
) -> float:
    """Bytes of a rank of the student for distributions: those of logits, or of heads and chunks of logits."""
    student = model_infos["student.model"].config.get_text_config()
    if loss.payload != "hidden":
        return logits_bytes(model_infos["student.model"], engine, device=device)
    heads = {
        (teacher.settings.model, teacher.dtype): model_infos[teacher.model.leaf].config.get_text_config().hidden_size
        * _value_bytes(teacher)
        for teacher in teachers
    }
    chunk = 4.0 * min(engine.microbatch_tokens, CHUNKS.tokens) * min(student.vocab_size, CHUNKS.vocabulary)
    gradient = 4.0 * student.vocab_size * student.hidden_size  # of the student's head, in one piece
    return sum(heads.values()) * student.vocab_size + WORKING_TENSORS * chunk + gradient


def _value_bytes(teacher: ResolvedTeacher) -> int:
    return getattr(torch, teacher.dtype).itemsize


ROW_BYTES = 160
"""A line of evaluations.jsonl, about."""
STEP_BYTES = 2_000
"""What a step adds to metrics.jsonl and to W&B's own files, about."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model of the recipe: its name, the leaf that its architecture comes from, what makes it, its parameters, and
    how it computes attention (empty where a server does)."""

    name: str
    leaf: str
    made: str
    parameters: int
    active_parameters: int
    attention: str


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A domain's part of a step: rollouts, tokens with answers of gold length and at most, bytes that teachers ship."""

    domain: str
    rollouts: int
    tokens: float
    most_tokens: int
    payload_bytes: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe will take; bytes and FLOPs are estimates.

    Attributes:
        warnings: leaves that change nothing, rows that are left out.
        questions: what is asked, to be shown.
    """

    models: tuple[ModelPlan, ...]
    processes: tuple[ProcessPlan, ...]
    steps: tuple[StepPlan, ...]
    run_steps: int
    flops: float
    disk_bytes: float
    warnings: tuple[str, ...] = ()
    questions: Questions = field(default=Questions(), repr=False, compare=False)

    @property
    def memory_bytes(self) -> float:
        """The larger phase's processes together, with the driver, which holds a step's rollouts, and Ray's own."""
        phases = {process.phase for process in self.processes}
        own = (sum(p.count * p.bytes_each for p in self.processes if p.phase == phase) for phase in phases)
        batch = sum(step.payload_bytes + step.tokens * ROLLOUT_BYTES for step in self.steps)
        return max(own, default=0.0) + batch + 3 * PROCESS_BYTES


def make_plan(resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]) -> Plan:
    """The plan of a recipe that passed its checks.

    Args:
        model_infos: of every model, see :func:`recipes.check.model_info.read_model_infos`.
        lengths: of every domain's prompts and answers, see :func:`recipes.check.tasks.check_tasks`.
    """
    recipe = resolved.recipe
    shipped = {name: shipped_bytes(resolved.loss, teacher, model_infos) for name, teacher in resolved.teachers.items()}
    steps = tuple(_steps(recipe.trained_domains, recipe.rollout, lengths, shipped))
    trained = f", {recipe.run.steps} steps" if resolved.method.trains else ""
    adapter = _adapter(model_infos["student.model"], recipe.student.lora if resolved.method.trains else None)
    made = f"{recipe.method}{trained} from {_source(recipe.student.model)}{adapter}"
    return Plan(
        models=tuple(_models(recipe.stages, resolved.teachers, recipe.student.engine, made, model_infos)),
        processes=tuple(processes(resolved, model_infos, lengths)),
        steps=steps,
        run_steps=recipe.run.steps,
        flops=_flops(resolved, model_infos, lengths),
        disk_bytes=_disk(recipe, model_infos, resolved.device),
    )


def _models(
    stages: Mapping[str, StageRecipe],
    teachers: Mapping[str, ResolvedTeacher],
    student: Engine,
    student_made: str,
    model_infos: Mapping[str, ModelInfo],
) -> Iterator[ModelPlan]:
    for name, stage in stages.items():
        info = model_infos[f"stages.{name}.from"]
        made = f"{stage.method}, {stage.steps} steps from {_source(stage.from_)}{_adapter(info, stage.lora)}"
        yield _model(f"stage:{name}", info, made, stage.engine.attn_implementation)
    for name, teacher in teachers.items():
        attention = teacher.settings.attn_implementation if teacher.kind.has_weights else None
        yield _model(f"teacher {name}", model_infos[f"teachers.{name}.model"], describe(teacher.settings), attention)
    yield _model("student", model_infos["student.model"], student_made, student.attn_implementation)


def _model(name: str, info: ModelInfo, made: str, attention: str | None) -> ModelPlan:
    words = "" if attention is None else info.attention.offered[attention]
    return ModelPlan(name, info.origin.where, made, info.cost.total_parameters, info.cost.active_parameters, words)


def _adapter(info: ModelInfo, lora: LoRA | None) -> str:
    """An adapter that is trained, in words that follow on its base."""
    return "" if lora is None else f", an adapter of {info.parameters(lora).trained:,} parameters"


def _source(model: ModelReference) -> str:
    return model if isinstance(model, str) else f"{model.architecture}, from scratch"


def _steps(
    trained: Mapping[str, DomainRecipe],
    rollout: RolloutRecipe,
    lengths: Mapping[str, Lengths],
    shipped: Mapping[str, int],
) -> Iterator[StepPlan]:
    """``shipped``: bytes of a token by teacher."""
    for name, domain in trained.items():
        rollouts = domain.prompts * rollout.samples_per_prompt
        length = lengths[name]
        tokens = rollouts * (length.mean_prompt + length.mean_answer)
        most = rollouts * (length.longest_prompt + rollout.max_new_tokens)
        of_token = sum(shipped[teacher] for teacher in domain.teacher_weights)
        yield StepPlan(name, rollouts, tokens, most, tokens * of_token)


def _flops(resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]) -> float:
    """Generation, scoring and updates of the whole run, stages included, with answers of gold length."""
    recipe, student = resolved.recipe, model_infos["student.model"].cost
    total = 0.0
    for name, domain in recipe.trained_domains.items():
        length = [round(lengths[name].mean_prompt + lengths[name].mean_answer)]
        each = student.train(length) if resolved.method.trains else 0
        each += student.generate(length) if resolved.method.samples else 0
        each += sum(model_infos[f"teachers.{teacher}.model"].cost.forward(length) for teacher in resolved.routes[name])
        total += each * domain.prompts * recipe.rollout.samples_per_prompt
    total *= recipe.run.steps
    for name, stage in recipe.stages.items():
        for domain in stage_domains(stage, recipe.trained_domains):
            samples = METHODS[stage.method].samples
            rollouts = stage.prompts * (stage.samples_per_prompt if samples else 1)
            length = [round(lengths[domain].mean_prompt + lengths[domain].mean_answer)]
            cost = model_infos[f"stages.{name}.from"].cost
            total += stage.steps * rollouts * (cost.train(length) + (cost.generate(length) if samples else 0))
    return total


def _disk(recipe: Recipe, model_infos: Mapping[str, ModelInfo], device: str) -> float:
    """Bytes of a whole run's folder at its largest: the checkpoints that are kept, one that is spared because it is the
    best so far, and one more while it is written."""
    student, engine = model_infos["student.model"], recipe.student.engine
    kept = recipe.run.keep_checkpoints + 1 + (recipe.evaluate.select != "last")
    checkpoints = kept * _checkpoint_bytes(engine, recipe.student.optimizer, device)
    total = student.parameters(recipe.student.lora).trained * checkpoints
    total += student.cost.total_parameters * 2.0 * model_dtype(engine, device).itemsize
    for name, stage in recipe.stages.items():
        info = model_infos[f"stages.{name}.from"]
        # The checkpoint that is kept, one being written, the initial model and the export.
        checkpoints = 2 * _checkpoint_bytes(stage.engine, stage.optimizer, device)
        total += info.parameters(stage.lora).trained * checkpoints + info.cost.total_parameters * 2 * 4
        total += stage.steps * STEP_BYTES
    evaluations = recipe.run.steps // recipe.run.evaluate_every + 1 + 1 + len(recipe.teachers)
    tests = 2 + len(recipe.teachers)
    rows = evaluations * recipe.evaluate.validation_prompts + tests * recipe.evaluate.test_prompts
    return total + len(recipe.domains) * rows * ROW_BYTES + recipe.run.steps * STEP_BYTES


def _checkpoint_bytes(engine: Engine, optimizer: Optimizer, device: str) -> int:
    """Bytes per parameter: the weights, the optimizer's float32 copy and its states."""
    return model_dtype(engine, device).itemsize + 4 + (8 if optimizer.name == "adamw" else 0)
