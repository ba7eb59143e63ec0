"""train_with_lag(): the loop of loop.py, with rollouts written and graded while earlier steps are learnt from.

The rollouts that are learnt from once t steps are finished are written with the weights after t - ``lag`` of them, or
with those at the start where that is less than none. With lag 1 the next step's are written while a step is learnt
from; with lag 2 they have one more step's time to be graded. The lag is a number and no limit: which weights write what
does not depend on who is faster, so a run is the same every time.

What was written and is not learnt from yet lies in the checkpoint, because the weights that wrote it are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol, Self, TypeAlias

from mopd.distill.errors import Interrupted
from mopd.distill.loop import Callbacks, StepClock, idle_shares, kept_if_grading_fails
from mopd.distill.rollout_files import packed, unpacked
from mopd.distill.types import Grader, Metrics, Prompt, Prompts, Rollout, RunError, Sampler, ScoredRollout, Student


class LagCallbacks(Callbacks, Protocol):
    """Those of loop.py, and what only a run with a lag does."""

    def unused(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """The run ends after ``step`` steps, and ``rollouts`` were written for later ones: nobody learns from them."""
        ...


def train_with_lag(
    *,
    student: Student,
    sampler: Sampler,
    grader: Grader,
    prompts: Prompts,
    steps: int,
    callbacks: LagCallbacks,
    lag: int,
    beside: bool,
) -> int:
    """Act, grade, move, each ahead of the next, until ``steps`` steps are done; resumes from the newest checkpoint.

    Args:
        lag: how many steps before a step the weights are those that write its rollouts; 1 or 2.
        beside: the sampler writes in processes other than the student's ranks. Where it does not, they write before
            they learn, and only grading goes on meanwhile.

    Returns:
        The number of finished steps: fewer than ``steps`` where ``callbacks`` ended the run.

    Raises:
        Interrupted, RunError: as :func:`distill.loop.train`.
    """
    step = saved = student.load_latest()
    callbacks.resumed(step)
    clock = StepClock()
    with _Ahead(student, sampler, grader, lag=lag) as ahead:
        ahead.take_up(step, steps)
        while True:
            if callbacks.evaluates(step):
                with kept_if_grading_fails(ahead.save, grader, callbacks, step, saved):
                    ahead.finish()  # the evaluation takes the sampler's processes, and the graders
                    callbacks.evaluate(step, student.weights())
            stops, over = callbacks.stops(), step >= steps or callbacks.ended()
            if over:
                callbacks.unused(step, ahead.drop())
            if step > saved and (callbacks.saves(step) or stops or over):
                ahead.save(step)
            if over:
                return step
            if stops:
                raise Interrupted(f"stopped after step {step} of {steps}")
            clock.start()
            student.worked()  # what was asked of it since the last step is not part of this one
            with clock("publish"):
                sampler.load_weights(student.weights(), version=step)  # all that was begun is written by now
            ahead.begin(range(step, min(step + lag + 1, steps)), prompts)
            with clock("generation"):
                ahead.wait_until_written(range(step, step + 1 if beside else steps))
            with clock("scoring"), kept_if_grading_fails(ahead.save, grader, callbacks, step, saved):
                batch, of_grading = ahead.graded(step)
            with clock("update"):
                metrics = student.update(batch, step=step)
            with clock("generation"):
                ahead.wait_until_written(range(steps))
            step += 1
            metrics |= of_grading | clock.read()
            callbacks.record(step, batch, metrics | idle_shares(metrics, student.worked()))


def _file(step: int) -> str:
    """Of a checkpoint: the rollouts that were written for ``step``."""
    return f"rollouts-{step:06d}.npz"


_Graded: TypeAlias = tuple[list[ScoredRollout], Metrics]


@dataclass(slots=True)
class _Step:
    """A step ahead of the student.

    Attributes:
        stream: microbatches on their way to the grader; then None, or what ended the writing.
        written: all of them, once they are there.
        graded: what the grader says of them, with what it took.
    """

    stream: SimpleQueue[list[Rollout] | BaseException | None] = field(default_factory=SimpleQueue)
    written: Future[list[list[Rollout]]] = field(default_factory=Future)
    graded: Future[_Graded] = field(default_factory=Future)


class _Ahead:
    """The steps ahead of the student: a thread writes them, one after the other, and another one grades them.

    What fails is raised to whoever asks for its result. A context manager: at its end nothing more is begun, and nobody
    waits for what was; whoever owns the processes ends them.
    """

    def __init__(self, student: Student, sampler: Sampler, grader: Grader, *, lag: int) -> None:
        self._student, self._sampler, self._grader, self._lag = student, sampler, grader, lag
        self._steps: dict[int, _Step] = {}
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._grading = ThreadPoolExecutor(1, thread_name_prefix="grading")
        self._ended = self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for threads in (self._writing, self._grading):
            threads.shutdown(wait=False, cancel_futures=True)
        self.drop()

    def begin(self, steps: Iterable[int], prompts: Prompts) -> None:
        """Have those of ``steps`` that were not begun written with the weights that the sampler has now, and graded."""
        for step in steps:
            if step not in self._steps:
                ahead = self._steps[step] = _Step()
                ahead.written = self._writing.submit(self._write, ahead, step, prompts(step))
                ahead.graded = self._grading.submit(self._grade, ahead)

    def save(self, step: int) -> None:
        """Write a checkpoint of the student after ``step`` finished steps, with what was written by its older weights.

        Raises:
            RunError: that could not be written.
        """
        older = {n: ahead for n, ahead in self._steps.items() if n < step + self._lag}
        self._student.save(step, {_file(n): packed(a.written.result(), asked=str(n)) for n, a in older.items()})

    def take_up(self, finished: int, steps: int) -> None:
        """Have what lies in the checkpoint after ``finished`` steps graded, of those before ``steps``.

        Raises:
            RunError: it is not what :meth:`save` writes.
        """
        for step in range(finished, min(finished + self._lag, steps)):
            if (content := self._student.beside(finished, _file(step))) is None:
                continue
            microbatches = _read(content, step)
            ahead = self._steps[step] = _Step()
            for microbatch in microbatches:
                ahead.stream.put(microbatch)
            ahead.stream.put(None)
            ahead.written.set_result(microbatches)
            ahead.graded = self._grading.submit(self._grade, ahead)

    def wait_until_written(self, steps: Iterable[int]) -> None:
        """Until nobody writes for any of ``steps``."""
        wait([self._steps[step].written for step in steps if step in self._steps])

    def graded(self, step: int) -> _Graded:
        """What is learnt from in a step, which is no longer ahead, and the grader's metrics of it."""
        graded = self._steps[step].graded.result()
        del self._steps[step]
        return graded

    def finish(self) -> None:
        """Until all that was begun is written and graded."""
        for ahead in self._steps.values():
            ahead.graded.result()

    def drop(self) -> list[Rollout]:
        """Forget what was begun; returns what of it was written."""
        dropped = list(self._steps.values())
        self._steps = {}
        for ahead in dropped:
            ahead.stream.put(None)  # else its grader waits for ever where nobody has begun to write
        whole = [ahead.written.result() for ahead in dropped if _succeeded(ahead.written)]
        return [rollout for microbatches in whole for microbatch in microbatches for rollout in microbatch]

    def _write(self, ahead: _Step, step: int, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        written: list[list[Rollout]] = []
        try:
            for microbatch in self._sampler.sample(prompts, step=step):
                if self._ended:
                    break
                written.append(microbatch)
                ahead.stream.put(microbatch)
        except BaseException as error:
            ahead.stream.put(error)
            raise
        ahead.stream.put(None)
        return written

    def _grade(self, ahead: _Step) -> _Graded:
        if self._ended or self._broken:
            raise RunError("the run ended before this step was graded")
        try:
            batch = self._grader.score(_arriving(ahead.stream))
            return batch, self._grader.metrics()
        except BaseException:
            self._broken = True  # what a later step took would be counted as this one's
            raise


def _read(content: bytes, step: int) -> list[list[Rollout]]:
    try:
        microbatches = unpacked(content, asked=str(step))
    except ValueError as error:
        raise RunError(f"rollouts of step {step} in the checkpoint cannot be read ({error})") from error
    if microbatches is None:
        raise RunError(f"the checkpoint's rollouts of step {step} are those of another step")
    return microbatches


def _arriving(stream: SimpleQueue[list[Rollout] | BaseException | None]) -> Iterator[list[Rollout]]:
    while (item := stream.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def _succeeded(future: Future[list[list[Rollout]]]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
