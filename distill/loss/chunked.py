"""The reverse KL by chunks of bytes: for teachers that cut text otherwise than the student does.

A chunk is some tokens of the student that are the same bytes as some of the teacher's; teachers/alignment.py finds them
and teachers/retokenized.py makes payload ``chunked`` of what a teacher says.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, K tokens of the support, N trained tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mopd.distill.loss.base import Divergence, TokenLoss, divergence_loss, each_teacher, pick, spread
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.sampled import clip_gap, gated_ratio
from mopd.distill.loss.teacher_tensors import TeacherRows
from mopd.distill.recipe import ChunkedReverseKL


def chunked_reverse_kl(logits_BTV: Tensor, microbatch: Microbatch, settings: ChunkedReverseKL) -> TokenLoss:
    """The reverse KL to the teacher's next token, written in the student's; a policy gradient of what is left.

    **Where both have read the same bytes** the teacher's whole distribution is there. Each of its likeliest tokens is
    some tokens of the student's, as the student's tokenizer writes it; those that begin with what the student has drawn
    so far make a distribution over its next token, as far as they reach. On the tokens of it that have 1% and more (S)
    the loss is ``sum_S [p log(p/q) - p + q]``.
    **A drawn token that is not in S**, and the others of its chunk with it, is learnt from as it was drawn:
    ``- w_t A log pi_theta(y_t)`` with one ``A`` for all of them, the teacher's log-probability of its tokens of the
    chunk less what was said of the chunk's tokens before, less the student's log-probabilities of these, clipped.
    Several teachers: ``sum_k w_k`` of theirs; where one says nothing of a token, its part is 0.

    What it estimates: where the teacher has the student's own tokenizer, every token is a chunk, and the gradient
    expected over what the student draws is the exact reverse KL's, whatever k. Where the teacher's cuts depend on
    nothing that follows them and its tokens are whole ones of the student's, it is that, too. Else it is no KL's: the
    teacher's tokens are one way to write these bytes, so their log-probability is at most that of the bytes; where the
    student may write them in two ways, both are credited with it; and a teacher that needs several tokens for one of
    the student's tells its probability only where it was drawn. Computed by enumeration over drawn vocabularies the
    gradient points where that of the KL to the teacher's distribution over the student's tokens does:
    docs/tokenizers.md has the cosines.

    The statistic ``kl`` is the one-sample estimate; over a chunk it adds up to the log-ratio of the chunk.

    Source: ours. Comparing chunks of equal text by the likelihoods of their tokens is arXiv 2503.20083's.
    """

    def one_teacher(rows: TeacherRows, mask_BT: Tensor) -> TokenLoss:
        if rows.arrays and "chunk_T" not in rows.arrays:
            raise ValueError("this estimator needs scores by chunks, and the microbatch has others")
        rows_N = {name: array[mask_BT] for name, array in rows.arrays.items()}
        tokens_N, sampler_N = microbatch.token_ids_BT[mask_BT], microbatch.sampler_logprobs_BT[mask_BT]
        row_BT = torch.arange(len(mask_BT), device=mask_BT.device).unsqueeze(1).expand_as(mask_BT)
        # A number of a chunk is of its rollout; -1 of each is a group of its own, which is not read.
        group_N = torch.stack([row_BT[mask_BT], rows_N["chunk_T"]])
        group_N = torch.unique(group_N, dim=1, return_inverse=True)[1] if len(tokens_N) else tokens_N
        drawn_N = rows_N["chunk_T"] >= 0
        happened: dict[str, Tensor] = {}

        def divergence(logp_NV: Tensor) -> Divergence:
            logp_N = pick(logp_NV, tokens_N)
            total_N = torch.zeros_like(logp_N).index_add_(0, group_N, logp_N)[group_N]
            advantage_N, clipped_N = clip_gap(rows_N["owed_T"] - total_N, settings.advantage_clip)
            gated = gated_ratio(student_logprobs_N=logp_N, sampler_logprobs_N=sampler_N, gate=settings.gate)
            pull_N = torch.where(drawn_N, gated.weight_N * advantage_N, 0.0)
            happened["clipped"] = clipped_N & drawn_N
            happened["gate_dropped"] = gated.dropped_N & drawn_N
            kl_N = logp_N - rows_N["sampled_T"]
            whole = _whole(logp_NV, rows_N["ids_TK"], logq_NK=rows_N["logprobs_TK"])
            gradient_NV = logp_NV.exp_().mul_((pull_N - whole.mean_N).unsqueeze(-1))
            gradient_NV.scatter_add_(-1, rows_N["ids_TK"], whole.pull_NK)
            gradient_NV.scatter_add_(-1, tokens_N.unsqueeze(-1), -pull_N.unsqueeze(-1))
            return Divergence(whole.value_N - pull_N * logp_N, gradient_NV, kl_N)

        loss = divergence_loss(logits_BTV, microbatch, mask_BT, divergence, teacher_logprobs_N=rows_N["sampled_T"])
        return TokenLoss(loss.loss_BT, loss.stats | spread(rows_N["sampled_T"], happened, mask_BT).stats)

    return each_teacher(microbatch, one_teacher)


class _Whole:
    """``sum_S [p log(p/q) - p + q]`` of rows whose unused places have ``log q`` of -inf.

    With ``g`` the log-ratio, its gradient is ``p g`` at S less ``p sum_S p g`` everywhere.
    """

    def __init__(self, logp_NK: Tensor, logq_NK: Tensor) -> None:
        unused_NK = logq_NK == -torch.inf
        p_NK = logp_NK.exp().masked_fill(unused_NK, 0.0)
        ratio_NK = (logp_NK - logq_NK).masked_fill(unused_NK | (p_NK == 0), 0.0)
        self.pull_NK = p_NK * ratio_NK
        self.mean_N = self.pull_NK.sum(-1)
        self.value_N = self.mean_N + (logq_NK.exp() - p_NK).sum(-1)


def _whole(logp_NV: Tensor, ids_NK: Tensor, *, logq_NK: Tensor) -> _Whole:
    return _Whole(logp_NV.gather(-1, ids_NK), logq_NK)
