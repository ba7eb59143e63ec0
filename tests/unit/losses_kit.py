"""Small microbatches in float64, and one call that gives a loss with its gradient."""

import torch

from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.registry import LOSSES, TokenLoss
from mopd.distill.loss.teacher_tensors import TeacherRows
from mopd.distill.payloads import Support, top_k
from mopd.distill.recipe import (
    JSD,
    K2,
    ChunkedReverseKL,
    ForwardKL,
    FullReverseKL,
    NegativeLogLikelihood,
    PolicyGradient,
    TopKReverseKL,
)

FULL = FullReverseKL(estimator="full_reverse_kl")
PLAIN = PolicyGradient(estimator="policy_gradient", advantage_clip=1e9, gate=(1e-9, 1e9))  # no clip, no gate
FORWARD = ForwardKL(estimator="forward_kl")
HALF = JSD(estimator="jsd", beta=0.5)
TOPK = TopKReverseKL(estimator="topk_reverse_kl", k=2)
CHUNKED = ChunkedReverseKL(estimator="chunked_reverse_kl", k=2, advantage_clip=1e9, gate=(1e-9, 1e9))
BUCKET = TopKReverseKL(estimator="topk_reverse_kl", k=2, outside="bucket")
SQUARE = K2(estimator="k2", advantage_clip=1e9, gate=(1e-9, 1e9))  # no clip, no gate
NLL = NegativeLogLikelihood(estimator="nll")
V = 6


def rows(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def microbatch(
    mask, tokens, *, teacher=None, sampler=None, reward=None, taught=None, slots=(), reference=None
) -> Microbatch:
    """``slots``: (weight by row, whole log-probabilities, or the arrays of a payload) of each teacher."""
    mask_BT = torch.as_tensor(mask)
    B, _ = mask_BT.shape
    return Microbatch(
        token_ids_BT=torch.as_tensor(tokens),
        attention_mask_BT=torch.ones(mask_BT.shape, dtype=torch.int64),
        mask_BT=mask_BT,
        weights_BT=mask_BT.double(),
        sampler_logprobs_BT=torch.zeros(mask_BT.shape, dtype=torch.float64) if sampler is None else sampler,
        domain_B=torch.zeros(B, dtype=torch.int64),
        teacher=teacher,
        has_teacher_B=torch.ones(B, dtype=torch.bool) if taught is None else torch.as_tensor(taught),
        reward_advantage_B=None if reward is None else torch.as_tensor(reward, dtype=torch.float64),
        reference_BT=reference,
        per_teacher=tuple(
            TeacherRows(torch.as_tensor(weight_B), says if isinstance(says, dict) else {"logprobs_TV": says})
            for weight_B, says in slots
        ),
    )


def topk_arrays(ids, logprobs, rest, sampled) -> dict[str, torch.Tensor]:
    """Those of payload ``topk``."""
    return {"ids_TK": ids, "logprobs_TK": logprobs, "rest_T": rest, "sampled_T": sampled}


def graded(name, mask, tokens, teacher, **more) -> Microbatch:
    """A microbatch of one teacher, given as whole distributions, in the form that the estimator wants."""
    sampled = teacher.gather(-1, torch.as_tensor(tokens)[..., None])[..., 0]
    if LOSSES[name].payload in ("topk", "chunked"):
        ids, teacher, rest = top_k(teacher, Support(k=2, forced=(0,)))
        arrays = topk_arrays(ids, teacher, rest, sampled)
        if LOSSES[name].payload == "chunked":  # every token is a chunk, of which all is compared
            arrays |= {"chunk_T": torch.full(sampled.shape, -1), "owed_T": torch.zeros_like(sampled)}
        return microbatch(mask, tokens, slots=[([1.0] * len(teacher), arrays)], **more)
    if LOSSES[name].needs_each_teacher:
        return microbatch(mask, tokens, slots=[([1.0] * len(teacher), teacher)], **more)
    if LOSSES[name].payload == "sampled":
        teacher = sampled
    return microbatch(mask, tokens, teacher=teacher, **more)


def run(name, logits, batch, settings) -> tuple[TokenLoss, torch.Tensor]:
    """The loss, and the gradient of the sum of its tokens with respect to the logits."""
    logits = logits.detach().requires_grad_()
    out = LOSSES[name].token_loss(logits, batch, settings)
    (gradient,) = torch.autograd.grad(out.loss_BT.sum(), logits)
    return out, gradient


def every_token(student_V, teacher_V, *, sampler_V=None, reference_V=None, **more) -> tuple[torch.Tensor, Microbatch]:
    """A microbatch in which row v draws token v at position 1; all rows have the same distributions."""
    n = len(student_V)
    tokens = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)], dim=1)
    logits_BTV = student_V.expand(n, 2, n)
    logp_V = student_V.log_softmax(-1)
    sampler_V = logp_V if sampler_V is None else sampler_V
    sampler = torch.stack([torch.zeros(n, dtype=torch.float64), sampler_V], dim=1)
    teacher = torch.stack([torch.zeros(n, dtype=torch.float64), teacher_V.log_softmax(-1)], dim=1)
    if reference_V is not None:
        more["reference"] = torch.stack([torch.zeros(n, dtype=torch.float64), reference_V.log_softmax(-1)], dim=1)
    return logits_BTV, microbatch([[False, True]] * n, tokens, teacher=teacher, sampler=sampler, **more)
