"""What a run computes, part by part: floating-point operations, and how many processes share them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mopd.distill.models.flops import ModelCost
from mopd.distill.recipe import DomainRecipe, EvaluateRecipe, RolloutRecipe, StageRecipe
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import METHODS
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.stages import stage_domains

WorkKind: TypeAlias = Literal["write", "score", "train"]
"""How a model computes: token after token, all tokens of a text at once, and that with gradients."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a run's work.

    Attributes:
        name: ``stages``, ``rollouts``, ``scores``, ``updates`` or ``evaluations``.
        flops: of all of it, with answers of gold length.
        at_once: processes that share it, at most.
        stage: whose it is; None: the run's own.
    """

    name: str
    kind: WorkKind
    flops: float
    at_once: int
    stage: str | None = None


def run_parts(
    resolved: Resolved, model_infos: Mapping[str, ModelInfo], lengths: Mapping[str, Lengths]
) -> tuple[Part, ...]:
    """Every part of a run, in the order in which they come."""
    recipe, method, student = resolved.recipe, resolved.method, model_infos["student.model"].cost
    written = scored = trained = 0.0
    for name, domain in recipe.trained_domains.items():
        rollouts = recipe.run.steps * domain.prompts * recipe.rollout.samples_per_prompt
        length = _mean(lengths[name])
        routes = resolved.routes[name]
        teachers = [model_infos[f"teachers.{teacher}.model"].cost for teacher in routes]
        by_teachers = 1.0 if method.teachers_write else _taught_part(recipe.rollout, recipe.run.steps)
        written_by_teachers = sum(
            part * cost.generate(length) for part, cost in zip(routes.values(), teachers, strict=True)
        )
        written += rollouts * ((1 - by_teachers) * student.generate(length) + by_teachers * written_by_teachers)
        begun = recipe.run.steps * domain.prompts * domain.prefix_parts.get("teacher", 0.0)
        written += begun * written_by_teachers
        scored += rollouts * sum(teacher.forward(length) for teacher in teachers) * method.teachers_grade
        trained += rollouts * student.train(length)
    ranks, graders = recipe.student.engine.ranks, recipe.run.resident_teachers or len(recipe.teachers)
    writers = recipe.rollout.workers or ranks
    answer = sum(student.generate(_mean(lengths[name])) for name in recipe.domains)
    times = math.ceil(recipe.run.steps / recipe.run.evaluate_every)
    answers = _answers(recipe.evaluate, times, 1 + len(recipe.teachers))
    costs = {name: model_infos[f"stages.{name}.from"].cost for name in recipe.stages}
    parts = [
        *_stages(recipe.stages, costs, recipe.trained_domains, recipe.run.parallel_stages, lengths),
        Part("rollouts", "write", written if method.samples or method.teachers_write else 0.0, writers),
        Part("scores", "score", scored, graders),
        Part("updates", "train", trained if method.trains else 0.0, ranks),
        Part("evaluations", "write", answers * answer, writers),
    ]
    return tuple(part for part in parts if part.flops > 0)


def _taught_part(rollout: RolloutRecipe, steps: int) -> float:
    """The part of a run's rollouts that teachers write in the student's place."""
    taught_steps = steps if rollout.off_policy_steps is None else min(steps, rollout.off_policy_steps)
    return rollout.off_policy * taught_steps / steps


def flops_of(parts: tuple[Part, ...]) -> float:
    """Generation, scoring and updates of the whole run, stages included; evaluations are no part of what is learnt."""
    return sum(part.flops for part in parts if part.name != "evaluations")


def _stages(
    stages: Mapping[str, StageRecipe],
    costs: Mapping[str, ModelCost],
    trained: Mapping[str, DomainRecipe],
    parallel: int,
    lengths: Mapping[str, Lengths],
) -> Iterator[Part]:
    """``costs``: of each stage's model; ``parallel``: stages at a time."""
    for name, stage in stages.items():
        samples, cost = METHODS[stage.method].samples, costs[name]
        learnt = written = 0.0
        for domain in stage_domains(stage, trained):
            rollouts = stage.steps * stage.prompts * (stage.samples_per_prompt if samples else 1)
            learnt += rollouts * cost.train(_mean(lengths[domain]))
            written += rollouts * cost.generate(_mean(lengths[domain])) if samples else 0
        at_once = stage.engine.ranks * min(parallel, len(stages))
        yield Part("stages", "train", learnt, at_once, name)
        yield Part("stages", "write", written, at_once, name)


def _answers(evaluate: EvaluateRecipe, times: int, others: int) -> int:
    """Answers to held-out questions of a domain: the student's, at each of ``times``, and those of ``others``, once."""
    questions = (times + others) * evaluate.validation_prompts + (1 + others) * evaluate.test_prompts
    return questions * (1 + evaluate.samples_per_prompt)


def _mean(length: Lengths) -> list[int]:
    return [round(length.mean_prompt + length.mean_answer)]
