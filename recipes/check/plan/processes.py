"""The processes of a recipe and their bytes, by role: what each holds all the time, and what at its moments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from mopd.distill.loss.registry import LOSSES, BoundLoss
from mopd.distill.models.attention import AttnImplementation, by_blocks
from mopd.distill.models.memory import (
    Held,
    ModelShape,
    activation_bytes,
    cache_bytes,
    drawing_bytes,
    gathered_bytes,
    loss_bytes,
    passing_bytes,
    scored_bytes,
    shape_of,
    training_bytes,
)
from mopd.distill.recipe import Engine, RolloutRecipe, StageRecipe, StudentRecipe
from mopd.distill.student.engine import model_dtype
from mopd.distill.student.forward import CHUNKS
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import METHODS
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.stages import stage_domains
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.engines import engine_of
from mopd.rollouts.mixture import MIXTURES

GIB = 2.0**30
ROLLOUT_BYTES = 16
"""A token of a rollout in the process that holds it: its id, its mask, its log-probability, and what graded it."""
PROCESS_BYTES = 0.35 * GIB
"""A process that has imported torch and transformers (measured: 325 MB after the imports)."""
RANK_BYTES = 0.45 * GIB
"""A rank of the student before its model counts: DeepSpeed imported and initialised (measured)."""
CONTEXT_BYTES = 0.5 * GIB
"""What CUDA takes of a card for each process, beside its tensors; about, and never measured here."""
WORKING_TENSORS = 6
"""Chunks of tokens x vocabulary that the divergence from hidden states holds at a time."""

Phase = Literal["stages", "measuring", "run"]
Roles = Mapping[str, float]
"""Bytes by what they are for."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """Processes of one kind that live at the same time, and about how many bytes each takes.

    Attributes:
        gpus: part of a card that each takes; 0: it computes in the host's memory.
        held: what a model takes all the time.
        moments: what it takes besides while it writes, learns or scores: one at a time.
        host: what lies in the host's memory wherever the model is.
    """

    phase: Phase
    name: str
    count: int
    gpus: float
    held: Roles
    moments: Mapping[str, Roles] = field(default_factory=dict)
    host: Roles = field(default_factory=dict)

    @property
    def model_bytes(self) -> float:
        """At its largest moment, where it computes."""
        return sum(self.held.values()) + max((sum(roles.values()) for roles in self.moments.values()), default=0.0)

    @property
    def card_bytes(self) -> float:
        """Of a card; 0 where it takes none."""
        return self.model_bytes if self.gpus else 0.0

    @property
    def host_bytes(self) -> float:
        """Of the host's memory."""
        return sum(self.host.values()) + (0.0 if self.gpus else self.model_bytes)

    @property
    def bytes_each(self) -> float:
        """Of both together, to tell the larger process; they are never compared with anything."""
        return self.card_bytes + self.host_bytes


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU and what lies on it at the same time: bytes by process."""

    phase: Phase
    bytes_of: Mapping[str, float]

    @property
    def needed_bytes(self) -> float:
        """Of all that lies on it."""
        return sum(self.bytes_of.values())


def cards(processes: Iterable[ProcessPlan]) -> list[Card]:
    """How processes lie on cards in each phase: the largest parts first, each where there is room, as Ray counts it."""
    made: list[Card] = []
    by_phase: dict[Phase, list[ProcessPlan]] = {}
    for process in processes:
        if process.gpus:
            by_phase.setdefault(process.phase, []).append(process)
    for phase, living in by_phase.items():
        left: list[float] = []
        on: list[dict[str, float]] = []
        for process in sorted(living, key=lambda process: (-process.gpus, -process.card_bytes)):
            for number in range(process.count):
                place = next((i for i, room in enumerate(left) if room >= process.gpus - 1e-9), len(left))
                if place == len(left):
                    left.append(1.0)
                    on.append({})
                left[place] -= process.gpus
                on[place][f"{process.name} {number + 1}" if process.count > 1 else process.name] = process.card_bytes
        made += [Card(phase, bytes_of) for bytes_of in on]
    return made


@dataclass(frozen=True, slots=True)
class Writing:
    """How a process writes: ``rows`` sequences at a time, prompts of ``prompt`` tokens, ``new`` tokens after each."""

    rows: int
    prompt: int
    new: int


@dataclass(frozen=True, slots=True)
class Learning:
    """What a rank learns from: microbatches of ``tokens``, rollouts of about ``width``, at most the part ``trained`` of
    them learnt from.

    Attributes:
        scores: bytes of the rollouts of a step and of what teachers said of them, on this rank.
        rows: float32 rows of the vocabulary that the loss holds of a token that is learnt from.
        comparing: what is held to compare distributions, where it is not logits.
    """

    tokens: int
    width: float
    trained: float
    scores: float
    rows: int
    comparing: Roles | None = None


def planned_processes(
    resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths], shipped: Mapping[str, int]
) -> Iterator[ProcessPlan]:
    """The processes of a recipe's largest stages, those that measure base and teachers, and those of its run.

    Args:
        model_infos: of every model, see :func:`recipes.check.model_info.read_model_infos`.
        lengths: of every domain's prompts and answers, see :func:`recipes.check.tasks.check_tasks`.
        shipped: bytes that each teacher ships of a token.
    """
    recipe, device, rollout = resolved.recipe, resolved.device, resolved.recipe.rollout
    stages = [
        _stage_rank(name, stage, model_infos[f"stages.{name}.from"], device, rollout,
                    [lengths[domain] for domain in stage_domains(stage, recipe.trained_domains)])
        for name, stage in recipe.stages.items()
    ]  # fmt: skip
    # Which stages meet depends on how long they take; the largest ones are the most that can.
    yield from sorted(stages, key=_minus_bytes)[: recipe.run.parallel_stages]

    student, engine = model_infos["student.model"], recipe.student.engine
    asked = len(recipe.domains) * max(recipe.evaluate.validation_prompts, recipe.evaluate.test_prompts)
    prompts = sum(domain.prompts for domain in recipe.trained_domains.values()) * MIXTURES[recipe.prompt_rule].most
    rollouts = round(prompts * rollout.samples_per_prompt)
    prompt = max((length.longest_prompt for length in lengths.values()), default=0)
    processes = rollout.workers or engine.ranks
    writing = Writing(_rows(rollout.batch_size, max(asked, rollouts), processes), prompt, rollout.max_new_tokens)
    yield from _measuring(resolved.teachers, model_infos, writing, engine, rollout.gpus, device)

    learning = _learning(resolved.loss, resolved.teachers, resolved.routes, model_infos, lengths, shipped,
                         engine=engine, prompts={n: d.prompts * rollout.samples_per_prompt
                                                 for n, d in recipe.trained_domains.items()},
                         new=rollout.max_new_tokens)  # fmt: skip
    rank = rank_plan(student, recipe.student, engine, device, None if rollout.workers else writing, learning)
    yield replace(rank, phase="run", name="rank of the student")
    if resolved.method.teachers_grade:
        yield from _grading(resolved.groups, resolved.turn_takers, resolved.teachers, model_infos,
                            recipe.run.resident_teachers, learning)  # fmt: skip
    if resolved.writers:
        taught = rollouts if resolved.method.teachers_write else round(rollouts * rollout.off_policy)
        taught += sum(round(d.prompts * d.prefix_parts.get("teacher", 0)) for d in recipe.trained_domains.values())
        written = replace(writing, rows=min(rollout.batch_size, max(1, taught)))
        yield from (_writer(name, resolved.teachers[name], model_infos, written) for name in resolved.writers)
    if rollout.workers:
        value = model_dtype(engine, device).itemsize
        sampler = _frozen(
            student,
            value,
            device,
            rollout.gpus,
            {"writing": writing_bytes(student, writing, value, engine.attn_implementation)},
        )
        beside = engine_of(rollout.engine, workers=rollout.workers).host_bytes
        yield replace(sampler, name="sampler", count=rollout.workers, host={**sampler.host, **beside})


def rank_plan(
    info: ModelInfo,
    trained: StudentRecipe | StageRecipe,
    engine: Engine,
    device: str,
    writing: Writing | None,
    learning: Learning,
) -> ProcessPlan:
    """One kind of rank: weights, gradients, optimizer, activations and logits; caches and draws where it writes.

    Args:
        writing: None where it does not.
    """
    value = model_dtype(engine, device).itemsize
    shape, parts = _shape(info, engine.attn_implementation, learning.width), _held(info, trained, engine)
    states = 8 if trained.optimizer.name == "adamw" else 0
    model = dict(training_bytes(parts, zero_stage=engine.zero_stage, itemsize=value, states=states,
                                on_card=device == "cuda"))  # fmt: skip
    gathered = {
        writes: gathered_bytes(parts, zero_stage=engine.zero_stage, itemsize=value, writing=writes)
        for writes in (True, False)
    }
    tokens = learning.tokens
    trained_tokens = tokens * learning.trained
    logits = {"logits": loss_bytes(shape, trained=trained_tokens, itemsize=value, rows=learning.rows)}
    # Stage 3 keeps its buffer of gradients; the others make theirs as they learn.
    gradients = {} if engine.zero_stage == 3 else {"gradients": model.pop("gradients")}
    learns = {
        **gradients,
        "activations": activation_bytes(shape, tokens=tokens, width=learning.width, itemsize=value,
                                        recomputed=engine.gradient_checkpointing),
        **(logits if learning.comparing is None else learning.comparing),
    }  # fmt: skip
    heads = {"teachers' heads": learns.pop("teachers' heads")} if "teachers' heads" in learns else {}
    moments: dict[str, Roles] = {"learning": learns | _gathered(gathered[False])}
    if writing is not None:
        moments["writing"] = writing_bytes(info, writing, value, engine.attn_implementation) | _gathered(gathered[True])
    gpus = engine.gpus if device == "cuda" else 0.0
    host = {"process": RANK_BYTES, "rollouts and scores": learning.scores} | _loading(info, value, gpus)
    return ProcessPlan("run", "", engine.ranks, gpus, _context(gpus) | model | heads, moments, host)


def _shape(info: ModelInfo, implementation: AttnImplementation, width: float) -> ModelShape:
    """The shape of a model as its attention is computed over so many tokens."""
    shape = shape_of(info.config)
    maps = shape.keeps_maps if implementation == "auto" else implementation == "eager"
    return replace(shape, keeps_maps=maps and not by_blocks(info.config, implementation, width))


def writing_bytes(
    info: ModelInfo, writing: Writing, itemsize: int, implementation: AttnImplementation
) -> dict[str, float]:
    """What generation holds of its sequences, by role."""
    shape, rows = _shape(info, implementation, writing.prompt), writing.rows
    length = writing.prompt + writing.new
    return {
        "KV cache": cache_bytes(shape, rows=rows, length=length, itemsize=itemsize),
        "logits": drawing_bytes(shape, rows=rows, itemsize=itemsize),
        "activations": passing_bytes(shape, tokens=rows * writing.prompt, width=writing.prompt, itemsize=itemsize),
    }


def _held(info: ModelInfo, trained: StudentRecipe | StageRecipe, engine: Engine) -> tuple[Held, ...]:
    """A rank's parameters: experts are spread over the expert-parallel group, and ZeRO shards them over the rest."""
    if trained.lora is not None:  # experts are not spread then
        counts = info.parameters(trained.lora)
        return (Held(counts.frozen + counts.trained, counts.trained, engine.ranks),)
    spread, routed = engine.expert_parallel, info.routed_parameters
    dense = info.cost.total_parameters - routed
    experts = Held(routed / spread, routed / spread, max(1, engine.ranks // spread))
    return Held(dense, dense, engine.ranks), *((experts,) if routed else ())


def _stage_rank(
    name: str,
    stage: StageRecipe,
    info: ModelInfo,
    device: str,
    rollout: RolloutRecipe,
    lengths: list[Lengths],
) -> ProcessPlan:
    samples = METHODS[stage.method].samples
    each = stage.prompts * (stage.samples_per_prompt if samples else 1)
    new = rollout.max_new_tokens if samples else 0
    most = each * sum(max(length.longest_pair, length.longest_prompt + new) for length in lengths)
    prompt = max((length.longest_prompt for length in lengths), default=0)
    writing = Writing(_rows(rollout.batch_size, each * len(lengths), stage.engine.ranks), prompt, new)
    part = _most_trained(lengths, new if samples else None)
    rows = LOSSES["policy_gradient" if stage.method == "mix_rl" else "nll"].held_rows
    learning = Learning(_microbatch(stage.engine, most), _width(lengths), part, most * ROLLOUT_BYTES, rows)
    rank = rank_plan(info, stage, stage.engine, device, writing if samples else None, learning)
    return replace(rank, phase="stages", name=f"rank of stage:{name}")


def _learning(
    loss: BoundLoss,
    teachers: Mapping[str, ResolvedTeacher],
    routes: Mapping[str, Mapping[str, float]],
    model_infos: Mapping[str, ModelInfo],
    lengths: Mapping[str, Lengths],
    shipped: Mapping[str, int],
    *,
    engine: Engine,
    prompts: Mapping[str, int],
    new: int,
) -> Learning:
    """What a rank of the student learns from; ``prompts``: rollouts of a step by domain."""
    most = sum(count * (lengths[name].longest_prompt + new) for name, count in prompts.items())
    of_token = {name: sum(shipped[teacher] for teacher in routes[name]) for name in prompts}
    tokens = {n: count * (lengths[n].mean_prompt + lengths[n].mean_answer) for n, count in prompts.items()}
    asked = {n: count * lengths[n].mean_answer for n, count in prompts.items()}
    return Learning(
        _microbatch(engine, most),
        _width([lengths[name] for name in prompts]),
        _most_trained([lengths[name] for name in prompts], new),
        sum(tokens[name] * ROLLOUT_BYTES + asked[name] * of_token[name] for name in prompts) / engine.ranks,
        loss.spec.held_rows,
        _comparing(teachers, engine, model_infos) if loss.payload == "hidden" else None,
    )


def _most_trained(lengths: Iterable[Lengths], new: int | None) -> float:
    """The largest part of a microbatch's tokens that is learnt from: that of its longest answers, after prompts of mean
    length; all of it where nothing is known of the prompts.

    Args:
        new: tokens of a rollout at most; None: right answers are learnt from.
    """
    parts = [
        1.0 if each.assumed else answer / (each.mean_prompt + answer)
        for each in lengths
        if (answer := each.longest_answer if new is None else new)
    ]
    return max(parts, default=1.0)


def _comparing(
    teachers: Mapping[str, ResolvedTeacher], engine: Engine, model_infos: Mapping[str, ModelInfo]
) -> dict[str, float]:
    """Where teachers ship hidden states: their heads, chunks of logits, and the gradient of the student's own head."""
    student = shape_of(model_infos["student.model"].config)
    heads = {
        (teacher.settings.model, teacher.dtype): shape_of(model_infos[teacher.model.leaf].config).hidden
        * getattr(torch, teacher.dtype).itemsize
        for teacher in teachers.values()
    }
    chunk = 4.0 * min(engine.microbatch_tokens, CHUNKS.tokens) * min(student.vocabulary, CHUNKS.vocabulary)
    return {
        "teachers' heads": float(sum(heads.values()) * student.vocabulary),
        "logits": WORKING_TENSORS * chunk,
        "gradient of the head": 4.0 * student.vocabulary * student.hidden,
    }


def _measuring(
    teachers: Mapping[str, ResolvedTeacher],
    model_infos: Mapping[str, ModelInfo],
    writing: Writing,
    engine: Engine,
    gpus: float,
    device: str,
) -> Iterator[ProcessPlan]:
    """The processes that measure base and teachers before the run, of which the largest is in all of them."""
    value = model_dtype(engine, device).itemsize
    count = engine.ranks if device == "cuda" else max(2, engine.ranks)  # as recipes/run/samplers.py has it
    measured: dict[str, tuple[ModelInfo, AttnImplementation]] = {
        "base": (model_infos["student.model"], engine.attn_implementation)
    }
    measured |= {
        f"teacher {name}": (model_infos[teacher.model.leaf], teacher.settings.attn_implementation)
        for name, teacher in teachers.items()
        if teacher.model.has_weights and teacher.kind.can_write
    }
    plans = [
        replace(_frozen(info, value, device, gpus, {"writing": writing_bytes(info, writing, value, attention)}),
                phase="measuring", name=f"measuring {name}", count=count)
        for name, (info, attention) in measured.items()
    ]  # fmt: skip
    yield min(plans, key=_minus_bytes)


def _grading(
    groups: list[list[str]],
    turns: list[list[str]],
    teachers: Mapping[str, ResolvedTeacher],
    model_infos: Mapping[str, ModelInfo],
    resident: int | None,
    learning: Learning,
) -> Iterator[ProcessPlan]:
    """The processes of the teachers that grade; those that take turns are the largest of them."""
    for names in (names for names in groups if names not in turns):
        yield _teacher(names, teachers[names[0]], model_infos, learning)
    taking_turns = sorted((_teacher(names, teachers[names[0]], model_infos, learning) for names in turns),
                          key=_minus_bytes)  # fmt: skip
    for process in taking_turns[:resident]:
        yield replace(process, name=f"{process.name}, or another in its place")


def _teacher(
    names: list[str], teacher: ResolvedTeacher, model_infos: Mapping[str, ModelInfo], learning: Learning
) -> ProcessPlan:
    """The processes of teachers that share them."""
    label, replicas = ", ".join(names), teacher.settings.replicas
    if not teacher.model.has_weights:
        return ProcessPlan("run", f"asking teacher {label}", replicas, 0.0, {}, host={"process": PROCESS_BYTES})
    info, value = model_infos[teacher.model.leaf], getattr(torch, teacher.dtype).itemsize
    shape = _shape(info, teacher.settings.attn_implementation, learning.width)
    scores = {"activations": passing_bytes(shape, tokens=learning.tokens, width=learning.width, itemsize=value)}
    if learning.comparing is None:
        scores["logits"] = scored_bytes(shape, trained=learning.tokens * learning.trained, itemsize=value)
    return replace(_frozen(info, value, teacher.device, teacher.gpus, {"scoring": scores}),
                   name=f"teacher {label}", count=replicas)  # fmt: skip


def _writer(name: str, teacher: ResolvedTeacher, model_infos: Mapping[str, ModelInfo], writing: Writing) -> ProcessPlan:
    """The process of a teacher that writes rollouts: one each, at most all rollouts of a step in it."""
    info, value = model_infos[teacher.model.leaf], getattr(torch, teacher.dtype).itemsize
    roles = writing_bytes(info, writing, value, teacher.settings.attn_implementation)
    return replace(
        _frozen(info, value, teacher.device, teacher.gpus, {"writing": roles}), name=f"writing teacher {name}"
    )


def _frozen(info: ModelInfo, itemsize: int, device: str, gpus: float, moments: Mapping[str, Roles]) -> ProcessPlan:
    part = gpus if device == "cuda" else 0.0
    held = _context(part) | {"weights": float(info.cost.total_parameters * itemsize)}
    return ProcessPlan("run", "", 1, part, held, moments, {"process": PROCESS_BYTES} | _loading(info, itemsize, part))


def _loading(info: ModelInfo, itemsize: int, gpus: float) -> dict[str, float]:
    """What goes to a card lies in the host's memory first: every process reads the whole model, all at the same time.

    An export takes no more: the first rank alone holds the model then.
    """
    return {"weights, as they are loaded": float(info.cost.total_parameters * itemsize)} if gpus else {}


def _gathered(taken: float) -> dict[str, float]:
    return {"gathered weights": taken} if taken else {}


def _context(gpus: float) -> dict[str, float]:
    return {"CUDA": CONTEXT_BYTES} if gpus else {}


def _microbatch(engine: Engine, most_tokens: int) -> int:
    """Tokens of a microbatch, which is no larger than all that there is in a step."""
    return min(engine.microbatch_tokens, max(1, most_tokens))


def _rows(batch_size: int, asked: int, processes: int) -> int:
    """Sequences that a process writes at a time."""
    return max(1, min(batch_size, math.ceil(asked / processes)))


def _width(lengths: list[Lengths]) -> float:
    return max((length.mean_prompt + length.mean_answer for length in lengths), default=0.0)


def _minus_bytes(process: ProcessPlan) -> float:
    return -process.count * process.bytes_each
