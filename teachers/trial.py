"""A teacher tried out before it is trusted with a step: it scores the same rollouts twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.types import Float32, Full, PayloadName, Rollout
from teachers.checks import Owed, check_answer, likeliest_of, sampled_of
from teachers.model import microbatches
from teachers.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Trial:
    """What a teacher said of the tokens of some rollouts when it was tried out, in nats.

    Attributes:
        answers: of every process, twice: the tokens' log-probabilities ``(T,)`` of each rollout, in order.
        reference: what those of the first rollout must be; None where the teacher's kind has no reference.
    """

    answers: tuple[tuple[Float32, ...], ...]
    reference: Float32 | None


def asked_in_trial(payload: PayloadName | None) -> PayloadName:
    """The payload that a trial asks for, where the loss needs ``payload``: hidden states tell nothing of tokens."""
    return payload if payload in ("full", "topk") else "sampled"


def try_out(name: str, model: Scorer, rollouts: Sequence[Rollout], owed: Owed, *, tokens: int) -> Trial:
    """What :meth:`teachers.pool.TeacherPool.try_out` asks of a process, of a scorer that is opened here.

    Args:
        tokens: padded tokens of one forward at most.

    Raises:
        NonFinite, GradingFailed: see :func:`teachers.checks.check_answer`.
    """
    twice: list[dict[int, Float32]] = [{}, {}]
    for members in microbatches([len(rollout.token_ids) for rollout in rollouts], tokens):
        mine = [rollouts[i] for i in members]
        given = likeliest_of(mine) if owed.support is not None and owed.support.given else None
        for answers in twice:
            payloads = model.score([rollout.token_ids for rollout in mine], owed.payload, None, given)
            check_answer(name, mine, payloads, owed)
            for i, payload in zip(members, payloads, strict=True):
                answers[i] = sampled_of(payload, rollouts[i].token_ids)
    reference, ids_T = getattr(model, "reference", None), rollouts[0].token_ids
    return Trial(
        tuple(tuple(answers[i] for i in range(len(rollouts))) for answers in twice),
        None if reference is None else sampled_of(Full(reference(ids_T, None)), ids_T),
    )
