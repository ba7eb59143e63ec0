"""`teachers`: specialists, and what becomes of one that fails."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from mopd.distill.recipe.base import (
    SMALLEST_PART,
    Count,
    Name,
    PartOfGPU,
    Pause,
    Positive,
    Seconds,
    ShippedOrPlugin,
    Strict,
    refusal,
)
from mopd.distill.recipe.model_names import at_revision
from mopd.distill.recipe.plugins import is_plugin
from mopd.distill.recipe.schema.models import REVISION, require_hub_id
from mopd.distill.recipe.source import columns_of, is_template

KindName: TypeAlias = Annotated[str, ShippedOrPlugin("checkpoint", "served", "custom")]
"""A row of KINDS (teachers/kinds)."""

OF_RAY = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that Ray counts by itself."""


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
        require_hub_id(self.model, self.revision, leaf="revision", of="model")
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
