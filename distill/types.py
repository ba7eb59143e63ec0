"""What crosses the seams between acting, grading and moving, and the alignment rule.

Shape legend, used in every file: B sequences, T tokens of a sequence (prompt and completion), V vocabulary,
K entries of a top-k support, H hidden size. A suffix names the shape: ``logits_BTV``.

**Alignment, stated once.** Every per-token sequence has length ``T = len(token_ids)``. Position ``t`` speaks of token
``t`` *given the tokens before it*: its log-probability, its advantage, the row of the distribution it was drawn from.
Prompt positions are masked, the closing EOS is trained. A causal model emits at position ``t`` the distribution of
token ``t + 1``; :func:`align_logits` is the one place where that shift is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from mopd.distill.errors import GradingFailed as GradingFailed
from mopd.distill.errors import NonFinite as NonFinite
from mopd.distill.errors import RunError as RunError
from mopd.distill.errors import UserError as UserError
from mopd.distill.payloads import Chunked as Chunked
from mopd.distill.payloads import Float32 as Float32
from mopd.distill.payloads import Full as Full
from mopd.distill.payloads import Hidden as Hidden
from mopd.distill.payloads import Int32 as Int32
from mopd.distill.payloads import Payload as Payload
from mopd.distill.payloads import PayloadName as PayloadName
from mopd.distill.payloads import Sampled as Sampled
from mopd.distill.payloads import TeacherScore as TeacherScore
from mopd.distill.payloads import TopK as TopK
from mopd.distill.payloads import UInt16 as UInt16
from mopd.distill.verdicts import EpisodeRecord as EpisodeRecord

Bool: TypeAlias = npt.NDArray[np.bool_]
Finish: TypeAlias = Literal["eos", "length", "stop"]
Metrics: TypeAlias = dict[str, float]


def align_logits(logits_BTV: torch.Tensor) -> torch.Tensor:
    """Shift a causal model's output so that row ``t`` is the distribution of token ``t`` given the tokens before it.

    Args:
        logits_BTV: the model's raw logits, shape ``(B, T, V)``; row ``t`` predicts token ``t + 1``.

    Returns:
        Logits of shape ``(B, T, V)``. Row 0 is all zeros: no token precedes token 0, so nothing may be asked of it.

    Example:
        For token ids ``[a, b, c]`` row 2 of the result is the model's distribution of ``c`` given ``a, b``.
    """
    first_B1V = torch.zeros_like(logits_BTV[:, :1])
    return torch.cat([first_B1V, logits_BTV[:, :-1]], dim=1)


def aligned_rows(values_BTH: torch.Tensor, places_BN: torch.Tensor) -> torch.Tensor:
    """The rows of :func:`align_logits` of some tokens alone, ``(B, N, H)``, without making the others.

    Args:
        values_BTH: a model's raw output, logits or what goes into its head.
        places_BN: int64, places of tokens in their sequences, from 1. What is returned for place 0 says nothing.
    """
    B, T = values_BTH.shape[:2]  # not per token
    before_BN = (places_BN - 1).clamp(min=0) + T * torch.arange(B, device=places_BN.device).unsqueeze(1)
    return values_BTH.flatten(0, 1).index_select(0, before_BN.flatten()).unflatten(0, places_BN.shape)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question of one domain. ``id`` is unique within a recipe; ``token_ids`` is what the student is given.

    ``answer`` is the gold answer as text; verifiers compare with it and the supervised method trains on it.
    ``text`` is what a person reads.
    """

    domain: str
    id: str
    token_ids: tuple[int, ...]
    text: str
    answer: str

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.id!r} of domain {self.domain!r} has no tokens; a model needs at least one")


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """What the guesses of draft heads did for a rollout.

    Attributes:
        forwards: of the model that checked guesses; the rest of the rollout was written a token at a time.
        tokens: written by them.
        offered: how often a guess was made at each position of a round, and all before it were right.
        accepted: how often it was right itself.
    """

    forwards: int
    tokens: int
    offered: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class History:
    """An episode that another than the student played, after some turns of which the student writes the next.

    Attributes:
        writer: the teacher; None where a script says what is right.
        turns: of it that stand before what the student writes.
        tokens: of the whole episode, prompt included: what it took to write.
    """

    writer: str | None
    turns: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt and what the policy wrote after it. All arrays have length ``T = len(token_ids)``.

    Attributes:
        token_ids: prompt tokens, then completion tokens, EOS included where ``finish == "eos"``.
        loss_mask: True where the token is the policy's own and is trained.
        sampler_logprobs: natural log-probability under the sampler's distribution of each trained token; anything
            (zero by convention) at masked positions.
        finish: ``"eos"``, or ``"length"`` where the completion was cut at the limit; in evaluations also ``"stop"``,
            where it wrote a stop string, which is still in it.
        version: the steps of the oldest and of the newest weights that wrote it; equal where no weights were loaded
            while it was written.
        group: number of the prompt within its step; samples of one prompt share it.
        index: number of the rollout within its step.
        routed_experts: ``(T, moe layers, experts per token)`` where routing was recorded.
        support_ids: ``(T, K)`` the sampler's likeliest tokens, where the loss asks its teachers for those; anything at
            masked positions. See :func:`distill.payloads.likeliest`.
        drafts: where it was written with guesses of draft heads.
        episode: of a rollout of several turns, what became of it; None of an answer to a prompt.
        writer: the teacher that wrote it; None where that was the student.
        history: where the student went on from an episode that another had begun; its masked tokens hold that.
    """

    prompt: Prompt
    token_ids: Int32
    loss_mask: Bool
    sampler_logprobs: Float32
    finish: Finish
    version: tuple[int, int]
    group: int
    index: int
    routed_experts: Int32 | None = None
    support_ids: Int32 | None = None
    drafts: DraftCounts | None = None
    episode: EpisodeRecord | None = None
    writer: str | None = None
    history: History | None = None

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        for name in ("loss_mask", "sampler_logprobs", "support_ids"):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise ValueError(
                    f"rollout {self.index} ({self.prompt.id}): {name} has length {len(values)}, "
                    f"token_ids has {n}; every per-token sequence has the length of token_ids"
                )
        if not self.version[0] <= self.version[1]:
            raise ValueError(
                f"rollout {self.index} ({self.prompt.id}): version is {self.version}; (oldest, newest) is needed"
            )
        if tuple(self.token_ids[: len(self.prompt.token_ids)].tolist()) != self.prompt.token_ids:
            raise ValueError(f"rollout {self.index} ({self.prompt.id}): token_ids do not begin with the prompt's")
        if self.loss_mask[: len(self.prompt.token_ids)].any():
            raise ValueError(f"rollout {self.index} ({self.prompt.id}): a prompt position is marked as trained")

    @property
    def domain(self) -> str:
        """The domain of its prompt: the label travels with the datum."""
        return self.prompt.domain

    @property
    def trained_tokens(self) -> int:
        """How many of its tokens are trained."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout, the weighted scores of its teachers (weights sum to 1, or there are none) and its reward, if any.

    A payload has a row for each token of the rollout, or for each trained token alone: :func:`trained_rows`.
    ``kept`` is False where a grader that selects left it out: it was written, and nothing is learnt from it.
    """

    rollout: Rollout
    scores: tuple[tuple[float, TeacherScore], ...] = ()
    reward: float | None = None
    kept: bool = True

    def __post_init__(self) -> None:
        total = sum(weight for weight, _ in self.scores)
        if self.scores and abs(total - 1.0) > 1e-6:
            names = ", ".join(f"{s.teacher}: {w}" for w, s in self.scores)
            raise ValueError(f"teacher weights of rollout {self.rollout.index} sum to {total}, not 1 ({names})")
        for _, score in self.scores:
            rows = next((len(array) for array in score.payload.arrays().values()), 0)
            if rows not in (len(self.rollout.token_ids), self.rollout.trained_tokens):
                raise ValueError(
                    f"teacher {score.teacher!r} scored {rows} positions of rollout {self.rollout.index} "
                    f"(domain {self.rollout.domain!r}), which has {len(self.rollout.token_ids)} tokens, "
                    f"{self.rollout.trained_tokens} of them trained"
                )


def trained_rows(values: npt.NDArray[Any], rollout: Rollout) -> npt.NDArray[Any]:
    """The rows of a rollout's trained tokens, ``(N, ...)``: of an array that has one for each token, or just these.

    The two are never as many: a prompt has a token at least, and none of its is trained.
    """
    return values if len(values) == rollout.trained_tokens else values[rollout.loss_mask]


@runtime_checkable
class Weights(Protocol):
    """The student's weights of one version, without saying where they are.

    A sampler that shares the student's process runs its generation through ``on_ranks`` and copies nothing; one that
    doesn't fetches ``state_dict`` (Hugging Face names, CPU tensors) and publishes it under the version.
    """

    def on_ranks(self, fn: Callable[..., Any], per_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``fn(module, *per_rank[r])`` on every rank ``r`` with its live module; returns the results by rank."""
        ...

    @property
    def ranks(self) -> int:
        """How many ranks ``on_ranks`` reaches."""
        ...

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The consolidated weights under Hugging Face names, on the CPU, in the model's dtype; an adapter that is
        trained is added in."""
        ...

    def adapter_state(self) -> Mapping[str, torch.Tensor]:
        """Of a student that trains an adapter, that alone, by peft's names, on the CPU."""
        ...


class Sampler(Protocol):
    """Who acts: writes completions of prompts with the weights it was given last."""

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Act with ``weights`` from now on; rollouts carry ``version``."""
        ...

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Yield microbatches of rollouts as they finish, in the order of ``prompts``.

        Members and padding of a microbatch are a pure function of ``(step, microbatch number)``.
        """
        ...


class Grader(Protocol):
    """Who grades: turns rollouts into scored rollouts, in the order in which they come."""

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        """Score every rollout; consumes microbatches as they are sampled. Raises rather than drop or skip one.

        Raises:
            GradingFailed: the grader broke; NonFinite: its scores are broken. The student's weights are whole.
        """
        ...

    def metrics(self) -> Metrics:
        """What grading took since the last call, for the step's row: ``teacher_retries/NAME`` and the like.

        Teachers' own ``seconds/teacher/NAME`` come with ``teacher_processes``, how many processes share them.
        """
        ...


class Student(Protocol):
    """Who learns."""

    def load_latest(self) -> int:
        """Restore the newest whole checkpoint, if any; return the number of finished steps (0 if none)."""
        ...

    def weights(self) -> Weights:
        """The weights of now."""
        ...

    def update(self, batch: Sequence[ScoredRollout], *, step: int) -> Metrics:
        """Take the recipe's ``updates_per_step`` optimizer steps on ``batch``.

        Raises:
            NonFinite: loss or scores are NaN or infinite; raised on every rank, before the weights move.
        """
        ...

    def worked(self) -> Sequence[float]:
        """Seconds that each rank computed since the last call, without waits for the others."""
        ...

    def save(self, step: int, beside: Mapping[str, bytes] | None = None) -> None:
        """Write a checkpoint from which a run resumes exactly after ``step`` finished steps, with files ``beside`` it
        by their names."""
        ...

    def beside(self, step: int, name: str) -> bytes | None:
        """A file that :meth:`save` wrote with the checkpoint after ``step`` finished steps; None where it wrote none of
        that name."""
        ...

    def export(self, path: str) -> None:
        """Write a Hugging Face checkpoint with its tokenizer."""
        ...


Prompts: TypeAlias = Callable[[int], Sequence[Prompt]]
"""The prompts of a step: a pure function of the step's number."""
