"""Answers of known truth: models whose recoveries are given answer questions of drawn difficulty.

A question is right for a model where its difficulty, which all models share, and a part of the model's own stay below
the model's level: so each mean is exact, and answers of base, teacher, student and of several seeds are paired.

Shape legend: N seeds, D domains, Q questions of a domain; 3 is base, teacher, student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from mopd.distill.metrics.against_teachers import Table

Float64 = npt.NDArray[np.float64]

SHARED_DIFFICULTY = 0.6
"""The part of a question's variance that is its difficulty; the rest is a model's own."""


@dataclass(frozen=True)
class Truth:
    """What is to be found out: mean recoveries over all seeds that there could be.

    Attributes:
        base_D, headroom_D: scores of the base and what teachers gain over it, fractions.
        recovery_D: of the headroom.
        spread_D: standard deviation of a seed's recovery around ``recovery_D``; 0 where one run is all there is.
        questions, seeds: how many of each.
    """

    base_D: Float64
    headroom_D: Float64
    recovery_D: Float64
    spread_D: Float64
    questions: int
    seeds: int = 1

    @property
    def domains(self) -> list[str]:
        return [f"d{d}" for d in range(len(self.base_D))]


def levels(truth: Truth, rng: np.random.Generator) -> Float64:
    """True scores of base, teacher and student of each seed, ``(N, 3, D)``; a seed's base and teachers are its own."""
    shape = (truth.seeds, len(truth.base_D))
    wobble_ND = rng.normal(size=(2, *shape)) if truth.seeds > 1 else np.zeros((2, *shape))
    base_ND = truth.base_D * (1 + 0.05 * wobble_ND[0])
    headroom_ND = truth.headroom_D * (1 + 0.05 * wobble_ND[1])
    recovery_ND = truth.recovery_D + truth.spread_D * rng.normal(size=shape)
    scores = np.stack([base_ND, base_ND + headroom_ND, base_ND + recovery_ND * headroom_ND], axis=1)
    return np.clip(scores, 0.002, 0.998)


def answer(levels_NMD: Float64, questions: int, rng: np.random.Generator) -> list[npt.NDArray[np.bool_]]:
    """Who answers what right, by domain ``(N, M, Q)``, of M models a seed with these true scores."""
    seeds, models, domains = levels_NMD.shape
    bars_NMD = ndtri(levels_NMD).astype(np.float32)
    answers = []
    for d in range(domains):
        own_NMQ = rng.standard_normal((seeds, models, questions), dtype=np.float32)
        shared_Q = rng.standard_normal(questions, dtype=np.float32)
        hard_NMQ = np.float32(SHARED_DIFFICULTY**0.5) * shared_Q + np.float32((1 - SHARED_DIFFICULTY) ** 0.5) * own_NMQ
        answers.append(hard_NMQ < bars_NMD[:, :, d, None])
    return answers


def tables(answers: Sequence[npt.NDArray[np.bool_]], student: int = 2) -> list[Table]:
    """A table a seed of base, teacher and the ``student``-th model."""
    seeds = len(answers[0])
    chosen = [a[:, [0, 1, student]].astype(float) for a in answers]
    return [Table({f"d{d}": a[i] for d, a in enumerate(chosen)}) for i in range(seeds)]
