"""What a teacher can say of a rollout. Part of distill/types.py, and imported from there.

Shape legend: T tokens of a sequence, V vocabulary, K entries of a top-k support, H hidden size. Row ``t`` speaks of
token ``t`` given the tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Int32: TypeAlias = npt.NDArray[np.int32]
Float32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The teacher's log-probability of each token, in nats, shape ``(T,)``."""

    logprobs_T: Float32


@dataclass(frozen=True, slots=True)
class TopK:
    """Log-probabilities (never renormalised, in nats) on a support of K tokens per position, both ``(T, K)``.

    ``rest_T`` is the log-probability of all other tokens together, -inf where there are none: it cannot be had from
    the support without losing all its digits. ``sampled_T`` is that of the token itself, in the support or not.
    """

    ids_TK: Int32
    logprobs_TK: Float32
    rest_T: Float32
    sampled_T: Float32


@dataclass(frozen=True, slots=True)
class Hidden:
    """The last hidden states ``(T, H)``, aligned, and the name of the output head they belong to."""

    hidden_TH: Float32
    head: str


@dataclass(frozen=True, slots=True)
class Full:
    """Log-probabilities over the whole vocabulary, aligned, shape ``(T, V)``, in nats."""

    logprobs_TV: Float32


Payload: TypeAlias = Sampled | TopK | Hidden | Full
PayloadName: TypeAlias = Literal["full", "sampled", "topk"]
"""Payloads that teachers give and losses use so far."""
PAYLOADS: dict[str, type[Any]] = {"sampled": Sampled, "topk": TopK, "hidden": Hidden, "full": Full}


@dataclass(frozen=True, slots=True)
class TeacherScore:
    """What one teacher says of one rollout."""

    teacher: str
    payload: Payload
