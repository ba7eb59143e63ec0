"""The reverse KL on the likeliest tokens of teacher, student or both: the support, and the loss on it.

Probabilities are raw, never renormalised, and whatever is outside the support is either left out in the way that still
gives no gradient where student and teacher agree (the generalised KL), or is one more outcome (the bucket). A plain
truncated sum is neither, and is refused: ``distill.recipe.TRAPS``.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, K tokens of the support, N trained tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mopd.distill.loss.base import Divergence, TokenLoss, divergence_loss, each_teacher
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.teacher_tensors import TeacherSlot
from mopd.distill.recipe import TopKReverseKL


@dataclass(frozen=True, slots=True)
class Support:
    """Which tokens of every distribution a teacher ships.

    Attributes:
        k: how many likeliest, besides the forced ones; all others where there are fewer.
        forced: tokens that are always there: the closing EOS and all control tokens. They are rare and decide how a
            rollout ends, so a push on them must not depend on their rank.
        whose: likeliest under which distribution: the teacher's; the student's as it wrote the rollout; or both.
    """

    k: int
    forced: tuple[int, ...]
    whose: Literal["teacher", "student", "union"] = "teacher"

    @property
    def given(self) -> bool:
        """Whether it needs the student's own likeliest tokens, which a rollout then carries to its teachers."""
        return self.whose != "teacher"


def likeliest(logprobs: Tensor, support: Support) -> Tensor:
    """The k likeliest tokens of each distribution, and the forced ones: ids ``(..., K)``, ``K = min(k + forced, V)``.

    Args:
        logprobs: nats, normalised or not, ``(..., V)``.
    """
    forced = torch.tensor(support.forced, dtype=torch.int64, device=logprobs.device)
    return _with(logprobs, forced.expand(*logprobs.shape[:-1], len(forced)), support.k)  # not per token


def top_k(logprobs: Tensor, support: Support, given: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The support of each distribution, its log-probabilities, and that of all other tokens together.

    The union holds the student's K tokens and the teacher's k likeliest *others*. So it has the likeliest of both,
    every token once, and, where the two overlap, the teacher's next ones: every position has as many.

    Args:
        logprobs: the teacher's, normalised, nats, ``(..., V)``.
        given: the student's support, ids ``(..., K)`` by :func:`likeliest`; None where it is the teacher's alone.

    Returns:
        Token ids and log-probabilities, ``(..., K)`` (``min(2 k + forced, V)`` of them for the union, else as
        :func:`likeliest`), and the rest's, ``(...)``.

    Raises:
        ValueError: the support needs the student's tokens, and there are none.
    """
    if support.given and given is None:
        raise ValueError(
            f"the support is {support.whose}, and the rollout does not carry the student's likeliest tokens"
        )
    if not support.given or given is None:
        ids = likeliest(logprobs, support)
    else:
        ids = given if support.whose == "student" else _with(logprobs, given, support.k)
    return ids, logprobs.gather(-1, ids), _rest(logprobs, ids)


def _with(logprobs: Tensor, ids: Tensor, k: int) -> Tensor:
    """The k likeliest of all tokens but ``ids``, and those; all others where there are fewer."""
    k = min(k, logprobs.shape[-1] - ids.shape[-1])
    others = logprobs.scatter(-1, ids, -torch.inf).topk(k, dim=-1).indices
    return torch.cat([others, ids], dim=-1)


def topk_reverse_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: TopKReverseKL) -> TokenLoss:
    """The reverse KL on the support that each teacher answered for; several teachers: ``sum_k w_k`` of theirs.

    ``outside: left_out`` is ``sum_S [p log(p/q) - p + q]``: no gradient at p = q, the exact reverse KL where S is
    everything, and no push on tokens outside of S but through the softmax: a favourite of the student's that is not
    the teacher's stays, unless S has the student's likeliest too. ``outside: bucket`` adds
    ``p_rest log(p_rest / q_rest)``, all other tokens as one outcome: a KL, at most the exact one.
    The statistic ``kl`` is the bucket's in both.

    Source: arXiv 2606.30406, eq 5; the bucket is what TRL calls the tail of a top-k divergence.
    """

    def one(slot: TeacherSlot, mask_BT: Tensor) -> TokenLoss:
        if slot.support is None:
            raise ValueError("this estimator needs top-k scores, and the microbatch has whole distributions")
        ids_NK, logq_NK = slot.support.ids_BTK[mask_BT], slot.logprobs[mask_BT]
        rest_N = slot.support.rest_BT[mask_BT]
        return divergence_loss(
            logits_BTV,
            microbatch,
            mask_BT,
            lambda logp_NV: _rows(logp_NV, ids_NK, logq_NK=logq_NK, logq_rest_N=rest_N, outside=settings.outside),
            teacher_logprobs_N=slot.support.sampled_BT[mask_BT],
        )

    return each_teacher(microbatch, one)


def _rows(
    logp_NV: Tensor,
    ids_NK: Tensor,
    *,
    logq_NK: Tensor,
    logq_rest_N: Tensor,
    outside: Literal["left_out", "bucket"],
) -> Divergence:
    """With ``g`` the log-ratio of each token, or of what stands for it, the gradient is ``p (g - sum p g)``."""
    logp_NK, logp_rest_N = logp_NV.gather(-1, ids_NK), _rest(logp_NV, ids_NK)
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


def _rest(logprobs: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of all tokens but ``ids``, summed over the others: ``1 - sum`` would keep no digit of it."""
    return logprobs.scatter(-1, ids, -torch.inf).logsumexp(-1)
