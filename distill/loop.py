"""train(): multi-teacher on-policy distillation on one screen. Every method runs through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from mopd.distill.errors import Interrupted
from mopd.distill.types import (
    Grader,
    GradingFailed,
    Metrics,
    NonFinite,
    Prompts,
    Rollout,
    RunError,
    Sampler,
    ScoredRollout,
    Student,
    Weights,
)


class Callbacks(Protocol):
    """What a run does besides learning: it logs, measures, and knows when to save or stop."""

    def resumed(self, step: int) -> None:
        """Training goes on after ``step`` finished steps; whatever was recorded of later ones is void."""
        ...

    def evaluates(self, step: int) -> bool:
        """Whether the weights after ``step`` steps are to be measured, and have not been."""
        ...

    def evaluate(self, step: int, weights: Weights) -> None:
        """Measure ``weights``, those after ``step`` steps."""
        ...

    def record(self, step: int, batch: Sequence[ScoredRollout], metrics: Metrics) -> None:
        """Log what the step that has just been finished did."""
        ...

    def failed(self, step: int, metrics: Metrics, error: RunError) -> None:
        """Log what grading took in the step that ``error`` ended after ``step`` finished ones; the run ends with it."""
        ...

    def saves(self, step: int) -> bool:
        """Whether to write a checkpoint after ``step`` steps."""
        ...

    def ended(self) -> bool:
        """Whether the run's own rule ends it after this step, in order."""
        ...

    def stops(self) -> bool:
        """Whether somebody asked the run to end after this step."""
        ...


def train(
    *, student: Student, sampler: Sampler, grader: Grader, prompts: Prompts, steps: int, callbacks: Callbacks
) -> int:
    """Act, grade, move, until ``steps`` steps are done; resumes from the student's newest checkpoint.

    Returns:
        The number of finished steps: fewer than ``steps`` where ``callbacks`` ended the run.

    Source: MiMo-V2-Flash report (arXiv 2601.02780), section 4.4; the MOPD paper (arXiv 2606.30406), algorithm 1.

    Raises:
        Interrupted: ``callbacks.stops()``; the last finished step is saved.
        RunError: a process or a number broke; the newest checkpoint resumes the run. Where it was a grader, that is
            the last finished step.
    """
    step = saved = student.load_latest()
    callbacks.resumed(step)
    clock = StepClock()
    while True:
        if callbacks.evaluates(step):
            with kept_if_grading_fails(student.save, grader, callbacks, step, saved):
                callbacks.evaluate(step, student.weights())
        stops, over = callbacks.stops(), step >= steps or callbacks.ended()
        if step > saved and (callbacks.saves(step) or stops or over):
            student.save(step)
        if over:
            return step
        if stops:
            raise Interrupted(f"stopped after step {step} of {steps}")
        clock.start()
        student.worked()  # what was asked of it since the last step is not part of this one
        with clock("publish"):
            sampler.load_weights(student.weights(), version=step)  # act with the weights the gradient is taken at
        with clock("scoring"):
            rollouts = clock.during("generation", sampler.sample(prompts(step), step=step))
            with kept_if_grading_fails(student.save, grader, callbacks, step, saved):
                batch = grader.score(rollouts)  # consumes microbatches while later ones are being written
        with clock("update"):
            metrics = student.update(batch, step=step)
        step += 1
        metrics |= grader.metrics() | clock.read()
        callbacks.record(step, batch, metrics | idle_shares(metrics, student.worked()))


@contextmanager
def kept_if_grading_fails(
    save: Callable[[int], None], grader: Grader, callbacks: Callbacks, step: int, saved: int
) -> Iterator[None]:
    """Where a grader breaks in the block, nothing of the student has moved: what is finished is kept by ``save``, and
    the faults of the step that is not are logged."""
    try:
        yield
    except (GradingFailed, NonFinite) as error:
        callbacks.failed(step, grader.metrics(), error)
        if step > saved:
            save(step)
        raise


def idle_shares(metrics: Metrics, rank_seconds: Sequence[float]) -> Metrics:
    """Which part of a step's wall time ranks and teachers compute nothing, each 0..1.

    ``idle/ranks`` is the mean over ranks, ``idle/rank_longest`` that of the one that waited most, ``idle/teachers`` the
    mean over processes that hold teachers.

    Args:
        metrics: of the step: ``seconds/step``, and of teachers ``seconds/teacher/NAME`` and ``teacher_processes``.
        rank_seconds: that each rank computed.
    """
    step_seconds = metrics["seconds/step"]
    idle = [max(0.0, 1 - seconds / step_seconds) for seconds in rank_seconds]
    shares = {"idle/ranks": sum(idle) / len(idle), "idle/rank_longest": max(idle)} if idle else {}
    if processes := metrics.get("teacher_processes"):
        worked = sum(value for name, value in metrics.items() if name.startswith("seconds/teacher/"))
        shares["idle/teachers"] = max(0.0, 1 - worked / (processes * step_seconds))
    return shares


class StepClock:
    """Wall seconds per role of one step. Generation runs inside scoring's loop, and is taken out of its time."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def start(self) -> None:
        """A step begins now; what was done since the last one (evaluation, checkpoints) is not part of it."""
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, role: str) -> Iterator[None]:
        """Add the time that the block takes to ``role``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[role] = self._seconds.get(role, 0.0) + time.perf_counter() - start

    def during(self, role: str, microbatches: Iterator[list[Rollout]]) -> Iterator[list[Rollout]]:
        """Pass ``microbatches`` on; the time spent waiting for each is ``role``'s, not that of who consumes them."""
        while True:
            start = time.perf_counter()
            microbatch = next(microbatches, None)
            waited = time.perf_counter() - start
            self._seconds[role] = self._seconds.get(role, 0.0) + waited
            self._seconds["scoring"] = self._seconds.get("scoring", 0.0) - waited
            if microbatch is None:
                return
            yield microbatch

    def read(self) -> Metrics:
        """Seconds by role since the last reading, with the whole step and the part that no role accounts for."""
        step = time.perf_counter() - self._began
        seconds, self._seconds = self._seconds, {}
        metrics = {f"seconds/{role}": value for role, value in seconds.items()}
        return metrics | {"seconds/step": step, "seconds/other": step - sum(seconds.values())}
