"""The loop with a lag, with real tiny fakes: a student that is one number, and a sampler and a grader that wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from loop_kit import Actor, Counter, prompts

from mopd.distill.errors import Interrupted
from mopd.distill.lagged_loop import train_with_lag
from mopd.distill.types import GradingFailed, Rollout, RunError, ScoredRollout

Events = list[tuple[Any, ...]]
WAIT_SECONDS = 20.0


class Learner(Counter):
    """Learns from whatever it is given, and notes with which weights it was written."""

    def __init__(self, events: Events, saved: dict[int, dict[str, bytes]] | None = None) -> None:
        super().__init__()
        self.events, self.files = events, saved or {}
        self.updating = threading.Event()

    def load_latest(self) -> int:
        self.weight = max(self.files, default=0)
        return self.weight

    def update(self, batch: Sequence[ScoredRollout], *, step: int) -> dict[str, float]:
        assert step == self.weight
        assert [s.rollout.prompt.id for s in batch] == [f"{step}/0", f"{step}/1"]
        self.events.append(("learnt", step, *{s.rollout.version for s in batch}))
        self.updating.set()
        self.during(step)
        self.updating.clear()
        self.weight += 1
        return {"loss": 1.0}

    def during(self, step: int) -> None: ...

    def save(self, step: int, beside: Any = None) -> None:
        self.files[step] = dict(beside or {})
        self.events.append(("saved", step, *sorted(self.files[step])))

    def beside(self, step: int, name: str) -> bytes | None:
        return self.files.get(step, {}).get(name)


class Writer(Actor):
    def __init__(self, events: Events) -> None:
        self.events, self.writing = events, False

    def load_weights(self, weights: Any, *, version: int) -> None:
        assert not self.writing, "weights were changed under a rollout"
        super().load_weights(weights, version=version)

    def sample(self, prompts: Any, *, step: int, greedy: bool = False) -> Any:
        self.writing = True
        self.before(step)
        yield from super().sample(prompts, step=step)
        self.writing = False
        self.events.append(("written", step, self.version))

    def before(self, step: int) -> None: ...


class Grades:
    def __init__(self, events: Events) -> None:
        self.events, self.step = events, -1

    def score(self, microbatches: Any) -> list[ScoredRollout]:
        batch = [ScoredRollout(rollout) for microbatch in microbatches for rollout in microbatch]
        self.step = int(batch[0].rollout.prompt.id.partition("/")[0])
        self.during(self.step)
        self.events.append(("graded", self.step))
        return batch

    def during(self, step: int) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {"graded_step": float(self.step)}


class Watch:
    def __init__(
        self,
        events: Events,
        writer: Writer,
        *,
        evaluate_every: int = 3,
        save_every: int = 2,
        stop_after: int = -1,
        end: int = -1,
    ) -> None:
        self.events, self.writer, self.evaluate_every = events, writer, evaluate_every
        self.save_every, self.stop_after, self.end, self.step = save_every, stop_after, end, 0

    def resumed(self, step: int) -> None:
        self.step = step

    def evaluates(self, step: int) -> bool:
        return step % self.evaluate_every == 0

    def evaluate(self, step: int, weights: Any) -> None:
        assert weights == step
        assert not self.writer.writing, "its processes were taken from the writer"
        self.events.append(("evaluated", step))

    def record(self, step: int, batch: Any, metrics: dict[str, float]) -> None:
        assert metrics["graded_step"] == step - 1, "what another step took"
        parts = [metrics[f"seconds/{part}"] for part in ("publish", "generation", "scoring", "update", "other")]
        assert sum(parts) == pytest.approx(metrics["seconds/step"])
        self.step = step
        self.events.append(("recorded", step))

    def failed(self, step: int, metrics: dict[str, float], error: RunError) -> None:
        self.events.append(("failed", step, str(error)))

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0

    def ended(self) -> bool:
        return self.step == self.end

    def stops(self) -> bool:
        return self.step == self.stop_after

    def unused(self, step: int, rollouts: Sequence[Rollout]) -> None:
        self.events.append(("unused", step, *(rollout.prompt.id for rollout in rollouts)))


class Run:
    """A run with its parts at hand, which share a list of events."""

    def __init__(self, *, lag: int, saved: dict[int, dict[str, bytes]] | None = None, **watch: int) -> None:
        self.events: Events = []
        self.lag = lag
        self.learner: Any = Learner(self.events, saved)
        self.writer: Any = Writer(self.events)
        self.grader: Any = Grades(self.events)
        self.watch = Watch(self.events, self.writer, **watch)

    def go(self, steps: int = 6, *, beside: bool = True) -> int:
        return train_with_lag(
            student=self.learner, sampler=self.writer, grader=self.grader, prompts=prompts, steps=steps,
            callbacks=self.watch, lag=self.lag, beside=beside,
        )  # fmt: skip

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == kind]


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("beside", [True, False])
def test_every_step_is_written_with_the_weights_of_so_many_steps_before(lag: int, beside: bool) -> None:
    run = Run(lag=lag)
    assert run.go(beside=beside) == 6
    versions = [max(0, step - lag) for step in range(6)]
    assert run.of("learnt") == [(step, (version, version)) for step, version in enumerate(versions)]
    assert run.of("written") == list(enumerate(versions)), "each once, and none beyond the last step"
    assert run.of("evaluated") == [(0,), (3,), (6,)]
    assert run.of("unused") == [(6,)]
    assert run.of("saved")[-1] == (6,), "nothing is ahead of the last step"
    assert run.of("saved")[0] == (2, *(f"rollouts-{2 + n:06d}.npz" for n in range(lag)))


def test_a_step_is_written_and_graded_while_the_one_before_is_learnt_from() -> None:
    run = Run(lag=1)
    met: list[int] = []

    def wait_for_update(step: int) -> None:
        if step:
            assert run.learner.updating.wait(WAIT_SECONDS), f"step {step} is not written beside an update"

    graded = {step: threading.Event() for step in range(6)}

    def wait_for_grades(step: int) -> None:
        if step < 5:
            assert graded[step + 1].wait(WAIT_SECONDS), f"step {step + 1} is not graded beside an update"
            met.append(step)

    run.writer.before, run.learner.during = wait_for_update, wait_for_grades
    run.grader.during = lambda step: graded[step].set()
    run.go()
    assert met == [0, 1, 2, 3, 4]


def test_ranks_that_write_have_written_before_they_learn() -> None:
    run = Run(lag=1)
    run.learner.during = lambda step: run.events.append(("busy", run.writer.writing))
    run.go(beside=False)
    assert run.of("busy") == [(False,)] * 6
    order = [event[:2] for event in run.events if event[0] in ("written", "learnt")]
    assert order[:4] == [("written", 0), ("written", 1), ("learnt", 0), ("written", 2)]


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_a_resumed_run_learns_from_the_same_rollouts(lag: int, killed_after: int) -> None:
    straight = Run(lag=lag)
    straight.go()
    killed = Run(lag=lag)

    def dies(step: int) -> None:
        if step == killed_after:
            raise KeyboardInterrupt

    killed.learner.during = dies
    with pytest.raises(KeyboardInterrupt):
        killed.go()
    resumed = Run(lag=lag, saved=killed.learner.files)
    first = max(resumed.learner.files, default=0)
    assert first == killed_after // 2 * 2
    assert resumed.go() == 6
    assert resumed.of("learnt") == straight.of("learnt")[first:]
    assert resumed.of("written") == straight.of("written")[min(first + lag, first and 6) :], "those ahead are read"


def test_an_interrupted_run_keeps_what_is_ahead() -> None:
    run = Run(lag=2, stop_after=3, save_every=100)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        run.go()
    assert run.of("saved") == [(3, "rollouts-000003.npz", "rollouts-000004.npz")]
    assert Run(lag=2, saved=run.learner.files).go() == 6


def test_what_was_written_in_vain_is_counted_and_not_kept() -> None:
    run = Run(lag=2, end=3)
    assert run.go() == 3
    assert run.of("unused") == [(3, "3/0", "3/1", "4/0", "4/1")]
    assert run.of("saved")[-1] == (3,)
    again = Run(lag=2, end=3, saved=run.learner.files)
    assert again.go() == 3
    assert again.of("unused") == [(3,)]


@pytest.mark.parametrize(("lag", "evaluate_every", "found"), [(1, 100, 4), (2, 100, 4), (2, 3, 3)])
def test_finished_steps_are_kept_where_a_grader_breaks(lag: int, evaluate_every: int, found: int) -> None:
    run = Run(lag=lag, save_every=100, evaluate_every=evaluate_every)

    def breaks(step: int) -> None:
        if step == 4:
            raise GradingFailed("teacher 'math' died")

    run.grader.during = breaks
    with pytest.raises(GradingFailed):
        run.go()
    kept = tuple(f"rollouts-{found + n:06d}.npz" for n in range(lag))
    assert run.of("saved") == [(found, *kept)]
    assert run.of("failed") == [(found, "teacher 'math' died")], "an evaluation takes the graders, and finds it earlier"
    resumed = Run(lag=lag, saved=run.learner.files)
    assert resumed.go() == 6
    assert resumed.of("learnt")[0] == (found, (found - lag, found - lag))


def test_a_writer_that_breaks_ends_the_run_after_the_step_that_was_under_way() -> None:
    run = Run(lag=1)

    def breaks(step: int) -> None:
        if step == 3:
            raise RunError("a sampler worker died")

    run.writer.before = breaks
    with pytest.raises(RunError, match="worker died"):
        run.go()
    assert run.of("recorded")[-1] == (3,)
    assert max(run.learner.files) == 2
    assert Run(lag=1, saved=run.learner.files).go() == 6


def test_rollouts_of_a_broken_checkpoint_are_refused() -> None:
    run = Run(lag=1)
    run.go(4)
    run.learner.files = {2: {"rollouts-000002.npz": b"half"}}
    with pytest.raises(RunError, match="step 2 in the checkpoint"):
        Run(lag=1, saved=run.learner.files).go()
    files = Run(lag=2)
    files.go(4)
    of_two = files.learner.files[2]
    swapped = {"rollouts-000002.npz": of_two["rollouts-000003.npz"]}
    with pytest.raises(RunError, match="another step"):
        Run(lag=1, saved={2: swapped}).go()
