"""Samples a model through the processes that hold it; and the engine that shares the student's own processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from mopd.distill.models.adapters import adapter_state
from mopd.distill.models.load import load_model
from mopd.distill.models.mtp import attached
from mopd.distill.types import Int32, Prompt, Rollout, Sampler, Weights
from mopd.rollouts.engines.base import (
    EXAM_STEP,
    Decoding,
    Drafts,
    ExamDecoding,
    FrozenModel,
    HoldCheckpoint,
    InPlace,
    MakeSampler,
    RolloutEngine,
    SamplerProcesses,
    SamplerSettings,
    StudentModel,
    WeightTransport,
)
from mopd.rollouts.engines.canary import check_sampler
from mopd.rollouts.engines.drafts import measure_costs, read_costs, write_costs
from mopd.rollouts.engines.generate import Completion, generate, pick_tokens


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

    def adapter_state(self) -> Mapping[str, torch.Tensor]:
        """The weights of the adapter that is trained over the model, where there is one."""
        return adapter_state(self._model)


def loaded(model: FrozenModel, *, device: str, dtype: str) -> Any:
    """A frozen model of transformers, as an engine loads it from its folder."""
    return load_model(
        model.path,
        device=device,
        dtype=dtype,
        adapter=model.adapter,
        trust_remote_code=model.trust_remote_code,
        attention=model.attention,
    )


Complete: TypeAlias = Callable[[Weights, Sequence[tuple[Any, ...]]], list[list[Completion]]]
"""What every process that holds weights writes, each to arguments of :func:`generate`, but the model."""


def by_generate(weights: Weights, arguments: Sequence[tuple[Any, ...]]) -> list[list[Completion]]:
    """What models of transformers write in the processes that hold them."""
    return weights.on_ranks(generate, arguments)


class StudentSampler:
    """Samples from whatever weights it was given last, by calls into the processes that hold them.

    A microbatch is the next ``batch_size`` rollouts per process, so its members are a pure function of
    (step, microbatch number).

    Args:
        transport: how the weights reach those processes; None: they hold them already.
        exam: how answers of evaluations are written; None: greedily, with the rest of ``decoding``.
        complete: how the processes write.
    """

    def __init__(
        self,
        decoding: Decoding,
        *,
        samples_per_prompt: int,
        batch_size: int,
        transport: WeightTransport | None = None,
        exam: ExamDecoding | None = None,
        complete: Complete = by_generate,
    ) -> None:
        self._decoding = decoding
        self._complete = complete
        self._exam = exam
        self._samples = samples_per_prompt
        self._batch_size = batch_size
        self._transport = InPlace() if transport is None else transport
        self._weights: Weights | None = None
        self._version = -1

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Act with ``weights`` from now on; rollouts carry ``version``."""
        self._weights = self._transport.publish(weights, version=version)
        self._version = version

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield microbatches of rollouts as they finish, in the order of ``prompts``; greedy writes one per prompt.

        Raises:
            RuntimeError: no weights were loaded.
        """
        # What is written greedily is verified and not graded.
        support = None if greedy else self._decoding.support
        drafts = self._decoding.drafts and self._with_costs(self._loaded(), self._decoding.drafts)
        decoding = replace(self._decoding, step=step, greedy=greedy, support=support, drafts=drafts)
        yield from self._written(prompts, decoding, samples=1 if greedy else self._samples)

    def examine(self, prompts: Sequence[Prompt], *, step: int, sample: int | None) -> Iterator[list[Rollout]]:
        """Yield microbatches of one answer a prompt, in the order of ``prompts``, as evaluations want them.

        Args:
            sample: its number, which keys its randomness; None: greedily.

        Raises:
            RuntimeError: no weights were loaded.
        """
        keyed = step if sample is None else EXAM_STEP + sample
        decoding = self._examined(step=keyed, greedy=sample is None)
        yield from self._written(prompts, decoding, samples=1)

    def _examined(self, *, step: int, greedy: bool) -> Decoding:
        exam = self._exam
        decoding = replace(self._decoding, step=step, greedy=greedy, support=None, drafts=None)
        if exam is not None:
            decoding = replace(decoding, stops=exam.stops)
        if exam is not None and not greedy:
            decoding = replace(decoding, temperature=exam.temperature, top_p=exam.top_p, top_k=exam.top_k)
        return decoding

    def _written(self, prompts: Sequence[Prompt], decoding: Decoding, *, samples: int) -> Iterator[list[Rollout]]:
        weights = self._loaded()
        planned = [
            _Planned(prompt, index=group * samples + k, group=group)
            for group, prompt in enumerate(prompts)
            for k in range(samples)
        ]
        size = self._batch_size * weights.ranks
        for start in range(0, len(planned), size):
            yield self._microbatch(weights, planned[start : start + size], decoding)

    def _loaded(self) -> Weights:
        if self._weights is None:
            raise RuntimeError("the sampler has no weights; call load_weights first")
        return self._weights

    def _with_costs(self, weights: Weights, drafts: Drafts) -> Drafts | None:
        """How to guess, with what it costs here; None where the model has nothing to guess with. Asked once."""
        if not drafts.measured or drafts.costs is not None:
            return drafts
        costs = read_costs(drafts.record)
        if costs is None:
            costs = weights.on_ranks(_measure, [(self._decoding,)] * weights.ranks)[0]
            if costs is not None:
                write_costs(drafts.record, costs)
        self._decoding = replace(self._decoding, drafts=costs and replace(drafts, costs=costs))
        return self._decoding.drafts

    def write(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        *,
        step: int,
        greedy: bool,
        max_new_tokens: int,
        exam: bool = False,
    ) -> list[Rollout]:
        """One completion of each prompt, in order; see :class:`rollouts.environments.episodes.TurnWriter`.

        Raises:
            RuntimeError: no weights were loaded.
        """
        weights = self._loaded()
        support = None if greedy else self._decoding.support
        drafts = self._decoding.drafts and self._with_costs(weights, self._decoding.drafts)
        how = replace(self._decoding, step=step, greedy=greedy, support=support, drafts=drafts)
        decoding = replace(self._examined(step=step, greedy=greedy) if exam else how, max_new_tokens=max_new_tokens)
        planned = [_Planned(prompt, index=n, group=n) for prompt, n in zip(prompts, numbers, strict=True)]
        size = self._batch_size * weights.ranks
        batches = [planned[start : start + size] for start in range(0, len(planned), size)]
        written = {r.index: r for batch in batches for r in self._microbatch(weights, batch, decoding)}
        return [written[number] for number in numbers]

    def _microbatch(self, weights: Weights, planned: Sequence[_Planned], decoding: Decoding) -> list[Rollout]:
        # Dealt out like cards, so that every rank gets the same mixture of domains and none waits long for another.
        hands = [planned[rank :: weights.ranks] for rank in range(weights.ranks)]
        arguments = [([p.prompt.token_ids for p in hand], [p.index for p in hand], decoding) for hand in hands]
        written = self._complete(weights, arguments)
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
            version=(self._version, self._version),
            group=plan.group,
            index=plan.index,
            support_ids=_with_prompt(len(prompt), completion.support_ids),
            drafts=completion.drafts,
        )


def _measure(model: nn.Module, decoding: Decoding) -> Any:
    """What guesses cost in this process."""
    return measure_costs(model, decoding, generate, partial(pick_tokens, greedy=decoding.greedy))


def _with_prompt(length: int, support_ids: Int32 | None) -> Int32 | None:
    """The support of a completion with zeros for the prompt's positions, which nobody reads."""
    if support_ids is None:
        return None
    return np.concatenate([np.zeros((length, support_ids.shape[1]), dtype=np.int32), support_ids])


def of_student(student: StudentModel, closing: ExitStack) -> MakeSampler:
    """Samplers in the student's own ranks."""

    def make(settings: SamplerSettings) -> Sampler:
        decoding = replace(settings.decoding, lockstep=student.lockstep)
        return StudentSampler(
            decoding,
            samples_per_prompt=settings.samples_per_prompt,
            batch_size=settings.batch_size,
            exam=settings.exam,
        )

    return make


def of_checkpoints(processes: SamplerProcesses, settings: SamplerSettings, closing: ExitStack) -> HoldCheckpoint:
    """Samplers of checkpoints that this process loads."""

    def hold(model: FrozenModel) -> Sampler:
        module = loaded(model, device=processes.device, dtype=processes.dtype)
        if settings.decoding.drafts is not None:
            attached(model.path, module)
        sampler = StudentSampler(
            settings.decoding,
            samples_per_prompt=settings.samples_per_prompt,
            batch_size=settings.batch_size,
            exam=settings.exam,
        )
        sampler.load_weights(InProcess(module), version=0)
        return sampler

    return hold


IN_PROCESS = RolloutEngine(
    of_student=of_student,
    of_checkpoints=of_checkpoints,
    keyed=True,
    records_support=True,
    takes_adapters=True,
    canary=check_sampler,
    examines=True,
    shares_student=True,
    speculates=True,
)
