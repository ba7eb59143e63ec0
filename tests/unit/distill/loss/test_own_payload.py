"""An estimator from one file of a user's own, with a payload of its own, that drives the domains' shares."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from check_kit import check, problems, recipe
from own_page_kit import example
from student_kit import DOMAINS, SHARES, ProcessRanks, make_batch, make_model, make_spec, student

from mopd.distill.loss.microbatch import collate
from mopd.distill.loss.registry import LOSSES, bind, located
from mopd.distill.loss.shares import normalised
from mopd.distill.payload_rows import AskedSupport, payload_spec
from mopd.distill.recipe import ESTIMATORS, CustomLoss
from mopd.distill.types import Full, GradingFailed, NonFinite, ScoredRollout, TeacherScore, UserError
from mopd.recipes.check.plugins import check_own_loss
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.validate import Expected, check_score

SOURCE = example("A payload of its own")


def written(folder: Path, source: str = SOURCE) -> CustomLoss:
    (folder / "loss.py").write_text(source)
    return CustomLoss(estimator=f"{folder}/loss.py:LOSS", settings={"strength": 2.0})


def asked(batch: list[ScoredRollout], payload: str) -> list[ScoredRollout]:
    """Whole distributions turned into a payload by its row, as a checkpoint's teacher does."""
    of_logprobs = payload_spec(payload).of_logprobs
    assert of_logprobs is not None
    answered = []
    for scored in batch:
        ((_, score),) = scored.scores
        assert isinstance(score.payload, Full)
        ids_T = torch.from_numpy(scored.rollout.token_ids.astype(np.int64))
        made = of_logprobs(torch.from_numpy(score.payload.logprobs_TV), ids_T, AskedSupport())
        answered.append(replace(scored, scores=((1.0, TeacherScore(score.teacher, made)),)))
    return answered


def test_every_shipped_row_has_the_settings_of_its_name() -> None:
    assert {name: spec.settings for name, spec in LOSSES.items()} == ESTIMATORS


def test_a_teachers_checkpoint_answers_with_it(tmp_path: Path) -> None:
    payload = bind(written(tmp_path)).payload
    teacher = TeacherModel(
        make_model(tmp_path, "llama"), device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=64
    )
    rollouts = [scored.rollout for scored in make_batch(seed=3)][:3]
    token_ids = [rollout.token_ids for rollout in rollouts]
    expected = Expected(str(payload), teacher.vocabulary)
    wholes = teacher.score(token_ids, "full")
    for rollout, whole, answer in zip(rollouts, wholes, teacher.score(token_ids, str(payload)), strict=True):
        assert isinstance(whole, Full)
        arrays = answer.arrays()
        assert arrays["ids_T"].tolist() == [int(np.argmax(row)) for row in whole.logprobs_TV]
        assert arrays["logprobs_T"].tolist() == [float(row.max()) for row in whole.logprobs_TV]
        check_score("math", rollout, answer, expected)
        broken = replace(answer, logprobs_T=np.full_like(arrays["logprobs_T"], np.nan))  # pyright: ignore
        with pytest.raises(NonFinite, match="'math'"):
            check_score("math", rollout, broken, expected)
        with pytest.raises(GradingFailed, match="scored 1 positions"):
            check_score("math", rollout, replace(answer, ids_T=arrays["ids_T"][:1]), expected)  # pyright: ignore
        with pytest.raises(GradingFailed, match="answered with Full"):
            check_score("math", rollout, whole, expected)


def test_it_trains_and_its_advantage_drives_the_shares(tmp_path: Path, one: ProcessRanks) -> None:
    """The oracle of the shares is the rule's definition, by loops, on the advantage that the user's file defines."""
    loss = located(written(tmp_path))
    whole = make_batch(seed=7, per_domain=6)
    batch = asked(whole, str(bind(loss).payload))
    spec = make_spec(make_model(tmp_path, "llama"), tmp_path / "run", loss=loss)
    metrics = student(one.start(spec), spec, rule="variance_scaled").update(batch, step=0)

    advantages: dict[str, list[float]] = {domain: [] for domain in DOMAINS}
    favourites: dict[str, list[float]] = {domain: [] for domain in DOMAINS}
    for scored in whole:
        rollout = scored.rollout
        for t in np.flatnonzero(rollout.loss_mask):
            row = scored.scores[0][1].payload.logprobs_TV[t]  # type: ignore[attr-defined]
            gap = float(row[rollout.token_ids[t]]) - float(rollout.sampler_logprobs[t])
            advantages[rollout.domain].append(2.0 * math.tanh(gap))
            favourites[rollout.domain].append(math.exp(float(max(row))))
    everything = [a for domain in DOMAINS for a in advantages[domain]]
    factors = {d: min(4.0, max(0.25, float(np.std(everything) / np.std(advantages[d])))) for d in DOMAINS}
    shares = normalised({domain: SHARES[domain] * factors[domain] for domain in DOMAINS})
    assert max(factors.values()) > 1.01 * min(factors.values())
    assert {domain: metrics[f"share/{domain}"] for domain in DOMAINS} == pytest.approx(shares, rel=1e-6)
    for domain in DOMAINS:
        assert metrics[f"entropy/{domain}"] == pytest.approx(np.mean(favourites[domain]), rel=1e-5)
    assert metrics["loss"] > 0


def test_a_microbatch_without_rollouts_trains_nothing(tmp_path: Path) -> None:
    bound = bind(written(tmp_path))
    empty = collate(
        [], token_weight={}, domains=("math",), pad_id=0, payload=bound.payload, reward_advantages=None, device="cpu",
        needs_each_teacher=True,
    )  # fmt: skip
    logits_BTV = torch.zeros(1, 2, 5, requires_grad=True)
    token_loss = bound.token_loss(logits_BTV, empty)
    assert not token_loss.loss_BT.any()
    token_loss.loss_BT.sum().backward()
    assert logits_BTV.grad is not None
    assert not logits_BTV.grad.any()


def test_a_check_takes_it_and_plans_its_bytes(tmp_path: Path) -> None:
    loss = written(tmp_path)
    assert list(check_own_loss(loss)) == []
    two = {name: {"task": task, "teacher": "math"} for name, task in (("math", "arithmetic"), ("order", "ordering"))}
    plan = check(recipe(loss=loss.model_dump(), domains=two, share_rule="variance_scaled"), tmp_path / "run")
    graded = [step for step in plan.steps if step.payload_bytes > 0]
    assert graded
    assert all(0 < step.payload_bytes < 12.0 * step.tokens for step in graded), "of trained tokens alone"


REFUSED: dict[str, tuple[str, str]] = {
    "one mean of all teachers": (SOURCE.replace("needs_each_teacher=True", "needs_each_teacher=False"), "has no mean"),
    "nothing makes it": (SOURCE.replace("lambda sizes: 12, favourite", "lambda sizes: 12"), "that nothing makes"),
    "no payload": (SOURCE.replace("(Payload):", ":"), "must have a subclass of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_payload_is_told(tmp_path: Path, case: str) -> None:
    source, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        bind(written(tmp_path, source))


def test_shares_need_a_payload_that_tells_the_sampled_token(tmp_path: Path) -> None:
    untold = SOURCE.replace("def sampled_logprobs", "def other")
    (problem,) = problems(tmp_path / "run", loss=written(tmp_path, untold).model_dump(), share_rule="variance_scaled")
    assert problem.startswith("`share_rule` is variance_scaled")
