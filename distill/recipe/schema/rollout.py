"""`rollout`: how the student writes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from mopd.distill.recipe.base import Count, CountOrNone, PartOfGPU, ShippedOrPlugin, Strict, Temperature, refusal
from mopd.distill.recipe.schema.vllm import VLLMRecipe

EngineName: TypeAlias = Annotated[str, ShippedOrPlugin("in_process", "vllm")]
"""A row of ENGINES (rollouts/engines)."""

Truncated: TypeAlias = Literal["learn", "mask", "zero_reward"]
"""What becomes of a rollout that was cut at the limit."""


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
