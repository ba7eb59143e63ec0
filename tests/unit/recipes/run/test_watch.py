"""What a run's watch writes where a teacher ends the run: what was lost and why, until the step is taken again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from loop_kit import Actor, Counter, prompts
from student_kit import make_model
from track_kit import recipe

from mopd.distill.loop import train
from mopd.distill.metrics.stop_rule import RunLength
from mopd.distill.tracking.console import Progress
from mopd.distill.tracking.ledger import ledger_of
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import GradingFailed, Metrics, Rollout, ScoredRollout
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.run.hooks import RunCallbacks
from mopd.rollouts.mixture import FixedMixture


class Lost:
    """Teachers, one of which is lost for good."""

    def score(self, microbatches: Iterable[list[Rollout]]) -> list[ScoredRollout]:
        raise GradingFailed(f"teacher 'math' died beside {len(list(microbatches))} microbatches")

    def metrics(self) -> Metrics:
        return {"teacher_retries/math": 2, "teacher_swaps/math": 1, "seconds/teacher/math": 5.0}


def watch(folder: Path, tracker: Tracker, progress: Progress, actor: Any, *, lag: int = 0) -> RunCallbacks:
    made = recipe("disabled")
    return RunCallbacks(
        made.run.model_copy(update={"lag": lag}),
        length=RunLength(3, None, domains=tuple(made.trained_domains), decay=0),
        mixture=FixedMixture({}),
        stop_rule=made.stop,
        rollouts_per_domain=0,
        tracker=tracker,
        costs=Costs(make_model(folder), {}, writes=True),
        progress=progress.task("student", 3),
        stop=threading.Event(),
        evaluator=None,
        eval_sampler=actor,
        teacher_distance=None,
        evaluated=lambda: None,
    )


def test_staleness_and_what_was_written_in_vain_are_logged_with_a_lag(tmp_path: Path) -> None:
    actor, weights = Actor(), 2
    actor.load_weights(weights, version=2)
    written = [rollout for microbatch in actor.sample(prompts(3), step=3) for rollout in microbatch]
    with Progress() as progress, Tracker(tmp_path) as tracker:
        callbacks = watch(tmp_path, tracker, progress, actor, lag=1)
        callbacks.unused(4, [])
        callbacks.record(4, [ScoredRollout(rollout) for rollout in written], {"loss": 1.0})
        callbacks.unused(4, written)
        callbacks.unused(4, written)  # a run that was resumed at its end
    learnt, in_vain = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert learnt["staleness"] == 1
    assert (in_vain["kind"], in_vain["rollouts"], in_vain["tokens/generation"]) == ("unused", 2, 2)
    assert in_vain["flops/generation"] == learnt["flops/generation"] > 0
    spent = ledger_of(tmp_path).spent["generation"]
    assert (spent.tokens, spent.flops) == (4, 2 * learnt["flops/generation"])


def test_a_run_that_a_teacher_ends_says_what_was_lost_once(tmp_path: Path) -> None:
    for _ in range(2):  # the second one resumes; nobody has mended the teacher
        with Progress() as progress, Tracker(tmp_path) as tracker:
            actor: Any = Actor()
            callbacks = watch(tmp_path, tracker, progress, actor)
            student: Any = Counter()
            with pytest.raises(GradingFailed):
                train(student=student, sampler=actor, grader=Lost(), prompts=prompts, steps=3, callbacks=callbacks)
        (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        assert row == {
            "step": 1,
            "kind": "fault",
            "teacher_retries/math": 2.0,
            "teacher_swaps/math": 1.0,
            "message": "teacher 'math' died beside 2 microbatches",
        }
    mended = Tracker(tmp_path)
    mended.resume(0)
    mended.log("train", 1, {"teacher_retries/math": 0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "kind": "train", "teacher_retries/math": 0.0}\n'
