"""What a recipe says of its domains: where prompts come from, who grades them, and what a domain weighs."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from mopd.distill.recipe.base import Count, Name, Positive, Strict, refusal


class Source(Strict):
    """Prompts from a `datasets` source."""

    path: str = Field(description="a Hub id, or a path (begins with ./ or /) of a .jsonl, .json or .parquet file")
    name: str | None = Field(default=None, description="configuration of a Hub dataset")
    split: str = Field(default="train", description="split that training prompts come from")
    validation_split: str | None = Field(default=None, description="split for validation; none: held out by hash")
    test_split: str | None = Field(default=None, description="split for test; none: held out by hash")
    prompt: str = Field(default="prompt", description="column of the prompt: text, or a list of chat messages")
    answer: str = Field(default="answer", description="column of the gold answer (of the unit tests, see `tests`)")
    tests: str | None = Field(
        default=None, description="column of the unit tests of verifier python_tests; none: `answer` holds them"
    )
    domain: str | None = Field(default=None, description="column of the domain; rows of other domains are left out")
    verifier: Literal["exact", "number", "choice", "math", "python_tests"] = Field(
        default="exact", description="how an answer is checked"
    )


def _kind_of_task(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict | BaseModel) else "<name>"


TaskSource: TypeAlias = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[Source, Tag("<mapping>")], Discriminator(_kind_of_task)
]


class DomainRecipe(Strict):
    """One domain: where its prompts come from, who grades it, and what it weighs."""

    task: TaskSource = Field(description="name of a shipped task, ./file.py:NAME of your own, or a dataset source")
    teacher: str | None = Field(default=None, description="the one teacher of this domain")
    teachers: dict[Name, Positive] = Field(default_factory=dict, description="several teachers, weights that sum to 1")
    reward: bool = Field(default=False, description="grade by the task's verifier")
    evaluate_only: bool = Field(default=False, description="measured, not trained on, but by a stage that names it")
    prompts: Count = Field(default=64, description="prompts per step")
    share: Positive = Field(default=1.0, description="g_d, this domain's share of the loss, relative to the others'")
    easy_share: float = Field(default=0.0, ge=0, le=1, description="share of training prompts in the task's easy form")

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
