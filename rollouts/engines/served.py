"""A server's model answers: a teacher that is served is measured on held-out prompts as every other model is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from mopd.distill.endpoint import Endpoint, EndpointRefused, asked_again
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Prompt, Rollout, Sampler, Weights
from mopd.rollouts.engines.base import FrozenModel, HoldCheckpoint, RolloutEngine, SamplerProcesses, SamplerSettings

GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""The likeliest token each time. A server takes what is not said from the model's own generation settings."""


class ServedSampler:
    """Writes greedily with whatever the server holds; satisfies :class:`distill.types.Sampler`.

    Args:
        faults: how often, and after what pause, a request that was lost is made again.
        end_token_ids: any of them ends an answer; the student's, whatever the server's own generation settings say.
        max_new_tokens: limit of an answer, EOS included.
        batch_size: prompts of one request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        end_token_ids: Sequence[int],
        max_new_tokens: int,
        batch_size: int,
        faults: FaultRecipe,
    ) -> None:
        self._endpoint = endpoint
        self._ends = tuple(end_token_ids)
        self._faults = faults
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Refuse.

        Raises:
            TypeError: always; a server has weights of its own.
        """
        raise TypeError(f"{self._endpoint} holds its own weights; it cannot be given any")

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield microbatches of ``batch_size`` answers, in the order of ``prompts``.

        Raises:
            ValueError: it is to sample, and not to write greedily: a server's randomness is not keyed.
            EndpointLost, EndpointRefused: see those.
        """
        if not greedy:
            raise ValueError("a served model writes greedily; its samples would not be the same on a resume")
        for start in range(0, len(prompts), self._batch_size):
            batch = prompts[start : start + self._batch_size]
            pairs = zip(batch, self._complete(batch), strict=True)
            yield [self._rollout(prompt, choice, start + i) for i, (prompt, choice) in enumerate(pairs)]

    def _complete(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        return asked_again(
            lambda: self._endpoint.complete(
                [prompt.token_ids for prompt in prompts], seconds=self._faults.microbatch_seconds,
                max_tokens=self._max_new_tokens, logprobs=0, return_token_ids=True,
                ignore_eos=True, stop_token_ids=[*self._ends], **GREEDY,
            ),
            retries=self._faults.retries, backoff_seconds=self._faults.backoff_seconds,
        )  # fmt: skip

    def _rollout(self, prompt: Prompt, choice: dict[str, Any], index: int) -> Rollout:
        written = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if (
            not isinstance(written, list)
            or not written
            or not isinstance(logprobs, list)
            or len(logprobs) != len(written)
        ):
            raise EndpointRefused(
                f"{self._endpoint} gave no `token_ids` with their log-probabilities for prompt {prompt.id}; the server "
                "must know `return_token_ids`, as vLLM does"
            )
        n = len(prompt.token_ids)
        return Rollout(
            prompt=prompt,
            token_ids=np.array([*prompt.token_ids, *written], dtype=np.int32),
            loss_mask=np.arange(n + len(written)) >= n,
            sampler_logprobs=np.array([*[0.0] * n, *logprobs], dtype=np.float32),
            finish="eos" if written[-1] in self._ends else "length",
            version=(0, 0),
            group=index,
            index=index,
        )


def of_checkpoints(processes: SamplerProcesses, settings: SamplerSettings, closing: ExitStack) -> HoldCheckpoint:
    """Samplers of models that servers hold; no process is started here."""

    def hold(model: FrozenModel) -> Sampler:
        if model.endpoint is None:
            raise ValueError(f"{model.path} is behind no server; its weights are to be loaded")
        return ServedSampler(
            model.endpoint,
            end_token_ids=settings.decoding.end_token_ids,
            max_new_tokens=settings.decoding.max_new_tokens,
            batch_size=settings.batch_size,
            faults=model.faults,
        )

    return hold


SERVED = RolloutEngine(of_checkpoints=of_checkpoints)
