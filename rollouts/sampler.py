"""Who writes rollouts: the samplers of a run, made by its engine; gold answers; and teachers in the student's place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from mopd.distill.payloads import Support
from mopd.distill.recipe import EvaluateRecipe, RolloutRecipe
from mopd.distill.types import Metrics, Prompt, Rollout, Sampler, Weights
from mopd.rollouts.engines import ENGINES
from mopd.rollouts.engines.base import (
    Decoding,
    Drafts,
    ExamDecoding,
    FrozenModel,
    HoldCheckpoint,
    MakeSampler,
    RolloutEngine,
    SamplerProcesses,
    SamplerSettings,
    StudentModel,
)
from mopd.rollouts.tokenizer import StopStrings, end_token_ids, token_count

EncodeAnswer = Callable[[str], Sequence[int]]
"""Gold answer to token ids, EOS included."""


Episodes: TypeAlias = Callable[[Sampler, SamplerSettings], Sampler]
"""Makes a sampler of an engine's that also plays episodes; see
:func:`rollouts.environments.episodes.with_episodes`."""


def _as_it_is(sampler: Sampler, settings: SamplerSettings) -> Sampler:
    return sampler


class Samplers:
    """All that samples in a run, through one engine. Nothing is started before it is asked for.

    Args:
        engine: a row of :data:`rollouts.engines.ENGINES`.
        training: how rollouts to learn from are written.
        evaluation: how a model is measured: greedily, or one completion a prompt as in training.
        student: None where no student is sampled.
        frozen: the processes in which frozen models take turns.
        closing: ends every process that is started.
        episodes: has samplers play the episodes of environments; None where there are none.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        *,
        training: SamplerSettings,
        evaluation: SamplerSettings,
        student: StudentModel | None,
        frozen: SamplerProcesses,
        closing: ExitStack,
        episodes: Episodes | None = None,
    ) -> None:
        self._engine = engine
        self._episodes = episodes or _as_it_is
        self._training = training
        self._evaluation = evaluation
        self._student = student
        self._frozen = frozen
        self._closing = closing
        self._holders: dict[int, HoldCheckpoint] = {}
        self._held: tuple[FrozenModel, Sampler] | None = None

    @cached_property
    def train(self) -> Sampler:
        """The student's, for rollouts to learn from; it has the weights that ``load_weights`` gave it last."""
        return self._episodes(self._of_student(self._training), self._training)

    @cached_property
    def evaluate(self) -> Sampler:
        """The student's, for measuring it; it has the weights that ``load_weights`` gave it last."""
        return self._episodes(self._of_student(self._evaluation), self._evaluation)

    @property
    def beside_student(self) -> bool:
        """Whether the student's rollouts are written in processes other than its own ranks."""
        return not self._engine.shares_student

    def check(self, weights: Weights, *, named: str) -> None:
        """Whether the student is sampled as a plain forward says, by an engine that can tell.

        Args:
            weights: the student's.
            named: the student, as a message calls it.

        Raises:
            UserError: it is not.
        """
        if self._engine.canary is not None:
            self._engine.canary(weights, self._training.decoding, named=named)

    def of(self, model: FrozenModel) -> Sampler:
        """A frozen model's, for measuring it. It is good until the next call: models take turns in the processes."""
        engine = self._engine_of(model, self._frozen)
        if self._held is None or self._held[0] != model:
            if id(engine) not in self._holders:
                assert engine.of_checkpoints is not None
                self._holders[id(engine)] = engine.of_checkpoints(self._frozen, self._evaluation, self._closing)
            self._held = None  # before the next is loaded
            self._held = model, self._episodes(self._holders[id(engine)](model), self._evaluation)
        return self._held[1]

    def writer(self, model: FrozenModel, processes: SamplerProcesses, *, once: bool = False) -> Sampler:
        """A frozen model's, for rollouts that the student learns from; in ``processes`` of its own.

        Args:
            once: whether it writes one sample of each prompt, and not as many as the student.
        """
        engine = self._engine_of(model, processes)
        assert engine.of_checkpoints is not None
        settings = replace(self._training, samples_per_prompt=1) if once else self._training
        return self._episodes(engine.of_checkpoints(processes, settings, self._closing)(model), settings)

    @cached_property
    def _of_student(self) -> MakeSampler:
        if self._student is None or self._engine.of_student is None:
            raise ValueError("these samplers were made without a student, or by an engine that samples none")
        return self._engine.of_student(self._student, self._closing)

    def _engine_of(self, model: FrozenModel, processes: SamplerProcesses) -> RolloutEngine:
        """The run's engine, where it can hold a checkpoint beside the student; else a shipped one that can."""
        if model.endpoint is not None:
            return ENGINES["served"]
        engine = self._engine
        fits = engine.of_checkpoints is not None and (model.adapter is None or engine.takes_adapters)
        if fits and not engine.shares_student:
            return engine
        return ENGINES["workers" if processes.count else "in_process"]


def make_samplers(
    engine: RolloutEngine,
    *,
    settings: SamplerSettings,
    frozen: SamplerProcesses,
    closing: ExitStack,
    student: StudentModel | None = None,
    measured_support: Support | None = None,
    episodes: Episodes | None = None,
) -> Samplers:
    """The samplers of a run, a command or a check.

    Args:
        engine: who computes the next token; see :func:`rollouts.engines.engine_of`.
        settings: how rollouts to learn from are written.
        frozen: the processes in which frozen models take turns; with ``count`` 0, in this one.
        closing: ends every process that is started.
        student: None where no student is sampled.
        measured_support: the likeliest tokens that are recorded where a model is measured as it writes in training,
            by an engine that records any.
        episodes: has samplers play the episodes of environments; None where there are none.
    """
    support = measured_support if engine.records_support else None
    evaluation = replace(settings, decoding=replace(settings.decoding, support=support), samples_per_prompt=1)
    return Samplers(
        engine,
        training=settings,
        evaluation=evaluation,
        student=student,
        frozen=frozen,
        closing=closing,
        episodes=episodes,
    )


def sampler_settings(
    rollout: RolloutRecipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: str,
    seed: int,
    support: Support | None,
    drafts: Drafts | None = None,
    evaluate: EvaluateRecipe | None = None,
) -> SamplerSettings:
    """How a recipe's student writes.

    Args:
        tokenizer: the student's.
        model: the checkpoint that it belongs to, whose generation settings say what ends a completion, too.
        seed: the recipe's.
        support: the tokens that its loss compares, if any; they are recorded where they are the student's likeliest.
        drafts: how models with draft heads guess; None: they do not.
        evaluate: how answers of evaluations are written; None: greedily.
    """
    ends = end_token_ids(tokenizer, model)
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else ends[0]
    decoding = Decoding(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        greedy=False,
        seed=seed,
        step=0,
        end_token_ids=ends,
        pad_token_id=pad,
        support=support if support is not None and support.given else None,
        vocabulary=token_count(tokenizer),
        drafts=drafts,
    )
    exam = None if evaluate is None or not asks_more(evaluate) else exam_decoding(evaluate, tokenizer)
    return SamplerSettings(
        decoding, samples_per_prompt=rollout.samples_per_prompt, batch_size=rollout.batch_size, exam=exam
    )


def asks_more(evaluate: EvaluateRecipe) -> bool:
    """Whether evaluations want more than greedy answers that end tokens end."""
    return bool(evaluate.samples_per_prompt or evaluate.stop_strings)


def exam_decoding(evaluate: EvaluateRecipe, tokenizer: PreTrainedTokenizerBase) -> ExamDecoding:
    """How answers of evaluations are written.

    Args:
        tokenizer: the student's, in whose tokens the stop strings are found.
    """
    stops = StopStrings(tokenizer, evaluate.stop_strings) if evaluate.stop_strings else None
    return ExamDecoding(
        temperature=evaluate.temperature,
        top_p=evaluate.top_p if evaluate.top_p < 1 else None,
        top_k=evaluate.top_k or None,
        stops=stops,
    )


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
            version=(self._version, self._version),
            group=index,
            index=index,
        )


class TeacherSampler:
    """Teachers write: a teacher of its domain answers every prompt; their weights never move. Off-policy.

    Args:
        writers: samplers of the teachers' weights by name.
        routes: for each domain its teachers with their weights, which sum to 1: the parts of its prompts that they get.
    """

    def __init__(self, writers: Mapping[str, Sampler], *, routes: Mapping[str, Mapping[str, float]]) -> None:
        self._writers = dict(writers)
        self._routes = routes
        self._version = -1

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Note the version that rollouts carry; what is written depends on no weights of the student."""
        self._version = version

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield one microbatch with what the teachers write, in the order of ``prompts``; they write side by side."""
        assigned = self._assigned(prompts)
        places = {name: [i for i, writer in enumerate(assigned) if writer == name] for name in self._writers}

        def write(name: str) -> list[Rollout]:
            microbatches = self._writers[name].sample([prompts[i] for i in places[name]], step=step, greedy=greedy)
            return [rollout for microbatch in microbatches for rollout in microbatch]

        with ThreadPoolExecutor(len(self._writers), thread_name_prefix="writer") as threads:
            written = dict(zip(self._writers, threads.map(write, self._writers), strict=True))
        # A writer numbers its own prompts from 0.
        placed = [
            (places[name][rollout.group], replace(rollout, writer=name))
            for name in self._writers
            for rollout in written[name]
        ]
        placed.sort(key=lambda pair: pair[0])
        yield [
            replace(rollout, group=group, index=index, version=(self._version, self._version))
            for index, (group, rollout) in enumerate(placed)
        ]

    def _assigned(self, prompts: Sequence[Prompt]) -> list[str]:
        """Who answers each prompt: a domain's prompts are cut, in their order, in the proportions of its route."""
        counts = {domain: sum(prompt.domain == domain for prompt in prompts) for domain in self._routes}
        seen = dict.fromkeys(self._routes, 0)
        assigned: list[str] = []
        for prompt in prompts:
            names, parts = zip(*self._routes[prompt.domain].items(), strict=True)
            middle = (seen[prompt.domain] + 0.5) / counts[prompt.domain]
            seen[prompt.domain] += 1
            ends = list(accumulate(parts))
            assigned.append(next((name for name, end in zip(names, ends, strict=True) if middle <= end), names[-1]))
        return assigned


class MixedSampler:
    """The student writes, and in its place a teacher where a prompt falls to one: a mixture of on- and off-policy.

    Source: GKD, arXiv 2306.13649, algorithm 1, with lambda = 1 - ``part``; drawn there, counted here, so that no domain
    gets more or fewer by chance.

    Args:
        student: writes the others, and is what weights are loaded into.
        teachers: see :class:`TeacherSampler`.
        part: of each domain's prompts that teachers answer, 0..1: the whole number below it, spread evenly.
        steps: the first steps in which they do; None: in all.
    """

    def __init__(self, student: Sampler, teachers: Sampler, *, part: float, steps: int | None) -> None:
        self._student = student
        self._teachers = teachers
        self._part = part
        self._steps = steps

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """The student acts with ``weights``; rollouts of both carry ``version``."""
        self._student.load_weights(weights, version=version)
        self._teachers.load_weights(weights, version=version)

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield what the student writes, in the order of its prompts, then what teachers write in theirs.

        Both write at the same time. ``group`` numbers all prompts; a prompt has the number of samples that each
        sampler gives, and ``index`` counts the student's rollouts first.
        """
        taught = set() if self._steps is not None and step >= self._steps else set(self._taught(prompts))
        if not taught:
            yield from self._student.sample(prompts, step=step, greedy=greedy)
            return
        own = [place for place in range(len(prompts)) if place not in taught]
        of_teachers = sorted(taught)

        def write() -> list[list[Rollout]]:
            return list(self._teachers.sample([prompts[i] for i in of_teachers], step=step, greedy=greedy))

        with ThreadPoolExecutor(1, thread_name_prefix="teachers") as threads:
            written_by_teachers = threads.submit(write)
            written = 0
            for microbatch in self._student.sample([prompts[i] for i in own], step=step, greedy=greedy):
                written += len(microbatch)
                yield [replace(rollout, group=own[rollout.group]) for rollout in microbatch]
            for microbatch in written_by_teachers.result():
                yield [
                    replace(rollout, group=of_teachers[rollout.group], index=written + rollout.index)
                    for rollout in microbatch
                ]

    def _taught(self, prompts: Sequence[Prompt]) -> Iterator[int]:
        """Places of the prompts that teachers answer: of n in a domain floor(n * part)."""
        seen: dict[str, int] = {}
        for place, prompt in enumerate(prompts):
            before = seen.get(prompt.domain, 0)
            seen[prompt.domain] = before + 1
            if math.floor((before + 1) * self._part) > math.floor(before * self._part):
                yield place


def taught_shares(rollouts: Sequence[Rollout]) -> Metrics:
    """``off_policy/d`` of every domain of which teachers wrote some: the part of its trained tokens that they wrote."""
    return _parts_of_tokens("off_policy", rollouts, [rollout for rollout in rollouts if rollout.writer is not None])


def prefix_shares(rollouts: Sequence[Rollout]) -> Metrics:
    """``prefix/d`` of every domain in which others began episodes: the part of its trained tokens after their turns."""
    return _parts_of_tokens("prefix", rollouts, [rollout for rollout in rollouts if rollout.history is not None])


def _parts_of_tokens(name: str, rollouts: Sequence[Rollout], some: Sequence[Rollout]) -> Metrics:
    """``name/d`` of every domain that has some of the rollouts: their part of its trained tokens."""
    tokens, of_some = Counter[str](), Counter[str]()
    for counts, counted in ((tokens, rollouts), (of_some, some)):
        for rollout in counted:
            counts[rollout.domain] += rollout.trained_tokens
    return {f"{name}/{domain}": count / max(1, tokens[domain]) for domain, count in of_some.items()}
