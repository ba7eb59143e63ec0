"""What a recipe says of its teachers: what each is, and what is done when one is lost."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from mopd.distill.recipe.base import Count, Name, NonNegative, Positive, ShippedOrPlugin, Strict, refusal
from mopd.distill.recipe.plugins import is_plugin

OF_RAY = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that Ray counts by itself."""


KindName: TypeAlias = Annotated[str, ShippedOrPlugin("checkpoint", "served", "custom")]
"""A row of KINDS (teachers/kinds)."""


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
    adapter: str | None = Field(
        default=None, description="a LoRA adapter (peft) over `model`: a path (begins with ./ or /)"
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
    replicas: Count = Field(default=1, description="processes; a microbatch goes to whichever is free")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where it scores; auto: as the run's")
    gpus: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="part of a GPU that each process takes of its node; 0.25: four share one"
    )
    resources: dict[str, Positive] = Field(
        default_factory=dict, description="of Ray, by name, that each process takes of its node: where it is placed"
    )

    settings: dict[Name, float | str | int | bool] = Field(
        default_factory=dict, description="what a `kind` of your own reads, by name"
    )

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
            if amount > 1 and amount != int(amount):
                raise refusal(f"asks for {amount:g} of {name}; above 1 Ray takes whole numbers")
        return value


class FaultRecipe(Strict):
    """A teacher that dies, hangs or fails is restarted from its checkpoint and asked again; then the run ends.

    What would be the same again (NaN, another length, another vocabulary) ends it at once. Either way the finished
    steps are saved.
    """

    retries: int = Field(default=3, ge=0, description="times that a lost microbatch is asked again; 0: never")
    backoff_seconds: NonNegative = Field(default=1.0, description="pause before a restart; doubles with each in a row")
    microbatch_seconds: Positive = Field(default=600.0, description="a teacher that scores one for longer is hung")
    start_seconds: Positive = Field(default=1800.0, description="a teacher that loads its weights for longer is hung")
