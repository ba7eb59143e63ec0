"""When a run has learnt what it can: a rule that the recipe declares, a pure function of its evaluations.

A fixed number of steps fits no two seeds: on one of them a specialist is finished after half of it, on another the
student is far from one of its teachers when it is over, and getting closer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from mopd.distill.recipe import PlateauRecipe


class RunLength:
    """How many steps a run takes, as far as is known now.

    Args:
        steps: the most.
        rule: ends it earlier; None: it takes all of them.
        domains: those that are trained.
        decay: steps that the run goes on once no domain learns, for its learning rate to decay.
    """

    def __init__(self, steps: int, rule: PlateauRecipe | None, *, domains: Collection[str], decay: int) -> None:
        self.steps = self.most = steps
        self.domains = domains
        self._rule, self._decay = rule, decay

    def see(self, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Work it out from all evaluations until now; a resumed run comes to the same.

        Args:
            evaluations: rows of metrics.jsonl of kind ``eval``, in order.
        """
        settled = None if self._rule is None else settled_at(self._rule, evaluations, self.domains)
        self.steps = self.most if settled is None else min(self.most, settled + self._decay)


def settled_at(rule: PlateauRecipe, evaluations: Sequence[Mapping[str, Any]], domains: Collection[str]) -> int | None:
    """The step of the first evaluation after which no domain learns any more; None where there is none yet."""
    for n in range(rule.evaluations + 1, len(evaluations) + 1):
        if not learning(rule, evaluations[:n], domains):
            return int(evaluations[n - 1]["step"])
    return None


def learning(rule: PlateauRecipe, evaluations: Sequence[Mapping[str, Any]], domains: Collection[str]) -> dict[str, str]:
    """The domains that learn, each with the reason in words, judged by the last ``rule.evaluations`` and those before.

    A domain learns where the best score of the last evaluations is more than ``rule.points`` above the best one before,
    or where its held-out KL, as the mean of the last evaluations, is above ``rule.behind`` times the median of the
    other domains' and lower by ``rule.fall`` than the mean of as many before. Until there are more than
    ``rule.evaluations`` of them, every domain learns.
    """
    k = rule.evaluations
    if len(evaluations) <= k:
        return dict.fromkeys(domains, f"measured {len(evaluations)} times, and more than {k} can tell")
    before, last = evaluations[:-k], evaluations[-k:]  # not per token
    gaps = {domain: values for domain in domains if (values := _values(last, f"held_out_kl/{domain}"))}
    reasons: dict[str, str] = {}
    for domain in domains:
        best, best_before = (max(_values(rows, f"score/{domain}"), default=0.0) for rows in (last, before))
        if 100 * (best - best_before) > rule.points:
            reasons[domain] = f"its score rose from {100 * best_before:.1f} to {100 * best:.1f}"
            continue
        others = [fmean(values) for other, values in gaps.items() if other != domain]
        earlier = _values(before[-k:], f"held_out_kl/{domain}")  # not per token
        if not others or not earlier or domain not in gaps:
            continue
        gap, gap_before = fmean(gaps[domain]), fmean(earlier)
        if gap > rule.behind * max(0.0, median(others)) and gap < (1 - rule.fall) * gap_before:
            reasons[domain] = f"its held-out KL is {gap:.3g} nats a token, others' {median(others):.3g}, and falls"
    return reasons


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The values of a metric in the rows that have one; null is no number."""
    return [float(value) for row in rows if (value := row.get(name)) is not None]
