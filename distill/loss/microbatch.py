"""From scored rollouts to the tensors of one forward and backward of one rank.

Shape legend: B sequences, T tokens of the longest one, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mopd.distill.loss.teacher_tensors import (
    HiddenRows,
    TeacherRows,
    each_teacher_tensors,
    hidden_rows,
    mean_of_teachers,
    one_teacher,
)
from mopd.distill.types import PayloadName, ScoredRollout


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
    per_teacher: tuple[TeacherRows, ...] = ()
    hidden: HiddenRows | None = None


@dataclass(frozen=True, slots=True)
class TrainedColumns:
    """A microbatch without the tokens that are not trained: what an estimator is given.

    Attributes:
        microbatch: its rows hold the N trained tokens of each sequence, in order, right-padded to the most of any; what
            the model reads is not in it.
        places_BN: int64, where each of them is in its sequence; 0 at padding.
    """

    microbatch: Microbatch
    places_BN: Tensor


def trained_columns(microbatch: Microbatch) -> TrainedColumns:
    """The trained tokens alone: all that a loss may read, so that nothing is computed for a prompt's tokens.

    A microbatch that trains nothing has one column, which is padding.
    """
    B, T = microbatch.mask_BT.shape
    counts_B = microbatch.mask_BT.sum(dim=1)
    N = max(1, int(counts_B.max()))
    mask_BN = torch.arange(N, device=counts_B.device) < counts_B.unsqueeze(1)
    # Trained tokens first, each kind in its order; a place beyond the trained ones is padding.
    order_BN = torch.argsort(microbatch.mask_BT.logical_not().to(torch.uint8), dim=1, stable=True)[:, :N]
    places_BN = order_BN.masked_fill(~mask_BN, 0)
    flat = (places_BN + T * torch.arange(B, device=places_BN.device).unsqueeze(1)).flatten()

    def moved(values_BT: Tensor) -> Tensor:
        return values_BT.flatten(0, 1).index_select(0, flat).unflatten(0, (B, N))

    def arrays(rows: TeacherRows) -> TeacherRows:
        return TeacherRows(rows.weight_B, {name: moved(array) for name, array in rows.arrays.items()})

    teacher, reference_BT = microbatch.teacher, microbatch.reference_BT
    columns = replace(
        microbatch,
        token_ids_BT=moved(microbatch.token_ids_BT),
        attention_mask_BT=mask_BN.long(),
        mask_BT=mask_BN,
        weights_BT=moved(microbatch.weights_BT).masked_fill(~mask_BN, 0.0),
        sampler_logprobs_BT=moved(microbatch.sampler_logprobs_BT),
        teacher=None if teacher is None else moved(teacher),
        reference_BT=None if reference_BT is None else moved(reference_BT),
        per_teacher=tuple(arrays(rows) for rows in microbatch.per_teacher),
    )
    return TrainedColumns(columns, places_BN)


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
        token_weight: weight of a trained token by domain, from :class:`distill.student.plan.UpdatePlan`.
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
        per_teacher=tuple(rows.to(device) for rows in per_teacher),
        hidden=hidden_rows(rollouts, (B, T)).to(device) if payload == "hidden" else None,
    )
