"""Which training prompts a step takes of each domain: as many as the recipe says, or more where the gap is wider."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from mopd.distill.types import Metrics

WINDOW = 10
"""Finished steps whose gaps are averaged."""
MOST = 2.0
"""A domain's prompts, over those of the recipe, at most."""


class Mixture(Protocol):
    """Says which prompts a step takes; a resumed run is told the same, and so says the same.

    Attributes:
        most: prompts of a step at most, over those of the recipe.
    """

    most: float

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Go on after the steps of ``rows``, those of metrics.jsonl of kind ``train``, in order."""
        ...

    def see(self, metrics: Metrics) -> None:
        """One more step is finished, and was measured so."""
        ...

    def places(self, step: int) -> dict[str, range]:
        """The numbers of the training prompts that ``step`` takes, by domain."""
        ...


class FixedMixture:
    """As many prompts of every domain at every step as the recipe says."""

    most = 1.0

    def __init__(self, prompts: Mapping[str, int], *, lag: int = 0) -> None:
        self._prompts = prompts

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing depends on them."""

    def see(self, metrics: Metrics) -> None:
        """Nothing depends on it."""

    def places(self, step: int) -> dict[str, range]:
        """``prompts`` each, after those of the steps before."""
        return {domain: range(step * n, (step + 1) * n) for domain, n in self._prompts.items()}


class GapFollowingMixture:
    """As many prompts of each domain as the recipe says, and more of those that are further from their teachers.

    A domain gets ``prompts * clip(sqrt(KL_d / mean KL), 1, 2)``, where ``KL_d`` is the mean of ``kl/d`` over the last
    :data:`WINDOW` steps that were finished one step before: the prompts of a step are drawn while the step before it is
    under way. No prompt is left out and none is taken twice.

    The root, because it is the noise of the gradient that rollouts lower: of a fixed number the sum over domains is
    least where each has as many as the scatter of a token's log-ratio to its teacher (Neyman, J. Royal Statistical
    Society 97(4), 1934), whose square is about 2 KL where they are near. Never fewer, because a domain of few rollouts
    is moved by the others' gradients and by the noise of its own: a quarter of its prompts cost a domain that had
    begun at 86% half of its score within 20 steps (30 November 2026).
    """

    most = MOST

    def __init__(self, prompts: Mapping[str, int], *, lag: int = 0) -> None:
        """``lag``: how many more steps are under way while the prompts of a step are drawn: `run.lag`."""
        self._prompts, self._lag = dict(prompts), lag
        self._gaps: list[dict[str, float]] = []
        self._ends: list[dict[str, int]] = []

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take up what the finished steps measured."""
        self._gaps, self._ends = [], []
        for row in rows:
            self.see(row)

    def see(self, metrics: Mapping[str, Any]) -> None:
        """Keep the gaps of a step; one that is not known counts as none."""
        self._gaps.append({domain: max(0.0, metrics.get(f"kl/{domain}") or 0.0) for domain in self._prompts})

    def places(self, step: int) -> dict[str, range]:
        """After those of the steps before, as many as their gaps ask for."""
        while len(self._ends) <= step:
            known = self._gaps[: max(0, len(self._ends) - 1 - self._lag)][-WINDOW:]  # not per token
            before = self._ends[-1] if self._ends else dict.fromkeys(self._prompts, 0)
            self._ends.append({d: before[d] + n for d, n in share_out(self._prompts, known).items()})
        first = self._ends[step - 1] if step else dict.fromkeys(self._prompts, 0)
        return {domain: range(first[domain], self._ends[step][domain]) for domain in self._prompts}


MIXTURES = {"fixed": FixedMixture, "gap_following": GapFollowingMixture}
"""By the name that a recipe's ``prompt_rule`` gives them."""


def share_out(prompts: Mapping[str, int], gaps: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Prompts by domain; the recipe's own where no gap is known or none is left."""
    mean_gaps = {domain: fmean(gap[domain] for gap in gaps) for domain in prompts} if gaps else {}
    mean = fmean(mean_gaps.values()) if mean_gaps else 0.0
    if mean == 0:
        return dict(prompts)
    return {d: round(n * min(MOST, max(1.0, math.sqrt(mean_gaps[d] / mean)))) for d, n in prompts.items()}
