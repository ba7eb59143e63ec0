"""A teacher that a server holds: it says how likely the tokens of a prompt are, and is asked with exact token ids.

A server says what its untempered distribution gives the tokens that it was sent, and its likeliest ones: payloads
``sampled`` and ``topk`` of the teacher's own support, at temperature 1. Nothing else can be had of it.

Shape legend: T tokens of a rollout, K tokens of the support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mopd.distill.endpoint import Endpoint, EndpointRefused
from mopd.distill.payloads import Support
from mopd.distill.types import GradingFailed, Int32, Payload, PayloadName, Sampled, TopK
from mopd.teachers.scorer import Conditions

Row = Mapping[str, Mapping[str, Any]]
"""What a server says of a position: by token id, written in decimals, its log-probability and rank."""
DIGITS = 2.0**-24
"""Half the distance of float32 numbers at 1: what a log-probability near 0 says nothing about."""


class ServedModel:
    """A :class:`teachers.scorer.Scorer` behind a server."""

    def __init__(
        self, endpoint: Endpoint, vocabulary: int, support: Support | None, seconds: float | None = None
    ) -> None:
        self._endpoint, self._vocabulary, self._support, self._seconds = endpoint, vocabulary, support, seconds

    @property
    def vocabulary(self) -> int:
        """The size of the output head by the model's configuration, in tokens."""
        return self._vocabulary

    def score(
        self,
        token_ids: Sequence[Int32],
        payload: PayloadName,
        adapter: str | None = None,
        given: Sequence[Int32] | None = None,
    ) -> list[Payload]:
        """Score rollouts in one request; see :meth:`teachers.scorer.Scorer.score`.

        Raises:
            EndpointLost: the server is away, or broke; asked again, it may answer.
            GradingFailed: it refuses, or its answer is not of the tokens that it was sent.
        """
        if not token_ids:
            return []
        support = self._support if payload == "topk" else None
        likeliest = 0 if support is None else min(support.k + len(support.forced), self._vocabulary)
        try:
            # One token is written because none is refused; nobody reads it.
            choices = self._endpoint.complete(
                [ids_T.tolist() for ids_T in token_ids], seconds=self._seconds,
                max_tokens=1, temperature=1.0, prompt_logprobs=likeliest,
            )  # fmt: skip
            told = [(ids_T, _rows(ids_T, choice)) for ids_T, choice in zip(token_ids, choices, strict=True)]
            if support is None:
                return [Sampled(_sampled(ids_T, rows)) for ids_T, rows in told]
            return [_top_k(ids_T, rows, likeliest, self._vocabulary) for ids_T, rows in told]
        except EndpointRefused as error:
            raise GradingFailed(str(error)) from None


@dataclass(frozen=True, slots=True)
class Served:
    """A teacher's source: a model behind a server.

    Attributes:
        vocabulary: tokens of its output head, which no server tells.
        seconds: that the server may be silent within a request; None: as long as it takes.
    """

    endpoint: Endpoint
    vocabulary: int
    seconds: float | None = None

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> ServedModel:
        """Reach it.

        Raises:
            GradingFailed: it can't be asked under these conditions: a server ignores temperature, and knows of no
                token but its likeliest.
        """
        support = conditions.support
        if conditions.temperature != 1.0 or adapters or (support is not None and support.given):
            raise GradingFailed(
                f"{self} scores at temperature 1, without adapters, its own likeliest tokens; it was opened for "
                f"temperature {conditions.temperature:g}, {len(adapters)} adapters and support {support}"
            )
        return ServedModel(self.endpoint, self.vocabulary, support, self.seconds)

    def __str__(self) -> str:
        return f"the served model {self.endpoint}"


def _rows(ids_T: Int32, choice: Mapping[str, Any]) -> list[Row]:
    """What a choice says of every position but the first, of which there is nothing to say.

    Raises:
        EndpointRefused: it has no log-probabilities of the prompt, or of other tokens.
    """
    rows = choice.get("prompt_logprobs")
    told = rows[1:] if isinstance(rows, list) else []  # not per token: nothing precedes the first, so it has no row
    if not isinstance(rows, list) or len(rows) != len(ids_T) or None in told:
        has = f"{len(rows)} of them" if isinstance(rows, list) else "none"
        raise EndpointRefused(
            f"a prompt of {len(ids_T)} tokens came back with {has} in `prompt_logprobs`; the server must be one that "
            "gives the log-probabilities of its prompts, as vLLM does"
        )
    for t, row in enumerate(told, start=1):
        if str(ids_T[t]) not in row:
            raise EndpointRefused(f"token {ids_T[t]} at position {t} came back as tokens {', '.join(list(row)[:3])}")
    return told


def _sampled(ids_T: Int32, rows: Sequence[Row]) -> np.ndarray:
    """The tokens' own log-probabilities, ``(T,)``."""
    own = [float(row[str(ids_T[t])]["logprob"]) for t, row in enumerate(rows, start=1)]
    return np.array([0.0, *own], dtype=np.float32)


def _top_k(ids_T: Int32, rows: Sequence[Row], k: int, vocabulary: int) -> TopK:
    """The k likeliest tokens of every position, the sampled one always among them, and what is left for all others.

    A local teacher ships k likeliest and all control tokens. A server can't be asked for those, so as many more of its
    likeliest take their place, and the sampled token does where it is none of them: what the student does write,
    EOS above all, is always compared.
    """
    ids_TK = np.tile(np.arange(k, dtype=np.int32), (len(ids_T), 1))
    logprobs_TK = np.zeros((len(ids_T), k), dtype=np.float32)
    for t, row in enumerate(rows, start=1):
        own = str(ids_T[t])
        ranked = sorted(row, key=lambda token: (token != own, int(row[token]["rank"])))[:k]
        if len(ranked) < k:
            raise EndpointRefused(f"{len(ranked)} tokens came back for position {t}, and {k} were asked for")
        ids_TK[t] = [int(token) for token in ranked]
        logprobs_TK[t] = [float(row[token]["logprob"]) for token in ranked]
    return TopK(ids_TK, logprobs_TK, _rest(logprobs_TK, vocabulary), _sampled(ids_T, rows))


def _rest(logprobs_TK: np.ndarray, vocabulary: int) -> np.ndarray:
    """The log-probability of all tokens outside of the support, ``(T,)``, as well as float32 numbers tell it.

    One minus a sum keeps few digits of a small rest, so it lies between what the digits leave open and what the others
    can have together, none of them being likelier than the least likely of the support's.
    """
    k = logprobs_TK.shape[-1]
    if k >= vocabulary:
        return np.full(len(logprobs_TK), -np.inf, dtype=np.float32)
    left_T = 1.0 - np.exp(logprobs_TK.astype(np.float64)).sum(-1)
    rest_T = np.log(np.maximum(left_T, k * DIGITS))
    if k > 1:
        # The sampled token may be less likely than some outside; the second least likely of the support is not.
        second_T = np.partition(logprobs_TK.astype(np.float64), 1, axis=-1)[:, 1]
        rest_T = np.minimum(rest_T, np.log(vocabulary - k) + second_T)
    return rest_T.astype(np.float32)
