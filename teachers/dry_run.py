"""A dry run: a teacher scores the same rollouts twice before it is trusted with a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mopd.distill.types import Float32, Full, Int32, Payload, PayloadName, Rollout
from mopd.teachers.kinds.checkpoint import microbatches
from mopd.teachers.scorer import Scorer
from mopd.teachers.validate import Expected, check_answer, likeliest_of, sampled_of

Ask: TypeAlias = Callable[[Sequence[Int32], Sequence[Int32] | None], Sequence[Sequence[Payload]]]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a teacher said of the tokens of some rollouts when it was tried out, in nats.

    Attributes:
        answers: of every process, twice: the tokens' log-probabilities ``(T,)`` of each rollout, in order.
        reference: what those of the first rollout must be; None where the teacher's kind has no reference.
    """

    answers: tuple[tuple[Float32, ...], ...]
    reference: Float32 | None


def dry_run_payload(payload: PayloadName | None) -> PayloadName:
    """The payload that a dry run asks for, where the loss needs ``payload``: hidden states tell nothing of tokens."""
    return payload if payload in ("full", "topk") else "sampled"


def dry_run(
    name: str,
    ask: Ask,
    rollouts: Sequence[Rollout],
    expected: Expected,
    *,
    tokens: int,
    reference: Callable[[Int32], Float32 | None],
) -> DryRun:
    """Have rollouts scored by everyone who answers for a teacher, and check every answer.

    Args:
        ask: for a microbatch's token ids and the student's likeliest tokens where the support asks for them; returns
            the payloads of each answer, as many answers each time.
        tokens: padded tokens of a microbatch at most.
        reference: what the scores of a rollout's tokens must equal, ``(T,)``; None where the kind cannot say.

    Raises:
        NonFinite, GradingFailed: see :func:`teachers.validate.check_answer`.
    """
    logprobs_by_answer: list[dict[int, Float32]] = []
    for members in microbatches([len(rollout.token_ids) for rollout in rollouts], tokens):
        microbatch = [rollouts[i] for i in members]
        given = likeliest_of(microbatch) if expected.support is not None and expected.support.given else None
        answers = ask([rollout.token_ids for rollout in microbatch], given)
        logprobs_by_answer = logprobs_by_answer or [{} for _ in answers]
        for logprobs, payloads in zip(logprobs_by_answer, answers, strict=True):
            check_answer(name, microbatch, payloads, expected)
            for i, payload in zip(members, payloads, strict=True):
                logprobs[i] = sampled_of(payload, rollouts[i].token_ids)
    scored = tuple(tuple(logprobs[i] for i in range(len(rollouts))) for logprobs in logprobs_by_answer)
    return DryRun(scored, reference(rollouts[0].token_ids))


def reference_of(scorer: Scorer, ids_T: Int32, adapter: str | None = None) -> Float32 | None:
    """The tokens' log-probabilities by the scorer's own reference, ``(T,)``; None where its kind has none."""
    reference = getattr(scorer, "reference", None)
    return None if reference is None else sampled_of(Full(reference(ids_T, adapter)), ids_T)
