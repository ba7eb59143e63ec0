"""The recipe's schema: every leaf with its default, its unit and, where there is one, its source.

A recipe is frozen once it is resolved. Reading one (YAML, ``extends:``, ``key=value``) is in distill/recipe/files.py;
what students and stages share (engine, optimizer) is in distill/recipe/base.py; domains, teachers and the loss have
rooms of their own; and all are offered from here too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from mopd.distill.recipe.base import (
    Architecture,
    Count,
    Engine,
    Fraction,
    ModelSource,
    Name,
    NonNegative,
    Optimizer,
    PluginReference,
    Positive,
    Seed,
    ShippedOrPlugin,
    Strict,
)
from mopd.distill.recipe.loss import (
    ESTIMATORS,
    JSD,
    K2,
    TRAPS,
    CustomLoss,
    ForwardKL,
    FullReverseKL,
    Loss,
    NegativeLogLikelihood,
    PolicyGradient,
    SampledToken,
    TopKReverseKL,
)
from mopd.distill.recipe.recipe_domains import DomainRecipe, Source
from mopd.distill.recipe.recipe_teachers import FaultRecipe, TeacherRecipe

__all__ = [
    "ESTIMATORS",
    "JSD",
    "K2",
    "TRAPS",
    "Architecture",
    "CustomLoss",
    "DomainRecipe",
    "Engine",
    "EvaluateRecipe",
    "FaultRecipe",
    "ForwardKL",
    "FullReverseKL",
    "Loss",
    "NegativeLogLikelihood",
    "NonNegative",
    "Optimizer",
    "PolicyGradient",
    "Recipe",
    "RolloutRecipe",
    "RunRecipe",
    "SampledToken",
    "Source",
    "StageRecipe",
    "StopRecipe",
    "Strict",
    "StudentRecipe",
    "TeacherRecipe",
    "TopKReverseKL",
    "TrackRecipe",
    "WandbRecipe",
]


MethodName: TypeAlias = Annotated[
    str, ShippedOrPlugin("mopd", "mix_rl", "expert_iteration", "off_policy", "supervised", "cascade", "merge")
]
"""A row of METHODS (recipes/resolve/methods.py); its name stands here too, so that reading a recipe loads no model."""

EngineName: TypeAlias = Annotated[str, ShippedOrPlugin("in_process")]
"""A row of ENGINES (rollouts/engines)."""


class StudentRecipe(Strict):
    """The model that is trained."""

    model: ModelSource = Field(description="stage:NAME, a path (begins with ./ or /), a Hub id, or an architecture")
    trust_remote_code: bool = Field(
        default=False, description="run Python code that lies in the folder of `model`; read it first"
    )
    engine: Engine = Engine()
    optimizer: Optimizer = Optimizer()
    updates_per_step: Count = Field(default=2, description="optimizer steps per batch of rollouts")


class RolloutRecipe(Strict):
    """How the student writes."""

    engine: EngineName = Field(
        default="in_process",
        description="what writes tokens: in_process: transformers, in the student's own ranks or in `workers`; "
        "or ./file.py:NAME, a row of your own",
    )
    workers: int = Field(default=0, ge=0, description="sampler processes; 0: the student's own ranks, no weight copy")
    samples_per_prompt: Count = Field(default=1, description="rollouts per prompt; reward groups need at least 2")
    max_new_tokens: Count = Field(default=64, description="tokens of a completion at most, EOS included")
    temperature: Positive = Field(default=1.0, description="of sampler, policy and teachers alike")
    batch_size: Count = Field(default=256, description="sequences of one generation batch on a rank")
    keep_verified: Count = Field(
        default=1, description="expert_iteration: different right answers to a prompt that are learnt from at most"
    )

    @field_validator("engine", mode="before")
    @classmethod
    def _older_spelling(cls, engine: Any) -> Any:
        """Run folders of before 0.2 say ``transformers``."""
        return "in_process" if engine == "transformers" else engine


class EvaluateRecipe(Strict):
    """What is measured; greedy decoding."""

    validation_prompts: Count = Field(default=200, description="per domain, for curves")
    test_prompts: Count = Field(default=1000, description="per domain, for final tables")
    graded_prompts: int = Field(
        default=16,
        ge=0,
        description="of the validation ones, per taught domain, written as in training and graded by "
        "the teachers: held-out KL, entropy, overlap",
    )
    seed: Seed = Field(default=0, description="of the held-out prompts; the same for every run that is compared")
    select: Literal["worst_recovery", "last"] = Field(
        default="worst_recovery",
        description="which evaluated step is the result: worst_recovery: the one whose worst domain is best on "
        "validation (by recovery; by change over the base where no teacher is clearly better than it); last: the last",
    )


class StopRecipe(Strict):
    """When a run ends before its last step, in order: it saves, is measured and exported. No bound: never.

    A domain must be beyond one bound at every one of the last evaluations.
    """

    kl: Positive | None = Field(default=None, description="nats a token: held-out reverse KL above this")
    truncation: Fraction | None = Field(default=None, description="part of answers cut at the limit above this")
    repetition: Fraction | None = Field(default=None, description="part of answers that zlib finds repeated above this")
    length: Fraction | None = Field(default=None, description="mean answer shorter than this part of the base's")
    evaluations: Count = Field(default=2, description="in a row that a bound must be passed at")


class RunRecipe(Strict):
    """How long, and how often."""

    steps: Count = Field(default=200, description="loop steps; each samples, grades and updates once")
    evaluate_every: Count = Field(default=20, description="steps between evaluations on validation prompts")
    save_every: Count = Field(default=20, description="steps between checkpoints")
    keep_checkpoints: Count = Field(default=2, description="whole checkpoints kept")
    parallel_stages: Count = Field(default=2, description="stages that run at a time, where none waits for another")
    resident_teachers: Count | None = Field(
        default=None,
        description="processes that grade, a teacher (or the base of several) in each at a time: the others are loaded "
        "in their place, at most once a step; none: all are held",
    )


class WandbRecipe(Strict):
    """Weights & Biases; offline unless logged in."""

    project: str = Field(default="mopd", description="W&B project")
    entity: str | None = Field(default=None, description="W&B team or user")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online where logged in, else offline"
    )
    tags: tuple[str, ...] = Field(default=(), description="W&B tags")


class TrackRecipe(Strict):
    """What is written besides metrics.jsonl."""

    wandb: WandbRecipe = WandbRecipe()
    sinks: tuple[PluginReference, ...] = Field(
        default=(), description="sinks of your own, ./file.py:NAME each, that get every row beside W&B"
    )
    rollouts_per_domain: int = Field(default=3, ge=0, description="rollouts kept at each evaluation")


class MergeRecipe(Strict):
    """How method merge adds up the teachers' weights; see distill/models/merging.py."""

    how: Literal["average", "task_arithmetic"] = Field(
        default="average", description="task_arithmetic: their changes over the base, times the best of `strengths`"
    )
    strengths: tuple[Positive, ...] = Field(
        default=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        min_length=1,
        description="what is tried on validation prompts; arXiv 2212.04089",
    )


class StageRecipe(Strict):
    """How a base or a specialist is made; a run of its own inside the run's folder."""

    from_: ModelSource = Field(alias="from", description="stage:NAME, a path, a Hub id, or an architecture")
    trust_remote_code: bool = Field(
        default=False, description="run Python code that lies in the folder of `from`; read it first"
    )
    method: Literal["supervised", "mix_rl", "expert_iteration"] = Field(
        default="supervised",
        description="a row of recipes/resolve/methods.py; the last two learn by reward, without answers",
    )
    domains: tuple[str, ...] | None = Field(default=None, description="domains trained on; none: all that are trained")
    prompts: Count = Field(default=64, description="prompts per domain and step")
    easy_share: float = Field(default=0.0, ge=0, le=1, description="share of training prompts in the task's easy form")
    samples_per_prompt: Count = Field(default=1, description="rollouts per prompt of a stage that learns by reward")
    keep_verified: Count = Field(default=1, description="expert_iteration: see `rollout.keep_verified`")
    steps: Count = Field(default=200, description="loop steps")
    save_every: Count = Field(default=100, description="steps between checkpoints")
    updates_per_step: Count = Field(default=1, description="optimizer steps per batch")
    engine: Engine = Engine()
    optimizer: Optimizer = Optimizer()


class Recipe(Strict):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder and W&B group")
    description: str = Field(default="", description="one line for people")
    trials: int = Field(default=0, ge=0, description="settings tried before these were chosen; 0: not told")
    seed: Seed = Field(default=0, description="of prompts, sampling noise and initialisation")
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
    rollout: RolloutRecipe = RolloutRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    stop: StopRecipe = StopRecipe()
    run: RunRecipe = RunRecipe()
    track: TrackRecipe = TrackRecipe()
    stages: dict[Name, StageRecipe] = Field(default_factory=dict, description="how base and specialists are made")

    @property
    def trained_domains(self) -> dict[str, DomainRecipe]:
        """The domains that are trained on, in the recipe's order."""
        return {name: domain for name, domain in self.domains.items() if not domain.evaluate_only}
