"""Which domain was left behind and why, from runs that are made so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_kit import write_run

from mopd.recipes.report.behind import left_behind
from mopd.recipes.report.data import RunData, Stage, load_run
from mopd.recipes.report.records import Ends, StepMetrics

SCORES = {"math": 0.9, "code": 0.6, "reasoning": 0.9}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load_run(write_run(tmp_path_factory.mktemp("run") / "quickstart"))


def ended(run: RunData, *, gaps: list[float], **stages: list[float]) -> RunData:
    """The run with a recovery of .53 in code, these gaps to its teacher by evaluation, and these losses of stages."""
    recovery = {"math": Ends(0.9, 0.97), "code": Ends(0.45, 0.6), "reasoning": Ends(0.93, 0.99)}
    seesaw = replace(
        run.seesaw,
        metrics=replace(run.seesaw.metrics, recovery={"math": 0.94, "code": 0.53, "reasoning": 0.96}),
        intervals=replace(run.seesaw.intervals, recovery=recovery),
    )
    near = {"held_out_kl/math": 0.01, "held_out_kl/reasoning": 0.012}
    levels = {f"score/{domain}": score for domain, score in SCORES.items()}
    evals = [StepMetrics(20 * i, {**near, **levels, "held_out_kl/code": gap}) for i, gap in enumerate(gaps)]
    made = [
        Stage(name, len(losses), (name,), [StepMetrics(i + 1, {"loss": loss}) for i, loss in enumerate(losses)])
        for name, losses in stages.items()
    ]
    return replace(run, seesaw=seesaw, evals=evals, stages=made)


def test_a_run_that_kept_every_domain_leaves_none_behind(run: RunData) -> None:
    kept = {domain: Ends(0.85, 0.97) for domain in run.domains}
    seesaw = replace(run.seesaw, intervals=replace(run.seesaw.intervals, recovery=kept))
    assert left_behind(replace(run, seesaw=seesaw)) == []


def test_a_domain_that_was_still_coming_nearer_is_told_with_its_distance(run: RunData) -> None:
    (sentence,) = left_behind(ended(run, gaps=[0.3, 0.2, 0.15, 0.12, 0.09, 0.08, 0.07]))
    assert sentence == (
        "code was left behind at 53% of its teacher’s gain (45–60%): at the end it was 0.08 nats a token from its "
        "teacher, other domains 0.011; it was still getting better, so more steps or more of the rollouts "
        "(`prompt_rule`) may help."
    )


def test_a_domain_as_near_to_its_teacher_as_others_has_a_teacher_that_is_no_better(run: RunData) -> None:
    finished = [0.05] * 40
    (sentence,) = left_behind(ended(run, gaps=[0.012] * 7, code=finished))
    assert "no further from its teacher than other domains (0.012 and 0.011 nats)" in sentence
    assert "still getting better" not in sentence
    assert "not finished" not in sentence


def test_a_teacher_whose_stage_was_still_learning_is_named_with_its_score_and_losses(run: RunData) -> None:
    falling = [1 / (i + 1) for i in range(40)]
    (sentence,) = left_behind(ended(run, gaps=[0.012] * 7, code=falling))
    assert "its teacher code (" in sentence
    assert "was not finished: the loss of stage code still fell from 0.029 to 0.026" in sentence


def test_without_any_measurement_it_says_so(run: RunData) -> None:
    bare = replace(ended(run, gaps=[]), evals=[], stages=[])
    assert left_behind(bare) == [
        "code was left behind at 53% of its teacher’s gain (45–60%): nothing that was measured says why."
    ]
