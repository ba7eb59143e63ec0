"""What a rollout engine is: a row of ENGINES, the models that it is given, and how the student's weights reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from mopd.distill.endpoint import Endpoint
from mopd.distill.models.attention import AttnImplementation
from mopd.distill.payloads import Support
from mopd.distill.recipe import FaultRecipe, LoRA, RolloutRecipe
from mopd.distill.types import Sampler, Weights

MARGIN = 1.1
"""How many times as fast guesses must promise to be before any is made: the promise rests on a few rounds."""


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """How long writing takes with and without guesses, measured.

    Attributes:
        rows: of a batch, ascending.
        plain: seconds of one token of every row, without guesses.
        rounds: seconds of a round with 1, 2, ... guesses a row.
        takeover: seconds until rows that have been begun without guesses go on with them: all that they have is read
            once more, and the heads read it, too. None in files of earlier versions: it counts as nothing.
    """

    rows: tuple[int, ...]
    plain: tuple[float, ...]
    rounds: tuple[tuple[float, ...], ...]
    takeover: tuple[float, ...] | None = None

    def best(self, rows: int, acceptance: Sequence[float], *, margin: float = MARGIN) -> int:
        """The number of guesses with which so many rows are written fastest; 0: none.

        Args:
            acceptance: of the guess at each position, where those before it were accepted.
            margin: how many times as fast as none guesses must be.
        """
        return self._fastest(rows, acceptance, margin)[0]

    def takeover_pays(self, rows: int, acceptance: Sequence[float], tokens: int) -> bool:
        """Whether rows that have been begun without guesses should go on with them.

        Args:
            tokens: that each row is still to get, about.
        """
        k, seconds_a_token = self._fastest(rows, acceptance, MARGIN)
        if k == 0:
            return False
        once = 0.0 if self.takeover is None else self._at(rows, self.takeover)
        return once + tokens * seconds_a_token < tokens * self._at(rows, self.plain)

    def _fastest(self, rows: int, acceptance: Sequence[float], margin: float) -> tuple[int, float]:
        """The best number of guesses, and the seconds that a token of every row takes with it."""
        best, least = 0, self._at(rows, self.plain)
        bound, tokens, survives = least / margin, 1.0, 1.0
        for k, rate in enumerate(acceptance, start=1):
            survives *= rate
            tokens += survives
            took = self._at(rows, [by_k[k - 1] for by_k in self.rounds]) / tokens
            if took < bound:
                best, least, bound = k, took, took
        return best, least

    def _at(self, rows: int, seconds: Sequence[float]) -> float:
        """Between measured sizes of a batch, along a line in the logarithms of both."""
        return float(np.exp(np.interp(np.log(rows), np.log(self.rows), np.log(seconds))))


@dataclass(frozen=True, slots=True)
class Drafts:
    """How a model with draft heads writes.

    Attributes:
        limit: tokens guessed a forward, at most.
        costs: by which it is decided how many are for so many rows; None: always ``limit``, unless ``measured``.
        measured: costs are measured when first something is written.
        record: the file in which measured costs are kept, so that a resumed run decides alike.
    """

    limit: int
    costs: DraftCosts | None = None
    measured: bool = False
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: limit of a completion, EOS included.
        temperature: logits are divided by it; the recorded log-probabilities are those of the tempered distribution.
        greedy: take the most likely token; log-probabilities are recorded all the same.
        seed: the recipe's.
        step: the loop step that the rollouts belong to.
        end_token_ids: any of them ends a completion; the first is the one that closes an answer of the tokenizer's own.
        pad_token_id: fills the left of shorter prompts.
        lockstep: all ranks take equally many forwards, as expert parallelism needs.
        support: which likeliest tokens to record at each position; None: none.
        vocabulary: ids from here on are not the tokenizer's, and are never written; None: the output head has no more.
        drafts: how a model with draft heads guesses; None: it does not.
        top_p: sampled from the likeliest tokens that have this probability together; None: from all. In evaluations
            alone, and so are the next two; recorded log-probabilities are those of the whole distribution.
        top_k: sampled from so many of the likeliest tokens; None: from all.
        stops: token ids so far ``(B, N)`` and None -> whether each row ends in a stop string.
    """

    max_new_tokens: int
    temperature: float
    greedy: bool
    seed: int
    step: int
    end_token_ids: tuple[int, ...]
    pad_token_id: int
    lockstep: bool = False
    support: Support | None = None
    vocabulary: int | None = None
    drafts: Drafts | None = None
    top_p: float | None = None
    top_k: int | None = None
    stops: Callable[[torch.Tensor, None], torch.Tensor] | None = None


EXAM_STEP = 1 << 31
"""Sampled answers of evaluations are keyed by steps from here on, the same for all weights."""


@dataclass(frozen=True, slots=True)
class ExamDecoding:
    """How answers of evaluations are written, where not as in training; see `evaluate`.

    Attributes:
        temperature: of sampled answers.
        top_p, top_k: of sampled answers; None: from all tokens.
        stops: what ends an answer besides end tokens; see :class:`Decoding`.
    """

    temperature: float
    top_p: float | None
    top_k: int | None
    stops: Callable[[torch.Tensor, None], torch.Tensor] | None


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """How one sampler writes.

    Attributes:
        decoding: how tokens are chosen; ``step`` and ``greedy`` come with each call of ``sample``.
        samples_per_prompt: completions of each prompt, where they are not greedy.
        batch_size: sequences of one generation batch in a process.
        exam: how answers of evaluations are written; None: greedily, with the rest of ``decoding``.
    """

    decoding: Decoding
    samples_per_prompt: int
    batch_size: int
    exam: ExamDecoding | None = None


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A model whose weights do not move.

    Attributes:
        path: folder of the checkpoint; of the configuration alone where a server holds the weights.
        adapter: folder of a LoRA adapter that is added into the weights.
        trust_remote_code: run Python code that lies in the folder.
        endpoint: the server that holds the weights; None: an engine loads them from ``path``.
        faults: how often, and after what pause, a request that a server lost is made again.
        attention: how attention is computed where an engine loads it.
    """

    path: str
    adapter: str | None = None
    trust_remote_code: bool = False
    endpoint: Endpoint | None = None
    faults: FaultRecipe = field(default_factory=FaultRecipe)
    attention: AttnImplementation = "auto"


@dataclass(frozen=True, slots=True)
class SamplerProcesses:
    """The processes that hold a model for sampling.

    Attributes:
        count: how many; 0: this process.
        device: ``cpu`` or ``cuda``.
        dtype: of the weights, resolved.
        gpus: the part of a GPU that each takes.
        resources: what each takes of its node besides, by Ray's names.
        limit_seconds: that one may take for a microbatch or a checkpoint before it is held to hang; None: for ever.
    """

    count: int
    device: str
    dtype: str
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    limit_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StudentModel:
    """The student, as an engine that samples it needs to know it.

    Attributes:
        initial: the checkpoint that it starts from; its architecture is the student's.
        processes: where an engine that shares no process with the student holds its weights.
        lockstep: all ranks of the student take equally many forwards, as expert parallelism needs.
        heads: whether it has draft heads, which processes of the engine hold beside it.
        lora: the adapter that is trained over ``initial``, whose weights alone change then; None: all do. An engine
            that publishes ``Weights.state_dict()`` needs to know nothing of it: there the adapter is added in.
    """

    initial: FrozenModel
    processes: SamplerProcesses
    lockstep: bool = False
    heads: bool = False
    lora: LoRA | None = None


Bind: TypeAlias = "Callable[[RolloutRecipe, FaultRecipe, str | None, Callable[[str], None]], RolloutEngine]"
"""Makes an engine of a recipe's settings, its fault policy, the folder that keeps logs, and what speaks to people."""
MakeSampler: TypeAlias = Callable[[SamplerSettings], Sampler]
"""Makes a sampler of the student; whatever is loaded, is loaded once for all of them."""
HoldCheckpoint: TypeAlias = Callable[[FrozenModel], Sampler]
"""Holds a checkpoint in the place of the one before, and returns its sampler; weights are loaded already."""


@dataclass(frozen=True, slots=True)
class RolloutEngine:
    """A row of :data:`rollouts.engines.ENGINES`: who computes the next token.

    What it starts ends with the ``ExitStack`` that it is given: ``closing.callback(...)``.

    Attributes:
        of_student: starts what samples the student, whose weights arrive through ``load_weights``; None: it takes none.
        of_checkpoints: starts processes that hold one checkpoint at a time and sample it; None: it holds none, and the
            row ``workers`` does.
        keyed: a rollout depends on (seed, step, index) and on the weights, and not on what was drawn before: a resumed
            run writes the same.
        records_support: it records the likeliest tokens that ``decoding.support`` asks for.
        records_routing: it records which experts each token went through.
        takes_adapters: it holds checkpoints with a LoRA adapter over them.
        examines: its samplers have a method ``examine``, which writes as ``exam`` of the settings says; see
            :class:`rollouts.engines.in_process.StudentSampler`.
        shares_student: it samples in the student's own processes, and copies no weight.
        speculates: it writes with the guesses of draft heads, where the student has any.
        section: its own section under `rollout`, which no other engine reads; None: it has none.
        needs_workers: it writes in `rollout.workers` processes, and in no others.
        workers_measure: `rollout.workers` also bounds how many processes hold a checkpoint at a time.
        asks_again: a request that was lost is made again, as `faults` says.
        own_answers: greedily it may write other answers than transformers does, so they are kept under its name.
        host_bytes: of host memory that each of its processes takes beside the model, by what for.
        canary: compares what it records with a plain forward of the same weights, before a run's first step; see
            :func:`rollouts.engines.canary.check_sampler`. None: its sampling is its own affair.
        bind: makes the engine of a recipe, where it has settings of its own there; None: it reads none.
        lacking: of a recipe's settings, what this machine has not that they need, each a sentence.
        refused: of a recipe's settings, a configuration of a model that is sampled, the adapter that is trained over it
            (or None) and its device, what cannot work, each a sentence.

    Example:
        ``RolloutEngine(of_student=lambda student, closing: MySampler)`` in ``./mine.py`` under the name ``ENGINE`` is
        the engine of a recipe that says ``rollout: {engine: ./mine.py:ENGINE}``.
    """

    of_student: Callable[[StudentModel, ExitStack], MakeSampler] | None = None
    of_checkpoints: Callable[[SamplerProcesses, SamplerSettings, ExitStack], HoldCheckpoint] | None = None
    keyed: bool = False
    records_support: bool = False
    records_routing: bool = False
    takes_adapters: bool = False
    examines: bool = False
    shares_student: bool = False
    speculates: bool = False
    section: str | None = None
    needs_workers: bool = False
    workers_measure: bool = False
    asks_again: bool = False
    own_answers: bool = False
    host_bytes: Mapping[str, float] = field(default_factory=dict)
    canary: Callable[..., float] | None = None
    bind: Bind | None = None
    lacking: Callable[[RolloutRecipe], Iterator[str]] | None = None
    refused: Callable[[RolloutRecipe, Any, LoRA | None, str], Iterator[str]] | None = None

    def bound(
        self, rollout: RolloutRecipe, *, faults: FaultRecipe, folder: str | None, say: Callable[[str], None]
    ) -> RolloutEngine:
        """The engine of a recipe.

        Args:
            rollout: its section on rollouts.
            faults: what is done where processes are lost.
            folder: the run's or a stage's, where logs go; None: nobody keeps them.
            say: to people.
        """
        return self if self.bind is None else self.bind(rollout, faults, folder, say)


class WeightTransport(Protocol):
    """How the student's weights reach the processes that sample them."""

    def publish(self, weights: Weights, *, version: int) -> Weights:
        """Bring ``weights`` over; returns those that are to be sampled from."""
        ...


class InPlace:
    """The student's own processes sample: a reference is all that moves. Satisfies :class:`WeightTransport`."""

    def publish(self, weights: Weights, *, version: int) -> Weights:
        """The same weights."""
        return weights
