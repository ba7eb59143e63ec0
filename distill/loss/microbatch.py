"""From scored rollouts to optimizer steps: the split into updates, ranks and microbatches, and each token's weight.

The loss of an update is ``sum_d g_d * (mean over the trained tokens of domain d)``. The mean runs over all ranks and
microbatches, so a microbatch can't know its denominator: the plan does, and hands every token its weight ``g_d / N_d``.
The update's loss is then a plain weighted sum.

Shape legend: B sequences, T tokens of the longest one, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mopd.distill.loss.teacher_tensors import (
    HiddenRows,
    TeacherSlot,
    each_teacher_tensors,
    hidden_rows,
    mean_of_teachers,
    one_teacher,
)
from mopd.distill.types import PayloadName, RunError, ScoredRollout, UserError


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """One optimizer step.

    Attributes:
        token_weight: by domain, what one trained token weighs in the loss: ``(g_d / sum of g) / N_d``.
        trained_tokens: by domain, ``N_d``: trained tokens over all ranks and microbatches of this update.
        microbatches: ``microbatches[rank][number]`` are positions in the batch. Every rank has the same number of
            microbatches; an empty one is run as a dummy, because ranks wait for each other in every forward.
    """

    token_weight: dict[str, float]
    trained_tokens: dict[str, int]
    microbatches: tuple[tuple[tuple[int, ...], ...], ...]


def plan_updates(
    batch: Sequence[ScoredRollout],
    *,
    shares: Mapping[str, float],
    updates: int,
    ranks: int,
    microbatch_tokens: int,
    selective: bool = False,
) -> list[UpdatePlan]:
    """Split a batch into ``updates`` optimizer steps, each with every domain in it; a pure function of its arguments.

    Args:
        batch: all rollouts of a step; samples of one prompt may land in different updates.
        shares: ``g_d`` of every trained domain, relative to each other.
        microbatch_tokens: padded tokens of a microbatch at most; a longer rollout gets a microbatch of its own.
        selective: the grader selects. What it left out is in no update. A domain of which it kept nothing has no part
            in the update, whose other domains weigh what they would have; an update without any is not taken.

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
    return [
        _plan_one(batch, part, shares=shares, ranks=ranks, microbatch_tokens=microbatch_tokens)
        for part in parts
        if part
    ]


def _plan_one(
    batch: Sequence[ScoredRollout],
    by_domain: Mapping[str, Sequence[int]],
    *,
    shares: Mapping[str, float],
    ranks: int,
    microbatch_tokens: int,
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
        trained_tokens=tokens,
        microbatches=_pack(lengths, ranks=ranks, microbatch_tokens=microbatch_tokens),
    )


def _pack(lengths: Mapping[int, int], *, ranks: int, microbatch_tokens: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Fill the n-th microbatch of all ranks together, from the longest rollout down.

    The longest one left sets the width, and so how many rows a rank takes; rows are dealt in turn. Ranks thus run
    microbatches of nearly the same shape at the same time, and no rank has more of them than another.
    """
    # Longest first: the largest microbatch, which decides peak memory, is the first one and fails at once if it must.
    order = sorted(lengths, key=lambda i: (-lengths[i], i))
    by_rank: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    start = 0
    while start < len(order):
        rows = max(1, microbatch_tokens // lengths[order[start]])
        dealt = order[start : start + rows * ranks]
        for rank, microbatches in enumerate(by_rank):
            microbatches.append(tuple(dealt[rank::ranks]))
        start += len(dealt)
    return tuple(tuple(microbatches) for microbatches in by_rank)


@dataclass(frozen=True, slots=True)
class Microbatch:
    """What one forward and backward of one rank needs; right-padded to the longest sequence.

    Masked places (prompt, padding) may hold anything, NaN included.

    Attributes:
        token_ids_BT: int64.
        attention_mask_BT: int64, 1 at tokens and 0 at padding.
        mask_BT: bool, True at trained tokens.
        weights_BT: float32, ``g_d / N_d`` at trained tokens, else 0.
        sampler_logprobs_BT: float32, nats.
        domain_B: int64, index into the ``domains`` given to :func:`collate`.
        teacher: float32, nats: the teachers' weighted mean log-probabilities, ``(B, T, V)`` for payload ``full``,
            ``(B, T)`` for ``sampled``, None where the loss needs no teacher, or each one.
        has_teacher_B: bool, False where the rollout was graded by reward alone.
        reward_advantage_B: float32, group-normalised reward, or None where the loss uses no reward.
        reference_BT: float32, nats: the log-probabilities of the loss' reference, or None where it has none.
        per_teacher: the teachers one by one, for losses that are not a function of their mean; otherwise empty.
        hidden: for payload ``hidden``, else None.
    """

    token_ids_BT: Tensor
    attention_mask_BT: Tensor
    mask_BT: Tensor
    weights_BT: Tensor
    sampler_logprobs_BT: Tensor
    domain_B: Tensor
    teacher: Tensor | None
    has_teacher_B: Tensor
    reward_advantage_B: Tensor | None
    reference_BT: Tensor | None = None
    per_teacher: tuple[TeacherSlot, ...] = ()
    hidden: HiddenRows | None = None


def collate(
    rollouts: Sequence[ScoredRollout],
    *,
    token_weight: Mapping[str, float],
    domains: Sequence[str],
    pad_id: int,
    payload: PayloadName | None,
    reward_advantages: Sequence[float] | None,
    device: torch.device | str,
    needs_each_teacher: bool = False,
    reference: str | None = None,
) -> Microbatch:
    """Pad rollouts into the tensors of a microbatch. No rollouts give a dummy of 1 x 2 tokens that trains nothing.

    Args:
        token_weight: weight of a trained token by domain, from :class:`UpdatePlan`.
        domains: the trained domains in the recipe's order; ``domain_B`` points into it.
        payload: what the loss needs of the teachers; see ``distill.loss.registry.LOSSES``.
        reward_advantages: one per rollout, or None.
        needs_each_teacher: whether the loss needs the teachers one by one instead of their mean.
        reference: the teacher whose log-probabilities are wanted as well, see ``reference_BT``.

    Raises:
        ValueError: a rollout lacks the payload, or vocabularies differ in size.
    """
    if reward_advantages is not None and len(reward_advantages) != len(rollouts):
        raise ValueError(f"{len(reward_advantages)} reward advantages for {len(rollouts)} rollouts")
    B, T = max(1, len(rollouts)), max((len(scored.rollout.token_ids) for scored in rollouts), default=2)
    token_ids_BT = np.full((B, T), pad_id, dtype=np.int64)
    # A dummy attends to its padding: attention over nothing would be NaN.
    attention_mask_BT = np.full((B, T), 0 if rollouts else 1, dtype=np.int64)
    mask_BT = np.zeros((B, T), dtype=np.bool_)
    weights_BT = np.zeros((B, T), dtype=np.float32)
    sampler_logprobs_BT = np.zeros((B, T), dtype=np.float32)
    for b, scored in enumerate(rollouts):
        rollout = scored.rollout
        n = len(rollout.token_ids)
        token_ids_BT[b, :n] = rollout.token_ids
        attention_mask_BT[b, :n] = 1
        mask_BT[b, :n] = rollout.loss_mask
        weights_BT[b, :n] = np.where(rollout.loss_mask, token_weight[rollout.domain], 0.0)
        sampler_logprobs_BT[b, :n] = rollout.sampler_logprobs
    reward_B = None if reward_advantages is None else torch.tensor([*reward_advantages] or [0.0], dtype=torch.float32)
    anchor = None if reference is None else one_teacher(rollouts, (B, T), reference)
    mean = None if payload in (None, "hidden") or needs_each_teacher else mean_of_teachers(rollouts, (B, T), payload)
    per_teacher = () if payload is None or not needs_each_teacher else each_teacher_tensors(rollouts, (B, T), payload)
    return Microbatch(
        token_ids_BT=torch.from_numpy(token_ids_BT).to(device),
        attention_mask_BT=torch.from_numpy(attention_mask_BT).to(device),
        mask_BT=torch.from_numpy(mask_BT).to(device),
        weights_BT=torch.from_numpy(weights_BT).to(device),
        sampler_logprobs_BT=torch.from_numpy(sampler_logprobs_BT).to(device),
        domain_B=torch.tensor([domains.index(scored.rollout.domain) for scored in rollouts] or [0], device=device),
        teacher=None if mean is None else mean.to(device),
        has_teacher_B=torch.tensor([bool(scored.scores) for scored in rollouts] or [False], device=device),
        reward_advantage_B=None if reward_B is None else reward_B.to(device),
        reference_BT=None if anchor is None else anchor.to(device),
        per_teacher=tuple(slot.to(device) for slot in per_teacher),
        hidden=hidden_rows(rollouts, (B, T)).to(device) if payload == "hidden" else None,
    )
