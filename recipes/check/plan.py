"""What a recipe will take: models, processes and their memory, tokens of a step, disk. All of it is estimated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mopd.distill.recipe import Engine, Optimizer, Recipe
from mopd.distill.student.engine import model_dtype
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.plan_payload import shipped_bytes
from mopd.recipes.check.plan_processes import PROCESS_BYTES, ProcessPlan, processes
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import METHODS
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.stages import stage_domains
from mopd.recipes.resolve.teachers import describe

ROW_BYTES = 160
"""A line of evaluations.jsonl, about."""
STEP_BYTES = 2_000
"""What a step adds to metrics.jsonl and to W&B's own files, about."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model of the recipe: its name, what makes it, and how many parameters it has."""

    name: str
    made: str
    parameters: int
    active_parameters: int


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
    """What a recipe will take; bytes and FLOPs are estimates."""

    models: tuple[ModelPlan, ...]
    processes: tuple[ProcessPlan, ...]
    steps: tuple[StepPlan, ...]
    run_steps: int
    flops: float
    disk_bytes: float

    @property
    def memory_bytes(self) -> float:
        """The larger phase's processes together, with the driver and Ray's own."""
        phases = {process.phase for process in self.processes}
        own = (sum(p.count * p.bytes_each for p in self.processes if p.phase == phase) for phase in phases)
        return max(own, default=0.0) + 3 * PROCESS_BYTES


def make_plan(resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]) -> Plan:
    """The plan of a recipe that passed its checks.

    Args:
        model_infos: of every model, see :func:`recipes.check.model_info.read_model_infos`.
        lengths: of every domain's prompts and answers, see :func:`recipes.check.tasks.check_tasks`.
    """
    recipe = resolved.recipe
    steps = tuple(_steps(resolved, model_infos, lengths))
    return Plan(
        models=tuple(_models(resolved, model_infos)),
        processes=tuple(processes(resolved, model_infos, lengths)),
        steps=steps,
        run_steps=recipe.run.steps,
        flops=_flops(resolved, model_infos, lengths),
        disk_bytes=_disk(recipe, model_infos, resolved.device),
    )


def _models(resolved: Resolved, model_infos: Mapping[str, ModelInfo]) -> Iterator[ModelPlan]:
    recipe = resolved.recipe
    for name, stage in recipe.stages.items():
        one = model_infos[f"stages.{name}.from"]
        source = stage.from_ if isinstance(stage.from_, str) else f"{stage.from_.architecture}, from nothing"
        made = f"{stage.method}, {stage.steps} steps from {source}"
        yield ModelPlan(f"stage:{name}", made, one.cost.total_parameters, one.cost.active_parameters)
    for name, teacher in recipe.teachers.items():
        one = model_infos[f"teachers.{name}.model"]
        yield ModelPlan(f"teacher {name}", describe(teacher), one.cost.total_parameters, one.cost.active_parameters)
    student, one = recipe.student.model, model_infos["student.model"]
    source = student if isinstance(student, str) else f"{student.architecture}, from nothing"
    trained = f", {recipe.run.steps} steps" if resolved.method.trains else ""
    made = f"{recipe.method}{trained} from {source}"
    yield ModelPlan("student", made, one.cost.total_parameters, one.cost.active_parameters)


def _steps(
    resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]
) -> Iterator[StepPlan]:
    recipe = resolved.recipe
    for name, domain in recipe.trained_domains.items():
        rollouts = domain.prompts * recipe.rollout.samples_per_prompt
        one = lengths[name]
        tokens = rollouts * (one.mean_prompt + one.mean_answer)
        most = rollouts * (one.longest_prompt + recipe.rollout.max_new_tokens)
        shipped = sum(shipped_bytes(resolved, model_infos, teacher) for teacher in domain.teacher_weights)
        yield StepPlan(name, rollouts, tokens, most, tokens * shipped)


def _flops(resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]) -> float:
    """Generation, scoring and updates of the whole run, stages included, with answers of gold length."""
    recipe, student = resolved.recipe, model_infos["student.model"].cost
    total = 0.0
    for name, domain in recipe.trained_domains.items():
        sequences = [round(lengths[name].mean_prompt + lengths[name].mean_answer)] * (
            domain.prompts * recipe.rollout.samples_per_prompt
        )
        total += student.train(sequences) if resolved.method.trains else 0
        total += student.generate(sequences) if resolved.method.samples else 0
        total += sum(
            model_infos[f"teachers.{teacher}.model"].cost.forward(sequences) for teacher in resolved.routes[name]
        )
    total *= recipe.run.steps
    for name, stage in recipe.stages.items():
        for domain in stage_domains(stage, recipe.trained_domains):
            samples = METHODS[stage.method].samples
            rollouts = stage.prompts * (stage.samples_per_prompt if samples else 1)
            sequences = [round(lengths[domain].mean_prompt + lengths[domain].mean_answer)] * rollouts
            cost = model_infos[f"stages.{name}.from"].cost
            total += stage.steps * (cost.train(sequences) + (cost.generate(sequences) if samples else 0))
    return total


def _disk(recipe: Recipe, model_infos: Mapping[str, ModelInfo], device: str) -> float:
    """Bytes of a whole run's folder at its largest: the checkpoints that are kept, one that is spared because it is the
    best so far, and one more while it is written."""
    student = model_infos["student.model"].cost.total_parameters
    engine = recipe.student.engine
    kept = recipe.run.keep_checkpoints + 1 + (recipe.evaluate.select != "last")
    checkpoints = kept * _checkpoint_bytes(engine, recipe.student.optimizer, device)
    total = student * (checkpoints + 2 * model_dtype(engine, device).itemsize)
    for name, stage in recipe.stages.items():
        parameters = model_infos[f"stages.{name}.from"].cost.total_parameters
        # The checkpoint that is kept, one being written, the initial model and the export.
        each = 2 * _checkpoint_bytes(stage.engine, stage.optimizer, device) + 2 * 4
        total += parameters * each + stage.steps * STEP_BYTES
    evaluations = recipe.run.steps // recipe.run.evaluate_every + 1 + 1 + len(recipe.teachers)
    tests = 2 + len(recipe.teachers)
    rows = evaluations * recipe.evaluate.validation_prompts + tests * recipe.evaluate.test_prompts
    return total + len(recipe.domains) * rows * ROW_BYTES + recipe.run.steps * STEP_BYTES


def _checkpoint_bytes(engine: Engine, optimizer: Optimizer, device: str) -> int:
    """Bytes per parameter: the weights, the optimizer's float32 copy and its states."""
    return model_dtype(engine, device).itemsize + 4 + (8 if optimizer.name == "adamw" else 0)
