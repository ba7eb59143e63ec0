"""A whole recipe, in the order in which one is written.

It is frozen once it is resolved. Reading one (YAML, ``extends:``, ``key=value``) is in distill/recipe/files.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from mopd.distill.recipe.base import LONGEST_NAME, CountOrNone, Name, Seed, ShippedOrPlugin, Strict, refusal
from mopd.distill.recipe.schema.domains import DomainRecipe
from mopd.distill.recipe.schema.drafts import MTPRecipe
from mopd.distill.recipe.schema.loss import FullReverseKL, Loss
from mopd.distill.recipe.schema.rollout import RolloutRecipe
from mopd.distill.recipe.schema.run import EvaluateRecipe, RunRecipe, StopRecipe
from mopd.distill.recipe.schema.stages import MergeRecipe, StageRecipe
from mopd.distill.recipe.schema.student import StudentRecipe
from mopd.distill.recipe.schema.teachers import FaultRecipe, TeacherRecipe
from mopd.distill.recipe.schema.track import TrackRecipe

MethodName: TypeAlias = Annotated[
    str,
    ShippedOrPlugin(
        "mopd",
        "mix_rl",
        "expert_iteration",
        "off_policy",
        "supervised_distillation",
        "rejection_sampling",
        "supervised",
        "draft_heads",
        "cascade",
        "merge",
    ),
]
"""A row of METHODS (recipes/resolve/methods.py); its name stands here too, so that reading a recipe loads no model."""


class Recipe(Strict):
    """A whole run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=LONGEST_NAME,
        description="names the run's folder and W&B group",
    )
    description: str = Field(default="", description="one line for people")
    trials: CountOrNone = Field(default=0, description="settings tried before these were chosen; 0: not told")
    seed: Seed = Field(default=0, description="of prompts, sampling noise and initialisation")
    stages_seed: Seed | None = Field(
        default=None,
        description="of the stages, and of a student from scratch, in its place: runs of other seeds share base and "
        "specialists; none: `seed`",
    )
    method: MethodName = Field(
        default="mopd",
        description="who acts and who grades: a row of recipes/resolve/methods.py, or ./file.py:NAME, one of your own",
    )
    merge: MergeRecipe = MergeRecipe()
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda with nccl and bfloat16 where there is one, else cpu, gloo and float32"
    )
    student: StudentRecipe
    domains: dict[Name, DomainRecipe] = Field(min_length=1, description="what is learnt or measured, by name")
    teachers: dict[Name, TeacherRecipe] = Field(default_factory=dict, description="specialists, by name")
    faults: FaultRecipe = FaultRecipe()
    loss: Loss = FullReverseKL()
    share_rule: Literal["explicit", "variance_scaled", "gap_following"] = Field(
        default="explicit",
        description="a step's shares of the loss: explicit: those of the domains; variance_scaled: times "
        "clip(sigma_all / sigma_d, 0.25, 4) of the token advantages (DN-MOPD, arXiv 2609.35347); gap_following: times "
        "clip(KL_d / mean KL, 0.05, 20)",
    )
    prompt_rule: Literal["fixed", "gap_following"] = Field(
        default="fixed",
        description="a step's prompts of each domain: fixed: those of the domains; gap_following: times "
        "clip(sqrt(KL_d / mean KL), 1, 2) of the last 10 steps",
    )
    rollout: RolloutRecipe = RolloutRecipe()
    mtp: MTPRecipe = MTPRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    stop: StopRecipe = StopRecipe()
    run: RunRecipe = RunRecipe()
    track: TrackRecipe = TrackRecipe()
    stages: dict[Name, StageRecipe] = Field(default_factory=dict, description="how base and specialists are made")
    architectures: dict[str, Any] = Field(
        default_factory=dict,
        description="configurations of Hub models by their ids, for `mopd check --offline`: keys of config.json, or "
        "the path of one (begins with ./ or /); nothing that is run reads them",
    )

    @field_validator("architectures")
    @classmethod
    def _configurations(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            if not isinstance(given, dict) and not (isinstance(given, str) and given.startswith(("./", "/"))):
                raise refusal(f"has {given!r:.60} for {name}; it needs keys of a config.json, or the path of one")
            if isinstance(given, dict) and not isinstance(given.get("model_type"), str):
                raise refusal(f"has no `model_type` for {name}, which says what its other keys mean")
        return value

    @property
    def seed_of_stages(self) -> int:
        """What base and specialists are made with."""
        return self.seed if self.stages_seed is None else self.stages_seed

    @property
    def trained_domains(self) -> dict[str, DomainRecipe]:
        """The domains that are trained on, in the recipe's order."""
        return {name: domain for name, domain in self.domains.items() if not domain.evaluate_only}
