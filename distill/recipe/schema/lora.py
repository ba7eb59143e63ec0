"""LoRA: what is trained where a model's own weights stay as they are."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mopd.distill.recipe.base import AdapterScale, Count, Strict, refusal


class LoRA(Strict):
    """A low-rank adapter (peft): beside each target ``W`` two small matrices are trained, ``W + alpha / rank * B A``.

    ``B`` begins at zero, so that the model begins as its base; ``W`` keeps every bit.

    Source: Hu et al., arXiv 2106.09685, section 4.1.
    """

    rank: Count = Field(default=16, description="columns of B and rows of A; peft's r")
    alpha: AdapterScale = Field(default=32.0, description="the product is scaled by alpha / rank; peft's lora_alpha")
    targets: Literal["all-linear"] | tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default="all-linear",
        description="which layers: all-linear: every linear one but the output head; or the ends of their names, for "
        "example [q_proj, v_proj]; peft's target_modules",
    )
    experts: bool = Field(
        default=False,
        description="adapt the experts of a mixture, too, whose weights are one tensor for all of them: a pair of "
        "matrices for each expert; peft's target_parameters",
    )
    embeddings: bool = Field(default=False, description="adapt the input embeddings and the output head, too")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what goes into A, in training; peft's lora_dropout")

    @model_validator(mode="after")
    def _targets_that_peft_can_adapt(self) -> Self:
        if not self.targets and not (self.experts or self.embeddings):
            raise refusal("has no `targets`, so nothing would be trained; name some, or take all-linear")
        if self.experts and self.dropout:
            raise refusal("has `dropout`, which cannot be applied to `experts`; leave one of them out")
        return self
