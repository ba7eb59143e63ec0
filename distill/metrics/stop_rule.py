"""When a run ends before its last step: rules that the recipe declares, pure functions of what it measured and spent.

It ends where a domain is beyond a bound (:func:`stop_reason`), or where it has learnt what it can or spent its compute
(:class:`RunLength`): a fixed number of steps fits no two seeds. On one of them a specialist is finished after half of
it, on another the student is far from one of its teachers when it is over, and getting closer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from mopd.distill.recipe import PlateauRecipe, StopRecipe


def stop_reason(rule: StopRecipe, evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the run ends after the last of ``evaluations``, in words; None where it goes on.

    It ends where one and the same domain was beyond one and the same bound at each of the last ``rule.evaluations``
    ones. Step 0 is the base, which length is measured by and which never counts.

    Args:
        evaluations: rows of metrics.jsonl of kind ``eval``, in order.
    """
    rows = [row for row in evaluations if row["step"] > 0][-rule.evaluations :]  # not per token
    if len(rows) < rule.evaluations:
        return None
    above = {"held_out_kl": rule.kl, "truncation": rule.truncation, "repetition": rule.repetition}
    for name, bound in above.items():
        for key, values in _series(rows, name):
            if bound is not None and min(values) > bound:
                return _message(key, values, f"above {bound:g}", rows)
    start = next((row for row in evaluations if row["step"] == 0), None)
    if rule.length is not None and start is not None:
        for key, values in _series(rows, "length"):
            if max(values) < rule.length * start[key]:
                return _message(key, values, f"below {rule.length:g} of the base's {start[key]:.3g}", rows)
    return None


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, list[float]]]:
    """The values of a metric by domain, of domains that have one in every row; null is no number."""
    keys = [key for key in rows[0] if key.startswith(f"{name}/")]
    columns = [(key, [row.get(key) for row in rows]) for key in keys]
    return [(key, [float(v) for v in values if v is not None]) for key, values in columns if None not in values]


def _message(key: str, values: Sequence[float], beyond: str, rows: Sequence[Mapping[str, Any]]) -> str:
    steps = ", ".join(str(row["step"]) for row in rows)
    return f"{key} was {', '.join(f'{value:.3g}' for value in values)} at steps {steps}, {beyond}"


class RunLength:
    """How many steps a run takes, as far as is known now.

    Args:
        steps: the most.
        rule: ends it earlier; None: it takes all of them.
        domains: those that are trained.
        decay: steps that the run goes on once no domain learns, for its learning rate to decay.
        flops: that it may spend; None: any.
    """

    def __init__(
        self,
        steps: int,
        rule: PlateauRecipe | None,
        *,
        domains: Collection[str],
        decay: int,
        flops: float | None = None,
    ) -> None:
        self.most = steps
        self.domains = domains
        self._rule, self._decay, self._flops = rule, decay, flops
        self._spent: dict[int, float] = {}
        self._settled = steps

    @property
    def steps(self) -> int:
        """Of the whole run; where its compute is bounded, as its last steps cost, until it is spent."""
        if self._flops is None:
            return self._settled
        return min(self._settled, affordable(list(self._spent.values()), self._flops, most=self.most))

    def see(self, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Work it out from all evaluations until now; a resumed run comes to the same.

        Args:
            evaluations: rows of metrics.jsonl of kind ``eval``, in order.
        """
        settled = None if self._rule is None else settled_at(self._rule, evaluations, self.domains)
        self._settled = self.most if settled is None else min(self.most, settled + self._decay)

    def spend(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note what ``step`` took, by its row of metrics.jsonl; whatever was noted of later ones is void."""
        self._spent = {earlier: flops for earlier, flops in self._spent.items() if earlier < step}
        self._spent[step] = training_flops(metrics)


LAST_STEPS = 20
"""By the mean of so many the cost of those to come is guessed: rollouts change their lengths as a model learns."""


def affordable(spent: Sequence[float], budget: float, *, most: int) -> int:
    """How many steps a budget lasts for: the first that reaches it, or as it looks after those that are done.

    Args:
        spent: FLOPs of each finished step.
        most: steps, however cheap they are.
    """
    left = budget
    for number, flops in enumerate(spent, 1):
        left -= flops
        if left <= 0:
            return min(most, number)
    last = spent[-LAST_STEPS:]  # not per token
    each = fmean(last) if last else 0.0
    return min(most, len(spent) + math.ceil(min(left / each, most))) if each > 0 else most


def training_flops(metrics: Mapping[str, Any]) -> float:
    """What a step's row says of generation, teachers' scoring and updates, in FLOPs; evaluations count as none."""
    flops = {name: value for name, value in metrics.items() if name.startswith("flops/")}
    return sum((value or 0.0 for name, value in flops.items() if name != "flops/evaluation"), 0.0)


def settled_at(rule: PlateauRecipe, evaluations: Sequence[Mapping[str, Any]], domains: Collection[str]) -> int | None:
    """The step of the first evaluation after which no domain learns any more, or at which one has reached
    ``rule.ceiling``; None where there is none yet."""
    for n, last in enumerate(evaluations, 1):
        settled = n > rule.evaluations and not learning(rule, evaluations[:n], domains)
        if last["step"] > 0 and (settled or _reached(rule.ceiling, last, domains)):
            return int(last["step"])
    return None


def _reached(ceiling: float | None, evaluation: Mapping[str, Any], domains: Collection[str]) -> bool:
    scores = [score for domain in domains for score in _values([evaluation], f"score/{domain}")]
    return ceiling is not None and 100 * max(scores, default=0.0) >= ceiling


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
