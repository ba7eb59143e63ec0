"""What the numbers of a run say, in words: does the seesaw remain?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from mopd.distill.metrics.seesaw import is_seesaw

Level: TypeAlias = Literal["good", "mixed", "bad", "pending"]

GOOD_WORST_RECOVERY = 0.75
"""A student that keeps at least this part of every specialist's gain has them all; the project's acceptance bound."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A key number: its name, its value, its 95% interval, and what it means."""

    label: str
    value: str
    interval: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A headline, sentences that carry it, and the key numbers."""

    level: Level
    headline: str
    sentences: Sequence[str]
    tiles: Sequence[Tile]


def percent(fraction: float | None, digits: int = 0) -> str:
    """``0.814`` as ``81%``; an undefined one as a dash."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}%".replace("-", "−")


def points(fraction: float | None) -> str:
    """A difference of scores in points with its sign: ``0.228`` as ``+22.8``."""
    return "–" if fraction is None else f"{100 * fraction:+.1f}".replace("-", "−")


def between(ends: Sequence[float] | None, digits: int = 0) -> str:
    """An interval of fractions: ``[0.74, 0.88]`` as ``74–88%``."""
    if ends is None:
        return ""
    low, high = (f"{100 * end:.{digits}f}".replace("-", "−") for end in ends)
    return f"{low} to {high}%" if "−" in low + high else f"{low}–{high}%"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""  # not per token


def judge(final: Mapping[str, Any], *, finished: bool, step: int, steps: int, selects: bool = True) -> Verdict:
    """The verdict on a seesaw.json, or on what there is of one.

    Args:
        selects: whether the run had steps to choose the student from; a merge or a cascade has one result.
    """
    metrics, intervals = final["metrics"], final["metrics_ci"]
    sentences = [
        *_of_specialists(final),
        *_of_student(metrics, intervals),
        *_of_selection(final, steps if selects else None),
    ]
    recovered = metrics.get("recovery") or {}
    unknown = [d for d, teachers in final["teachers"].items() if teachers and recovered.get(d) is None]
    level, headline = _headline(metrics, intervals, unknown)
    if "student" not in final["models"]:
        level, headline = "pending", "Nothing to judge yet: the student has not been measured"
    if not finished:
        level, headline = "pending", f"Under way: step {step} of {steps}"
    return Verdict(level, headline, sentences, _tiles(metrics, intervals))


def fallen(intervals: Mapping[str, Any]) -> list[str]:
    """Domains in which the student is below the base beyond chance: the whole interval of its points is below 0."""
    return [domain for domain, ends in (intervals.get("points") or {}).items() if ends is not None and ends[1] < 0]


def _trades(metrics: Mapping[str, Any]) -> bool:
    share, p = metrics.get("seesaw_share"), metrics.get("seesaw_correlation_p")
    return share is not None and p is not None and is_seesaw(share, p)


def _headline(metrics: Mapping[str, Any], intervals: Mapping[str, Any], unknown: Sequence[str]) -> tuple[Level, str]:
    """``unknown``: domains whose teacher is not clearly better than the base, so that nothing is known of recovery."""
    below, worst = fallen(intervals), metrics.get("worst_recovery")
    if below:
        depth = listed([f"{domain} is {points(metrics['points'][domain])} points" for domain in below])
        return "bad", f"The seesaw remains: {depth} below the model it began from".replace("−", "")
    if worst is None:
        return "mixed", "No recovery to report: no domain has a teacher that is clearly better than the base"
    domain = _worst_domain(metrics)
    if _trades(metrics):
        return "bad", "The seesaw remains: during training one domain’s gain was another’s loss"
    if worst < 0:
        depth = f"{domain} is {points(metrics['points'][domain])} points".replace("−", "")
        return "mixed", f"{depth} below the model it began from, which chance may explain"
    if worst < GOOD_WORST_RECOVERY:
        kept = f"{domain} keeps only {percent(worst)} of its teacher’s gain"
        return "mixed", f"No domain falls below the model it began from beyond chance, but {kept}"
    if unknown:
        kept = f"One student keeps at least {percent(worst)} of the gain where there is one to keep"
        return "mixed", f"{kept}; {listed(unknown)} had too little to measure"
    return "good", f"The seesaw is gone: one student keeps at least {percent(worst)} of every specialist’s gain"


def _worst_domain(metrics: Mapping[str, Any]) -> str:
    defined = {domain: r for domain, r in metrics["recovery"].items() if r is not None}
    return min(defined, key=lambda domain: defined[domain])


def _of_specialists(final: Mapping[str, Any]) -> list[str]:
    """What each specialist gained on its own domain, and what the worst harm was that it did to another."""
    base = final["models"].get("base")
    harm: tuple[float, str, str] = (0.0, "", "")
    gains: list[float] = []
    for domain, teachers in final["teachers"].items():
        for name in teachers:
            scored = final["models"].get(f"teachers/{name}")
            if base is None or scored is None:
                continue
            gains.append(scored[domain]["score"] - base[domain]["score"])
            changes = ((scored[d]["score"] - base[d]["score"], name, d) for d in final["domains"] if d != domain)
            harm = min(harm, *changes) if len(final["domains"]) > 1 else harm
    if not gains:
        return []
    low, high = f"{100 * min(gains):.1f}", f"{100 * max(gains):.1f}"
    told = f"Each specialist gains {low if low == high else f'{low} to {high}'} points on its own domain"
    if min(gains) <= 0:
        told = f"Specialists change by {points(min(gains))} to {points(max(gains))} points on their own domains"
    if harm[0] < 0:
        told += f"; the worst harm to another is the {harm[1]} teacher’s, {points(harm[0])} points on {harm[2]}"
    return [f"{told}."]


def _of_student(metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> list[str]:
    told: list[str] = []
    if metrics.get("worst_recovery") is not None:
        told.append(
            f"The student recovers {percent(metrics['mean_recovery'])} of its teachers’ gains on average "
            f"(95% interval {between(intervals['mean_recovery'])}) and {percent(metrics['worst_recovery'])} in the "
            f"worst domain, {_worst_domain(metrics)} ({between(intervals['worst_recovery'])})."
        )
    if metrics.get("points") is not None:
        below, lowest = fallen(intervals), min(metrics["points"], key=lambda domain: metrics["points"][domain])
        if below:
            told.append(f"It falls below the base on {listed(below)}.")
        elif metrics["points"][lowest] < 0:
            change = f"{lowest} by {points(metrics['points'][lowest])} points"
            told.append(f"It falls below the base on no domain beyond chance; lowest is {change}.")
        else:
            told.append("It falls below the base on no domain.")
    if metrics.get("seesaw_share") is not None:
        share = percent(metrics["seesaw_share"])
        told.append(f"Over training, {share} of the movement beyond noise was traded between domains.")
    return told


def _of_selection(final: Mapping[str, Any], steps: int | None) -> list[str]:
    told = final.get("stopped")
    early = [] if told is None else [f"The run ended by its stop rule: {told['why']}."]
    chosen = final.get("selected")
    if chosen is None or chosen["by"] == "last" or steps is None:
        return early
    by = "recovery" if chosen["by"] == "worst_recovery" else "change over the base"
    return [
        *early,
        f"The student is that of step {chosen['step']} of {steps}, whose worst domain’s {by} was the best on "
        f"validation questions; its scores here are on test questions.",
    ]


def _tiles(metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> list[Tile]:
    def tile(name: str, label: str, value: str, meaning: str, *, in_points: bool = False) -> Tile:
        ends = intervals.get(name)
        shown = between(ends) if not in_points or ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"
        return Tile(label, value, shown, meaning)

    regression = metrics.get("max_regression")
    return [
        tile(
            "worst_recovery",
            "Worst domain’s recovery",
            percent(metrics.get("worst_recovery")),
            "of its teacher’s gain over the base: the number to judge by",
        ),
        tile(
            "mean_recovery", "Mean recovery", percent(metrics.get("mean_recovery")), "over domains; it hides a seesaw"
        ),
        tile(
            "max_regression",
            "Largest regression",
            "–" if regression is None else f"{100 * regression:.1f}",
            "points below the base, worst domain",
            in_points=True,
        ),
        tile(
            "seesaw_share",
            "Seesaw share",
            percent(metrics.get("seesaw_share")),
            "of the movement traded between domains",
        ),
    ]
