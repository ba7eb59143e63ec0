"""The parts of a recipe that students and stages share: a model's source, its engine and its optimizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mopd.distill.recipe.plugins import PLUGIN_PATTERN, is_plugin

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A signed number of 64 bits, which is what the generators of random numbers take."""
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Of a domain, a teacher or a stage: they become folders, metric names and keys of dotted paths."""


def refusal(message: str) -> PydanticCustomError:
    """An error of a recipe in our own words: a predicate that follows the path of what is refused."""
    return PydanticCustomError("refusal", "{message}", {"message": message})


class ShippedOrPlugin:
    """Marks a text field that takes one of the shipped names, or ``./file.py:NAME`` of a user's own."""

    def __init__(self, *shipped: str) -> None:
        self.shipped = shipped

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Text that is on offer."""
        return core_schema.no_info_after_validator_function(self._on_offer, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """For editors: the shipped names complete."""
        reference = {"type": "string", "pattern": PLUGIN_PATTERN}
        return {"anyOf": [{"enum": list(self.shipped)}, reference]} if self.shipped else reference

    def _on_offer(self, name: str) -> str:
        if name not in self.shipped and not is_plugin(name):
            raise PydanticCustomError("unknown_name", "is not on offer", {"shipped": self.shipped})
        return name


PluginReference: TypeAlias = Annotated[str, ShippedOrPlugin()]
"""``./file.py:NAME``: an object of a user's own file."""


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(Strict):
    """A model made from nothing: a transformers configuration and a tokenizer trained on the stage's own prompts."""

    architecture: str = Field(description="transformers model type, for example mimo_v2_flash, qwen3_moe, llama")
    config: dict[str, Any] = Field(default_factory=dict, description="keys of that model's configuration class")
    vocabulary: int = Field(default=160, ge=40, description="size of the byte-pair vocabulary, in tokens")


def _kind_of_source(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict | BaseModel) else "<name>"


ModelSource: TypeAlias = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[Architecture, Tag("<mapping>")], Discriminator(_kind_of_source)
]
"""stage:NAME, a path (begins with ./ or /), a Hub id, or an architecture to initialise."""


class Optimizer(Strict):
    """The optimizer and its learning-rate schedule, in optimizer steps."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="torch AdamW or plain SGD")
    lr: Positive = Field(default=5e-4, description="peak learning rate")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.98), description="AdamW's decay rates"
    )
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
