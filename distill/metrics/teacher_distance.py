"""How far the student is from its teachers on prompts that it does not train on: pure functions of graded rollouts.

Shape legend: T tokens of a sequence, V vocabulary, K entries of a support, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mopd.distill.loss.teacher_tensors import sampled_logprobs
from mopd.distill.types import Chunked, Full, Int32, Metrics, ScoredRollout, TopK, align_logits, trained_rows

OVERLAP_K = 8
"""Likeliest tokens that student and teacher are compared on."""
LEAST_LOGPROB = -1e4
"""In the place of minus infinity, whose product with a probability of 0 is none."""


@dataclass(frozen=True, slots=True)
class WholeDistance:
    """Sums over a rollout's trained tokens, in nats, of whole distributions: reverse KL ``sum_k w_k KL(mu || pi_k)`` of
    the student from its teachers, and entropy of the student."""

    kl: float
    entropy: float


@torch.no_grad()
def whole_distances(model: Any, graded: Sequence[ScoredRollout], temperature: float) -> list[WholeDistance]:
    """The distance of a student's whole distributions from its teachers', a forward for each rollout.

    Args:
        model: the student, a transformers causal language model; in eval mode for the call.
        graded: rollouts that teachers graded with whole distributions (:class:`Full`), of this temperature.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        return [_whole_distance(model, scored, temperature, device) for scored in graded]
    finally:
        model.train(training)


def _whole_distance(model: Any, scored: ScoredRollout, temperature: float, device: torch.device) -> WholeDistance:
    rollout = scored.rollout
    mask_T = torch.from_numpy(rollout.loss_mask).to(device)
    ids_1T = torch.from_numpy(rollout.token_ids).long().unsqueeze(0).to(device)
    logits_TV = align_logits(model(input_ids=ids_1T, use_cache=False).logits)[0]
    kl, logp_NV = 0.0, torch.empty(0)
    for weight, score in scored.scores:
        assert isinstance(score.payload, Full), "asked for"
        teacher_NV = torch.from_numpy(trained_rows(score.payload.logprobs_TV, rollout)).to(device)
        # Rows beyond the tokenizer's ids stand for no token, and a teacher ships none of them.
        logp_NV = torch.log_softmax(logits_TV[mask_T][:, : teacher_NV.shape[1]].float() / temperature, dim=-1)
        # Where the student has no probability the term is 0, whatever the teacher says.
        gap_NV = torch.where(logp_NV.exp() > 0, logp_NV - teacher_NV, 0.0)
        kl += weight * float((logp_NV.exp() * gap_NV).double().sum())
    entropy = -float((logp_NV.exp() * logp_NV.clamp(min=LEAST_LOGPROB)).double().sum())
    return WholeDistance(kl, entropy)


def distance_metrics(batch: Sequence[ScoredRollout], whole: Mapping[int, WholeDistance] | None = None) -> Metrics:
    """By domain ``d``, means over the trained tokens of rollouts that teachers graded.

    held_out_kl/d: reverse KL, nats: of whole distributions where ``whole`` has every graded rollout, by its index; else
        the one-sample estimate ``log mu - log pi_T`` with the teachers' mean, which chance may make negative.
    held_out_entropy/d: of the student, nats, in the same way; the estimate is ``- log mu``. Towards 0 is collapse.
    topk_overlap/d: which part of the student's :data:`OVERLAP_K` likeliest tokens is among the teacher's as many,
        weighted over teachers. Only where teachers ship enough of their distribution (``full``, ``topk``), and the
        sampler recorded the student's likeliest.

    Source: the estimate is k1 of J. Schulman, "Approximating KL divergence" (2020).
    """
    sums: dict[str, list[float]] = {}
    for scored in batch:
        if not scored.scores:
            continue
        rollout = scored.rollout
        said_N = rollout.sampler_logprobs[rollout.loss_mask].astype(np.float64)
        gap_N = said_N - sampled_logprobs(scored)
        overlap = _overlap(scored)
        parts = {"held_out_kl": float(gap_N.sum()), "held_out_entropy": -float(said_N.sum())}
        if whole is not None:
            parts = {"held_out_kl": whole[rollout.index].kl, "held_out_entropy": whole[rollout.index].entropy}
        parts |= {} if overlap is None else {"topk_overlap": overlap}
        for name, value in parts.items():
            total = sums.setdefault(f"{name}/{rollout.domain}", [0.0, 0.0])
            total[0] += value
            total[1] += rollout.trained_tokens
    return {name: value / max(1.0, tokens) for name, (value, tokens) in sums.items()}


def _overlap(scored: ScoredRollout) -> float | None:
    """Summed over the trained tokens; None where a part of it is not known."""
    rollout = scored.rollout
    if rollout.support_ids is None:
        return None
    own_NK = rollout.support_ids[rollout.loss_mask]
    total = 0.0
    for weight, score in scored.scores:
        match score.payload:
            case Chunked():  # of tokens of the teacher's own
                return None
            case Full(logprobs_TV):
                theirs_NK = _top(trained_rows(logprobs_TV, rollout), own_NK.shape[1])
            case TopK(ids_TK, logprobs_TK) if ids_TK.shape[1] >= own_NK.shape[1]:
                places_NK = _top(trained_rows(logprobs_TK, rollout), own_NK.shape[1])
                theirs_NK = np.take_along_axis(trained_rows(ids_TK, rollout), places_NK, axis=1)
            case _:
                return None
        shared_NK = (own_NK[:, :, None] == theirs_NK[:, None, :]).any(axis=2)
        total += weight * float(shared_NK.mean(axis=1).sum())
    return total


def _top(values_NV: np.ndarray, k: int) -> Int32:
    """Places of the ``k`` largest values of each row."""
    return np.argpartition(-values_NV, k - 1, axis=1)[:, :k].astype(np.int32)
