"""What a teacher reads of a rollout: the student's tokens after a prompt of its own, which may hold a hint.

A teacher scores the tokens that the student wrote. Where its stanza has a ``prompt``, they follow that one in the place
of the student's, and its payload is laid onto the student's positions again: every turn after the prompt is the same to
both. Nothing is said of positions of the prompt, which nobody reads.

Shape legend: T tokens of the student's rollout, S of what the teacher reads of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from mopd.distill.types import (
    Bool,
    Float32,
    GradingFailed,
    Int32,
    Payload,
    PayloadName,
    Prompt,
    Rollout,
    trained_rows,
)
from mopd.teachers.scorer import Scorer

REPEATED = 3
"""Tokens in a row that stand in the hint too make a repetition; all of them where the hint is shorter. Our choice."""


@dataclass(frozen=True, slots=True)
class TeacherText:
    """What a teacher reads in the place of a prompt.

    Attributes:
        text: as a person reads it.
        token_ids: the same in tokens.
        hint: what it sees and the student does not; None where it sees no more.
        hint_ids: the hint alone in tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    hint: str | None = None
    hint_ids: tuple[int, ...] = ()


Reads: TypeAlias = Callable[[Prompt], TeacherText]
"""Says what a teacher reads in the place of a student's prompt."""


@dataclass(frozen=True, slots=True)
class TeacherView:
    """What a teacher is given of one rollout; a scorer of a user's own that takes ``views`` gets it beside the ids.

    Attributes:
        domain: of the rollout.
        prompt: the text that stands before what the student wrote.
        hint: what the teacher sees and the student does not; None where it sees no more.
        mask_S: True at the tokens that the student wrote, by the ids that the teacher scores.
        prompt_ids: the teacher's own prompt; None where it reads the student's.
        student_prompt_tokens: tokens of the student's prompt, whose place it takes.
        hint_ids: the hint in tokens.

    Example:
        The student wrote ``[5, 1]`` after ``[7, 8]`` and the teacher's prompt is ``[9]``: the teacher scores
        ``[9, 5, 1]``, ``mask_S`` is ``[False, True, True]``, and its rows 1 and 2 become rows 2 and 3 of the payload.
    """

    domain: str
    prompt: str
    hint: str | None
    mask_S: Bool
    prompt_ids: tuple[int, ...] | None = None
    student_prompt_tokens: int = 0
    hint_ids: tuple[int, ...] = ()

    def ids(self, ids_T: Int32) -> Int32:
        """The ids that the teacher scores, ``(S,)``."""
        if self.prompt_ids is None:
            return ids_T
        return np.concatenate([np.array(self.prompt_ids, dtype=np.int32), ids_T[self.student_prompt_tokens :]])

    def rows(self, values_T: Any) -> Any:
        """Rows of the student's positions, ``(T, ...)``, on the teacher's, ``(S, ...)``; zeros at its prompt."""
        return values_T if self.prompt_ids is None else _moved(values_T, self.student_prompt_tokens, self._prompt)

    def payload(self, payload: Payload, ids_T: Int32) -> Payload:
        """A payload of ``S`` rows on the student's positions: ``T`` rows.

        Raises:
            GradingFailed: it has another number of rows.
        """
        if self.prompt_ids is None:
            return payload
        own, arrays = self._prompt, payload.arrays()
        owed = len(ids_T) - self.student_prompt_tokens + own
        for name, array in arrays.items():
            if len(array) != owed:
                raise GradingFailed(
                    f"{name} has {len(array)} rows for {owed} tokens: {own} of the teacher's own prompt and "
                    f"{owed - own} of the student's"
                )
        return replace(payload, **{n: _moved(a, own, self.student_prompt_tokens) for n, a in arrays.items()})

    @property
    def _prompt(self) -> int:
        return self.student_prompt_tokens if self.prompt_ids is None else len(self.prompt_ids)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What a process is asked of a microbatch; see :meth:`teachers.scorer.Scorer.score`.

    Attributes:
        token_ids: the student's rollouts, ``(T,)`` each.
        given: the student's likeliest tokens of each, ``(T, K)``, where the support asks for them.
        views: what the teacher reads of each; empty: the rollouts as they are.
        masks: the tokens of each, ``(T,)``, that the answer has rows of; None: all.
    """

    token_ids: Sequence[Int32]
    payload: PayloadName
    given: Sequence[Int32] | None = None
    views: Sequence[TeacherView] = ()
    masks: Sequence[Bool] | None = None


def view_of(rollout: Rollout, text: TeacherText | None) -> TeacherView:
    """What a teacher is given of a rollout; ``text`` is its own prompt, None where it reads the student's."""
    if text is None:
        return TeacherView(rollout.domain, rollout.prompt.text, None, rollout.loss_mask)
    n = len(rollout.prompt.token_ids)
    mask_S = _moved(rollout.loss_mask, n, len(text.token_ids))
    return TeacherView(rollout.domain, text.text, text.hint, mask_S, text.token_ids, n, text.hint_ids)


def length(rollout: Rollout, view: TeacherView) -> int:
    """Tokens that a teacher reads of a rollout."""
    return len(rollout.token_ids) if view.prompt_ids is None else len(view.mask_S)


def score_views(scorer: Scorer, request: ScoreRequest, adapter: str | None) -> list[Payload]:
    """A microbatch's payloads on the student's positions, ``T`` rows each, whatever the teacher reads before them.

    Where the request has masks, a payload has the rows of the tokens that are asked for alone: a scorer that knows no
    masks scores all, and its other rows go no further. One that has not a row a token is for the pool to refuse.

    Raises:
        GradingFailed: a payload has another number of rows than the teacher was given tokens.
    """
    masks = request.masks
    if masks is None or not getattr(scorer, "answers_masks", False):
        payloads = _whole_views(scorer, request, adapter)
        if masks is None or len(payloads) != len(masks):
            return payloads
        return [_at(payload, mask_T) for payload, mask_T in zip(payloads, masks, strict=True)]
    views = request.views
    ids, given, asked = request.token_ids, request.given, masks
    if views:
        ids = [view.ids(ids_T) for view, ids_T in zip(views, ids, strict=True)]
        given = given and [view.rows(given_TK) for view, given_TK in zip(views, given, strict=True)]
        asked = [view.rows(mask_T) for view, mask_T in zip(views, masks, strict=True)]
    score: Any = scorer.score
    return score(ids, request.payload, adapter, given, masks=asked)


def _at(payload: Payload, mask_T: Bool) -> Payload:
    arrays = payload.arrays().values() if isinstance(payload, Payload) else ()
    return payload.at(mask_T) if arrays and all(len(array) == len(mask_T) for array in arrays) else payload


def _whole_views(scorer: Scorer, request: ScoreRequest, adapter: str | None) -> list[Payload]:
    """Payloads of ``T`` rows each."""
    views = request.views
    if not views:
        return scorer.score(request.token_ids, request.payload, adapter, request.given)
    pairs = list(zip(request.token_ids, views, strict=True))
    ids = [view.ids(ids_T) for ids_T, view in pairs]
    given = request.given and [view.rows(given_TK) for given_TK, view in zip(request.given, views, strict=True)]
    payloads = with_views(scorer, views)(ids, request.payload, adapter, given)
    if len(payloads) != len(ids):
        return payloads  # that too few or too many came, the pool says
    return [view.payload(payload, ids_T) for payload, (ids_T, view) in zip(payloads, pairs, strict=True)]


def with_views(scorer: Scorer, views: Sequence[TeacherView]) -> Callable[..., list[Payload]]:
    """The method ``score`` of a scorer, given the views where it takes them."""
    if not views or "views" not in inspect.signature(scorer.score).parameters:
        return scorer.score
    return lambda *arguments: scorer.score(*arguments, views=views)  # pyright: ignore[reportCallIssue]


def repeats_hint(ids_T: Int32, mask_T: Bool, hint_ids: Sequence[int]) -> Bool:
    """Where a rollout repeats the hint, ``(T,)``: trained tokens of a run of :data:`REPEATED` that the hint has too.

    Example:
        With the hint ``[4, 5, 6, 7]`` the trained tokens ``[9, 5, 6, 7, 4]`` repeat it at ``5, 6, 7``.
    """
    n = min(REPEATED, len(hint_ids))
    repeated_T = np.zeros(len(ids_T), dtype=np.bool_)
    if n == 0:
        return repeated_T
    hint = np.lib.stride_tricks.sliding_window_view(np.array(hint_ids), n)
    runs = {tuple(run) for run in hint.tolist()}
    for t in range(len(ids_T) - n + 1):
        if mask_T[t : t + n].all() and tuple(ids_T[t : t + n].tolist()) in runs:
            repeated_T[t : t + n] = True
    return repeated_T


@dataclass(slots=True)
class HintCount:
    """How much of what a teacher likes better than the student did is at tokens that repeat its hint; sums of nats.

    ``gain`` sums the positive gaps alone: what pulls the student up.
    """

    tokens: int = 0
    repeated: int = 0
    gap_repeated: float = 0.0
    gap_elsewhere: float = 0.0
    gain_repeated: float = 0.0
    gain: float = 0.0

    def add(self, rollout: Rollout, view: TeacherView, logprobs: Float32) -> None:
        """Count a rollout's trained tokens; ``logprobs`` are the teacher's, of all tokens or of these alone."""
        mask_T = rollout.loss_mask
        repeated_N = repeats_hint(rollout.token_ids, mask_T, view.hint_ids)[mask_T]
        gap_N = trained_rows(logprobs, rollout) - rollout.sampler_logprobs[mask_T]
        gain_N = np.maximum(gap_N, 0.0).astype(np.float64)
        self.tokens += len(gap_N)
        self.repeated += int(repeated_N.sum())
        self.gap_repeated += float(gap_N[repeated_N].sum(dtype=np.float64))
        self.gap_elsewhere += float(gap_N[~repeated_N].sum(dtype=np.float64))
        self.gain_repeated += float(gain_N[repeated_N].sum())
        self.gain += float(gain_N.sum())

    @property
    def copied(self) -> float:
        """The part of the gain that is at tokens which repeat the hint, 0..1; 0 where nothing is gained."""
        return self.gain_repeated / self.gain if self.gain > 0 else 0.0

    def metrics(self, teacher: str) -> dict[str, float]:
        """By name; a mean over no tokens is left out."""
        elsewhere = self.tokens - self.repeated
        if not self.tokens:
            return {}
        values = {f"hint_repeated/{teacher}": self.repeated / self.tokens, f"hint_gain/{teacher}": self.copied}
        if self.repeated:
            values[f"hint_gap/{teacher}"] = self.gap_repeated / self.repeated
        if elsewhere:
            values[f"hint_gap_elsewhere/{teacher}"] = self.gap_elsewhere / elsewhere
        return values


def _moved(values: Any, before: int, after: int) -> Any:
    """Rows of what follows a prompt of ``before`` tokens, after a prompt of ``after`` tokens; zeros at the prompt."""
    made = np.zeros((len(values) - before + after, *values.shape[1:]), dtype=values.dtype)  # not per token
    made[after:] = values[before:]
    return made
