"""How far the student is from its teachers on prompts that it does not train on: pure functions of graded rollouts.

Shape legend: T tokens of a sequence, V vocabulary, K entries of a support, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mopd.distill.loss.teacher_tensors import sampled_logprobs
from mopd.distill.types import Full, Int32, Metrics, ScoredRollout, TopK, trained_rows

OVERLAP_K = 8
"""Likeliest tokens that student and teacher are compared on."""


def distance_metrics(batch: Sequence[ScoredRollout]) -> Metrics:
    """By domain ``d``, means over the trained tokens of rollouts that teachers graded.

    held_out_kl/d: reverse KL, the one-sample estimate ``log mu - log pi_T`` with the teachers' mean, nats; chance may
        make it negative.
    held_out_entropy/d: of the student, the one-sample estimate ``- log mu``, nats; towards 0 is collapse.
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
