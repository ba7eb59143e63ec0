"""The recipe's schema: every leaf with its default, its unit and, where there is one, its source.

A recipe is frozen once it is resolved. Reading one (YAML, ``extends:``, ``key=value``) is in distill/recipe_file.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=1)]

TRAPS: dict[str, str] = {
    "k1_backprop": "back-propagating log(student/teacher) has zero expected gradient: the teacher drops out",
    "k3_backprop": "back-propagating k3 gives the forward KL's gradient with heavy tails, not the reverse KL's",
    "k3_advantage": "a policy gradient with advantage -k3 points elsewhere (cosine 0.13 with the reverse KL's gradient)",
    "topk_truncated": "a truncated top-k sum has a non-zero gradient where student and teacher agree",
    "topk_advantage": "a top-k sum used as the sampled token's advantage has zero expected gradient",
    "topk_renormalized": "renormalising the teacher's top-k gives no gradient at k = 1 and the wrong one above",
}
"""Estimators that look right and are not, with the reason (shared method notes, section 2)."""


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(Strict):
    """A model made from nothing: a transformers configuration and a tokenizer trained on the stage's own prompts."""

    architecture: str = Field(description="transformers model type, for example mimo_v2_flash, qwen3_moe, llama")
    config: dict[str, Any] = Field(default_factory=dict, description="keys of that model's configuration class")
    vocabulary: int = Field(default=160, ge=40, description="size of the byte-pair vocabulary, in tokens")


class Optimizer(Strict):
    """The optimizer and its learning-rate schedule, in optimizer steps."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="torch AdamW or plain SGD")
    lr: Positive = Field(default=5e-4, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="AdamW's decay rates")
    eps: Positive = Field(default=1e-8, description="AdamW's epsilon")
    weight_decay: NonNegative = Field(default=0.0, description="AdamW's decoupled weight decay")
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="decay after the warm-up")
    warmup_steps: int = Field(default=20, ge=0, description="optimizer steps of linear warm-up")
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1, description="learning rate at the end, over the peak")
    clip: NonNegative = Field(default=1.0, description="global gradient norm above which it is scaled down; 0 is off")


class Engine(Strict):
    """How the trained model is spread over processes."""

    ranks: Count = Field(default=1, description="processes, one per GPU or CPU core")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="DeepSpeed ZeRO stage")
    expert_parallel: Count = Field(default=1, description="ranks that share one set of experts (DeepSpeed AutoEP)")
    microbatch_tokens: Count = Field(default=4096, description="padded tokens of one forward and backward on a rank")
    expert_bias_rate: NonNegative = Field(
        default=1e-4, description="step of the router's correction bias; MiMo-V2-Flash report, section 7 of the notes"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: bfloat16 on a GPU")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")


class StudentRecipe(Strict):
    """The model that is trained."""

    model: str | Architecture = Field(description="stage:NAME, a path (begins with ./ or /), or a Hub id")
    engine: Engine = Engine()
    optimizer: Optimizer = Optimizer()
    updates_per_step: Count = Field(default=2, description="optimizer steps per batch of rollouts")


class Source(Strict):
    """Prompts from a `datasets` source."""

    path: str = Field(description="a Hub id, or a path (begins with ./ or /) of a .jsonl, .json or .parquet file")
    name: str | None = Field(default=None, description="configuration of a Hub dataset")
    split: str = Field(default="train", description="split that training prompts come from")
    validation_split: str | None = Field(default=None, description="split for validation; none: held out by hash")
    test_split: str | None = Field(default=None, description="split for test; none: held out by hash")
    prompt: str = Field(default="prompt", description="column of the prompt: text, or a list of chat messages")
    answer: str = Field(default="answer", description="column of the gold answer, or of the unit tests")
    domain: str | None = Field(default=None, description="column of the domain; rows of other domains are left out")
    verifier: Literal["exact", "number", "choice", "math", "python_tests"] = Field(
        default="exact", description="how an answer is checked"
    )


class DomainRecipe(Strict):
    """One domain: where its prompts come from, who grades it, and what it weighs."""

    task: str | Source = Field(description="name of a shipped task, or a dataset source")
    teacher: str | None = Field(default=None, description="the one teacher of this domain")
    teachers: dict[str, Positive] = Field(default_factory=dict, description="several teachers, weights that sum to 1")
    reward: bool = Field(default=False, description="grade by the task's verifier")
    evaluate_only: bool = Field(default=False, description="measured, never trained on")
    prompts: Count = Field(default=64, description="prompts per step")
    share: Positive = Field(default=1.0, description="g_d, this domain's share of the loss, relative to the others'")
    easy_share: float = Field(default=0.0, ge=0, le=1, description="share of training prompts in the task's easy form")

    @model_validator(mode="after")
    def _one_way_to_name_teachers(self) -> Self:
        if self.teacher is not None and self.teachers:
            raise ValueError("has both `teacher` and `teachers`; give one of them")
        if self.teachers and not math.isclose(sum(self.teachers.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"teacher weights sum to {sum(self.teachers.values()):g}; they must sum to 1")
        if self.evaluate_only and (self.teacher or self.teachers or self.reward):
            raise ValueError("is evaluate_only, so it takes neither a teacher nor a reward")
        return self

    @property
    def teacher_weights(self) -> dict[str, float]:
        """Teachers by name with their weights; one-hot where a single one is named."""
        return {self.teacher: 1.0} if self.teacher is not None else dict(self.teachers)


class TeacherRecipe(Strict):
    """A specialist."""

    model: str = Field(description="stage:NAME, a path (begins with ./ or /), or a Hub id")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: as the student's")


class FullReverseKL(Strict):
    """Exact reverse KL over the whole vocabulary; MiMo-V2-Flash report, eq 6, without the sampling noise."""

    estimator: Literal["full_reverse_kl"]


class PolicyGradient(Strict):
    """Policy gradient on the sampled token; MiMo-V2-Flash report, eqs 5-9."""

    estimator: Literal["policy_gradient"]
    advantage_clip: Positive = Field(default=5.0, description="nats; bound of the teacher gap, arXiv 2606.30406")
    gate: tuple[Positive, Positive] = Field(default=(0.2, 5.0), description="kept range of policy/sampler ratio")
    reward_weight: NonNegative = Field(default=0.0, description="alpha, weight of the group-normalised reward")

    @field_validator("gate")
    @classmethod
    def _ordered(cls, gate: tuple[float, float]) -> tuple[float, float]:
        if not gate[0] < gate[1]:
            raise ValueError(f"the gate is inverted: [{gate[0]:g}, {gate[1]:g}]; the lower bound must come first")
        return gate


class NegativeLogLikelihood(Strict):
    """Cross-entropy of given tokens; supervised stages and off-policy fine-tuning."""

    estimator: Literal["nll"]


def _estimator(value: Any) -> str:
    name = value.get("estimator", "full_reverse_kl") if isinstance(value, dict) else getattr(value, "estimator", None)
    if name in TRAPS:
        raise ValueError(f"estimator {name!r} is refused: {TRAPS[name]}")
    return str(name)


Loss: TypeAlias = Annotated[
    Annotated[FullReverseKL, Tag("full_reverse_kl")]
    | Annotated[PolicyGradient, Tag("policy_gradient")]
    | Annotated[NegativeLogLikelihood, Tag("nll")],
    Discriminator(_estimator),
]


class RolloutRecipe(Strict):
    """How the student writes."""

    engine: Literal["transformers"] = Field(default="transformers", description="the sampler's engine")
    workers: int = Field(default=0, ge=0, description="sampler processes; 0: the student's own ranks, no weight copy")
    samples_per_prompt: Count = Field(default=1, description="rollouts per prompt; reward groups need at least 2")
    max_new_tokens: Count = Field(default=64, description="tokens of a completion at most, EOS included")
    temperature: Positive = Field(default=1.0, description="of sampler, policy and teachers alike")
    batch_size: Count = Field(default=256, description="sequences of one generation batch on a rank")


class EvaluateRecipe(Strict):
    """What is measured; greedy decoding."""

    validation_prompts: Count = Field(default=200, description="per domain, for curves")
    test_prompts: Count = Field(default=1000, description="per domain, for final tables")
    seed: int = Field(default=0, ge=0, description="of the held-out prompts; the same for every run that is compared")
    select: Literal["last", "worst_recovery"] = Field(
        default="last", description="final weights: the last, or the checkpoint with the best worst-domain recovery"
    )


class RunRecipe(Strict):
    """How long, and how often."""

    steps: Count = Field(default=200, description="loop steps; each samples, grades and updates once")
    evaluate_every: Count = Field(default=20, description="steps between evaluations on validation prompts")
    save_every: Count = Field(default=20, description="steps between checkpoints")
    keep_checkpoints: Count = Field(default=2, description="whole checkpoints kept")
    parallel_stages: Count = Field(default=2, description="stages that run at a time, where none waits for another")


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
    rollouts_per_domain: int = Field(default=3, ge=0, description="rollouts kept at each evaluation")


class StageRecipe(Strict):
    """How a base or a specialist is made; a run of its own inside the run's folder."""

    from_: str | Architecture = Field(alias="from", description="stage:NAME, a path, a Hub id, or an architecture")
    method: Literal["supervised"] = Field(default="supervised", description="a row of recipes/methods.py")
    domains: tuple[str, ...] | None = Field(default=None, description="domains trained on; none: all of the recipe")
    prompts: Count = Field(default=64, description="prompts per domain and step")
    easy_share: float = Field(default=0.0, ge=0, le=1, description="share of training prompts in the task's easy form")
    steps: Count = Field(default=200, description="loop steps")
    save_every: Count = Field(default=100, description="steps between checkpoints")
    updates_per_step: Count = Field(default=1, description="optimizer steps per batch")
    engine: Engine = Engine()
    optimizer: Optimizer = Optimizer(lr=1.5e-3)


class Recipe(Strict):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder and W&B group")
    description: str = Field(default="", description="one line for people")
    seed: int = Field(default=0, ge=0, description="of prompts, sampling noise and initialisation")
    method: Literal["mopd", "supervised"] = Field(default="mopd", description="a row of recipes/methods.py")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda with nccl and bfloat16 where there is one, else cpu, gloo and float32"
    )
    student: StudentRecipe
    domains: dict[str, DomainRecipe] = Field(min_length=1)
    teachers: dict[str, TeacherRecipe] = Field(default_factory=dict)
    loss: Loss = FullReverseKL(estimator="full_reverse_kl")
    rollout: RolloutRecipe = RolloutRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    run: RunRecipe = RunRecipe()
    track: TrackRecipe = TrackRecipe()
    stages: dict[str, StageRecipe] = Field(default_factory=dict)

    @property
    def trained_domains(self) -> dict[str, DomainRecipe]:
        """The domains that are trained on, in the recipe's order."""
        return {name: domain for name, domain in self.domains.items() if not domain.evaluate_only}
