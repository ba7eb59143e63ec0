"""Payloads as rows: what teachers can be asked for, how it is made, and how much it takes.

A further payload is a subclass of :class:`distill.payloads.Payload` and a row: in :data:`PAYLOADS`, or, of a user's
own, in the ``LossSpec`` of the estimator that needs it. Its name is then the estimator's ``./file.py:NAME``, so every
process finds it.

Shape legend: T tokens of a rollout, V vocabulary, K tokens of a support.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from mopd.distill.errors import UserError
from mopd.distill.payloads import Chunked, Full, Hidden, Payload, PayloadName, Sampled, Support, TopK, top_k
from mopd.distill.recipe.plugins import is_plugin, load_plugin, located_plugin


@dataclass(frozen=True, slots=True)
class RowSizes:
    """What the bytes of a token's row depend on.

    Attributes:
        vocabulary: tokens of the teacher's output head.
        hidden: size of its last hidden states.
        support: K, the tokens of a top-k support, forced ones included; 0 where the loss has none.
        value_bytes: bytes of a number in the teacher's dtype.
    """

    vocabulary: int
    hidden: int
    support: int
    value_bytes: int


@dataclass(frozen=True, slots=True)
class AskedSupport:
    """Which tokens of a rollout's distributions are asked for; both None where all, or only the sampled ones, are.

    Attributes:
        support: the rule.
        given_TK: the student's likeliest tokens, int64, where the rule asks for them.
    """

    support: Support | None = None
    given_TK: torch.Tensor | None = None


FromLogprobs: TypeAlias = Callable[[torch.Tensor, torch.Tensor, AskedSupport], Payload]
"""``(logprobs_TV, token_ids_T, asked) -> payload`` of one rollout: float32 in nats, int64; on the teacher's device."""


@dataclass(frozen=True, slots=True)
class PayloadSpec:
    """A row of :data:`PAYLOADS`, or a user's own.

    Attributes:
        payload: its class.
        row_bytes: bytes that a teacher ships of one token.
        of_logprobs: makes it of a rollout's whole distributions, as a checkpoint's teacher does; None where it is made
            of something else.
    """

    payload: type[Payload]
    row_bytes: Callable[[RowSizes], int]
    of_logprobs: FromLogprobs | None = None

    @property
    def tells_sampled(self) -> bool:
        """Whether it tells the log-probability of the sampled tokens, which rules of shares need."""
        return self.payload.sampled_logprobs is not Payload.sampled_logprobs


def _sampled(logprobs_TV: torch.Tensor, token_ids_T: torch.Tensor, asked: AskedSupport) -> Sampled:
    logprobs_T = logprobs_TV.gather(-1, token_ids_T.unsqueeze(-1)).squeeze(-1)
    return Sampled(logprobs_T.cpu().numpy())


def _full(logprobs_TV: torch.Tensor, token_ids_T: torch.Tensor, asked: AskedSupport) -> Full:
    return Full(logprobs_TV.cpu().numpy())


def _topk(logprobs_TV: torch.Tensor, token_ids_T: torch.Tensor, asked: AskedSupport) -> TopK:
    assert asked.support is not None, "payload topk needs a support"
    ids_TK, logprobs_TK, rest_T = (rows.cpu().numpy() for rows in top_k(logprobs_TV, asked.support, asked.given_TK))
    sampled = _sampled(logprobs_TV, token_ids_T, asked)
    return TopK(ids_TK.astype(np.int32), logprobs_TK, rest_T, sampled.logprobs_T)


def _chunked(logprobs_TV: torch.Tensor, token_ids_T: torch.Tensor, asked: AskedSupport) -> Chunked:
    """Of a teacher of the student's tokenizer, where every token is a chunk: teachers/retokenized.py has the rule."""
    whole = _topk(logprobs_TV, token_ids_T, asked)
    outside_T = (whole.ids_TK != token_ids_T.cpu().numpy()[:, None]).all(axis=1)
    chunk_T = np.where(outside_T, np.arange(len(outside_T)), -1).astype(np.int32)
    owed_T = np.where(outside_T, whole.sampled_T, 0.0).astype(np.float32)
    return Chunked(whole.ids_TK, whole.logprobs_TK, whole.rest_T, whole.sampled_T, chunk_T, owed_T)


PAYLOADS: dict[str, PayloadSpec] = {
    "sampled": PayloadSpec(Sampled, lambda sizes: 4, _sampled),
    "topk": PayloadSpec(TopK, lambda sizes: 8 * sizes.support + 8, _topk),
    # A process is asked for its top k; the driver makes chunks of it, see teachers/retokenized.py.
    "chunked": PayloadSpec(Chunked, lambda sizes: 8 * sizes.support + 16, _chunked),
    "full": PayloadSpec(Full, lambda sizes: 4 * sizes.vocabulary, _full),
    # Of the layer before the output head, shipped as they are; all else is shipped in float32.
    "hidden": PayloadSpec(Hidden, lambda sizes: sizes.value_bytes * sizes.hidden),
}
"""Payloads by the name that a loss gives them."""


def payload_spec(name: PayloadName) -> PayloadSpec:
    """The row of a payload: a shipped one, or the one that the estimator ``/path/file.py:NAME`` brings along.

    Raises:
        UserError: there is no such row.
    """
    if name in PAYLOADS:
        return PAYLOADS[name]
    spec = getattr(load_plugin(name, where="loss.estimator"), "payload", None) if is_plugin(name) else None
    if not isinstance(spec, PayloadSpec):
        raise UserError(f"no payload is called {name!r}; there are {', '.join(PAYLOADS)}")
    return spec


def custom_payload(estimator: str) -> PayloadName:
    """The name of the payload that the estimator ``./file.py:NAME`` brings along, the same in every process."""
    return located_plugin(estimator)
