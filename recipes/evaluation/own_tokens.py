"""Models of another tokenizer than the student's answer the same questions, asked and read in tokens of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.types import Prompt, Rollout, Sampler, Weights
from mopd.rollouts.engines.base import FrozenModel
from mopd.rollouts.sampler import Samplers
from mopd.rollouts.tokenizer import completion_text


@dataclass(frozen=True, slots=True)
class InOwnTokens:
    """A sampler whose model has a tokenizer of its own; satisfies what an evaluation asks of one.

    Attributes:
        sampler: of that model, with settings of its tokenizer.
        prompt_of: the student's prompt in the model's tokens, under the same id.
        tokenizer: the model's.
    """

    sampler: Sampler
    prompt_of: Callable[[Prompt], Prompt]
    tokenizer: PreTrainedTokenizerBase

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """As the sampler itself."""
        self.sampler.load_weights(weights, version=version)

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Rollouts in the model's own tokens, in the order of the prompts."""
        return self.sampler.sample([self.prompt_of(prompt) for prompt in prompts], step=step, greedy=greedy)

    def examine(self, prompts: Sequence[Prompt], *, step: int, sample: int | None) -> Iterator[list[Rollout]]:
        """The same, as evaluations want answers; of samplers that have it."""
        examined: Any = self.sampler
        return examined.examine([self.prompt_of(prompt) for prompt in prompts], step=step, sample=sample)

    def decode(self, rollout: Rollout) -> str:
        """The completion's text, without what closes it."""
        return completion_text(self.tokenizer, rollout)


@dataclass(frozen=True, slots=True)
class SamplersInOwnTokens:
    """What :class:`rollouts.sampler.Samplers` is for a frozen model, of one that has a tokenizer of its own."""

    samplers: Samplers
    prompt_of: Callable[[Prompt], Prompt]
    tokenizer: PreTrainedTokenizerBase

    def of(self, model: FrozenModel) -> InOwnTokens:
        """The model's, for measuring it."""
        return InOwnTokens(self.samplers.of(model), self.prompt_of, self.tokenizer)
