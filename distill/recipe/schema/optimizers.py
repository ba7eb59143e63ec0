"""Optimizers, and the learning rate over the optimizer steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from mopd.distill.recipe.base import Clip, CountOrNone, Epsilon, LearningRate, NonNegative, Strict, refusal

OPTIMIZER = "which optimizer: adamw, or sgd (without momentum)"


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
