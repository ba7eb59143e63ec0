"""A teacher of a user's own class, behind the same Protocol as what is shipped; less is made of the more that it gives.

It is a class, called as ``NAME(model, device=..., dtype=..., conditions=...)`` in the teacher's process, and is a
:class:`teachers.scorer.Scorer` then. ``payloads`` names what it can be asked for: whole distributions serve every loss
on log-probabilities.

Shape legend: T tokens of a rollout, V vocabulary, K tokens of a support.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mopd.distill.payload_rows import AskedSupport, payload_spec
from mopd.distill.payloads import Support
from mopd.distill.recipe import TeacherRecipe
from mopd.distill.recipe.plugins import is_plugin, load_plugin, located_plugin, plugin_digest
from mopd.distill.types import Full, GradingFailed, Int32, Payload, PayloadName, Sampled, UserError
from mopd.teachers.kinds.base import TeacherKind, TeacherSetup, TeacherUse
from mopd.teachers.kinds.plugin import refuse_changed_file
from mopd.teachers.scorer import Conditions, Scorer
from mopd.teachers.validate import sampled_of
from mopd.teachers.views import TeacherView, with_views

MORE: dict[PayloadName, tuple[PayloadName, ...]] = {
    "sampled": ("sampled", "topk", "full"),
    "topk": ("topk", "full"),
    "full": ("full",),
}
"""What an answer of each kind can be made of, the least first; a user's own payload, of whole distributions. Hidden
states are of no use without their head."""


def asked_instead(payload: PayloadName, gives: Collection[str], *, support: bool) -> PayloadName | None:
    """What a class that ``gives`` some payloads is asked for where ``payload`` is needed; None: nothing that it has.

    Args:
        support: whether the loss has a support; without one nobody can answer with the top k of it.
    """
    holds = () if payload == "hidden" else MORE.get(payload, (payload, "full"))
    return next((more for more in holds if more in gives and (support or more != "topk")), None)


class CustomScorer:
    """A user's scorer, asked for what it gives and answering what is needed."""

    def __init__(self, scorer: Scorer, conditions: Conditions, dtype: str) -> None:
        self._scorer = scorer
        self._support = conditions.support
        self._limit = conditions.vocabulary
        self.dtype = dtype
        self._gives: tuple[PayloadName, ...] = tuple(getattr(scorer, "payloads", ()))
        if (reference := getattr(scorer, "reference", None)) is not None:
            self.reference: Any = reference  # a preflight compares with it where there is one
        if (digest := getattr(scorer, "digest", None)) is not None:
            self.digest: Any = digest  # compared where it is loaded again

    @property
    def vocabulary(self) -> int:
        """How many tokens its output distributes over."""
        rows = self._scorer.vocabulary
        return rows if self._limit is None else min(rows, self._limit)

    def score(
        self,
        token_ids: Sequence[Int32],
        payload: PayloadName,
        adapter: str | None = None,
        given: Sequence[Int32] | None = None,
        views: Sequence[TeacherView] = (),
    ) -> list[Payload]:
        """See :meth:`teachers.scorer.Scorer.score`; ``views`` are handed to a class that takes them.

        Raises:
            GradingFailed: it does not give this payload, nor one that holds it.
        """
        if not token_ids:
            return []
        request = asked_instead(payload, self._gives, support=self._support is not None)
        if request is None:
            raise GradingFailed(f"it gives {', '.join(self._gives) or 'nothing'}, and {payload} is needed")
        answers = with_views(self._scorer, views)(token_ids, request, adapter, given)
        answers = [_within(answer, self._limit) for answer in answers]
        if request == payload or len(answers) != len(token_ids):
            return answers  # what is wrong with it, the pool says
        if payload == "sampled":
            pairs = zip(answers, token_ids, strict=True)
            return [Sampled(sampled_of(answer, ids_T).copy()) for answer, ids_T in pairs]
        given_TKs = [None] * len(token_ids) if given is None else list(given)
        triples = zip(answers, token_ids, given_TKs, strict=True)
        return [_of_full(answer, payload, ids_T, self._support, given_TK) for answer, ids_T, given_TK in triples]


@dataclass(frozen=True, slots=True)
class CustomSource:
    """A teacher's source: a class of a user's own file.

    Attributes:
        reference: ``/path/file.py:NAME``.
        model: the checkpoint whose tokens it speaks, which its recipe names beside it.
        device, dtype: where its recipe says that it computes, and in what; it is told, and may do otherwise.
        digest: of the file; see :func:`distill.recipe.plugins.plugin_digest`.
    """

    reference: str
    model: str
    device: str
    dtype: str
    digest: str

    @classmethod
    def of(cls, scorer: str, model: str, device: str, dtype: str) -> CustomSource:
        """The one that a recipe's ``scorer`` names, as its file is now."""
        return cls(located_plugin(scorer), model, device, dtype, plugin_digest(scorer))

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> CustomScorer:
        """Call it, in the process that calls this.

        Raises:
            UserError: the file or the name is not there.
            GradingFailed: the file is another than when the run was started.
        """
        refuse_changed_file(self.reference, self.digest)
        make = load_plugin(self.reference, where="teachers.NAME.scorer")
        scorer = make(self.model, device=self.device, dtype=self.dtype, conditions=conditions)
        return CustomScorer(scorer, conditions, self.dtype)

    def __str__(self) -> str:
        return f"the scorer {self.reference}"


def _within(answer: Payload, vocabulary: int | None) -> Payload:
    """A whole distribution over the first ``vocabulary`` ids alone, those of the tokenizer; anything else as it is."""
    if not isinstance(answer, Full) or vocabulary is None or answer.logprobs_TV.shape[-1] <= vocabulary:
        return answer
    within_TV = answer.logprobs_TV[:, :vocabulary]
    return Full(within_TV - np.logaddexp.reduce(within_TV, axis=-1, keepdims=True))


def _of_full(
    answer: Payload, payload: PayloadName, ids_T: Int32, support: Support | None, given_TK: Int32 | None
) -> Payload:
    """What a payload's row makes of whole distributions; anything else as it is, for the pool to refuse."""
    of_logprobs = payload_spec(payload).of_logprobs
    if not isinstance(answer, Full) or of_logprobs is None:
        return answer
    given = None if given_TK is None else torch.from_numpy(given_TK.astype("int64"))
    asked = AskedSupport(support, given)
    return of_logprobs(torch.from_numpy(answer.logprobs_TV), torch.from_numpy(ids_T.astype("int64")), asked)


def _source(setup: TeacherSetup) -> CustomSource:
    assert setup.stanza.scorer is not None
    return CustomSource.of(setup.stanza.scorer, setup.folder, setup.device, setup.dtype)


def _check(use: TeacherUse) -> Iterator[str]:
    """Whether the class is there and gives what the loss needs; calling it would load it."""
    where, scorer = f"teachers.{use.name}.scorer", str(use.stanza.scorer)
    if not is_plugin(scorer):
        yield f"`{where}` is {scorer!r}; write ./file.py:NAME, the class NAME of that file"
        return
    try:
        made = load_plugin(scorer, where=where)
    except UserError as error:
        yield from error.problems
        return
    gives = getattr(made, "payloads", None)
    if not callable(made) or not callable(getattr(made, "score", None)):
        yield f"`{where}`: {scorer} is {made!r:.60}, and must be a class with a method `score` (docs/own.md)"
    elif not isinstance(gives, tuple) or not set(gives) <= {*MORE} or not gives:
        offered = ", ".join(map(repr, MORE))
        yield f"`{where}`: {scorer} has payloads {gives!r}, and must have a tuple of some of {offered}"
    elif (
        use.payload not in (None, "hidden")
        and asked_instead(use.payload, gives, support=use.support is not None) is None
    ):
        yield (
            f"`{where}`: {scorer} gives {' and '.join(gives)}, and `loss.estimator` {use.estimator} needs "
            f"{use.payload}; give more, or take another estimator"
        )


def _describe(stanza: TeacherRecipe) -> str:
    return f", scored by {stanza.scorer}"


CUSTOM = TeacherKind(
    "custom",
    _source,
    payloads=tuple(MORE),
    reads=frozenset({"scorer", "dtype", "device", "gpus"}),
    unread={"adapter": "{scorer} loads what it scores with"}
    | dict.fromkeys(("served_model", "api_key_env"), "no `endpoint` is asked"),
    check=_check,
    describe=_describe,
)
"""A class of a user's own file, which scores in the tokens of `model`."""
