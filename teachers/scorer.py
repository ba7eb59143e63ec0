"""What a teacher's process holds, and what it is opened from: two Protocols, behind which every kind of teacher is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mopd.distill.payloads import Support
from mopd.distill.types import Int32, Payload, PayloadName

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
"""Nats by which two ways to one log-probability may differ; they differ by the padding of a forward."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a teacher is asked under; the same for all teachers of a run.

    Attributes:
        temperature: logits are divided by it, as the student's are.
        microbatch_tokens: tokens of one forward at most, padding included; a longer rollout goes alone.
        support: which tokens to ship for payload ``topk``.
        vocabulary: how many ids the student's tokenizer has. A distribution is over these alone: rows of an output head
            beyond them stand for no token, and models of one family differ in them. None: over the whole head.
        packing: whether the rollouts of a forward are laid one after another, without padding; only of kinds that do.
    """

    temperature: float
    microbatch_tokens: int
    support: Support | None = None
    vocabulary: int | None = None
    packing: bool = False


class Scorer(Protocol):
    """A teacher that was opened: it says how likely given tokens are."""

    @property
    def vocabulary(self) -> int:
        """How many tokens its output distributes over."""
        ...

    def score(
        self,
        token_ids: Sequence[Int32],
        payload: PayloadName,
        adapter: str | None = None,
        given: Sequence[Int32] | None = None,
    ) -> list[Payload]:
        """Score rollouts, each an array of token ids of shape ``(T,)``, in order.

        Args:
            given: for payload ``topk``, the student's likeliest tokens of each rollout, ``(T, K)``, where the
                conditions' support asks for them. A kind that cannot answer for given tokens is refused before the run.

        Returns:
            Aligned payloads of T rows each (row ``t`` speaks of token ``t``), in nats, at the conditions' temperature.
            Row 0 says nothing, for no token precedes token 0.
        """
        ...


class TeacherSource(Protocol):
    """Where a teacher comes from. Hashable, so that teachers of one source share processes, and sent to a process."""

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> Scorer:
        """Load it, or reach it, in the process that calls this.

        Args:
            adapters: folders of LoRA adapters over it; empty for kinds that take none.
        """
        ...
