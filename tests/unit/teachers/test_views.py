"""Teachers that read a prompt of their own: their scores are those of plain forwards, on the student's positions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import VOCABULARY, make_model, make_rollout
from transformers import AutoModelForCausalLM

from mopd.distill.payloads import Support
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Full, GradingFailed, Int32, Payload, Prompt, Rollout, Sampled
from mopd.teachers.actor import TeacherSpec, canary
from mopd.teachers.dry_run import dry_run
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.kinds.custom import CustomScorer
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions
from mopd.teachers.validate import Expected, check_score
from mopd.teachers.views import (
    HintCount,
    ScoreRequest,
    TeacherText,
    TeacherView,
    length,
    repeats_hint,
    score_views,
    view_of,
)

OWN = {0: TeacherText("long", (9, 8, 7, 6, 5, 4, 3), "hint", (6, 5)), 1: TeacherText("short", (9,)), 2: None}
"""By rollout, what the teacher reads in the place of a prompt of four tokens: more, less, the same."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("views"), "llama", seed=3)


def rollouts() -> list[Rollout]:
    """Three, the first of two turns: two tokens between them are the environment's."""
    made = [make_rollout(np.random.default_rng(i), i, "math", prompt=4, completion=6 + i) for i in range(3)]
    mask_T = made[0].loss_mask.copy()
    mask_T[6:8] = False
    return [dataclasses.replace(made[0], loss_mask=mask_T), *made[1:]]  # not per token


@functools.lru_cache
def plain_model(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).eval()


def naive(path: str, ids: Sequence[int]) -> np.ndarray:
    """The distribution of the token after ``ids``, in float64, from a forward over those alone."""
    with torch.no_grad():
        return plain_model(path)(input_ids=torch.tensor([list(ids)])).logits[0, -1].double().log_softmax(-1).numpy()


@pytest.mark.parametrize("payload", ["sampled", "topk", "full", "hidden"])
def test_every_payload_is_of_the_teachers_prompt_and_on_the_students_positions(path: str, payload: Any) -> None:
    support = Support(4, (0, 1), "union") if payload == "topk" else None
    teacher = TeacherModel(path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=64, support=support)
    batch = rollouts()
    rng = np.random.default_rng(5)
    given = [
        np.array([rng.choice(VOCABULARY, 6, replace=False) for _ in rollout.token_ids], dtype=np.int32)
        for rollout in batch
    ]
    if support is not None:
        batch = [dataclasses.replace(r, support_ids=ids) for r, ids in zip(batch, given, strict=True)]
    views = [view_of(rollout, OWN[rollout.index]) for rollout in batch]
    assert [length(r, v) for r, v in zip(batch, views, strict=True)] == [7 + 6, 1 + 7, 4 + 8]
    request = ScoreRequest([r.token_ids for r in batch], payload, given if support else None, views)
    for rollout, answer in zip(batch, score_views(teacher, request, None), strict=True):
        check_score("own", rollout, answer, Expected(payload, VOCABULARY, support))
        own = OWN[rollout.index]
        prompt = rollout.prompt.token_ids if own is None else own.token_ids
        for t in np.flatnonzero(rollout.loss_mask).tolist():
            wrote = rollout.token_ids[4:t].tolist()
            expected_V = naive(path, [*prompt, *wrote])
            (token,) = rollout.token_ids[t : t + 1].tolist()
            arrays = answer.arrays()
            if payload == "hidden":
                head_VH = plain_model(path).lm_head.weight.detach().double().numpy()
                logits_V = head_VH @ arrays["hidden_TH"][t].astype(np.float64)
                got_V = logits_V - np.log(np.exp(logits_V).sum())
                np.testing.assert_allclose(got_V, expected_V, atol=1e-4)
            elif payload == "topk":
                assert set(given[rollout.index][t].tolist()) <= set(arrays["ids_TK"][t].tolist())
                np.testing.assert_allclose(arrays["logprobs_TK"][t], expected_V[arrays["ids_TK"][t]], atol=1e-4)
                assert arrays["sampled_T"][t] == pytest.approx(expected_V[token], abs=1e-4)
            elif payload == "full":
                np.testing.assert_allclose(arrays["logprobs_TV"][t], expected_V, atol=1e-4)
            else:
                assert arrays["logprobs_T"][t] == pytest.approx(expected_V[token], abs=1e-4)


class Watching:
    """A user's scorer that takes views, and one that answers with too few rows."""

    payloads = ("sampled",)
    vocabulary = VOCABULARY

    def __init__(self, rows: int = 0) -> None:
        self.rows, self.seen = rows, list[TeacherView]()

    def score(
        self,
        token_ids: Sequence[Int32],
        payload: str,
        adapter: str | None = None,
        given: Any = None,
        views: Sequence[TeacherView] = (),
    ) -> list[Payload]:
        self.seen = list(views)
        return [Sampled(np.arange(len(ids) + self.rows, dtype=np.float32)) for ids in token_ids]


def test_a_users_own_scorer_gets_the_prompt_the_hint_and_the_mask() -> None:
    batch, own = rollouts(), Watching()
    views = [view_of(rollout, OWN[rollout.index]) for rollout in batch]
    request = ScoreRequest([r.token_ids for r in batch], "sampled", views=views)
    answers = score_views(CustomScorer(own, Conditions(1.0, 64), "float32"), request, None)
    assert [(view.prompt, view.hint) for view in own.seen] == [
        ("long", "hint"),
        ("short", None),
        (batch[2].prompt.text, None),
    ]
    assert own.seen[0].mask_S.tolist() == [False] * 7 + [True, True, False, False, True, True]
    # Row s of what it was given is row s - 7 + 4 of the rollout.
    assert answers[0].arrays()["logprobs_T"].tolist() == [0, 0, 0, 0, 7, 8, 9, 10, 11, 12]
    assert answers[2].arrays()["logprobs_T"].tolist() == list(range(12))


def test_rows_that_are_not_the_tokens_it_was_given_are_refused() -> None:
    batch = rollouts()[:1]
    views = [view_of(rollout, OWN[0]) for rollout in batch]
    request = ScoreRequest([r.token_ids for r in batch], "sampled", views=views)
    # As many rows as the student's rollout has tokens: without the check they would be taken for its scores.
    with pytest.raises(GradingFailed, match="10 rows for 13 tokens"):
        score_views(Watching(rows=-3), request, None)


def test_repetitions_of_the_hint_by_hand() -> None:
    ids_T = np.array([4, 5, 9, 5, 6, 7, 4, 5], dtype=np.int32)
    mask_T = np.array([False, False, True, True, True, True, True, True])
    assert repeats_hint(ids_T, mask_T, (4, 5, 6, 7)).tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert repeats_hint(ids_T, mask_T, (5,)).tolist() == [False, False, False, True, False, False, False, True]
    assert not repeats_hint(ids_T, mask_T, ()).any()
    prompt = Prompt("math", "one", (4, 5), "?", "!")
    rollout = Rollout(prompt, ids_T, mask_T, np.full(8, -1, np.float32), "eos", (0, 0), 0, 0)
    view = view_of(rollout, TeacherText("?", (4,), "hint", (4, 5, 6, 7)))
    count = HintCount()
    # The teacher likes 9 less by 1 nat, 5 6 7 more by 3 together, the last two more by 1 together.
    count.add(rollout, view, np.array([0, 0, -2, 0, 0, 0, -0.5, -0.5], dtype=np.float32))
    assert count.metrics("me") == {
        "hint_repeated/me": 0.5,
        "hint_gain/me": 0.75,
        "hint_gap/me": 1.0,
        "hint_gap_elsewhere/me": 0.0,
    }
    assert HintCount().metrics("me") == {}


def test_a_pool_asks_teachers_that_read_otherwise_of_the_same_processes(cluster: None, path: str) -> None:
    spec = TeacherSpec(Checkpoint(path, "cpu", "float32"), Conditions(1.0, 64), 0.0, 1)
    text = TeacherText("with hint", (9, 8, 7, 6, 5), "hint", (8, 7))
    pool = TeacherPool(
        {"plain": spec, "hinted": spec},
        routes={"math": {"plain": 0.5, "hinted": 0.5}},
        payload="full",
        faults=FaultRecipe(),
        say=print,
        reads={"hinted": lambda prompt: text},
    )
    assert len(pool._each_worker_pool()) == 1
    pool.wait_until_ready()
    model = TeacherModel(path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=64)
    for scored in pool.score([rollouts()]):
        rollout = scored.rollout
        for _, score in scored.scores:
            own = text.token_ids if score.teacher == "hinted" else rollout.prompt.token_ids
            ids = np.array([*own, *rollout.token_ids[4:]], dtype=np.int32)
            (alone,) = model.score([ids], "full")
            assert isinstance(alone, Full)
            assert isinstance(score.payload, Full)
            trained = rollout.loss_mask[4:]
            np.testing.assert_allclose(score.payload.logprobs_TV, alone.logprobs_TV[len(own) :][trained], atol=1e-5)
    metrics = pool.metrics()
    assert metrics["hint_repeated/hinted"] >= 0
    assert "hint_repeated/plain" not in metrics
    trial = pool.dry_run("hinted", rollouts())
    assert trial.reference is not None
    mask_T = rollouts()[0].loss_mask
    np.testing.assert_allclose(trial.reference[mask_T], trial.answers[0][0][mask_T], atol=1e-5)
    assert trial.hint is not None
    assert trial.hint.tokens == sum(rollout.trained_tokens for rollout in rollouts())
    pool.close()


def test_a_dry_run_without_a_prompt_of_its_own_counts_no_hint(path: str) -> None:
    model = TeacherModel(path, device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=64)
    trial = dry_run(
        "plain",
        lambda request: [score_views(model, request, None)] * 2,
        rollouts(),
        Expected("full", VOCABULARY),
        tokens=64,
        reference=lambda request: None,
    )
    assert trial.hint is None


def test_a_canary_gives_views_too() -> None:
    own = Watching()
    canary(own, None, Conditions(1.0, 64))
    assert len(own.seen) == 1
