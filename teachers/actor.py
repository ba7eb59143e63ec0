"""A teacher's process: it holds one base with its adapters at a time, and tells whether that is still the same."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mopd.distill.types import Float32, Payload, Sampled
from mopd.teachers.dry_run import reference_of
from mopd.teachers.scorer import TOLERANCE, Conditions, Scorer, TeacherSource
from mopd.teachers.views import ScoreRequest, TeacherView, score_views

CANARY_TOKENS = 32


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """What a teacher's processes need, and how many there are.

    Teachers that differ in nothing but the adapter share processes, and the base in their memory.

    Attributes:
        gpus: that each process takes of its node.
        resources: of Ray, by name, that each process takes of its node besides.
        has_weights: whether the processes hold weights; else they only ask, take no room of others, and what they ask
            may come back as it likes.
    """

    source: TeacherSource
    conditions: Conditions
    gpus: float
    replicas: int
    adapter: str | None = None
    resources: tuple[tuple[str, float], ...] = ()
    has_weights: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class TeacherGroup:
    """Teachers that are loaded together.

    Attributes:
        spec: of their base.
        adapters: the folder of each one's adapter by the teacher's name; None for the base itself.
    """

    spec: TeacherSpec
    adapters: Mapping[str, str | None]

    @property
    def folders(self) -> list[str]:
        """Of the adapters."""
        return [folder for folder in self.adapters.values() if folder]


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """What a process says of a microbatch: its payloads in order, and the seconds that it worked on them."""

    payloads: list[Payload]
    seconds: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a process says of weights that it has loaded, so that another loading of them can be compared.

    Attributes:
        vocabulary: how many tokens the output distributes over.
        weights: a hash of all of them, adapters included; None where the kind has none, or nobody asked.
        canaries: log-probabilities ``(T,)``, in nats, of tokens that are always the same, by teacher.
        tolerance: nats by which those may differ: kernels of a GPU need not repeat, nor those of another one.
    """

    vocabulary: int
    weights: str | None = None
    canaries: Mapping[str, Float32] = field(default_factory=dict)
    tolerance: float = 0.0

    def change(self, now: Loaded, *, scores: bool = True) -> str | None:
        """What of a later loading is not as in this one, as a predicate; None where all is.

        Args:
            scores: whether what the canaries say is compared, too.
        """
        if now.vocabulary != self.vocabulary:
            return f"came back with {now.vocabulary} output tokens and had {self.vocabulary}"
        if now.weights != self.weights:
            return f"came back with other weights (sha256 {now.weights}, it was {self.weights})"
        for name, was_T in self.canaries.items() if scores else ():
            if (is_T := now.canaries.get(name)) is None:
                return f"came back, and as {name!r} does not answer as it did"
            apart = float(np.where(np.isnan(is_T) & np.isnan(was_T), 0.0, np.abs(is_T - was_T)).max())
            if not apart <= self.tolerance:
                return f"came back, and as {name!r} scores the same tokens {apart:.2g} nats from where it did"
        return None


class TeacherProcess:
    """Lives in the actor (:class:`distill.hosts.Host`): one thread, and one base at a time."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.scorer: Any = None

    def load(self, group: TeacherGroup, compared: bool) -> Loaded:
        """Load the weights, in the place of those that are here.

        Args:
            compared: whether a hash of all weights is taken, too, for it will be loaded often. Canaries are, always,
                but for a server, which may come back as it likes.
        """
        import torch

        self.scorer = None  # first: there may be no room for two
        gc.collect()
        torch.cuda.empty_cache()
        spec = group.spec
        self.scorer = spec.source.open(spec.conditions, group.folders)
        digest = getattr(self.scorer, "digest", None)
        if not spec.has_weights:
            return Loaded(self.scorer.vocabulary)
        canaries = {name: canary(self.scorer, folder, spec.conditions) for name, folder in group.adapters.items()}
        return Loaded(
            self.scorer.vocabulary,
            digest() if compared and digest is not None else None,
            {name: logprobs_T for name, logprobs_T in canaries.items() if logprobs_T is not None},
            TOLERANCE[getattr(self.scorer, "dtype", "float32")],
        )

    def score(self, request: ScoreRequest, adapter: str | None) -> ScoreResponse:
        """A microbatch, by :func:`teachers.views.score_views`."""
        start = time.perf_counter()
        payloads = score_views(self.scorer, request, adapter)
        return ScoreResponse(payloads, time.perf_counter() - start)

    def reference(self, request: ScoreRequest, adapter: str | None) -> Float32 | None:
        """The log-probabilities of the first rollout's tokens by the scorer's own reference, ``(T,)``; None where its
        kind has none."""
        return reference_of(self.scorer, request, adapter)


def canary(scorer: Scorer, adapter: str | None, conditions: Conditions) -> Float32 | None:
    """Log-probabilities of tokens that are the same each time, ``(T,)``, in nats; row 0 is 0, for it says nothing.

    None where the answer is not what was asked for, which the checks of what it scores will say.
    """
    ids_T = (np.arange(CANARY_TOKENS) * 7919 % scorer.vocabulary).astype(np.int32)
    support = conditions.support
    given = None
    if support is not None and support.given:  # a kind that has nothing but its top k needs them
        given = [np.tile(np.arange(min(support.k, scorer.vocabulary), dtype=np.int32), (CANARY_TOKENS, 1))]
    view = TeacherView("", "", None, np.arange(CANARY_TOKENS) > 0)
    payloads = score_views(scorer, ScoreRequest([ids_T], "sampled", given, [view]), adapter)
    if len(payloads) != 1 or not isinstance(payloads[0], Sampled) or payloads[0].logprobs_T.shape != ids_T.shape:
        return None
    logprobs_T = payloads[0].logprobs_T.copy()
    logprobs_T[0] = 0.0
    return logprobs_T
