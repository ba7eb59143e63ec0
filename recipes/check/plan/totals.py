"""What a recipe will take: models, memory of cards and host, tokens of a step, disk. All of it is estimated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from mopd.distill.loss.registry import BoundLoss
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
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.plan.processes import PROCESS_BYTES, ROLLOUT_BYTES, Card, ProcessPlan, cards, planned_processes
from mopd.recipes.check.plan.work import Part, flops_of, run_parts
from mopd.recipes.check.samples import Questions
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.teachers import ResolvedTeacher, describe
from mopd.rollouts.engines import engine_of
from mopd.rollouts.mixture import MIXTURES
from mopd.rollouts.tokenizer import control_ids
from mopd.teachers.retokenized import ChunkCount


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


def _value_bytes(teacher: ResolvedTeacher) -> int:
    return getattr(torch, teacher.dtype).itemsize


ROW_BYTES = 160
"""A line of evaluations.jsonl, about."""
ANSWER_BYTES, TOKEN_BYTES = 40, 2
"""An answer of an exam in its compressed file, and each token of its prompt and itself, about."""
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
    """A domain's part of a step: rollouts, tokens with answers of gold length and at most, bytes that teachers ship of
    the answers."""

    domain: str
    rollouts: int
    tokens: float
    most_tokens: int
    payload_bytes: float


@dataclass(frozen=True, slots=True)
class TriedModel:
    """What of a run is tried out on this machine, to find out how fast it is: the student's model, and its batches.

    Attributes:
        info: the student's model.
        lora: its adapter, if it has one.
        prompt, answer: tokens of a mean rollout.
        rows: rollouts that a process writes at once.
        microbatch_tokens: of a forward that scores or learns.
    """

    info: ModelInfo
    lora: LoRA | None
    device: str
    dtype: str
    prompt: int
    answer: int
    rows: int
    microbatch_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe will take; bytes and FLOPs are estimates.

    Attributes:
        work: what is computed, part by part.
        measured: what is tried to find out how long that takes.
        warnings: leaves that change nothing, rows that are left out.
        questions: what is asked, to be shown.
        aligned: how gold answers align with the tokens of teachers that score their own, by name.
        lag: how many steps before a step the weights are that write its rollouts.
        ranks_write: whether it is the student's own ranks that do.
    """

    models: tuple[ModelPlan, ...]
    processes: tuple[ProcessPlan, ...]
    steps: tuple[StepPlan, ...]
    run_steps: int
    work: tuple[Part, ...]
    measured: TriedModel = field(repr=False, compare=False)
    disk_bytes: float
    warnings: tuple[str, ...] = ()
    questions: Questions = field(default=Questions(), repr=False, compare=False)
    aligned: Mapping[str, ChunkCount] = field(default_factory=dict, compare=False)
    lag: int = 0
    ranks_write: bool = True

    @property
    def memory_bytes(self) -> float:
        """Of the host: the larger phase's processes together, with the driver, which holds a step's rollouts and those
        of the steps ahead of it, and Ray's own. What lies on cards is not in it."""
        phases = {process.phase for process in self.processes}
        own = (sum(p.count * p.host_bytes for p in self.processes if p.phase == phase) for phase in phases)
        batch = sum(step.payload_bytes + step.tokens * ROLLOUT_BYTES for step in self.steps)
        return max(own, default=0.0) + (1 + self.lag) * batch + 3 * PROCESS_BYTES

    @property
    def flops(self) -> float:
        """Of the whole run, stages included, evaluations not."""
        return flops_of(self.work)

    @property
    def fullest_card(self) -> Card | None:
        """The card that the most lies on in any phase; None where no process takes one."""
        return max(cards(self.processes), key=lambda card: card.needed_bytes, default=None)

    @property
    def card_bytes(self) -> float:
        """Of the fullest card."""
        return 0.0 if (card := self.fullest_card) is None else card.needed_bytes


def make_plan(resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]) -> Plan:
    """The plan of a recipe that passed its checks.

    Args:
        model_infos: of every model, see :func:`recipes.check.model_info.read_model_infos`.
        lengths: of every domain's prompts and answers, see :func:`recipes.check.tasks.check_tasks`.
    """
    recipe = resolved.recipe
    shipped = {name: shipped_bytes(resolved.loss, teacher, model_infos) for name, teacher in resolved.teachers.items()}
    more = MIXTURES[recipe.prompt_rule].most
    steps = tuple(_steps(recipe.trained_domains, recipe.rollout, lengths, shipped, more))
    trained = f", {recipe.run.steps} steps" if resolved.method.trains else ""
    adapter = _adapter(model_infos["student.model"], recipe.student.lora if resolved.method.trains else None)
    made = f"{recipe.method}{trained} from {_source(recipe.student.model)}{adapter}"
    return Plan(
        models=tuple(_models(recipe.stages, resolved.teachers, recipe.student.engine, made, model_infos)),
        processes=tuple(planned_processes(resolved, model_infos, lengths, shipped)),
        steps=steps,
        run_steps=recipe.run.steps,
        work=run_parts(resolved, model_infos, lengths),
        measured=_measured(
            recipe.student,
            model_infos["student.model"],
            recipe.rollout,
            recipe.trained_domains,
            lengths,
            resolved.device,
            resolved.dtype,
        ),
        disk_bytes=_disk(recipe, model_infos, lengths, resolved.device),
        lag=recipe.run.lag,
        ranks_write=engine_of(recipe.rollout.engine, workers=recipe.rollout.workers).shares_student,
    )


def _measured(
    student: StudentRecipe,
    info: ModelInfo,
    rollout: RolloutRecipe,
    trained: Mapping[str, DomainRecipe],
    lengths: Mapping[str, Lengths],
    device: str,
    dtype: str,
) -> TriedModel:
    rollouts = {name: domain.prompts * rollout.samples_per_prompt for name, domain in trained.items()}
    count = max(1, sum(rollouts.values()))
    processes = rollout.workers or student.engine.ranks
    return TriedModel(
        info=info,
        lora=student.lora,
        device=device,
        dtype=dtype,
        prompt=max(1, round(sum(n * lengths[name].mean_prompt for name, n in rollouts.items()) / count)),
        answer=max(1, round(sum(n * lengths[name].mean_answer for name, n in rollouts.items()) / count)),
        rows=max(1, min(rollout.batch_size, count // processes)),
        microbatch_tokens=student.engine.microbatch_tokens,
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
        made = f"{stage.method}, {stage.steps} steps from {_source(stage.reference)}{_adapter(info, stage.lora)}"
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
    more: float,
) -> Iterator[StepPlan]:
    """``shipped``: bytes of a token by teacher; ``more``: prompts at most, over those of the recipe."""
    for name, domain in trained.items():
        rollouts = domain.prompts * rollout.samples_per_prompt
        length = lengths[name]
        tokens = rollouts * (length.mean_prompt + length.mean_answer)
        most = round(more * rollouts) * (length.longest_prompt + rollout.max_new_tokens)
        of_token = sum(shipped[teacher] for teacher in domain.teacher_weights)
        yield StepPlan(name, rollouts, tokens, most, rollouts * length.mean_answer * of_token)


def _disk(recipe: Recipe, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths], device: str) -> float:
    """Bytes of a whole run's folder at its largest: the checkpoints that are kept, one that is spared because it is the
    best so far, and one more while it is written."""
    student, engine = model_infos["student.model"], recipe.student.engine
    kept = recipe.run.keep_checkpoints + 1 + (recipe.evaluate.select != "last")
    checkpoints = kept * _checkpoint_bytes(recipe.student.optimizer)
    total = student.parameters(recipe.student.lora).trained * checkpoints
    total += student.cost.total_parameters * 2.0 * model_dtype(engine, device).itemsize
    for name, stage in recipe.stages.items():
        info = model_infos[f"stages.{name}.from"]
        # The checkpoint that is kept, one being written, the initial model and the export.
        checkpoints = 2 * _checkpoint_bytes(stage.optimizer)
        total += info.parameters(stage.lora).trained * checkpoints + info.cost.total_parameters * 2 * 4
        total += stage.steps * STEP_BYTES
    evaluations = recipe.run.steps // recipe.run.evaluate_every + 1 + 1 + len(recipe.teachers)
    tests = 2 + len(recipe.teachers)
    rows = evaluations * recipe.evaluate.validation_prompts + tests * recipe.evaluate.test_prompts
    answers = rows * (1 + recipe.evaluate.samples_per_prompt)
    written = sum(ANSWER_BYTES + TOKEN_BYTES * (each.mean_prompt + each.mean_answer) for each in lengths.values())
    return total + len(recipe.domains) * rows * ROW_BYTES + answers * written + recipe.run.steps * STEP_BYTES


def _checkpoint_bytes(optimizer: Optimizer) -> int:
    """Bytes per parameter: its float32 value and the optimizer's states."""
    return 4 + (8 if optimizer.name == "adamw" else 0)
