"""The estimators that a recipe's ``loss`` can name, each with its settings; and those it refuses, with the reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator

from mopd.distill.recipe.base import BESIDE_OTHERS, Bound, Count, Name, Positive, Strict, Within, refusal
from mopd.distill.recipe.plugins import PLUGIN_PATTERN, is_plugin

TRAPS: dict[str, str] = {
    "k1_backprop": "back-propagating log(student/teacher) has zero expected gradient: the teacher drops out",
    "k3_backprop": "back-propagating k3 gives the forward KL's gradient with heavy tails, not the reverse KL's",
    "k3_advantage": "a policy gradient with advantage -k3 points elsewhere (cosine 0.13 with the reverse KL's)",
    "topk_truncated": "a truncated top-k sum has a non-zero gradient where student and teacher agree",
    "topk_advantage": "a top-k sum used as the sampled token's advantage has zero expected gradient",
    "topk_renormalized": "renormalising the teacher's top-k gives no gradient at k = 1 and the wrong one above",
}
"""Estimators that look right and are not, with the reason."""

WHICH = (
    "which loss: full_reverse_kl, weighted_reverse_kl, forward_kl, jsd, skewed_kl, topk_reverse_kl, "
    "chunked_reverse_kl, policy_gradient, k2, nll or ./file.py:NAME"
)


class WholeDistribution(Strict):
    """What estimators on more than the sampled token share."""

    token_bound: Bound | None = Field(
        default=None,
        description="nats; a token whose loss is above it is scaled down to it, its gradient with it; null: none is. "
        "For teachers that see a hint",
    )


class FullReverseKL(WholeDistribution):
    """Exact reverse KL over the whole vocabulary; MiMo-V2-Flash report, eq 6, without the sampling noise."""

    estimator: Literal["full_reverse_kl"] = Field(default="full_reverse_kl", description=WHICH)
    payload: Literal["full", "hidden"] = Field(
        default="full",
        description="what teachers ship of a token, the same loss: full: a number for every token of the vocabulary; "
        "hidden: the last hidden state, whose output head every rank of the student holds (for real vocabularies)",
    )


class WeightedReverseKL(WholeDistribution):
    """Exact reverse KL, unequally over a rollout's tokens: their mean weight is 1, so the rollout counts as before."""

    estimator: Literal["weighted_reverse_kl"] = Field(default="weighted_reverse_kl", description=WHICH)
    by: Literal["entropy", "position"] = Field(
        default="entropy",
        description="what a token weighs: entropy: the student's own there, where it has a choice (arXiv 2506.01939); "
        "position: the trained tokens of its rollout from it on, which stand on it",
    )
    power: Annotated[float, Within(0.01, 8, "less weighs all alike, and more leaves a token or two")] = Field(
        default=1.0, description="of that, before it is divided by its mean over the rollout"
    )


class ForwardKL(WholeDistribution):
    """Exact forward KL over the whole vocabulary: the student must cover all that the teacher does."""

    estimator: Literal["forward_kl"] = Field(default="forward_kl", description=WHICH)


class JSD(WholeDistribution):
    """Generalised Jensen-Shannon divergence over the whole vocabulary; GKD, arXiv 2306.13649, eq 1."""

    estimator: Literal["jsd"] = Field(default="jsd", description=WHICH)
    beta: Annotated[float, Within(1e-4, 0.9999, "the gradient vanishes in between", besides=(0, 1))] = Field(
        default=0.5, description="teacher's part of the mixture; 0 is the forward KL, 1 the reverse KL"
    )


class SkewedKL(WholeDistribution):
    """KL to a mixture of both over the whole vocabulary, which is bounded; DistiLLM, arXiv 2402.03898."""

    estimator: Literal["skewed_kl"] = Field(default="skewed_kl", description=WHICH)
    skew: Annotated[float, Within(1e-3, 0.9, "less is the plain KL, and more leaves next to nothing to learn")] = Field(
        default=0.1, description="alpha, the part of the first distribution in the mixture; the paper takes 0.1"
    )
    direction: Literal["forward", "reverse"] = Field(
        default="reverse",
        description="reverse: the student's KL to alpha student + (1 - alpha) teacher; "
        "forward: the teacher's to alpha teacher + (1 - alpha) student",
    )


class TopKReverseKL(WholeDistribution):
    """Reverse KL on the likeliest tokens, which are all that a teacher ships; arXiv 2606.30406, eq 5."""

    estimator: Literal["topk_reverse_kl"] = Field(default="topk_reverse_kl", description=WHICH)
    k: Count = Field(default=64, description="likeliest tokens, besides EOS and all control tokens")
    support: Literal["teacher", "student", "union"] = Field(
        default="teacher",
        description="whose k likeliest: the teacher's, the student's as it samples, or union: both, up to 2 k tokens",
    )
    outside: Literal["left_out", "bucket"] = Field(
        default="left_out", description="all other tokens: left_out (eq 5), or bucket: together one more outcome"
    )


class Gated(Strict):
    """What estimators on what was drawn share: bounds of a single token's pull."""

    advantage_clip: Bound = Field(default=5.0, description="nats; bound of the teacher gap, arXiv 2606.30406")
    gate: tuple[Positive, Positive] = Field(default=(0.2, 5.0), description="kept range of policy/sampler ratio")

    @field_validator("gate")
    @classmethod
    def _ordered(cls, gate: tuple[float, float]) -> tuple[float, float]:
        if not gate[0] < gate[1]:
            raise refusal(f"is inverted: [{gate[0]:g}, {gate[1]:g}]; the lower bound must come first")
        if not gate[0] <= 1 <= gate[1]:
            raise refusal(
                f"is [{gate[0]:g}, {gate[1]:g}], without 1: on-policy every ratio is 1, so nothing would be learnt"
            )
        return gate


class ChunkedReverseKL(Gated):
    """Reverse KL by chunks of bytes, for teachers of another tokenizer; no exact KL: docs/tokenizers.md."""

    estimator: Literal["chunked_reverse_kl"] = Field(default="chunked_reverse_kl", description=WHICH)
    k: Count = Field(default=64, description="the teacher's likeliest tokens, besides EOS and all control tokens")


class SampledToken(Gated):
    """What estimators on the sampled token share, besides: how far beyond the teacher."""

    extrapolation: Annotated[float, Within(0.01, 10, "less drops the teacher, more leaves it far behind")] = Field(
        default=1.0, description="lambda of ExOPD, arXiv 2602.12125: 1 is the teacher, 1.25 beyond it, 1.5 was unstable"
    )
    reference: str | None = Field(
        default=None, description="where extrapolation goes away from: a teacher whose model is self"
    )


class PolicyGradient(SampledToken):
    """Policy gradient on the sampled token; MiMo-V2-Flash report, eqs 5-9."""

    estimator: Literal["policy_gradient"] = Field(default="policy_gradient", description=WHICH)
    reward_weight: Annotated[float, Within(1e-6, 1e6, BESIDE_OTHERS, besides=(0,))] = Field(
        default=0.0, description="alpha, weight of the group-normalised reward"
    )


class K2(SampledToken):
    """Half the squared log-ratio of the sampled token, back-propagated; teachers alone, no reward."""

    estimator: Literal["k2"] = Field(default="k2", description=WHICH)


class NegativeLogLikelihood(Strict):
    """Cross-entropy of given tokens; supervised stages and off-policy fine-tuning."""

    estimator: Literal["nll"] = Field(default="nll", description=WHICH)


class CustomLoss(Strict):
    """An estimator of a user's own: ``./file.py:NAME``, a :class:`distill.loss.registry.LossSpec`."""

    estimator: str = Field(pattern=PLUGIN_PATTERN, description=WHICH)
    settings: dict[Name, float] = Field(default_factory=dict, description="numbers that your estimator reads, by name")


ESTIMATORS: dict[str, type[Strict]] = {
    "full_reverse_kl": FullReverseKL,
    "weighted_reverse_kl": WeightedReverseKL,
    "forward_kl": ForwardKL,
    "jsd": JSD,
    "skewed_kl": SkewedKL,
    "topk_reverse_kl": TopKReverseKL,
    "chunked_reverse_kl": ChunkedReverseKL,
    "policy_gradient": PolicyGradient,
    "k2": K2,
    "nll": NegativeLogLikelihood,
}
"""The estimators on offer. A new one takes a row here, in the union `Loss` below and in distill/loss/registry.py."""


def _estimator(value: Any) -> str:
    name = value.get("estimator", "full_reverse_kl") if isinstance(value, dict) else getattr(value, "estimator", None)
    return "<own>" if isinstance(name, str) and is_plugin(name) else f"<{name}>"


Loss: TypeAlias = Annotated[
    Annotated[FullReverseKL, Tag("<full_reverse_kl>")]
    | Annotated[WeightedReverseKL, Tag("<weighted_reverse_kl>")]
    | Annotated[ForwardKL, Tag("<forward_kl>")]
    | Annotated[JSD, Tag("<jsd>")]
    | Annotated[SkewedKL, Tag("<skewed_kl>")]
    | Annotated[TopKReverseKL, Tag("<topk_reverse_kl>")]
    | Annotated[ChunkedReverseKL, Tag("<chunked_reverse_kl>")]
    | Annotated[PolicyGradient, Tag("<policy_gradient>")]
    | Annotated[K2, Tag("<k2>")]
    | Annotated[NegativeLogLikelihood, Tag("<nll>")]
    | Annotated[CustomLoss, Tag("<own>")],
    Discriminator(_estimator, custom_error_type="estimator", custom_error_message="is no estimator on offer"),
]
