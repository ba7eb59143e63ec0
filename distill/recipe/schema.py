"""The recipe's schema: every leaf with its default, its unit and, where there is one, its source.

A recipe is frozen once it is resolved. Reading one (YAML, ``extends:``, ``key=value``) is in distill/recipe/files.py.
One file, though long: its sections are what a reader of a recipe looks up, in the order in which a recipe has them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from mopd.distill.recipe.base import (
    LONGEST_NAME,
    SMALLEST_PART,
    BiasRate,
    Clip,
    Count,
    CountOrNone,
    Epsilon,
    FiniteMapping,
    Fraction,
    LearningRate,
    Name,
    NonNegative,
    PartOfGPU,
    Pause,
    Positive,
    Pull,
    Seconds,
    Seed,
    ShippedOrPlugin,
    Strength,
    Strict,
    Temperature,
    refusal,
)
from mopd.distill.recipe.drafts import MTPRecipe
from mopd.distill.recipe.lora import LoRA
from mopd.distill.recipe.loss import FullReverseKL, Loss
from mopd.distill.recipe.model_names import at_revision, is_hub_id, is_path
from mopd.distill.recipe.plugins import is_plugin
from mopd.distill.recipe.source import GYM, EnvironmentSource, GymSource, Source, columns_of, is_template
from mopd.distill.recipe.vllm import VLLMRecipe

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

EngineName: TypeAlias = Annotated[str, ShippedOrPlugin("in_process", "vllm")]
"""A row of ENGINES (rollouts/engines)."""

Truncated: TypeAlias = Literal["learn", "mask", "zero_reward"]
"""What becomes of a rollout that was cut at the limit."""

KindName: TypeAlias = Annotated[str, ShippedOrPlugin("checkpoint", "served", "custom")]
"""A row of KINDS (teachers/kinds)."""

CHATML = "chatml"
"""A chat template that is shipped (rollouts/tokenizer.py): `<|im_start|>role ... <|im_end|>`, as Qwen writes turns."""

OPTIMIZER = "which optimizer: adamw, or sgd (without momentum)"

OF_RAY = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that Ray counts by itself."""


def _require_hub_id(source: object, revision: str | None, *, leaf: str, of: str) -> None:
    """Whether a revision stands beside a model of the Hub, and nowhere else."""
    if is_hub_id(source) and "@" in str(source):
        raise refusal(f"has `{of}` {source!r}; write what follows the @ as `{leaf}`")
    if revision is not None and not is_hub_id(source):
        raise refusal(
            f"has `{leaf}` {revision!r}, and `{of}` is no model of the Hub, which has revisions; leave it out"
        )


REVISION = "branch, tag or commit of `{}` on the Hub; none: its main branch. Noted as the commit"


class Architecture(Strict):
    """A model made from scratch: a transformers configuration, and a tokenizer: one trained here, or another's."""

    architecture: str = Field(description="transformers model type, for example mimo_v2_flash, qwen3_moe, llama")
    config: FiniteMapping = Field(default_factory=dict, description="keys of that model's configuration class")
    vocabulary: int = Field(default=160, ge=40, le=1_000_000, description="size of the byte-pair vocabulary, in tokens")
    tokenizer: str | None = Field(
        default=None,
        description="whose tokenizer it takes: stage:NAME, a path (./ or /) or a Hub id; none: one is trained",
    )
    tokenizer_revision: str | None = Field(default=None, description=REVISION.format("tokenizer"))
    chat_template: str | None = Field(
        default=None,
        description="turns of a chat: chatml, or the path of a Jinja file (begins with ./ or /); none: that of "
        "`tokenizer`, if it has one",
    )

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Self:
        _require_hub_id(self.tokenizer, self.tokenizer_revision, leaf="tokenizer_revision", of="tokenizer")
        default = type(self).model_fields["vocabulary"].default  # a run's folder has every leaf written out
        if self.tokenizer is not None and self.vocabulary != default:
            raise refusal("has both `tokenizer` and `vocabulary`, which a tokenizer has already; give one of them")
        if self.chat_template is not None and self.chat_template != CHATML and not is_path(self.chat_template):
            raise refusal(f"has `chat_template` {self.chat_template!r}; write chatml, or a path (./ or /)")
        return self

    @property
    def tokenizer_reference(self) -> str | None:
        """Whose tokenizer it takes, with its revision."""
        return None if self.tokenizer is None else at_revision(self.tokenizer, self.tokenizer_revision)


def _name_or_mapping(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict | BaseModel) else "<name>"


ModelReference: TypeAlias = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[Architecture, Tag("<mapping>")], Discriminator(_name_or_mapping)
]
"""stage:NAME, a path (begins with ./ or /), a Hub id, or an architecture to initialise."""


MOST_WARMUP_STEPS = 20
"""Where a recipe does not say how many."""


class _Schedule(Strict):
    """What optimizers share: the learning rate over the optimizer steps, and the bound of a gradient."""

    lr: LearningRate = Field(default=5e-4, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine",
        description="after the warm-up; wsd: the peak, then linear over the last `decay_steps` (arXiv 2405.18392)",
    )
    warmup_steps: CountOrNone | None = Field(
        default=None, description="optimizer steps of linear warm-up; none: a tenth of the training's, and 20 at most"
    )
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1, description="learning rate at the end, over the peak")
    decay_steps: CountOrNone = Field(default=0, description="optimizer steps of the decay of schedule wsd")
    clip: Clip = Field(default=1.0, description="global gradient norm above which it is scaled down; 0 is off")

    def warm_up(self, total: int) -> int:
        """Optimizer steps of warm-up of a training of ``total`` optimizer steps."""
        return min(MOST_WARMUP_STEPS, total // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _a_decay_of_its_own_with_wsd(self) -> Self:
        if (self.schedule == "wsd") != (self.decay_steps > 0):
            raise refusal(
                f"has `schedule` {self.schedule} and `decay_steps` {self.decay_steps}; wsd needs at least 1 of them, "
                "and no other schedule reads them"
            )
        return self

    @model_validator(mode="after")
    def _an_end_only_where_it_decays(self) -> Self:
        default = type(self).model_fields["final_lr_fraction"].default
        if self.schedule == "constant" and self.final_lr_fraction != default:
            raise refusal("has `final_lr_fraction`, and a constant schedule has no end; remove it")
        return self


LARGEST_ADAMW_LR = 10


class AdamW(_Schedule):
    """torch.optim.AdamW."""

    name: Literal["adamw"] = Field(default="adamw", description=OPTIMIZER)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.98), description="AdamW's decay rates"
    )
    eps: Epsilon = Field(default=1e-8, description="AdamW's epsilon")
    weight_decay: NonNegative = Field(default=0.0, description="AdamW's decoupled weight decay")

    @model_validator(mode="after")
    def _weights_shrink_slowly(self) -> Self:
        if self.lr > LARGEST_ADAMW_LR:
            raise refusal(
                f"has `lr` {self.lr:g}; AdamW moves every weight by about `lr` a step, at most {LARGEST_ADAMW_LR}"
            )
        if self.lr * self.weight_decay >= 1:
            raise refusal(
                f"has `weight_decay` {self.weight_decay:g} and `lr` {self.lr:g}: a step takes lr x weight_decay of "
                "every weight away, which must be below 1; lower one of them"
            )
        return self


class PlainSGD(_Schedule):
    """torch.optim.SGD, without momentum."""

    name: Literal["sgd"] = Field(default="sgd", description=OPTIMIZER)

    @model_validator(mode="before")
    @classmethod
    def _nothing_of_adamw(cls, values: Any) -> Any:
        """Older run folders write AdamW's settings at their defaults, which change nothing; others are refused."""
        if not isinstance(values, dict):
            return values
        kept = dict(values)
        for key in (AdamW.model_fields.keys() - cls.model_fields.keys()) & values.keys():
            default, value = AdamW.model_fields[key].default, kept.pop(key)
            if (tuple(value) if isinstance(value, list) else value) != default:
                raise refusal(f"has `{key}`, which AdamW reads and SGD does not; remove it, or name adamw")
        return kept


def _optimizer_name(value: Any) -> str:
    name = value.get("name", "adamw") if isinstance(value, dict) else getattr(value, "name", "adamw")
    return f"<{name}>"


Optimizer: TypeAlias = Annotated[
    Annotated[AdamW, Tag("<adamw>")] | Annotated[PlainSGD, Tag("<sgd>")],
    Discriminator(_optimizer_name, custom_error_type="optimizer", custom_error_message="is no optimizer on offer"),
]
"""A union on ``name``, so that no setting of another optimizer stands there without effect."""


class Engine(Strict):
    """How the trained model is spread over processes."""

    ranks: Count = Field(default=1, description="processes, one per GPU or CPU core")
    gpus: PartOfGPU = Field(
        default=1.0,
        description="part of a GPU that a rank takes of its node; below 1, with one rank, teachers share its card",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="DeepSpeed ZeRO stage")
    expert_parallel: Count = Field(default=1, description="ranks that share one set of experts (DeepSpeed AutoEP)")
    microbatch_tokens: Count = Field(
        default=4096, description="tokens of one forward and backward on a rank, padding included"
    )
    packing: bool = Field(
        default=False,
        description="lay the rollouts of a forward one after another, without padding, where it learns and where "
        "teachers' checkpoints score",
    )
    expert_bias_rate: BiasRate = Field(
        default=1e-4, description="step of the router's correction bias; MiMo-V2-Flash report"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: bfloat16 on a GPU")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")
    attn_implementation: Literal["auto", "eager", "sdpa", "banded"] = Field(
        default="auto",
        description="how attention is computed; auto: as transformers does, but where that is eager and layers slide, "
        "by blocks in forwards of at least 512 tokens and 4 windows; banded: by blocks; eager, sdpa: transformers'",
    )

    @model_validator(mode="after")
    def _ranks_do_not_share_a_card(self) -> Self:
        if self.ranks > 1 and self.gpus < 1:
            raise refusal(
                f"has {self.ranks} `ranks` that take {self.gpus:g} `gpus` each; NCCL lets no two ranks share a card: "
                "give each a whole one, or take one rank"
            )
        return self


class StudentRecipe(Strict):
    """The model that is trained."""

    model: ModelReference = Field(description="stage:NAME, a path (begins with ./ or /), a Hub id, or an architecture")
    revision: str | None = Field(default=None, description=REVISION.format("model"))
    trust_remote_code: bool = Field(
        default=False, description="run Python code that lies in the folder of `model`; read it first"
    )
    engine: Engine = Engine()
    optimizer: Optimizer = AdamW()
    updates_per_step: Count = Field(default=2, description="optimizer steps per batch of rollouts")
    lora: LoRA | None = Field(default=None, description="train a low-rank adapter over `model`; none: the whole model")

    @property
    def reference(self) -> ModelReference:
        """The model that it starts from, with its revision."""
        return at_revision(self.model, self.revision) if isinstance(self.model, str) else self.model

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        _require_hub_id(self.model, self.revision, leaf="revision", of="model")
        return self


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


class TeacherPromptRecipe(Strict):
    """What a teacher reads before the student's completion, in the place of the student's own prompt."""

    system: str | None = Field(
        default=None,
        description="text before the question: the system message of a chat, in the place of its own; of plain text "
        "what stands before it, as it is",
    )
    template: str = Field(
        default="{prompt}",
        description="the question as this teacher reads it: text with {prompt}, and {hint} where there is one; a brace "
        "that is meant is written twice",
    )
    hint: str | None = Field(
        default=None,
        description="what it sees and the student does not: answer, the gold answer; or a column of the domain's "
        "dataset",
    )
    chat_template: str | None = Field(
        default=None,
        description="path (begins with ./ or /) of a chat template in Jinja, in the place of the tokenizer's own",
    )

    @model_validator(mode="after")
    def _template_and_hint_agree(self) -> Self:
        try:
            named = columns_of(self.template) if is_template(self.template) else []
        except ValueError as error:
            raise refusal(f"has a `template` that {error}") from error
        wanted = ["prompt"] if self.hint is None else ["hint", "prompt"]
        if sorted(named) != wanted:
            braces = " and ".join(f"{{{name}}}" for name in reversed(wanted))
            without = " (it has no `hint`)" if self.hint is None else ""
            raise refusal(f"has `template` {self.template!r:.80}; it needs {braces}, once each, and no others{without}")
        return self


class TeacherRecipe(Strict):
    """A specialist."""

    kind: KindName | None = Field(
        default=None,
        description="what scores: checkpoint: the weights of `model`, loaded; served: a server at `endpoint`; custom: "
        "the class at `scorer`; ./file.py:NAME: a row of your own; null: told from which of these keys there are",
    )

    model: str = Field(
        description="stage:NAME, a path (begins with ./ or /), a Hub id, or self: the student as it starts, frozen"
    )
    revision: str | None = Field(default=None, description=REVISION.format("model"))
    adapter: str | None = Field(
        default=None,
        description="a LoRA adapter (peft) over `model`: a path (begins with ./ or /), or stage:NAME with `lora`",
    )
    scorer: str | None = Field(
        default=None, description="./file.py:NAME of a class of yours that scores, in the tokens of `model`"
    )
    endpoint: str | None = Field(
        default=None,
        description="URL up to /v1 of a server that holds the weights of `model` and gives prompt log-probabilities",
    )
    served_model: str | None = Field(default=None, description="name of `model` at the endpoint; None: as `model`")
    api_key_env: str | None = Field(
        default=None, description="environment variable with the endpoint's key; None: it asks for none"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that lies in the folder of `model`; read it first"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: as the student's")
    attn_implementation: Literal["auto", "eager", "sdpa", "banded"] = Field(
        default="auto", description="how it computes attention, as `student.engine.attn_implementation` says"
    )
    replicas: Count = Field(default=1, description="processes; a microbatch goes to whichever is free")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where it scores; auto: as the run's")
    gpus: PartOfGPU = Field(
        default=1.0, description="part of a GPU that each process takes of its node; 0.25: four share one"
    )
    resources: dict[str, Positive] = Field(
        default_factory=dict, description="of Ray, by name, that each process takes of its node: where it is placed"
    )

    prompt: TeacherPromptRecipe = TeacherPromptRecipe()
    tokenizer: Literal["student", "own"] = Field(
        default="student",
        description="whose tokens it scores: student: the student's, and its tokenizer must be the same; own: its own, "
        "aligned with the student's where both cut the text at the same byte (docs/tokenizers.md)",
    )

    settings: dict[Name, float | str | int | bool] = Field(
        default_factory=dict, description="what a `kind` of your own reads, by name"
    )

    @property
    def reference(self) -> str:
        """Its model, with its revision."""
        return at_revision(self.model, self.revision)

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Self:
        _require_hub_id(self.model, self.revision, leaf="revision", of="model")
        return self

    @property
    def own_prompt(self) -> TeacherPromptRecipe | None:
        """What it reads in the place of the student's prompt; None where it reads that."""
        return None if self.prompt == TeacherPromptRecipe() else self.prompt

    @property
    def reads_own_tokens(self) -> bool:
        """Whether it scores tokens of its own tokenizer."""
        return self.tokenizer == "own"

    @property
    def kind_name(self) -> str:
        """The kind: as given, else told from the keys of the stanza."""
        if self.kind is not None:
            return self.kind
        return "served" if self.endpoint is not None else "custom" if self.scorer is not None else "checkpoint"

    @model_validator(mode="after")
    def _kind_and_keys_agree(self) -> Self:
        if self.settings and not is_plugin(self.kind_name):
            raise refusal(f"has `settings`, which only a `kind` of your own reads; its kind is {self.kind_name}")
        needed = {"served": "endpoint", "custom": "scorer"}.get(self.kind_name)
        if needed is not None and getattr(self, needed) is None:
            raise refusal(f"is of kind {self.kind_name}, which needs `{needed}`")
        if self.kind == "checkpoint":
            for other in ("endpoint", "scorer"):
                if getattr(self, other) is not None:
                    raise refusal(f"is of kind checkpoint, which loads `model` itself; remove `{other}`, or `kind`")
        return self

    @field_validator("resources")
    @classmethod
    def _resources(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if name in OF_RAY:
                raise refusal(f"names {name}, which Ray counts by itself; take `gpus`, or a name that nodes were given")
            if not SMALLEST_PART <= amount <= 1e9:
                raise refusal(f"asks for {amount:g} of {name}; Ray counts from a ten-thousandth to a billion")
            if amount > 1 and amount != int(amount):
                raise refusal(f"asks for {amount:g} of {name}; above 1 Ray takes whole numbers")
        return value


class FaultRecipe(Strict):
    """A teacher that dies, hangs or fails is restarted from its checkpoint and asked again; then the run ends. So is a
    server of vLLM, with the weights that it had. The run ends at once where one of the student's ranks, or a sampler
    worker of transformers', dies or hangs.

    What would be the same again (NaN, another length, another vocabulary) ends it at once. Either way the finished
    steps are saved.
    """

    retries: int = Field(default=3, ge=0, le=1000, description="times that a lost microbatch is asked again; 0: never")
    backoff_seconds: Pause = Field(default=1.0, description="pause before a restart; doubles with each in a row")
    microbatch_seconds: Seconds = Field(default=600.0, description="a teacher that scores one for longer is hung")
    start_seconds: Seconds = Field(
        default=1800.0, description="a teacher, a rank or a server of vLLM that starts for longer is hung"
    )
    rank_seconds: Seconds = Field(
        default=1800.0,
        description="the student's ranks, or what samples it, are hung if no microbatch is written or learnt from, and "
        "no file is whole, for longer",
    )


class RolloutRecipe(Strict):
    """How the student writes."""

    engine: EngineName = Field(
        default="in_process",
        description="what writes tokens: in_process: transformers, in the student's own ranks or in `workers`; "
        "vllm: vLLM, in `workers` servers that are started beside them; or ./file.py:NAME, a row of your own",
    )
    vllm: VLLMRecipe = VLLMRecipe()
    workers: CountOrNone = Field(default=0, description="sampler processes; 0: the student's own ranks, no weight copy")
    gpus: PartOfGPU = Field(
        default=1.0,
        description="part of a GPU that each process takes which holds a model to sample: a worker, or a model that is "
        "measured",
    )
    samples_per_prompt: Count = Field(default=1, description="rollouts per prompt; reward groups need at least 2")
    max_new_tokens: Count = Field(default=64, description="tokens of a completion at most, EOS included")
    truncated: Truncated = Field(
        default="learn",
        description="rollouts cut at `max_new_tokens`: learn: as from all others; mask: nothing is learnt from them; "
        "zero_reward: their verifier's reward is 0",
    )
    temperature: Temperature = Field(default=1.0, description="of sampler, policy and teachers alike")
    batch_size: Count = Field(default=256, description="sequences of one generation batch on a rank")
    keep_verified: Count = Field(
        default=1,
        description="methods that learn from verified answers: different right ones to a prompt at most",
    )
    off_policy: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="part of each domain's prompts that its teachers answer in the student's place"
    )
    off_policy_steps: CountOrNone | None = Field(
        default=None, description="first steps in which teachers answer some; null: in all of them"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_the_whole_distribution(cls, values: Any) -> Any:
        """The loss compares distributions that rollouts were drawn from; a sampler that cuts them draws from others."""
        for key in ("top_p", "top_k", "stop_strings") if isinstance(values, dict) else ():
            if key in values:
                raise refusal(
                    f"has `{key}`, and training samples the student's whole distribution, which the loss compares; "
                    f"for evaluations there is `evaluate.{key}`"
                )
        return values

    @field_validator("engine", mode="before")
    @classmethod
    def _older_spelling(cls, engine: Any) -> Any:
        """Run folders of before 0.2 say ``transformers``."""
        return "in_process" if engine == "transformers" else engine


class EvaluateRecipe(Strict):
    """What is measured: greedy answers, and sampled ones beside them where they are asked for."""

    validation_prompts: Count = Field(default=200, description="per domain, for curves")
    test_prompts: Count = Field(default=1000, description="per domain, for final tables")
    graded_prompts: CountOrNone = Field(
        default=16,
        description="of the validation ones, per taught domain, written as in training and graded by "
        "the teachers: held-out KL, entropy, overlap",
    )
    min_headroom: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="points of validation score that teachers must be above the base in every domain that they teach; "
        "where they are not, nothing is trained, and a study leaves the seed out; 0: no rule",
    )
    samples_per_prompt: CountOrNone = Field(
        default=0, description="answers to each held-out prompt that are sampled beside the greedy one; 0: none"
    )
    temperature: Temperature = Field(default=1.0, description="of the sampled answers")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="sampled from the likeliest tokens that have this probability together; 1: from all"
    )
    top_k: CountOrNone = Field(default=0, description="sampled from so many of the likeliest tokens; 0: from all")
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end an answer of an evaluation, and are no part of it"
    )
    seed: Seed = Field(default=0, description="of the held-out prompts; the same for every run that is compared")
    select: Literal["worst_recovery", "last"] = Field(
        default="worst_recovery",
        description="which evaluated step is the result: worst_recovery: the one whose worst domain has the "
        "highest lower end on validation (of recovery; of change over the base where no teacher is clearly better than "
        "it); last: the last",
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


class PlateauRecipe(Strict):
    """Training goes on while any domain learns, and `steps` is the most: a number of steps fits no two seeds.

    A domain learns while its validation score rises, or while its held-out KL is far above the others' and falls. Once
    none does, the learning rate decays (schedule wsd) and training ends; see distill/metrics/stop_rule.py.
    """

    evaluations: Count = Field(default=3, description="in a row in which nothing was learnt")
    points: Positive = Field(default=1.0, description="of validation score: a best that rises by less has not risen")
    behind: float = Field(
        default=3.0, ge=1, le=1e6, description="times the median held-out KL of the domains: above that it is far above"
    )
    fall: Positive = Field(default=0.1, le=1, description="part by which a held-out KL fell at least, to be falling")


class ComputeRecipe(Strict):
    """Training ends where it has spent its floating-point operations, and `steps` is the most.

    What counts is what `mopd compare` calls training: generation, teachers' scoring and updates; no evaluation.
    """

    flops: Annotated[float, Field(gt=0, le=1e28)] | None = Field(
        default=None, description="so many, of the run itself; or `equal_to`"
    )
    equal_to: Name | None = Field(
        default=None,
        description="a method of the study: as many as it took on the same seed, each with the making of teachers",
    )
    times: Positive = Field(default=1.0, le=1e6, description="so many times the method of `equal_to`")

    @model_validator(mode="after")
    def _one_of_two(self) -> ComputeRecipe:
        if (self.flops is None) == (self.equal_to is None):
            raise refusal("needs one of `flops` and `equal_to`")
        if self.flops is not None and "times" in self.model_fields_set and self.times != 1.0:
            raise refusal("has `times` beside `flops`, which would change nothing; multiply the flops")
        return self


class StaleRecipe(Strict):
    """What becomes of rollouts that the student has moved away from since they were written.

    It is judged at each update by the policy's probability of what was drawn over the sampler's, with `lag` 0 too. What
    is left out stays in the count of its domain's trained tokens, so that nothing else weighs more.
    """

    ratio: tuple[Positive, Positive] = Field(default=(0.5, 2.0), description="kept range of policy/sampler ratio")
    action: Literal["drop", "mask"] = Field(
        default="drop",
        description="drop: nothing is learnt from a rollout whose geometric mean over its tokens is outside; mask: "
        "nothing from a token that is",
    )

    @field_validator("ratio")
    @classmethod
    def _around_one(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        if not ratio[0] < 1 < ratio[1]:
            raise refusal(f"is [{ratio[0]:g}, {ratio[1]:g}]; it needs a bound below 1 and one above it, in that order")
        return ratio


class RunRecipe(Strict):
    """How long, how often, and beside what."""

    steps: Count = Field(default=200, description="loop steps; each samples, grades and updates once")
    lag: Literal[0, 1, 2] = Field(
        default=0,
        description="a step's rollouts are written with the weights of so many steps before, while those steps are "
        "learnt from; 0: with the weights that learn from them (docs/lag.md)",
    )
    stale: StaleRecipe | None = Field(
        default=None, description="what of rollouts is left out that the student has moved away from; null: nothing"
    )
    plateau: PlateauRecipe | None = Field(
        default=None, description="ends it earlier, once no domain learns any more; null: it takes all steps"
    )
    compute: ComputeRecipe | None = Field(
        default=None, description="ends it earlier, where it has spent its compute; null: it may spend any"
    )
    evaluate_every: Count = Field(default=20, description="steps between evaluations on validation prompts")
    save_every: Count = Field(default=20, description="steps between checkpoints")
    keep_checkpoints: Count = Field(default=2, description="whole checkpoints kept")
    parallel_stages: Count = Field(
        default=2, description="stages side by side at most, where none waits for another and GPUs suffice"
    )
    card_gib: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None,
        description="GiB of a GPU that the plan is held against where this machine has none; none: it is not",
    )
    niceness: int = Field(
        default=0, ge=0, le=19, description="of ranks, teachers and samplers: 0 competes with other work, 19 gives way"
    )
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


SHIPPED_SINKS = ("tensorboard", "trackio", "mlflow", "aim", "comet_ml", "clearml", "swanlab", "dvclive")
"""Of distill/tracking/sinks.py, by name."""


class TrackRecipe(Strict):
    """What is written besides metrics.jsonl."""

    wandb: WandbRecipe = WandbRecipe()
    sinks: tuple[Annotated[str, ShippedOrPlugin(*SHIPPED_SINKS)], ...] = Field(
        default=(),
        description="who is given every row beside W&B: trackers of the package accelerate, or ./file.py:NAME of your "
        "own; docs/files.md",
    )
    rollouts_per_domain: CountOrNone = Field(default=3, description="rollouts kept at each evaluation")


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
        _require_hub_id(self.from_, self.revision, leaf="revision", of="from")
        return self


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
