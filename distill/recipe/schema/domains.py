"""`domains`: where prompts come from, who grades them, and what a domain weighs."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from mopd.distill.recipe.base import Count, Name, Positive, Pull, Strict, refusal
from mopd.distill.recipe.schema.models import name_or_mapping
from mopd.distill.recipe.source import GYM, EnvironmentSource, GymSource, Source


def _task_form(value: Any) -> str:
    if isinstance(value, EnvironmentSource) or (isinstance(value, dict) and "environment" in value):
        return "<environment>"
    if isinstance(value, GymSource) or (isinstance(value, dict) and "reasoning_gym" in value):
        return "<generator>"
    return "<generator>" if isinstance(value, str) and value.startswith(GYM) else name_or_mapping(value)


TaskSource: TypeAlias = Annotated[
    Annotated[str, Tag("<name>")]
    | Annotated[Source, Tag("<mapping>")]
    | Annotated[GymSource, Tag("<generator>")]
    | Annotated[EnvironmentSource, Tag("<environment>")],
    Discriminator(_task_form),
]
"""A shipped task's name, ``./file.py:NAME``, a dataset, a generator of reasoning-gym, or an environment."""


PrefixName: TypeAlias = Literal["student", "teacher", "dataset"]
"""Who wrote the turns of an episode before the one that the student writes."""


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
    prefix: dict[PrefixName, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description="in an environment, who wrote the turns before the one that the student writes, with parts that "
        "sum to 1: student: itself, whole episodes; teacher: a teacher of the domain; dataset: the environment's "
        "script. Or one of the names alone",
    )

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

    @field_validator("prefix", mode="before")
    @classmethod
    def _one_name_is_all(cls, value: Any) -> Any:
        """``teacher`` is ``{teacher: 1}``."""
        return {value: 1.0} if isinstance(value, str) else value

    @field_validator("prefix")
    @classmethod
    def _parts_of_one(cls, value: dict[PrefixName, float]) -> dict[PrefixName, float]:
        if value and not math.isclose(sum(value.values()), 1.0, abs_tol=1e-6):
            raise refusal(f"has parts that sum to {sum(value.values()):g}; they must sum to 1")
        return value

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
    def prefix_parts(self) -> dict[PrefixName, float]:
        """The part of its prompts after whose history by another the student writes one turn, by who that is."""
        return {name: part for name, part in self.prefix.items() if part > 0 and name != "student"}

    @property
    def teacher_weights(self) -> dict[str, float]:
        """Teachers by name with their weights; one-hot where a single one is named."""
        return {self.teacher: 1.0} if self.teacher is not None else dict(self.teachers)
