"""What the student has moved away from since it was written: how far a token's ratio is from 1, and what is left out.

Shape legend: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mopd.distill.loss.base import TokenLoss
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.recipe import StaleRecipe
from mopd.distill.types import UserError


def without_stale(
    microbatch: Microbatch, token_loss: TokenLoss, stale: StaleRecipe | None
) -> tuple[Microbatch, TokenLoss]:
    """A microbatch whose stale tokens weigh nothing, and its loss with the statistic ``stale``, 1 at those.

    Denominators stay: leaving out must not make other tokens louder. A ratio that is NaN is not stale, so that it
    reaches the loss and stops the run.

    Args:
        stale: None: nothing is, and there is no such statistic.

    Raises:
        UserError: the estimator, a user's own, does not give the statistic ``ratio``.
    """
    if stale is None:
        return microbatch, token_loss
    if (ratio_BT := token_loss.stats.get("ratio")) is None:
        raise UserError("`run.stale` is set, and the estimator gives no statistic `ratio`, by which it is judged")
    stale_BT = stale_tokens(ratio_BT, _drawn_by_policy(microbatch), stale)
    weights_BT = microbatch.weights_BT.masked_fill(stale_BT, 0.0)
    stats = token_loss.stats | {"stale": stale_BT.to(ratio_BT.dtype)}
    return replace(microbatch, weights_BT=weights_BT), replace(token_loss, stats=stats)


def stale_tokens(ratio_BT: Tensor, mask_BT: Tensor, stale: StaleRecipe) -> Tensor:
    """Which tokens are left out, bool ``(B, T)``: those outside of the range, or all of a rollout that is in the mean.

    Args:
        ratio_BT: policy over sampler of the token that was drawn; anything where the mask is False.

    Source: the geometric mean over a sequence is the ratio of GSPO, Zheng et al., arXiv 2507.18071, eq 7.
    """
    low, high = stale.ratio
    if stale.action == "mask":
        return mask_BT & ((ratio_BT < low) | (ratio_BT > high))
    logs_BT = ratio_BT.masked_fill(~mask_BT, 1.0).log()
    mean_B = (logs_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)).exp()
    return mask_BT & ((mean_B < low) | (mean_B > high)).unsqueeze(1)


def _drawn_by_policy(microbatch: Microbatch) -> Tensor:
    """The trained tokens that have a ratio: where teachers are taken one by one, those that any graded."""
    if not microbatch.per_teacher:
        return microbatch.mask_BT
    return microbatch.mask_BT & microbatch.has_teacher_B.unsqueeze(1)
