"""The reverse KL on the likeliest tokens of teacher, student or both; the support is chosen in distill/payloads.py.

Probabilities are raw, never renormalised, and whatever is outside the support is either left out in the way that still
gives no gradient where student and teacher agree (the generalised KL), or is one more outcome (the bucket). A plain
truncated sum is neither, and is refused: ``distill.recipe.TRAPS``.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, K tokens of the support, N trained tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mopd.distill.loss.base import Divergence, TokenLoss, divergence_loss, each_teacher
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.teacher_tensors import TeacherRows
from mopd.distill.payloads import rest_logprobs
from mopd.distill.recipe import TopKReverseKL


def topk_reverse_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: TopKReverseKL) -> TokenLoss:
    """The reverse KL on the support that each teacher answered for; several teachers: ``sum_k w_k`` of theirs.

    ``outside: left_out`` is ``sum_S [p log(p/q) - p + q]``: no gradient at p = q, the exact reverse KL where S is
    everything, and no push on tokens outside of S but through the softmax: a favourite of the student's that is not
    the teacher's stays, unless S has the student's likeliest too. ``outside: bucket`` adds
    ``p_rest log(p_rest / q_rest)``, all other tokens as one outcome: a KL, at most the exact one.
    The statistic ``kl`` is the bucket's in both.

    Source: arXiv 2606.30406, eq 5; the bucket is what TRL calls the tail of a top-k divergence.
    """

    def one_teacher(rows: TeacherRows, mask_BT: Tensor) -> TokenLoss:
        if rows.arrays and "ids_TK" not in rows.arrays:
            raise ValueError("this estimator needs top-k scores, and the microbatch has whole distributions")
        ids_NK, logq_NK = rows.arrays["ids_TK"][mask_BT], rows.arrays["logprobs_TK"][mask_BT]
        rest_N = rows.arrays["rest_T"][mask_BT]
        return divergence_loss(
            logits_BTV,
            microbatch,
            mask_BT,
            lambda logp_NV: _rows(logp_NV, ids_NK, logq_NK=logq_NK, logq_rest_N=rest_N, outside=settings.outside),
            teacher_logprobs_N=rows.arrays["sampled_T"][mask_BT],
        )

    return each_teacher(microbatch, one_teacher)


def _rows(
    logp_NV: Tensor,
    ids_NK: Tensor,
    *,
    logq_NK: Tensor,
    logq_rest_N: Tensor,
    outside: Literal["left_out", "bucket"],
) -> Divergence:
    """With ``g`` the log-ratio of each token, or of what stands for it, the gradient is ``p (g - sum p g)``."""
    logp_NK, logp_rest_N = logp_NV.gather(-1, ids_NK), rest_logprobs(logp_NV, ids_NK)
    p_NK, p_rest_N = logp_NK.exp(), logp_rest_N.exp()
    # 0 log(0/q) is 0 by definition, also where both are 0: the rest of a support that is everything.
    ratio_NK = (logp_NK - logq_NK).masked_fill(p_NK == 0, 0.0)
    ratio_rest_N = (logp_rest_N - logq_rest_N).masked_fill(p_rest_N == 0, 0.0)
    inside_N = (p_NK * ratio_NK).sum(-1)
    kl_N = inside_N + p_rest_N * ratio_rest_N
    if outside == "bucket":
        value_N, mean_N = kl_N.clone(), kl_N
    else:
        value_N, mean_N = inside_N + (logq_NK.exp() - p_NK).sum(-1), inside_N
        ratio_rest_N = torch.zeros_like(ratio_rest_N)
    gradient_NV = logp_NV.exp_().mul_((ratio_rest_N - mean_N).unsqueeze(-1))
    gradient_NV.scatter_(-1, ids_NK, p_NK * (ratio_NK - mean_N.unsqueeze(-1)))
    return Divergence(value_N, gradient_NV, kl_N)
