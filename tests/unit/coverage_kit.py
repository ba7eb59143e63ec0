"""How often intervals hold the truth, how wide they are beside one that knows the worst domain, which words are wrong.

A cell is a kind of truth, so many questions and so many seeds; truths are drawn at random in it, and answers of each.
They go through the product's own functions: what is counted is what seesaw.json and comparison.json hold.

Shape legend: N seeds, D domains.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from draws_kit import Float64, Truth, answer, levels, tables

from mopd.distill.metrics.against_teachers import Table, changes_in_points, measure, recoveries
from mopd.distill.metrics.differences import differences
from mopd.distill.metrics.extremes import least, most_forgotten
from mopd.distill.metrics.power import BAR, BEYOND, questions_to_tell, verdict
from mopd.distill.metrics.quotients import TAIL, Quotients

KINDS = ("balanced", "one low", "random")
"""All domains equal; one below the others, which are equal; all different."""


@dataclass
class Tally:
    """Sums over draws of one interval or one sentence.

    Attributes:
        draws: how many.
        covered: intervals that hold the truth; for a sentence, how often it was said.
        width, oracle: summed widths of the interval, and of one that knows the worst domain.
        bias, plain: summed errors of the estimate, and of the plain extreme.
    """

    draws: int = 0
    covered: float = 0.0
    width: float = 0.0
    oracle: float = 0.0
    bias: float = 0.0
    plain: float = 0.0

    def add(
        self, truth: float, ends: tuple[float, float], oracle: float = 0.0, estimate: float = 0.0, plain: float = 0.0
    ) -> None:
        low, high = ends
        self.draws += 1
        self.covered += low - 1e-9 <= truth <= high + 1e-9
        self.width += high - low
        self.oracle += oracle
        self.bias += estimate - truth
        self.plain += plain - truth

    def said(self, it_was: bool) -> None:
        self.draws += 1
        self.covered += it_was

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    @property
    def part(self) -> float:
        return self.covered / self.draws if self.draws else math.nan

    @property
    def ratio(self) -> float:
        return self.width / self.oracle if self.oracle else math.nan


Tallies = dict[str, Tally]


@dataclass(frozen=True)
class Cell:
    """One kind of truth.

    Attributes:
        headroom: of every domain; 0: of each its own, between 10 and 60 points.
        draws: at most; fewer where a domain seldom has a recovery.
        loses: the worst domain is below its base by 10 to 50% of the headroom.
        key: of the random numbers.
    """

    kind: str
    questions: int
    seeds: int
    headroom: float
    draws: int
    loses: bool = False
    key: int = field(default=0)


def drawn_truth(cell: Cell, rng: np.random.Generator) -> Truth:
    """Two to five domains."""
    several = int(rng.integers(2, 6))
    if cell.kind == "balanced":
        recovery_D = np.full(several, rng.uniform(0.5, 1.0))
    elif cell.kind == "one low":
        recovery_D = np.full(several, rng.uniform(0.8, 1.0))
        recovery_D[0] -= rng.uniform(0.2, 0.6)
    else:
        recovery_D = rng.uniform(0.3, 1.05, several)
    if cell.loses:
        recovery_D = recovery_D - recovery_D.min() - rng.uniform(0.1, 0.5)
    return Truth(
        base_D=rng.uniform(0.1, 0.35, several) + 0.3 * cell.loses,
        headroom_D=np.full(several, cell.headroom) if cell.headroom else rng.uniform(0.1, 0.6, several),
        recovery_D=recovery_D,
        spread_D=rng.uniform(0.02, 0.12, several) if cell.seeds > 1 else np.zeros(several),
        questions=cell.questions,
        seeds=cell.seeds,
    )


def draws(cell: Cell) -> Iterator[tuple[Truth, list[Table], np.random.Generator]]:
    """Truths with the answers to them, of which every domain has a recovery; few where that is rare."""
    rng = np.random.default_rng(
        [cell.key, cell.questions, cell.seeds, round(100 * cell.headroom), KINDS.index(cell.kind)]
    )
    got = 0
    for _ in range(6 * cell.draws):
        truth = drawn_truth(cell, rng)
        answered = tables(answer(levels(truth, rng), truth.questions, rng))
        if all(table.defined.all() for table in answered):
            yield truth, answered, rng
            got += 1
        if got == cell.draws:
            return


def intervals(cell: Cell) -> Tallies:
    """What a row of a comparison says of recoveries, and a run's seesaw.json."""
    found: Tallies = defaultdict(Tally)
    for truth, answered, rng in draws(cell):
        measured = measure(answered)
        _, quotients = recoveries(answered)
        assert quotients is not None
        values, ends = measured.values, measured.intervals
        recovery_D, several = truth.recovery_D, len(truth.recovery_D)
        worst, best = int(recovery_D.argmin()), int(recovery_D.argmax())
        best = (worst + 1) % several if best == worst else best
        low_D, high_D = quotients.ends()
        known = float(high_D[worst] - low_D[worst])
        plain_D = quotients.values
        found["worst_recovery"].add(
            recovery_D.min(), ends["worst_recovery"], known, values["worst_recovery_estimate"], plain_D.min()
        )
        if truth.seeds > 1:
            seeds_SD = recovery_D + truth.spread_D * rng.normal(size=(4000, several))
            by_seed = float(seeds_SD.min(axis=1).mean())
            found["worst_by_seed"].add(
                by_seed, ends["worst_by_seed"], known, values["worst_by_seed"], values["worst_recovery"]
            )
        pair = np.zeros((1, several))
        pair[0, best], pair[0, worst] = 1, -1
        found["imbalance"].add(
            float(np.ptp(recovery_D)),
            ends["imbalance"],
            _width(quotients, pair),
            values["imbalance_estimate"],
            np.ptp(plain_D),
        )
        found["pareto_gap"].add(
            float(np.maximum(1 - recovery_D, 0).mean()),
            ends["pareto_gap"],
            _width(quotients, (recovery_D < 1).astype(float)[None] / several),
            values["pareto_gap_estimate"],
            float(np.maximum(1 - plain_D, 0).mean()),
        )
        found["mean_recovery"].add(float(recovery_D.mean()), ends["mean_recovery"])
        pooled = float(recovery_D @ truth.headroom_D / truth.headroom_D.sum())
        found["pooled_recovery"].add(pooled, ends["pooled_recovery"], 0.0, values["pooled_recovery"], 0.0)
        for d, name in enumerate(truth.domains):
            found["recovery"].add(float(recovery_D[d]), ends["recovery"][name])
        points_D = recovery_D * truth.headroom_D
        at_once = [low <= p <= high for (low, high), p in zip(ends["points_at_once"].values(), points_D, strict=True)]
        found["points_at_once"].said(all(at_once))
        _words(found, quotients, float(recovery_D.min()))
    return dict(found)


def _width(quotients: Quotients, weights_1D: Float64) -> float:
    low_1, high_1 = quotients.contrast_ends(weights_1D)
    return float(high_1[0] - low_1[0])


def _words(found: Tallies, quotients: Quotients, worst: float) -> None:
    """Sentences that are wrong."""
    judged = verdict(quotients).seesaw
    found["gone, and it is not"].said(judged == "gone" and worst < BAR)
    found["remains, and it is gone"].said(judged == "remains" and worst >= BAR)
    found["at least, and it is less"].said(least(quotients).low > worst)


def regression(cell: Cell) -> Tallies:
    """Students that lose: points below the base in the worst domain."""
    found: Tallies = defaultdict(Tally)
    for truth, answered, _ in draws(cell):
        measured = measure(answered)
        points_D = truth.recovery_D * truth.headroom_D
        lost, domain = max(0.0, float(-points_D.min())), int(points_D.argmin())
        low_D, high_D = changes_in_points(answered).ends()
        known = float(high_D[domain] - low_D[domain])
        found["max_regression"].add(
            lost,
            measured.intervals["max_regression"],
            known,
            measured.values["max_regression_estimate"],
            measured.values["max_regression"],
        )
    return dict(found)


def no_regression(cell: Cell) -> Tallies:
    """Students that are as good as the base everywhere: who is called below it, is not."""
    found: Tallies = defaultdict(Tally)
    rng = np.random.default_rng([cell.key, cell.questions])
    for _ in range(cell.draws):
        truth = replace(drawn_truth(cell, rng), recovery_D=np.zeros(1))
        truth = replace(truth, recovery_D=np.zeros_like(truth.base_D))
        measured = measure(tables(answer(levels(truth, rng), truth.questions, rng)))
        below = [high < 0 for _, high in measured.intervals["points_at_once"].values()]
        found["below its base, and it is not"].said(any(below))
    return dict(found)


CHECKPOINTS = 9


def forgetting(cell: Cell) -> Tallies:
    """A student's curve that rises, stays, or falls at its end; answers of checkpoints are paired by question."""
    found: Tallies = defaultdict(Tally)
    rng = np.random.default_rng([cell.key, cell.questions, KINDS.index(cell.kind)])
    for _ in range(cell.draws):
        rise = rng.uniform(0.0, 0.4) if cell.kind == "random" else 0.0
        curve_C = rng.uniform(0.3, 0.5) + rise * np.linspace(0, 1, CHECKPOINTS)
        if cell.kind == "one low":
            curve_C[-1] -= rng.uniform(0.05, 0.2)
        answers_NCQ = answer(curve_C[None, :, None], cell.questions, rng)[0].astype(float)
        lost = most_forgotten(answers_NCQ)
        means_C = answers_NCQ[0].mean(axis=1)
        best = int(curve_C[:-1].argmax())  # not per token
        low_1, high_1 = Quotients.of_means([answers_NCQ[:, best] - answers_NCQ[:, -1]]).ends()
        known = float(high_1[0] - low_1[0])
        truth = float(curve_C.max() - curve_C[-1])
        found["forgetting"].add(truth, (lost.low, lost.high), known, lost.estimate, means_C.max() - means_C[-1])
    return dict(found)


def rows(cell: Cell, *, methods: int = 5) -> Tallies:
    """Several methods on the same bases, questions and seeds; in half of the draws all are equally good."""
    found: Tallies = defaultdict(Tally)
    rng = np.random.default_rng([cell.key, cell.questions, cell.seeds, KINDS.index(cell.kind)])
    for i in range(cell.draws):
        truth = drawn_truth(replace(cell, kind="balanced"), rng)
        several = len(truth.base_D)
        recovery_MD = np.tile(truth.recovery_D, (methods, 1))
        if cell.kind != "balanced":  # equal in the worst domain, and not in the others
            recovery_MD[1:, 1:] += rng.uniform(0.0, 0.3, (methods - 1, several - 1))
        if i % 2:
            recovery_MD += rng.uniform(-0.15, 0.15, (methods, 1))
        per_method = _answers_of_methods(truth, recovery_MD, rng)
        if not all(table.defined.all() for table in per_method[0]):
            continue
        scored = [measure(answered).values["worst_recovery_estimate"] for answered in per_method]
        leader = int(np.argmax(scored))
        ahead, at_once = True, True
        for m in range(methods):
            if m == leader:
                continue
            between = differences(per_method[m], per_method[leader], looks=methods - 1)
            truth_D = (recovery_MD[m] - recovery_MD[leader]) * truth.headroom_D
            ends = between.points.values()
            at_once &= all(e.low <= t <= e.high for e, t in zip(ends, truth_D, strict=True))
            assert between.worst_recovery is not None
            ahead &= between.worst_recovery.high < 0
        worst_M = recovery_MD.min(axis=1)
        as_good = int((worst_M >= worst_M[leader] - 1e-9).sum()) > 1
        found["ahead of all, and it is not"].said(ahead and as_good)
        found["differences in points"].said(at_once)
        floor = least(_recovered(per_method[leader]), TAIL / methods).low
        found["the best of several keeps at least, and it is less"].said(floor > worst_M[leader])
        first, second = differences(per_method[0], per_method[1]).worst_recovery, worst_M[0] - worst_M[1]
        assert first is not None
        found["difference of worst recoveries"].add(float(second), (first.low, first.high), 0.0, first.estimate)
    return dict(found)


def _recovered(answered: list[Table]) -> Quotients:
    quotients = recoveries(answered)[1]
    assert quotients is not None
    return quotients


def _answers_of_methods(truth: Truth, recovery_MD: Float64, rng: np.random.Generator) -> list[list[Table]]:
    """A table a seed of each method; base, teachers and what makes a seed lucky are shared by half."""
    scores_N3D = levels(truth, rng)
    base_ND, headroom_ND = scores_N3D[:, 0], scores_N3D[:, 1] - scores_N3D[:, 0]
    shared_ND = rng.normal(size=base_ND.shape)
    students = []
    for recovery_D in recovery_MD:
        luck_ND = truth.spread_D * (shared_ND + rng.normal(size=base_ND.shape)) / math.sqrt(2)
        students.append(base_ND + (recovery_D + luck_ND) * headroom_ND)
    scores_NMD = np.clip(np.stack([scores_N3D[:, 0], scores_N3D[:, 1], *students], axis=1), 0.002, 0.998)
    answered = answer(scores_NMD, truth.questions, rng)
    return [tables(answered, student=2 + m) for m in range(len(recovery_MD))]


MOST_ANSWERED = 60_000
"""Questions that are drawn at most: more are asked for where the headroom is ten points."""


def power(cell: Cell) -> Tallies:
    """Ten points beyond the bar: is it said by as many questions as were asked for?"""
    found: Tallies = defaultdict(Tally)
    rng = np.random.default_rng([cell.key, cell.questions, round(100 * cell.headroom)])
    for i in range(cell.draws):
        truth = drawn_truth(replace(cell, kind="balanced"), rng)
        above = i % 2 == 0
        recovery_D = np.full_like(truth.base_D, BAR + BEYOND if above else BAR - BEYOND)
        if i % 4 == 1:
            recovery_D[1:] = rng.uniform(0.8, 1.0, len(recovery_D) - 1)
        truth = replace(truth, recovery_D=recovery_D)
        few = recoveries(tables(answer(levels(truth, rng), truth.questions, rng)))[1]
        if few is None or len(few.questions_K) < len(recovery_D):
            continue
        needed = questions_to_tell(few)
        if needed is None or needed > MOST_ANSWERED:
            continue
        judged = verdict(_recovered(tables(answer(levels(truth, rng), needed, rng)))).seesaw
        found["gone is said at M" if above else "remains is said at M"].said(judged == ("gone" if above else "remains"))
    return dict(found)
