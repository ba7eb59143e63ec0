"""At each evaluation the student writes on a few validation prompts as in training, and its teachers grade it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.metrics.teacher_distance import OVERLAP_K, WholeDistance, distance_metrics, whole_distances
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import Metrics, PayloadName, Prompt, Sampler, ScoredRollout, Weights
from mopd.recipes.evaluation.costs import Costs
from mopd.teachers.pool import TeacherPool

FAULTS = ("teacher_retries/", "teacher_swaps/")
"""How the names of the metrics begin that say what a teacher's processes went through."""


def payload_to_ask(loss: BoundLoss) -> PayloadName:
    """What tells the teachers' likeliest tokens, where the loss' payload does; else what the KL needs."""
    if loss.support is not None:
        return "topk" if loss.support.k >= OVERLAP_K and loss.support.whose != "student" else "sampled"
    return "full" if loss.payload == "full" else "sampled"


class TeacherDistance:
    """Has the teachers grade what is not trained on; its cost is an evaluation's.

    Args:
        prompts: held-out prompts of domains that teachers grade.
        teachers: the run's.
        payload: what they are asked for; see :func:`payload_to_ask`. Of whole distributions the distance is exact.
        temperature: that student and teachers are compared at.
        tracker: writes the cost down.
        costs: counts it.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        teachers: TeacherPool,
        *,
        payload: PayloadName,
        temperature: float,
        tracker: Tracker,
        costs: Costs,
    ) -> None:
        self._prompts = prompts
        self._teachers = teachers
        self._payload: PayloadName = payload
        self._temperature = temperature
        self._tracker = tracker
        self._costs = costs

    def measure(self, step: int, sampler: Sampler, weights: Weights) -> Metrics:
        """Of the weights that ``sampler`` was given last; see :func:`distance_metrics`.

        Args:
            weights: the same, for the student's whole distributions.
            sampler: writes one completion a prompt, and records the student's likeliest tokens where it can.
        """
        start = time.perf_counter()
        batch = self._teachers.score(sampler.sample(self._prompts, step=step), asking=self._payload)
        lost = {name: n for name, n in self._teachers.metrics().items() if name.startswith(FAULTS) and n}
        whole = self._whole(batch, weights) if self._payload == "full" else None
        spent = self._costs.of_step(batch)
        row = {
            "model": "student",
            "step": step,
            "split": "held_out",
            "tokens": spent["tokens/generation"],
            "flops": sum(n for name, n in spent.items() if name.startswith("flops/") and name != "flops/update")
            + (0.0 if whole is None else self._costs.of_forward([len(s.rollout.token_ids) for s in batch])),
            "seconds": round(time.perf_counter() - start, 3),
        }
        self._tracker.append_rows("exams", [row])
        return distance_metrics(batch, whole) | lost

    def _whole(self, batch: Sequence[ScoredRollout], weights: Weights) -> dict[int, WholeDistance]:
        """By rollout; dealt out to the ranks, each of which has as many, for they may wait for each other."""
        graded = [scored for scored in batch if scored.scores]
        hands = [graded[rank :: weights.ranks] for rank in range(weights.ranks)]
        most = max(len(hand) for hand in hands)
        arguments = [([*hand, *graded[: most - len(hand)]], self._temperature) for hand in hands]
        answers = weights.on_ranks(whole_distances, arguments)
        return {
            scored.rollout.index: distance
            for (hand, _), distances in zip(arguments, answers, strict=True)
            for scored, distance in zip(hand, distances, strict=True)
        }
