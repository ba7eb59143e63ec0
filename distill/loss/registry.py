"""The estimators: one row each, and a recipe's loss bound to its row.

Logits are raw, aligned (:func:`distill.types.align_logits`) and divided by the one temperature of the recipe. A loss is
read at trained tokens only and has one value for each, in nats; a masked place may hold NaN, its loss is exactly 0 and
so is its gradient. Weighing the tokens (``g_d / N_d``) is the caller's, with ``Microbatch.weights_BT``.

A further estimator is a file beside this one with its function, one row of :data:`LOSSES`, and one class of settings in
the recipe's ``Loss``; a user's own is the row alone, named by ``./file.py:NAME``. Those that look right and are not,
with the reason, are in ``distill.recipe.TRAPS``.

Shape legend: B sequences, T tokens of a sequence, V vocabulary, N trained tokens of the microbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mopd.distill.loss.base import GradedTokens, TokenLoss, bounded, gap_to_teacher
from mopd.distill.loss.chunked import chunked_reverse_kl
from mopd.distill.loss.divergences import forward_kl, full_reverse_kl, jsd, skewed_kl, weighted_reverse_kl
from mopd.distill.loss.microbatch import Microbatch
from mopd.distill.loss.sampled import k2, nll, policy_gradient, token_advantage
from mopd.distill.loss.topk import topk_reverse_kl
from mopd.distill.payload_rows import PayloadSpec, custom_payload
from mopd.distill.payloads import Payload, Support
from mopd.distill.recipe import (
    JSD,
    K2,
    ChunkedReverseKL,
    CustomLoss,
    ForwardKL,
    FullReverseKL,
    Loss,
    NegativeLogLikelihood,
    PolicyGradient,
    SampledToken,
    SkewedKL,
    Strict,
    TopKReverseKL,
    WeightedReverseKL,
    WholeDistribution,
)
from mopd.distill.recipe.plugins import load_plugin, located_plugin
from mopd.distill.types import PayloadName, UserError


@dataclass(frozen=True, slots=True)
class LossSpec:
    """An estimator: a row of :data:`LOSSES`, or a user's own.

    Attributes:
        payload: what it needs of every teacher, a name of PAYLOADS or a user's own row; None if it needs no teacher.
        token_loss: ``(logits_BTV, microbatch, settings) -> TokenLoss``; ``settings`` is the recipe's ``loss``, of the
            class ``settings``; for a user's own estimator its numbers by name.
        needs_each_teacher: whether it reads the teachers one by one, ``microbatch.per_teacher``, as every loss on a
            user's own payload does; the others need only the mean of their log-probabilities.
        settings: the class of its settings in the recipe; None of a user's own.
        token_advantage: ``(tokens, settings) -> (N,)``, nats: how hard the loss pulls at the sampled tokens, by which
            rules of shares compare domains; the gap to the teacher where the loss has no other.
        held_rows: float32 rows of V values that it holds of a trained token at the most, its teachers' and its gradient
            included, beside the logits: for the plan. Measured on a CPU in float32 and bfloat16, on 29 November 2026.
    """

    payload: PayloadName | PayloadSpec | None
    token_loss: Callable[[Tensor, Microbatch, Any], TokenLoss]
    needs_each_teacher: bool = False
    settings: type[Strict] | None = None
    token_advantage: Callable[[GradedTokens, Any], Tensor] = gap_to_teacher
    held_rows: int = 8


LOSSES: dict[str, LossSpec] = {
    "full_reverse_kl": LossSpec("full", full_reverse_kl, settings=FullReverseKL),
    "weighted_reverse_kl": LossSpec("full", weighted_reverse_kl, settings=WeightedReverseKL),
    "forward_kl": LossSpec("full", forward_kl, needs_each_teacher=True, settings=ForwardKL, held_rows=10),
    "jsd": LossSpec("full", jsd, needs_each_teacher=True, settings=JSD, held_rows=15),
    "skewed_kl": LossSpec("full", skewed_kl, needs_each_teacher=True, settings=SkewedKL, held_rows=15),
    "topk_reverse_kl": LossSpec("topk", topk_reverse_kl, needs_each_teacher=True, settings=TopKReverseKL, held_rows=5),
    "chunked_reverse_kl": LossSpec(
        "chunked", chunked_reverse_kl, needs_each_teacher=True, settings=ChunkedReverseKL, held_rows=5
    ),
    "policy_gradient": LossSpec(
        "sampled", policy_gradient, settings=PolicyGradient, token_advantage=token_advantage, held_rows=4
    ),
    "k2": LossSpec("sampled", k2, settings=K2, token_advantage=token_advantage, held_rows=4),
    "nll": LossSpec(None, nll, settings=NegativeLogLikelihood, held_rows=4),
}
"""Estimators by the name that a recipe gives them."""
OWN_PAYLOADS: tuple[PayloadName | None, ...] = ("sampled", "full", None)
"""What a user's own estimator may ask of teachers by name; a top-k support is a setting of the shipped loss."""


@dataclass(frozen=True, slots=True)
class BoundLoss:
    """A recipe's loss: its estimator with its settings, and all that anybody else asks of them. See :func:`bind`.

    Attributes:
        settings: the recipe's ``loss``; what crosses to other processes, which bind it again.
        spec: the estimator's row.
        estimator: its name in the recipe.
        custom: whether it is a user's own.
        payload: what it needs of every teacher, None if it needs no teacher.
        arguments: what the row's functions are given: ``settings``; a user's own, its numbers by name.
        reference: the teacher that it extrapolates away from, if it does.
        extrapolates: whether its settings have an extrapolation and a reference at all.
        extrapolation: lambda of ExOPD, 1 where it does not extrapolate.
        takes_reward: whether its settings have a weight of the reward at all.
        reward_weight: alpha, 0 where it uses no reward.
        support: which tokens it is computed on, without the forced ones; None where it is on other ones.
        token_bound: nats that a token's loss has at most; None: any.
    """

    settings: Loss
    spec: LossSpec
    estimator: str
    custom: bool
    payload: PayloadName | None
    arguments: Any
    reference: str | None
    extrapolates: bool
    extrapolation: float
    takes_reward: bool
    reward_weight: float
    support: Support | None
    token_bound: float | None = None

    @property
    def custom_payload(self) -> bool:
        """Whether the payload is a user's own, too."""
        return isinstance(self.spec.payload, PayloadSpec)

    def support_with(self, forced: Sequence[int]) -> Support | None:
        """The support with the tokens that are always in it; None where the loss has none."""
        return None if self.support is None else replace(self.support, forced=tuple(forced))

    def token_loss(self, logits_BTV: Tensor, microbatch: Microbatch) -> TokenLoss:
        """The loss of each token of a microbatch; ``logits_BTV`` are raw, aligned and divided by the temperature."""
        return bounded(self.spec.token_loss(logits_BTV, microbatch, self.arguments), self.token_bound)

    def token_advantage(self, tokens: GradedTokens) -> Tensor:
        """How hard the loss pulls at sampled tokens, ``(N,)``, nats; see :class:`LossSpec`."""
        return self.spec.token_advantage(tokens, self.arguments)


def bind(settings: Loss) -> BoundLoss:
    """A recipe's ``loss`` as it is used: once a run, before anything else is asked of it.

    Raises:
        UserError: a user's own estimator can't be loaded, is no :class:`LossSpec`, or asks teachers for what they
            don't give.
    """
    spec = _custom_spec(settings.estimator) if isinstance(settings, CustomLoss) else LOSSES[settings.estimator]
    payload = custom_payload(settings.estimator) if isinstance(spec.payload, PayloadSpec) else spec.payload
    sampled = settings if isinstance(settings, SampledToken) else None
    rewarded = settings if isinstance(settings, PolicyGradient) else None
    return BoundLoss(
        settings=settings,
        spec=spec,
        estimator=settings.estimator,
        custom=isinstance(settings, CustomLoss),
        payload=settings.payload if isinstance(settings, FullReverseKL) else payload,
        arguments=settings.settings if isinstance(settings, CustomLoss) else settings,
        reference=None if sampled is None else sampled.reference,
        extrapolates=sampled is not None,
        extrapolation=1.0 if sampled is None else sampled.extrapolation,
        takes_reward=rewarded is not None,
        reward_weight=0.0 if rewarded is None else rewarded.reward_weight,
        support=_support(settings),
        token_bound=settings.token_bound if isinstance(settings, WholeDistribution) else None,
    )


def _support(settings: Loss) -> Support | None:
    if isinstance(settings, TopKReverseKL):
        return Support(settings.k, (), settings.support)
    return Support(settings.k, ()) if isinstance(settings, ChunkedReverseKL) else None


def _custom_spec(reference: str) -> LossSpec:
    spec = load_plugin(reference, where="loss.estimator")
    if not isinstance(spec, LossSpec):
        raise UserError(
            f"`loss.estimator`: {reference} is {type(spec).__name__}, and must be a "
            f"mopd.distill.loss.registry.LossSpec, for "
            'example LossSpec("full", my_token_loss)'
        )
    if isinstance(spec.payload, PayloadSpec):
        if problem := _payload_problem(spec, spec.payload):
            raise UserError(f"`loss.estimator`: {reference} {problem}")
    elif spec.payload not in OWN_PAYLOADS:
        offered = ", ".join(map(repr, OWN_PAYLOADS))
        raise UserError(f"`loss.estimator`: {reference} has payload {spec.payload!r}; take one of {offered}")
    return spec


def _payload_problem(spec: LossSpec, payload: PayloadSpec) -> str | None:
    """What is wrong with a user's own payload."""
    if not (isinstance(payload.payload, type) and issubclass(payload.payload, Payload)):
        return f"has the payload {payload.payload!r}, and must have a subclass of mopd.distill.payloads.Payload"
    if payload.of_logprobs is None:
        return "has a payload that nothing makes; give its row `of_logprobs`"
    if not spec.needs_each_teacher:
        return "has a payload of its own, which has no mean over teachers; set `needs_each_teacher=True`"
    return None


def located(loss: Loss) -> Loss:
    """The same for a process with another working folder: an own file by its absolute path."""
    if not isinstance(loss, CustomLoss):
        return loss
    return loss.model_copy(update={"estimator": located_plugin(loss.estimator)})
