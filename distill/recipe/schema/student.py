"""`student`: the model that is trained, and how it is spread over processes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mopd.distill.recipe.base import BiasRate, Count, PartOfGPU, Strict, refusal
from mopd.distill.recipe.model_names import at_revision
from mopd.distill.recipe.schema.lora import LoRA
from mopd.distill.recipe.schema.models import REVISION, ModelReference, require_hub_id
from mopd.distill.recipe.schema.optimizers import AdamW, Optimizer


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
        require_hub_id(self.model, self.revision, leaf="revision", of="model")
        return self
