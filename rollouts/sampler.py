"""The student's sampler: prompts in, rollouts out, with the sampler's own log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mopd.distill.payloads import Support
from mopd.distill.types import Int32, Prompt, Rollout, Sampler, Weights
from mopd.rollouts.engines.in_process import Completion, Decoding, generate

EncodeAnswer = Callable[[str], Sequence[int]]
"""Gold answer to token ids, EOS included."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A rollout yet to be written: its prompt, its number within the step, and its prompt's number."""

    prompt: Prompt
    index: int
    group: int


class InProcess:
    """A model of this process as the weights of one rank; satisfies :class:`distill.types.Weights`."""

    ranks = 1

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def on_ranks(self, fn: Callable[..., Any], per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``fn(model, *args)`` here."""
        (args,) = per_rank
        return [fn(self._model, *args)]

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The model's weights."""
        return self._model.state_dict()


class StudentSampler:
    """Samples from whatever weights it was given last, through the door of the processes that hold them.

    Sampler and student share a process: publishing is a reference, no weight is copied. A microbatch is the next
    ``batch_size`` rollouts per rank, so its members are a pure function of (step, microbatch number).
    """

    def __init__(self, decoding: Decoding, *, samples_per_prompt: int, batch_size: int) -> None:
        self._decoding = decoding
        self._samples = samples_per_prompt
        self._batch_size = batch_size
        self._weights: Weights | None = None
        self._version = -1

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Act with ``weights`` from now on; rollouts carry ``version``."""
        self._weights, self._version = weights, version

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield microbatches of rollouts as they finish, in the order of ``prompts``; greedy writes one per prompt.

        Raises:
            RuntimeError: no weights were loaded.
        """
        if self._weights is None:
            raise RuntimeError("the sampler has no weights; call load_weights first")
        # What is written greedily is verified and not graded.
        support = None if greedy else self._decoding.support
        decoding = replace(self._decoding, step=step, greedy=greedy, support=support)
        samples = 1 if greedy else self._samples
        planned = [
            _Planned(prompt, index=group * samples + k, group=group)
            for group, prompt in enumerate(prompts)
            for k in range(samples)
        ]
        size = self._batch_size * self._weights.ranks
        for start in range(0, len(planned), size):
            yield self._microbatch(self._weights, planned[start : start + size], decoding)

    def recording(self, support: Support) -> StudentSampler:
        """See :func:`recording`."""
        other = StudentSampler(
            replace(self._decoding, support=support), samples_per_prompt=1, batch_size=self._batch_size
        )
        other._weights, other._version = self._weights, self._version
        return other

    def _microbatch(self, weights: Weights, planned: Sequence[_Planned], decoding: Decoding) -> list[Rollout]:
        # Dealt out like cards, so that every rank gets the same mixture of domains and none waits long for another.
        hands = [planned[rank :: weights.ranks] for rank in range(weights.ranks)]
        asked = [([p.prompt.token_ids for p in hand], [p.index for p in hand], decoding) for hand in hands]
        written = weights.on_ranks(generate, asked)
        rollouts = [
            self._rollout(plan, completion)
            for hand, completions in zip(hands, written, strict=True)
            for plan, completion in zip(hand, completions, strict=True)
        ]
        return sorted(rollouts, key=lambda rollout: rollout.index)

    def _rollout(self, plan: _Planned, completion: Completion) -> Rollout:
        prompt = np.array(plan.prompt.token_ids, dtype=np.int32)
        return Rollout(
            prompt=plan.prompt,
            token_ids=np.concatenate([prompt, completion.token_ids]),
            loss_mask=np.arange(len(prompt) + len(completion.token_ids)) >= len(prompt),
            sampler_logprobs=np.concatenate([np.zeros(len(prompt), dtype=np.float32), completion.logprobs]),
            finish=completion.finish,
            version=self._version,
            group=plan.group,
            index=plan.index,
            support_ids=_with_prompt(len(prompt), completion.support_ids),
        )


def _with_prompt(length: int, support_ids: Int32 | None) -> Int32 | None:
    """The support of a completion with zeros for the prompt's positions, which nobody reads."""
    if support_ids is None:
        return None
    return np.concatenate([np.zeros((length, support_ids.shape[1]), dtype=np.int32), support_ids])


def recording(sampler: Sampler, support: Support) -> Sampler:
    """The same sampler with the weights that it has now: it writes one completion a prompt, and records ``support``.

    Raises:
        TypeError: it does not sample a student.
    """
    if not isinstance(sampler, StudentSampler):
        raise TypeError(f"{type(sampler).__name__} has no distribution to record")
    return sampler.recording(support)


class GoldSampler:
    """Writes the gold answer of every prompt: the actor of the supervised method. It needs no weights."""

    def __init__(self, encode_answer: EncodeAnswer) -> None:
        self._encode_answer = encode_answer
        self._version = -1

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Note the version that rollouts carry; gold answers depend on no weights."""
        self._version = version

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield one microbatch with every prompt's gold answer and EOS; sampler log-probabilities are zero."""
        yield [self._rollout(prompt, index) for index, prompt in enumerate(prompts)]

    def _rollout(self, prompt: Prompt, index: int) -> Rollout:
        given = np.array(prompt.token_ids, dtype=np.int32)
        token_ids = np.concatenate([given, np.array(self._encode_answer(prompt.answer), dtype=np.int32)])
        return Rollout(
            prompt=prompt,
            token_ids=token_ids,
            loss_mask=np.arange(len(token_ids)) >= len(given),
            sampler_logprobs=np.zeros(len(token_ids), dtype=np.float32),
            finish="eos",
            version=self._version,
            group=index,
            index=index,
        )
