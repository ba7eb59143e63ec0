"""A dry run: a teacher scores the same rollouts twice before it is trusted with a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mopd.distill.types import Float32, Full, Payload, PayloadName, Rollout
from mopd.teachers.kinds.checkpoint import microbatches
from mopd.teachers.retokenized import ChunkCount, Retokenized, Retokenizer, asked_payload
from mopd.teachers.scorer import Scorer
from mopd.teachers.validate import Expected, check_answer, likeliest_of, sampled_of
from mopd.teachers.views import HintCount, Reads, ScoreRequest, length, view_of

Ask: TypeAlias = Callable[[ScoreRequest], Sequence[Sequence[Payload]]]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a teacher said of the tokens of some rollouts when it was tried out, in nats.

    Attributes:
        answers: of every process, twice: the tokens' log-probabilities ``(T,)`` of each rollout, in order.
        reference: what those of the first rollout must be; None where the teacher's kind has no reference.
        hint: how much of what it likes better than the student did repeats its hint; None where it sees none.
        aligned: how its tokens align with the student's, where they are its own; a chunk's log-probability is then
            dealt out to the student's tokens.
    """

    answers: tuple[tuple[Float32, ...], ...]
    reference: Float32 | None
    hint: HintCount | None = None
    aligned: ChunkCount | None = None


def dry_run_payload(payload: PayloadName | None) -> PayloadName:
    """The payload that a dry run asks for, where the loss needs ``payload``: hidden states tell nothing of tokens."""
    asked = None if payload is None else asked_payload(payload)
    return asked if asked in ("full", "topk") else "sampled"


def dry_run(
    name: str,
    ask: Ask,
    rollouts: Sequence[Rollout],
    expected: Expected,
    *,
    tokens: int,
    reference: Callable[[ScoreRequest], Float32 | None],
    reads: Reads | None = None,
    retokenizer: Retokenizer | None = None,
) -> DryRun:
    """Have rollouts scored by everyone who answers for a teacher, and check every answer.

    Args:
        ask: for a microbatch; returns the payloads of each answer, as many answers each time.
        tokens: padded tokens of a microbatch at most.
        reference: what the scores of the first rollout's tokens must equal, ``(T,)``; None where the kind cannot say.
        reads: what the teacher reads in the place of a prompt; None: the student's.
        retokenizer: of a teacher that reads its own tokens; ``reads`` is then not asked.

    Raises:
        NonFinite, GradingFailed: see :func:`teachers.validate.check_answer`.
    """
    if retokenizer is not None:
        own = [retokenizer(rollout) for rollout in rollouts]
        asked = [read.rollout for read in own]
        return _laid_back(retokenizer, own, dry_run(name, ask, asked, expected, tokens=tokens, reference=reference))
    logprobs_by_answer: list[dict[int, Float32]] = []
    views = [view_of(rollout, None if reads is None else reads(rollout.prompt)) for rollout in rollouts]
    for members in microbatches([length(*pair) for pair in zip(rollouts, views, strict=True)], tokens):
        microbatch = [rollouts[i] for i in members]
        given = likeliest_of(microbatch) if expected.support is not None and expected.support.given else None
        token_ids = [rollout.token_ids for rollout in microbatch]
        answers = ask(ScoreRequest(token_ids, expected.payload, given, [views[i] for i in members]))
        logprobs_by_answer = logprobs_by_answer or [{} for _ in answers]
        for logprobs, payloads in zip(logprobs_by_answer, answers, strict=True):
            check_answer(name, microbatch, payloads, expected)
            for i, payload in zip(members, payloads, strict=True):
                logprobs[i] = sampled_of(payload, rollouts[i].token_ids)
    scored = tuple(tuple(logprobs[i] for i in range(len(rollouts))) for logprobs in logprobs_by_answer)
    hint = HintCount() if any(view.hint is not None for view in views) else None
    for rollout, view, logprobs_T in zip(rollouts, views, scored[0], strict=True):
        if hint is not None:
            hint.add(rollout, view, logprobs_T)
    first = ScoreRequest([rollouts[0].token_ids], "full", views=views[:1])  # not per token
    return DryRun(scored, reference(first), hint)


def _laid_back(retokenizer: Retokenizer, own: Sequence[Retokenized], trial: DryRun) -> DryRun:
    """What a teacher said of its own tokens, on the student's."""
    answers = tuple(
        tuple(retokenizer.apportioned(read, logprobs) for read, logprobs in zip(own, answer, strict=True))
        for answer in trial.answers
    )
    reference = None if trial.reference is None else retokenizer.apportioned(own[0], trial.reference)
    aligned, hint = ChunkCount(), HintCount() if any(read.text.hint is not None for read in own) else None
    for read, logprobs_T in zip(own, answers[0], strict=True):
        aligned.add(read)
        if hint is not None:
            hint.add(read.original, retokenizer.view(read), logprobs_T)
    return DryRun(answers, reference, hint, aligned)


def reference_of(scorer: Scorer, request: ScoreRequest, adapter: str | None = None) -> Float32 | None:
    """The log-probabilities of the first rollout's tokens by the scorer's own reference, ``(T,)``; None where its kind
    has none."""
    reference = getattr(scorer, "reference", None)
    if reference is None:
        return None
    ids_T = request.token_ids[0]
    if not request.views:
        return sampled_of(Full(reference(ids_T, adapter)), ids_T)
    view = request.views[0]
    return sampled_of(view.payload(Full(reference(view.ids(ids_T), adapter)), ids_T), ids_T)
