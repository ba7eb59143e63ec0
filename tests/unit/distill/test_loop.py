"""The loop with real tiny fakes: a student that is one number. No Ray, no model."""

import pytest
from loop_kit import Actor, Counter, prompts

from mopd.distill.errors import Interrupted
from mopd.distill.loop import StepClock, train
from mopd.distill.types import GradingFailed, NonFinite, RunError, ScoredRollout


class Grades:
    def score(self, microbatches):
        return [ScoredRollout(r) for m in microbatches for r in m]

    def metrics(self):
        return {"teacher_retries/math": 2.0}


class Watch:
    def __init__(self, *, save_every=3, stop_after=None, end_after=None):
        self.log, self.save_every, self.stop_after, self.end_after = [], save_every, stop_after, end_after
        self.step = 0

    def resumed(self, step):
        self.log.append(("resumed", step))
        self.step = step

    def evaluates(self, step):
        return step % 2 == 0

    def evaluate(self, step, weights):
        assert weights == step, "measured other weights"
        self.log.append(("evaluated", step))

    def record(self, step, batch, metrics):
        self.step = step
        self.log.append(("recorded", step))
        assert metrics["teacher_retries/math"] == 2
        assert set(metrics) >= {"loss", "seconds/generation", "seconds/scoring", "seconds/update", "seconds/step"}

    def failed(self, step, metrics, error):
        self.log.append(("failed", step, metrics, str(error)))

    def saves(self, step):
        return step % self.save_every == 0

    def ended(self):
        return self.step == self.end_after

    def stops(self):
        return self.step == self.stop_after


def go(student, callbacks, steps=5, grader=None):
    grader = grader or Grades()
    return train(student=student, sampler=Actor(), grader=grader, prompts=prompts, steps=steps, callbacks=callbacks)


def test_every_step_acts_grades_and_moves_once_in_order():
    student, callbacks = Counter(), Watch()
    go(student, callbacks)
    assert [s for s, _ in student.updated] == [0, 1, 2, 3, 4]
    assert student.updated[3][1] == ["3/0", "3/1"]
    assert [e for e in callbacks.log if e[0] == "evaluated"] == [("evaluated", 0), ("evaluated", 2), ("evaluated", 4)]
    assert student.saved == [3, 5], "every third, and the last"


def test_a_rule_that_ends_the_run_saves_its_step_and_is_no_interruption():
    student, callbacks = Counter(), Watch(end_after=2)
    assert go(student, callbacks) == 2
    assert student.saved == [2]
    assert ("evaluated", 2) in callbacks.log
    resumed = Counter(saved=student.saved)
    assert go(resumed, Watch(end_after=2)) == 2, "killed after that, it does not go on"
    assert resumed.updated == []
    assert go(Counter(), Watch()) == 5


def test_an_interrupted_run_saves_its_step_and_goes_on_to_the_same_end():
    straight = Counter()
    go(straight, Watch())
    student = Counter()
    with pytest.raises(Interrupted, match="step 2 of 5"):
        go(student, Watch(stop_after=2))
    assert student.saved == [2]
    resumed, callbacks = Counter(saved=student.saved), Watch()
    go(resumed, callbacks)
    assert callbacks.log[0] == ("resumed", 2)
    assert student.updated + resumed.updated == straight.updated


def test_a_finished_run_does_nothing_but_say_so():
    student = Counter(saved=[5])
    go(student, Watch())
    assert student.updated == []
    assert student.saved == [5]


def test_a_failing_update_is_not_recorded():
    class Breaks(Counter):
        def update(self, batch, *, step):
            raise FloatingPointError("NaN")

    callbacks = Watch()
    with pytest.raises(FloatingPointError):
        go(Breaks(), callbacks)
    assert ("recorded", 1) not in callbacks.log


@pytest.mark.parametrize(("error", "kept"), [(GradingFailed, [2]), (NonFinite, [2]), (RunError, [])])
def test_finished_steps_are_kept_where_a_grader_breaks_and_the_student_is_whole(error, kept):
    class Breaks(Grades):
        def score(self, microbatches):
            scored = super().score(microbatches)
            if scored[0].rollout.version == (2, 2):
                raise error("teacher 'math' died")
            return scored

    student, callbacks = Counter(), Watch()
    with pytest.raises(error):
        go(student, callbacks, grader=Breaks())
    assert student.saved == kept
    assert student.weight == 2
    failed = ("failed", 2, {"teacher_retries/math": 2.0}, "teacher 'math' died")
    assert [one for one in callbacks.log if one[0] == "failed"] == ([failed] if kept else []), "what it lost is told"
    resumed = Counter(saved=student.saved)
    with pytest.raises(error):
        go(resumed, Watch(), grader=Breaks())
    assert resumed.saved == kept, "nothing new was finished"


def test_a_grader_that_breaks_in_an_evaluation_costs_no_finished_step():
    class Breaks(Watch):
        def evaluate(self, step, weights):
            if step == 4:
                raise GradingFailed("teacher 'math' died")
            super().evaluate(step, weights)

    student, callbacks = Counter(), Breaks(save_every=3)
    with pytest.raises(GradingFailed):
        go(student, callbacks)
    assert student.saved == [3, 4]
    assert callbacks.log[-1][:2] == ("failed", 4)
    resumed, callbacks = Counter(saved=student.saved), Watch()
    assert go(resumed, callbacks) == 5
    assert callbacks.log[:2] == [("resumed", 4), ("evaluated", 4)], "taken again"


def test_clock_gives_generation_its_own_time_and_takes_it_out_of_scoring(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = StepClock()

    def slowly():
        for _ in range(3):
            now[0] += 2.0  # writing
            yield []

    with clock("scoring"):
        for _ in clock.during("generation", slowly()):
            now[0] += 0.5  # grading
    with clock("update"):
        now[0] += 4.0
    now[0] += 1.0
    read = clock.read()
    assert read == pytest.approx(
        {
            "seconds/generation": 6.0,
            "seconds/scoring": 1.5,
            "seconds/update": 4.0,
            "seconds/step": 12.5,
            "seconds/other": 1.0,
        }
    )
