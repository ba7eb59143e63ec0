"""What a teacher answered, before anything is learnt from it: how many scores, their kind, shapes and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mopd.distill.payload_rows import payload_spec
from mopd.distill.payloads import Support, finite_rows
from mopd.distill.types import (
    Float32,
    Full,
    GradingFailed,
    Hidden,
    Int32,
    NonFinite,
    Payload,
    PayloadName,
    Rollout,
    Sampled,
    TopK,
    UInt16,
    trained_rows,
)

DTYPES = {"ids_TK": ("int32",), "hidden_TH": ("float32", "uint16")}
"""Of a payload's arrays that are not all float32; bfloat16 is shipped by its bits."""
SHIPPED = (Sampled, TopK, Full, Hidden)
"""Payloads whose arrays have a known kind; a user's own may be of any, and what is float32 of it must be finite."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a teacher is expected to answer of each rollout.

    Attributes:
        payload: what it was asked for.
        vocabulary: how many output tokens it has.
        support: which tokens payload ``topk`` is of.
    """

    payload: PayloadName
    vocabulary: int
    support: Support | None = None

    def width(self, rollout: Rollout) -> int:
        """K of a rollout's ``topk``: the tokens that :func:`distill.payloads.top_k` gives.

        Raises:
            ValueError: the support needs the student's likeliest tokens, and the sampler recorded none.
        """
        assert self.support is not None, "payload topk needs a support"
        if not self.support.given:
            return min(self.support.k + len(self.support.forced), self.vocabulary)
        given = likeliest_of([rollout])[0].shape[1]
        return given if self.support.whose == "student" else min(given + self.support.k, self.vocabulary)


def check_answer(teacher: str, rollouts: Sequence[Rollout], payloads: Sequence[Payload], expected: Expected) -> None:
    """Refuse the answer to a microbatch that would poison the update. Asked again, the teacher would say the same.

    Raises:
        GradingFailed: it has another number of scores than the microbatch has rollouts; and as :func:`check_score`.
        NonFinite: as :func:`check_score`.
    """
    if len(payloads) != len(rollouts):
        domains = ", ".join(sorted({repr(rollout.domain) for rollout in rollouts}))
        raise GradingFailed(
            f"teacher {teacher!r} gave {len(payloads)} scores for a microbatch of {len(rollouts)} rollouts (domain "
            f"{domains}); it owes one for each, in order"
        )
    for rollout, payload in zip(rollouts, payloads, strict=True):
        check_score(teacher, rollout, payload, expected)


def check_score(teacher: str, rollout: Rollout, payload: Payload, expected: Expected) -> None:
    """Refuse a score that would poison the update.

    Raises:
        NonFinite: at a trained token, the sampled token's log-probability, or something of a row, is NaN or infinite.
        GradingFailed: it is of another kind than was asked for, has another number of rows than the rollout has
            tokens, is over another vocabulary or support, or names tokens that its vocabulary has not.
    """
    where = f"rollout {rollout.index} (domain {rollout.domain!r}"
    needed = payload_spec(expected.payload).payload
    if not isinstance(payload, needed):
        raise GradingFailed(
            f"teacher {teacher!r} answered with {type(payload).__name__} for {where}); it was asked for "
            f"{needed.__name__}"
        )
    bad = np.zeros(rollout.trained_tokens, dtype=np.bool_)
    for values in _check_shapes(teacher, rollout, payload, expected):
        bad |= ~trained_rows(finite_rows(values), rollout)
    if isinstance(payload, TopK):
        ids_NK = trained_rows(payload.ids_TK, rollout)
        if ids_NK.size and not 0 <= ids_NK.min() <= ids_NK.max() < expected.vocabulary:
            raise GradingFailed(
                f"teacher {teacher!r} named tokens {ids_NK.min()} to {ids_NK.max()} for {where}); its output head "
                f"has 0 to {expected.vocabulary - 1}"
            )
        if expected.support is not None and expected.support.given:
            (given_TK,) = likeliest_of([rollout])
            kept_NKK = given_TK[rollout.loss_mask][:, :, None] == ids_NK[:, None, :]
            if not kept_NKK.any(-1).all():
                raise GradingFailed(
                    f"teacher {teacher!r} left out tokens that it was given for {where}); the loss compares it on the "
                    f"student's likeliest tokens (`loss.support` {expected.support.whose})"
                )
        sampled, rest = trained_rows(payload.sampled_T, rollout), trained_rows(payload.rest_T, rollout)
        bad = bad | ~np.isfinite(sampled) | ~(rest < np.inf)  # -inf is sound: nothing is outside of the support
    if bad.any():
        raise NonFinite(
            f"teacher {teacher!r} gave NaN or infinity at {int(bad.sum())} of {rollout.trained_tokens} tokens of "
            f"{where}, step {rollout.version[1] + 1}, prompt {rollout.prompt.id}); the weights have not moved, the "
            "last checkpoint resumes the run"
        )


def _check_shapes(teacher: str, rollout: Rollout, payload: Payload, expected: Expected) -> list[Float32 | UInt16]:
    """Compare every array's shape and dtype with what is expected; returns those whose rows must be finite."""
    n = len(rollout.token_ids)
    if all(len(array) == rollout.trained_tokens for array in payload.arrays().values()):
        n = rollout.trained_tokens  # rows of the trained tokens alone
    if isinstance(payload, Full):
        values: list[Float32 | UInt16] = [payload.logprobs_TV]
        needed: dict[str, tuple[int, ...]] = {"logprobs_TV": (n, expected.vocabulary)}
    elif isinstance(payload, Hidden):
        values, needed = [payload.hidden_TH], {"hidden_TH": (n, payload.hidden_TH.shape[-1])}  # its head knows its size
    elif isinstance(payload, TopK):
        both = (n, expected.width(rollout))
        values, needed = [payload.logprobs_TK], {"logprobs_TK": both, "ids_TK": both, "rest_T": (n,), "sampled_T": (n,)}
    elif isinstance(payload, Sampled):
        values, needed = [payload.logprobs_T], {"logprobs_T": (n,)}
    else:  # a user's own: rows of any shape and kind
        arrays = payload.arrays()
        values = [array for array in arrays.values() if array.dtype == np.float32]
        needed = {name: (n, *array.shape[1:]) for name, array in arrays.items()}  # not per token
    for name, shape in needed.items():
        has, dtype = getattr(payload, name).shape, str(getattr(payload, name).dtype)
        if has[:1] != (n,):
            raise GradingFailed(
                f"teacher {teacher!r} scored {has[0] if has else 0} positions of rollout {rollout.index} (domain "
                f"{rollout.domain!r}), which has {len(rollout.token_ids)} tokens"
            )
        if has != shape:
            raise GradingFailed(
                f"teacher {teacher!r} gave {name} of shape {has} for rollout {rollout.index} (domain "
                f"{rollout.domain!r}); {shape} was needed, by {_what(payload)}"
            )
        if type(payload) in SHIPPED and dtype not in DTYPES.get(name, ("float32",)):
            raise GradingFailed(
                f"teacher {teacher!r} gave {name} in {dtype} for rollout {rollout.index} (domain {rollout.domain!r}); "
                f"{' or '.join(DTYPES.get(name, ('float32',)))} was needed"
            )
    return values


def _what(payload: Payload) -> str:
    """What tells the width of a payload's rows."""
    widths = {Full: "its output head", TopK: "the support of the loss"}
    return widths.get(type(payload), "one number a token")


def likeliest_of(rollouts: Sequence[Rollout]) -> list[Int32]:
    """The student's likeliest tokens of each rollout, ``(T, K)``.

    Raises:
        ValueError: a sampler did not record them.
    """
    support_ids = [rollout.support_ids for rollout in rollouts if rollout.support_ids is not None]
    if len(support_ids) < len(rollouts):
        raise ValueError("the loss asks teachers for the student's likeliest tokens, and the sampler recorded none")
    return support_ids


def sampled_of(payload: Payload, ids_T: Int32) -> Float32:
    """The log-probability of each token, ``(T,)``, from a payload that tells it.

    Raises:
        ValueError: it does not.
    """
    logprobs_T = payload.sampled_logprobs(ids_T)
    if logprobs_T is None:
        raise ValueError(f"a {type(payload).__name__} does not tell the log-probabilities of its tokens")
    return logprobs_T
