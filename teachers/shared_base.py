"""The student's own base as a teacher: where an adapter is trained, its ranks score with that off; nothing is loaded.

It has the methods of :class:`teachers.worker_pool.WorkerPool` that a pool of teachers calls. What is asked while the
student writes is scored once it has: a rank does one thing at a time, and all ranks the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from mopd.distill.models.load import eval_mode
from mopd.distill.types import Float32, Weights
from mopd.teachers.actor import ScoreResponse
from mopd.teachers.dry_run import reference_of
from mopd.teachers.kinds.checkpoint import TeacherModel
from mopd.teachers.scorer import Conditions
from mopd.teachers.views import ScoreRequest, score_views


class SharedBase:
    """Teachers that are the student without its adapter.

    Args:
        names: of the teachers.
        weights: the student's, asked for at each call.
        conditions: what they are asked under.
    """

    swaps = False
    """Nothing takes turns here."""
    processes = 0
    """The student's ranks, which are there anyway."""

    def __init__(self, names: Collection[str], weights: Callable[[], Weights], conditions: Conditions) -> None:
        self._names = tuple(names)
        self._weights = weights
        self._conditions = conditions
        self._asking = False
        self._queue: list[tuple[ScoreRequest, Future[ScoreResponse]]] = []
        self._vocabulary = 0

    def vocabulary(self, teacher: str) -> int:
        """The size of the output, in tokens; 0 before :meth:`wait_until_ready`."""
        return self._vocabulary

    def wait_until_ready(self) -> dict[str, int]:
        """The size of each teacher's output vocabulary; the student is there already."""
        weights = self._weights()
        self._vocabulary = int(weights.on_ranks(_vocabulary, [(self._conditions,)] * weights.ranks)[0])
        return dict.fromkeys(self._names, self._vocabulary)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """What is asked while the block lasts is scored at its end."""
        self._asking = True
        try:
            yield
        finally:
            self._asking = False
        self._score()

    def ask(self, teacher: str, request: ScoreRequest) -> Future[ScoreResponse]:
        """The answer to come to one microbatch."""
        response: Future[ScoreResponse] = Future()
        self._queue.append((request, response))
        if not self._asking:
            self._score()
        return response

    def ask_all(self, teacher: str, request: ScoreRequest) -> list[ScoreResponse]:
        """The answers of every rank to one microbatch."""
        weights = self._weights()
        return [answers[0] for answers in self._on_ranks(weights, [[request]] * weights.ranks)]

    def reference(self, teacher: str, request: ScoreRequest) -> Float32 | None:
        """What the scores of the first rollout's tokens must equal, ``(T,)``."""
        weights = self._weights()
        return weights.on_ranks(_reference, [(request, self._conditions)] * weights.ranks)[0]

    def take_retries(self, teacher: str) -> int:
        """None: a rank that is lost ends the run."""
        return 0

    def take_swaps(self, teacher: str) -> int:
        """None: it is never unloaded."""
        return 0

    def close(self) -> None:
        """Answer nothing any more; the ranks are the student's."""
        for _, response in self._queue:
            response.cancel()
        self._queue = []

    def _score(self) -> None:
        """Deal out what was asked, every rank the same number of forwards, and answer it."""
        queue, self._queue = self._queue, []
        if not queue:
            return
        weights = self._weights()
        hands = [queue[rank :: weights.ranks] for rank in range(weights.ranks)]
        idle = ScoreRequest([np.zeros(1, dtype=np.int32)], "sampled")  # keeps a rank in step whose hand is smaller
        requests = [[request for request, _ in hand] + [idle] * (len(hands[0]) - len(hand)) for hand in hands]
        for hand, answers in zip(hands, self._on_ranks(weights, requests), strict=True):
            for (_, response), answer in zip(hand, answers[: len(hand)], strict=True):
                response.set_result(answer)

    def _on_ranks(self, weights: Weights, requests: Sequence[Sequence[ScoreRequest]]) -> list[list[ScoreResponse]]:
        return weights.on_ranks(_answers, [(hand, self._conditions) for hand in requests])


@contextmanager
def _teacher(module: Any, conditions: Conditions) -> Iterator[TeacherModel]:
    """The live module as a teacher, in eval mode while the block lasts."""
    with eval_mode(module):
        yield TeacherModel.around(module, conditions)


def _vocabulary(module: Any, conditions: Conditions) -> int:
    with _teacher(module, conditions) as teacher:
        return teacher.vocabulary


def _reference(module: Any, request: ScoreRequest, conditions: Conditions) -> Float32 | None:
    with _teacher(module, conditions) as teacher:
        return reference_of(teacher, request)


def _answers(module: Any, requests: Sequence[ScoreRequest], conditions: Conditions) -> list[ScoreResponse]:
    """What the module says of each microbatch without its adapter."""
    answers = []
    with _teacher(module, conditions) as teacher:
        for request in requests:
            start = time.perf_counter()
            payloads = score_views(teacher, request, None)
            answers.append(ScoreResponse(payloads, time.perf_counter() - start))
    return answers
