"""vLLM as the engine of rollouts: the leaves under ``rollout.vllm``."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from mopd.distill.recipe.base import FiniteMapping, Strict, refusal

Transport: TypeAlias = Literal["auto", "reload", "adapter", "restart"]
"""How weights reach a vLLM that runs."""

SET_HERE = (
    "model",
    "dtype",
    "device",
    "seed",
    "tokenizer",
    "skip_tokenizer_init",
    "generation_config",
    "trust_remote_code",
    "logits_processors",
    "logprobs_mode",
    "max_logprobs",
    "enable_lora",
    "max_loras",
    "max_lora_rank",
)
"""Arguments of vLLM's engine that follow from the rest of a recipe."""
MORE_PROCESSES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Those that spread one engine over several processes, which nothing here has tried."""


class VLLMRecipe(Strict):
    """Read where `rollout.engine` is vllm, which `rollout.workers` servers write with, each on `rollout.gpus`."""

    python: str = Field(
        default=".venv-vllm/bin/python",
        min_length=1,
        description="the Python that has vLLM, which needs other versions of torch and transformers; "
        "`make install-vllm` makes this one",
    )
    transport: Transport = Field(
        default="auto",
        description="how weights reach a server: reload: files in shared memory, taken on by the engine that runs; "
        "adapter: a LoRA student's adapter alone; restart: the engine is started again on such files; auto: adapter "
        "where vLLM can hold it, restart for a mixture on a CPU, where a reload is silently wrong, and else reload",
    )
    test_draws: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=20_000,
        description="tokens drawn after a short prompt before the first rollout, whose counts are held against the "
        "student's own distribution; 0: none",
    )
    extra: FiniteMapping = Field(
        default_factory=dict, description="further arguments of vLLM's engine, for example {max_model_len: 4096}"
    )

    @model_validator(mode="after")
    def _arguments_that_are_free(self) -> Self:
        for name in self.extra:
            if name in SET_HERE:
                raise refusal(f"has `extra.{name}`, which follows from the rest of the recipe; leave it out")
            if name in MORE_PROCESSES:
                raise refusal(f"has `extra.{name}`, and a server is one process here; leave it out, and set more "
                              "`rollout.workers`")  # fmt: skip
        return self
