"""Answers that would poison the update: caught, with the teacher named, whatever is wrong with them."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import ray
from deadline_kit import patience
from student_kit import make_rollout

from mopd.distill.payloads import Support
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import (
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
)
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions
from mopd.teachers.validate import Expected, check_answer, check_score

SUPPORT = Support(2, (0,))
EXPECTED = {payload: Expected(payload, 4, SUPPORT) for payload in ("sampled", "topk", "full", "hidden")}
ROLLOUT = make_rollout(np.random.default_rng(0), 0, "math", prompt=3, completion=4)
N = len(ROLLOUT.token_ids)


def top(k: int = 3, last: int = 3) -> TopK:
    """A sound answer for three tokens of four, or one that is not."""
    ids = np.tile(np.array([*range(k - 1), last], np.int32), (N, 1))
    return TopK(ids, np.full((N, k), -1, np.float32), *np.full((2, N), -1, np.float32))


def full(vocabulary: int = 4) -> Full:
    return Full(np.full((N, vocabulary), -1, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_scores_name_teacher_domain_and_step(value: float) -> None:
    rollout, payload = dataclasses.replace(ROLLOUT, version=(7, 7)), full()
    payload.logprobs_TV[0] = np.nan  # row 0 says nothing, and may hold anything
    check_score("euler", rollout, payload, EXPECTED["full"])
    payload.logprobs_TV[-1, 2] = value
    with pytest.raises(NonFinite, match=r"'euler'.*domain 'math', step 8"):
        check_score("euler", rollout, payload, EXPECTED["full"])


@pytest.mark.parametrize(
    ("part", "value", "sound"),
    [
        ("logprobs_TK", -np.inf, False),
        ("logprobs_TK", np.nan, False),
        ("sampled_T", -np.inf, False),
        ("rest_T", np.nan, False),
        ("rest_T", np.inf, False),
        ("rest_T", -np.inf, True),
        ("rest_T", -1.0, True),
    ],
)
def test_a_broken_part_of_a_topk_score_is_caught_and_an_empty_rest_is_sound(
    part: str, value: float, sound: bool
) -> None:
    payload = top()
    getattr(payload, part)[0] = np.nan  # row 0 says nothing, and may hold anything
    getattr(payload, part)[-1] = value
    if sound:
        check_score("euler", ROLLOUT, payload, EXPECTED["topk"])
    else:
        with pytest.raises(NonFinite, match="'euler' gave NaN or infinity at 1 of"):
            check_score("euler", ROLLOUT, payload, EXPECTED["topk"])


@pytest.mark.parametrize("payload", [Full(np.zeros((3, 4), np.float32)), Sampled(np.full(3, np.nan, np.float32))])
def test_a_rollout_without_trained_tokens_asks_nothing_of_its_score(payload: Payload) -> None:
    prompt = dataclasses.replace(ROLLOUT.prompt, token_ids=(5, 6, 7))
    ids, nothing = np.array([5, 6, 7], np.int32), np.zeros(3, np.float32)
    bare = dataclasses.replace(
        ROLLOUT, prompt=prompt, token_ids=ids, loss_mask=nothing.astype(bool), sampler_logprobs=nothing
    )
    check_score("euler", bare, payload, EXPECTED["full" if isinstance(payload, Full) else "sampled"])


@pytest.mark.parametrize(
    ("payload", "asked", "message"),
    [
        (
            Sampled(np.zeros(1, np.float32)),
            "sampled",
            f"scored 1 positions of rollout 0 .*which has {N}",
        ),
        (Sampled(np.zeros((N, 2), np.float32)), "sampled", rf"logprobs_T of shape \({N}, 2\) .*one number a token"),
        (Sampled(np.zeros(N, np.float32)), "full", "answered with Sampled for rollout 0.*asked for Full"),
        (Hidden(np.zeros((1, 8), np.float32), "head"), "hidden", "scored 1 positions"),
        (full(5), "full", rf"logprobs_TV of shape \({N}, 5\).*\({N}, 4\) was needed, by its output head"),
        (top(2), "topk", rf"logprobs_TK of shape \({N}, 2\).*\({N}, 3\) was needed, by the support of the loss"),
        (top(last=4), "topk", "named tokens 0 to 4 .*its output head has 0 to 3"),
        (top(last=-1), "topk", "named tokens -1 to 1 "),
    ],
)
def test_an_answer_to_another_question_is_refused(payload: Payload, asked: PayloadName, message: str) -> None:
    with pytest.raises(GradingFailed, match=f"teacher 'euler' .*{message}"):
        check_score("euler", ROLLOUT, payload, EXPECTED[asked])


@pytest.mark.parametrize(("whose", "width"), [("student", 3), ("union", 4)])
def test_the_students_own_tokens_tell_the_width(whose: Literal["student", "union"], width: int) -> None:
    expected = Expected("topk", 4, Support(2, (0,), whose))
    rollout = dataclasses.replace(ROLLOUT, support_ids=np.zeros((N, 3), np.int32))
    check_score("euler", rollout, top(width), expected)
    with pytest.raises(GradingFailed, match="by the support of the loss"):
        check_score("euler", rollout, top(2), expected)


def test_as_many_scores_as_rollouts() -> None:
    with pytest.raises(GradingFailed, match=r"'euler' gave 1 scores for a microbatch of 2 rollouts \(domain 'math'\)"):
        check_answer("euler", [ROLLOUT, ROLLOUT], [full()], EXPECTED["full"])


@dataclass(frozen=True, slots=True)
class Faulty:
    """A teacher of four tokens that gives too few scores, or none in time for more than one rollout."""

    fault: Literal["short", "hangs"]

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> Any:
        return FaultyScorer(self.fault)


class FaultyScorer:
    vocabulary = 4

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def score(self, token_ids: Sequence[Int32], payload: PayloadName, *_: Any) -> list[Payload]:
        if self.fault == "hangs" and len(token_ids) > 1:
            time.sleep(600)
        return [Sampled(np.zeros(len(ids), np.float32)) for ids in token_ids[1:]]


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import this file


@pytest.mark.parametrize(
    ("fault", "message", "retries"),
    [
        ("short", "teacher 'euler' gave 1 scores for a microbatch of 2 rollouts", 0),
        ("hangs", "teacher 'euler' did not answer within .* s; a microbatch of 2 rollouts was lost 2 times", 1),
    ],
)
def test_a_process_that_misbehaves_ends_the_run_by_name(
    cluster: None, fault: Literal["short", "hangs"], message: str, retries: int
) -> None:
    messages: list[str] = []
    pool = TeacherPool(
        {"euler": TeacherSpec(Faulty(fault), Conditions(1.0, 64), 0.0, 1)},
        routes={"math": {"euler": 1.0}},
        payload="sampled",
        faults=FaultRecipe(backoff_seconds=0.0, retries=1, microbatch_seconds=patience(1.0)),
        say=messages.append,
    )
    pool.wait_until_ready()
    two: list[Rollout] = [ROLLOUT, dataclasses.replace(ROLLOUT, index=1)]
    with pytest.raises(GradingFailed, match=message):
        pool.score([two])
    # What would answer the same is asked once.
    assert pool.metrics()["teacher_retries/euler"] == retries == len(messages)
    pool.close()
