"""A teacher that a server holds: it says how likely the tokens of a prompt are, and is asked with exact token ids.

A server says what its untempered distribution gives the tokens that it was sent, and its likeliest ones: payloads
``sampled`` and ``topk`` of the teacher's own support, at temperature 1. Nothing else can be had of it.

Shape legend: T tokens of a rollout, K tokens of the support.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from transformers import AutoConfig

from mopd.distill.endpoint import Endpoint, EndpointLost, EndpointRefused
from mopd.distill.payloads import Support
from mopd.distill.recipe import TeacherRecipe
from mopd.distill.types import GradingFailed, Int32, Payload, PayloadName, Sampled, TopK, UserError
from mopd.teachers.kinds.base import TeacherKind, TeacherReach, TeacherSetup, TeacherUse
from mopd.teachers.scorer import Conditions

Row = Mapping[str, Mapping[str, Any]]
"""What a server says of a position: by token id, written in decimals, its log-probability and rank."""
DIGITS = 2.0**-24
"""Half the distance of float32 numbers at 1: what a log-probability near 0 says nothing about."""
ASK_SECONDS = 30.0
"""How long a check waits for a server to take a text apart."""


class ServedModel:
    """A :class:`teachers.scorer.Scorer` behind a server."""

    def __init__(
        self, endpoint: Endpoint, vocabulary: int, support: Support | None, seconds: float | None = None
    ) -> None:
        self._endpoint = endpoint
        self._vocabulary = vocabulary
        self._support = support
        self._seconds = seconds

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
            answers = [(ids_T, _rows(ids_T, choice)) for ids_T, choice in zip(token_ids, choices, strict=True)]
            if support is None:
                return [Sampled(_sampled(ids_T, rows)) for ids_T, rows in answers]
            return [_top_k(ids_T, rows, likeliest, self._vocabulary) for ids_T, rows in answers]
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
        vocabulary = self.vocabulary if conditions.vocabulary is None else min(self.vocabulary, conditions.vocabulary)
        return ServedModel(self.endpoint, vocabulary, support, self.seconds)

    def __str__(self) -> str:
        return f"the served model {self.endpoint}"


def _rows(ids_T: Int32, choice: Mapping[str, Any]) -> list[Row]:
    """What a choice says of every position but the first, of which there is nothing to say.

    Raises:
        EndpointRefused: it has no log-probabilities of the prompt, or of other tokens.
    """
    rows = choice.get("prompt_logprobs")
    # Not per token: nothing precedes the first, so it has no row.
    after_first = rows[1:] if isinstance(rows, list) else []  # not per token
    if not isinstance(rows, list) or len(rows) != len(ids_T) or None in after_first:
        has = f"{len(rows)} of them" if isinstance(rows, list) else "none"
        raise EndpointRefused(
            f"a prompt of {len(ids_T)} tokens came back with {has} in `prompt_logprobs`; the server must be one that "
            "gives the log-probabilities of its prompts, as vLLM does"
        )
    for t, row in enumerate(after_first, start=1):
        if str(ids_T[t]) not in row:
            raise EndpointRefused(f"token {ids_T[t]} at position {t} came back as tokens {', '.join(list(row)[:3])}")
    return after_first


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


def endpoint_of(name: str, stanza: TeacherRecipe) -> Endpoint:
    """Where a served teacher is.

    Raises:
        UserError: the environment has no key for it.
    """
    assert stanza.endpoint is not None
    where = f"teachers.{name}.api_key_env"
    return Endpoint.reach(stanza.endpoint, stanza.served_model or stanza.model, key_env=stanza.api_key_env, where=where)


def _source(setup: TeacherSetup) -> Served:
    config = AutoConfig.from_pretrained(setup.folder, trust_remote_code=setup.trust_remote_code)
    vocabulary = int(config.get_text_config().vocab_size)
    return Served(endpoint_of(setup.name, setup.stanza), vocabulary, setup.microbatch_seconds)


def _check(use: TeacherUse) -> Iterator[str]:
    """Whether nothing is asked of it but what a server gives."""
    where, stanza = f"`teachers.{use.name}", use.stanza
    gives = "a server gives the log-probabilities of its prompts"
    if not _is_url(str(stanza.endpoint)):
        yield f"{where}.endpoint` is {stanza.endpoint!r}; a URL is needed, such as http://host:8000/v1"
    elif httpx.URL(str(stanza.endpoint)).userinfo or httpx.URL(str(stanza.endpoint)).query:
        yield (
            f"{where}.endpoint` carries a name, a password or a query, which every log and record of the run would "
            f"show; leave them out, and name the environment variable that has the key as `api_key_env`"
        )
    if use.made_by_run:
        yield (
            f"{where}.model` is {stanza.model}, which a run makes, so no server has it yet; name the Hub id or "
            f"the path of the model that {stanza.endpoint} serves, or remove `endpoint`"
        )
    if use.grades and use.support not in (None, "teacher"):
        yield (
            f"{where}.endpoint`: {gives} and of its own likeliest tokens, and `loss.support` {use.support} "
            f"asks for the student's; take `support: teacher`"
        )
    if use.grades and use.temperature != 1.0:
        yield (
            f"{where}.endpoint`: {gives} at temperature 1, whatever it is asked for, and "
            f"`rollout.temperature` is {use.temperature:g}; set it to 1"
        )


def _is_url(endpoint: str) -> bool:
    try:
        return httpx.URL(endpoint).scheme in ("http", "https")
    except httpx.InvalidURL:
        return False


def _reach(reach: TeacherReach) -> Iterator[str]:
    """Whether it answers, under its name, long enough, and takes texts apart as the student does."""
    where = f"`teachers.{reach.name}.endpoint`"
    try:
        endpoint = endpoint_of(reach.name, reach.stanza)
        yield from _listed(endpoint, where, reach)
        yield from _tokenizer(endpoint, where, reach)
    except UserError as error:
        yield from error.problems
    except EndpointLost as error:
        yield f"{where}: {error}; start the server, or correct the URL"
    except EndpointRefused as error:
        yield f"{where}: {error}"


def _listed(endpoint: Endpoint, where: str, reach: TeacherReach) -> Iterator[str]:
    models = {str(model.get("id")): model for model in endpoint.models()}
    if endpoint.model not in models:
        yield f"{where} serves {', '.join(models)}, and not {endpoint.model!r}; name one of them in `served_model`"
        return
    context = models[endpoint.model].get("max_model_len")
    needed = reach.longest_prompt + reach.max_new_tokens + 1  # a server writes a token after what it scores
    if isinstance(context, int) and needed > context:
        yield (
            f"{where} has room for {context} tokens, and a prompt of {reach.longest_prompt} with "
            f"`rollout.max_new_tokens` {reach.max_new_tokens} and the token that every request writes makes {needed}; "
            f"start it with a longer --max-model-len, or lower the limit"
        )


def _tokenizer(endpoint: Endpoint, where: str, reach: TeacherReach) -> Iterator[str]:
    """Prompts of every domain, taken apart by both, in a request such as a run makes."""
    if reach.tokenizer is None:
        return
    encoded = reach.tokenizer([*reach.texts], add_special_tokens=False)["input_ids"]
    support = reach.support
    likeliest = 0 if support is None else min(support.k + len(support.forced), len(reach.tokenizer))
    choices = endpoint.complete(
        [*reach.texts], seconds=ASK_SECONDS, max_tokens=1, return_token_ids=True, prompt_logprobs=likeliest
    )
    for text, student_ids, choice in zip(reach.texts, encoded, choices, strict=True):  # type: ignore[arg-type]
        server_ids = choice.get("prompt_token_ids")
        if server_ids != list(student_ids):
            yield (
                f"{where} takes {text[:40]!r} apart into {str(server_ids)[:60]}, and the student's tokenizer into "
                f"{str(list(student_ids))[:60]}; a teacher scores the student's token ids, so serve a model of its "
                "family"
            )
            return


def _describe(stanza: TeacherRecipe) -> str:
    return f", served as {stanza.served_model or stanza.model} at {stanza.endpoint}"


SERVED = TeacherKind(
    "served",
    _source,
    payloads=("sampled", "topk"),
    reads=frozenset({"endpoint", "served_model", "api_key_env"}),
    unread=dict.fromkeys(
        ("dtype", "device", "gpus", "attn_implementation", "scorer"), "the server at {endpoint} decides"
    )
    | {
        "adapter": "a server is not given any: start it with the adapter, vLLM's --lora-modules, and name that in "
        "`served_model`"
    },
    has_weights=False,
    can_write=True,
    endpoint=endpoint_of,
    check=_check,
    reach=_reach,
    describe=_describe,
)
"""A server that holds the weights of `model`, and says how likely the tokens of a prompt are."""
