"""`stages` and `merge`: how base and specialists are made, and how method merge adds them up."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mopd.distill.recipe.base import Count, Name, Pull, Strength, Strict
from mopd.distill.recipe.model_names import at_revision
from mopd.distill.recipe.schema.drafts import MTPRecipe
from mopd.distill.recipe.schema.lora import LoRA
from mopd.distill.recipe.schema.models import REVISION, ModelReference, require_hub_id
from mopd.distill.recipe.schema.optimizers import AdamW, Optimizer
from mopd.distill.recipe.schema.run import PlateauRecipe
from mopd.distill.recipe.schema.student import Engine


class MergeRecipe(Strict):
    """How method merge adds up the teachers' weights; see distill/models/merging.py."""

    how: Literal["average", "task_arithmetic"] = Field(
        default="average", description="task_arithmetic: their changes over the base, times the best of `strengths`"
    )
    strengths: tuple[Strength, ...] = Field(
        default=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        min_length=1,
        description="what is tried on validation prompts; arXiv 2212.04089",
    )


class StageRecipe(Strict):
    """How a base or a specialist is made; a run of its own inside the run's folder."""

    from_: ModelReference = Field(alias="from", description="stage:NAME, a path, a Hub id, or an architecture")
    revision: str | None = Field(default=None, description=REVISION.format("from"))
    trust_remote_code: bool = Field(
        default=False, description="run Python code that lies in the folder of `from`; read it first"
    )
    method: Literal["supervised", "mix_rl", "expert_iteration", "draft_heads"] = Field(
        default="supervised",
        description="a row of recipes/resolve/methods.py; mix_rl and expert_iteration learn by reward, without "
        "answers; draft_heads leaves the model as it is and teaches it `mtp.heads` on what it writes",
    )
    domains: tuple[str, ...] | None = Field(default=None, description="domains trained on; none: all that are trained")
    prompts: Count = Field(default=64, description="prompts per domain and step")
    shares: dict[Name, Pull] = Field(
        default_factory=dict, description="as `domains.D.share`, by domain; of a domain that is not named: 1"
    )
    easy_share: float = Field(default=0.0, ge=0, le=1, description="share of training prompts in the task's easy form")
    samples_per_prompt: Count = Field(default=1, description="rollouts per prompt of a stage that learns by reward")
    keep_verified: Count = Field(default=1, description="expert_iteration: see `rollout.keep_verified`")
    steps: Count = Field(default=200, description="loop steps")
    plateau: PlateauRecipe | None = Field(
        default=None, description="as `run.plateau`, by the validation prompts of its domains"
    )
    evaluate_every: Count = Field(default=20, description="steps between evaluations; only `plateau` asks for any")
    save_every: Count = Field(default=100, description="steps between checkpoints")
    updates_per_step: Count = Field(default=1, description="optimizer steps per batch")
    lora: LoRA | None = Field(default=None, description="train a low-rank adapter over `from`; none: the whole model")
    engine: Engine = Engine()
    optimizer: Optimizer = AdamW()
    mtp: MTPRecipe = MTPRecipe()

    @property
    def reference(self) -> ModelReference:
        """The model that it starts from, with its revision."""
        return at_revision(self.from_, self.revision) if isinstance(self.from_, str) else self.from_

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        require_hub_id(self.from_, self.revision, leaf="revision", of="from")
        return self
