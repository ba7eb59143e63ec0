"""`domains`: where prompts come from, who grades them, and what a domain weighs."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from mopd.distill.recipe.base import Count, Name, Positive, Pull, Strict, refusal
from mopd.distill.recipe.schema.models import _name_or_mapping
from mopd.distill.recipe.source import GYM, EnvironmentSource, GymSource, Source


def _task_form(value: Any) -> str:
    if isinstance(value, EnvironmentSource) or (isinstance(value, dict) and "environment" in value):
        return "<environment>"
    if isinstance(value, GymSource) or (isinstance(value, dict) and "reasoning_gym" in value):
        return "<generator>"
    return "<generator>" if isinstance(value, str) and value.startswith(GYM) else _name_or_mapping(value)


TaskSource: TypeAlias = Annotated[
    Annotated[str, Tag("<name>")]
    | Annotated[Source, Tag("<mapping>")]
    | Annotated[GymSource, Tag("<generator>")]
    | Annotated[EnvironmentSource, Tag("<environment>")],
    Discriminator(_task_form),
]
"""A shipped task's name, ``./file.py:NAME``, a dataset, a generator of reasoning-gym, or an environment."""


class DomainRecipe(Strict):
    """One domain: where its prompts come from, who grades it, and what it weighs."""

    task: TaskSource = Field(
        description="name of a shipped task, ./file.py:NAME of your own, a dataset source, reasoning_gym:NAME, or "
        "an environment, which may also be written as `environment: NAME` beside it"
    )
    teacher: str | None = Field(default=None, description="the one teacher of this domain")
    teachers: dict[Name, Positive] = Field(default_factory=dict, description="several teachers, weights that sum to 1")
    reward: bool = Field(default=False, description="grade by the task's verifier")
    evaluate_only: bool = Field(default=False, description="measured, not trained on, but by a stage that names it")
    prompts: Count = Field(default=64, description="prompts per step")
    share: Pull = Field(default=1.0, description="g_d, this domain's share of the loss, relative to the others'")
    easy_share: float = Field(default=0.0, ge=0, le=1, description="share of training prompts in the task's easy form")

    @model_validator(mode="before")
    @classmethod
    def _environment_is_a_task(cls, values: Any) -> Any:
        """``{environment: NAME, turns: 4}`` is ``{task: {environment: NAME, turns: 4}}``."""
        if not isinstance(values, dict) or "environment" not in values:
            return values
        if "task" in values:
            raise refusal("has both `task` and `environment`; give one of them")
        keys = EnvironmentSource.model_fields.keys() & values.keys()
        others = {key: value for key, value in values.items() if key not in keys}
        return {**others, "task": {key: values[key] for key in keys}}

    @model_validator(mode="after")
    def _one_way_to_name_teachers(self) -> Self:
        if self.teacher is not None and self.teachers:
            raise refusal("has both `teacher` and `teachers`; give one of them")
        if self.teachers and not math.isclose(sum(self.teachers.values()), 1.0, abs_tol=1e-6):
            raise refusal(f"has teacher weights that sum to {sum(self.teachers.values()):g}; they must sum to 1")
        if self.evaluate_only and (self.teacher or self.teachers or self.reward):
            raise refusal("is evaluate_only, so it takes neither a teacher nor a reward")
        return self

    @property
    def teacher_weights(self) -> dict[str, float]:
        """Teachers by name with their weights; one-hot where a single one is named."""
        return {self.teacher: 1.0} if self.teacher is not None else dict(self.teachers)
