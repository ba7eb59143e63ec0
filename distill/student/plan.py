"""The split of a step into optimizer steps, ranks and microbatches, and what each token weighs.

The loss of an update is ``sum_d g_d * (mean over the trained tokens of domain d)``. The mean runs over all ranks and
microbatches, so a microbatch can't know its denominator: the plan does, and hands every token its weight ``g_d / N_d``.
The update's loss is then a plain weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mopd.distill.models.packing import forward_rows
from mopd.distill.types import RunError, ScoredRollout, UserError


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """One optimizer step.

    Attributes:
        token_weight: by domain, what one trained token weighs in the loss: ``(g_d / sum of g) / N_d``.
        microbatches: ``microbatches[rank][number]`` are positions in the batch. Every rank has the same number of
            microbatches; an empty one is run as a dummy, because ranks wait for each other in every forward.
    """

    token_weight: dict[str, float]
    microbatches: tuple[tuple[tuple[int, ...], ...], ...]


def plan_updates(
    batch: Sequence[ScoredRollout],
    *,
    shares: Mapping[str, float],
    updates: int,
    ranks: int,
    microbatch_tokens: int,
    selective: bool = False,
    packing: bool = False,
) -> list[UpdatePlan]:
    """Split a batch into ``updates`` optimizer steps, each with every domain in it; a pure function of its arguments.

    Args:
        batch: all rollouts of a step; samples of one prompt may land in different updates.
        shares: ``g_d`` of every trained domain, relative to each other.
        microbatch_tokens: tokens of a microbatch at most, padding included; a longer rollout gets a microbatch of its
            own.
        selective: the grader selects. What it left out is in no update. A domain of which it kept nothing has no part
            in the update, whose other domains weigh what they would have; an update without any is not taken.
        packing: microbatches have no padding.

    Raises:
        UserError: a domain has fewer rollouts than there are updates; not where ``selective``.
        RunError: a domain has no trained token in an update.
        ValueError: a rollout's domain has no share.

    Why shares are explicit: a token mean weighs a domain by what it writes (Open-MOPD, arXiv 2608.19098), a sequence
    mean by its noise (DN-MOPD, arXiv 2609.35347).
    """
    by_domain: dict[str, list[int]] = {name: [] for name in shares}
    for position, scored in enumerate(batch):
        if scored.rollout.domain not in by_domain:
            raise ValueError(
                f"rollout {scored.rollout.index} is of domain {scored.rollout.domain!r}; shares are of {list(shares)}"
            )
        if scored.kept:
            by_domain[scored.rollout.domain].append(position)
    problems = [
        f"domain {name!r} has {len(positions)} rollouts for {updates} updates; every update needs at least one: "
        "give the domain more prompts, or lower student.updates_per_step"
        for name, positions in by_domain.items()
        if len(positions) < updates
    ]
    if problems and not selective:
        raise UserError(*problems)
    parts = [{name: positions[u::updates] for name, positions in by_domain.items()} for u in range(updates)]
    if selective:
        parts = [{name: positions for name, positions in part.items() if positions} for part in parts]
    how: Any = {"ranks": ranks, "microbatch_tokens": microbatch_tokens, "packing": packing}
    return [_plan_one(batch, part, shares=shares, **how) for part in parts if part]


def _plan_one(
    batch: Sequence[ScoredRollout],
    by_domain: Mapping[str, Sequence[int]],
    *,
    shares: Mapping[str, float],
    ranks: int,
    microbatch_tokens: int,
    packing: bool,
) -> UpdatePlan:
    tokens = {name: sum(batch[i].rollout.trained_tokens for i in positions) for name, positions in by_domain.items()}
    for name, count in tokens.items():
        if count == 0:
            raise RunError(
                f"domain {name!r} has no trained token in an update: its {len(by_domain[name])} rollouts are empty, "
                "and its share of the loss has nothing to act on"
            )
    total_share = math.fsum(shares.values())
    lengths = {i: len(batch[i].rollout.token_ids) for positions in by_domain.values() for i in positions}
    return UpdatePlan(
        token_weight={name: shares[name] / total_share / count for name, count in tokens.items()},
        microbatches=_dealt(lengths, ranks=ranks, microbatch_tokens=microbatch_tokens, packing=packing),
    )


def _dealt(
    lengths: Mapping[int, int], *, ranks: int, microbatch_tokens: int, packing: bool
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Fill the n-th microbatch of all ranks together, from the longest rollout down.

    The longest ones left, or the first rank's, set how many rows a rank takes; rows are dealt in turn. Ranks thus run
    microbatches of nearly the same shape at the same time, and no rank has more of them than another.
    """
    # Longest first: the largest microbatch, which decides peak memory, is the first one and fails at once if it must.
    order = sorted(lengths, key=lambda i: (-lengths[i], i))
    by_rank: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    start = 0
    while start < len(order):
        first = [lengths[i] for i in order[start::ranks]]  # the first rank's, which are the longest in each turn
        rows = forward_rows(first, microbatch_tokens, packing=packing)
        dealt = order[start : start + rows * ranks]
        for rank, microbatches in enumerate(by_rank):
            microbatches.append(tuple(dealt[rank::ranks]))
        start += len(dealt)
    return tuple(tuple(microbatches) for microbatches in by_rank)
