"""What the numbers of a run say, in words: does the seesaw remain?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mopd.distill.metrics.seesaw import is_seesaw
from mopd.recipes.report.records import Ends, PerDomain, SeesawIntervals, SeesawMetrics, SeesawRecord

Tone: TypeAlias = Literal["good", "mixed", "bad", "pending"]
"""The colour that a headline is said in."""

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
class RunVerdict:
    """A headline, sentences that carry it, and the key numbers."""

    tone: Tone
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


def si(number: float) -> str:
    """``3968000`` as ``3.97 M``."""
    for power, name in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {name}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """``3725`` as ``1 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def judge(seesaw: SeesawRecord, *, finished: bool, step: int, steps: int, selects: bool = True) -> RunVerdict:
    """The verdict on a seesaw.json, or on what there is of one.

    Args:
        selects: whether the run had steps to choose the student from; a merge or a cascade has one result.
    """
    metrics, intervals = seesaw.metrics, seesaw.intervals
    sentences = [
        *_of_specialists(seesaw),
        *_of_student(metrics, intervals),
        *_of_selection(seesaw, steps if selects else None),
    ]
    recovered = metrics.recovery or {}
    unknown = [d for d, teachers in seesaw.teachers.items() if teachers and recovered.get(d) is None]
    tone, headline = _headline(metrics, intervals, unknown)
    if "student" not in seesaw.models:
        tone, headline = "pending", "Nothing to judge yet: the student has not been measured"
    if not finished:
        tone, headline = "pending", f"Under way: step {step} of {steps}"
    return RunVerdict(tone, headline, sentences, _tiles(metrics, intervals))


def fallen(points_ci: Mapping[str, Ends | None] | None) -> list[str]:
    """Domains in which the student is below the base beyond chance: the whole interval of its points is below 0."""
    return [domain for domain, ends in (points_ci or {}).items() if ends is not None and ends.high < 0]


def trades(share: float | None, p: float | None) -> bool:
    """Whether a trajectory is a seesaw; not where its share or the p-value of its correlation is undefined."""
    return share is not None and p is not None and is_seesaw(share, p)


def _headline(metrics: SeesawMetrics, intervals: SeesawIntervals, unknown: Sequence[str]) -> tuple[Tone, str]:
    """``unknown``: domains whose teacher is not clearly better than the base, so that nothing is known of recovery."""
    below, worst, moved = fallen(intervals.points), metrics.worst_recovery, metrics.points or {}
    if below:
        depth = listed([f"{domain} is {points(moved[domain])} points" for domain in below])
        return "bad", f"The seesaw remains: {depth} below the model it began from".replace("−", "")
    if worst is None:
        return "mixed", "No recovery to report: no domain has a teacher that is clearly better than the base"
    domain = _worst_domain(metrics.recovery)
    if trades(metrics.seesaw_share, metrics.seesaw_correlation_p):
        return "bad", "The seesaw remains: during training one domain’s gain was another’s loss"
    if worst < 0:
        depth = f"{domain} is {points(moved[domain])} points".replace("−", "")
        return "mixed", f"{depth} below the model it began from, which chance may explain"
    if worst < GOOD_WORST_RECOVERY:
        kept = f"{domain} keeps only {percent(worst)} of its teacher’s gain"
        return "mixed", f"No domain falls below the model it began from beyond chance, but {kept}"
    if unknown:
        kept = f"One student keeps at least {percent(worst)} of the gain where there is one to keep"
        return "mixed", f"{kept}; {listed(unknown)} had too little to measure"
    return "good", f"The seesaw is gone: one student keeps at least {percent(worst)} of every specialist’s gain"


def _worst_domain(recovery: PerDomain | None) -> str:
    defined = {domain: value for domain, value in (recovery or {}).items() if value is not None}
    return min(defined, key=lambda domain: defined[domain])


def _of_specialists(seesaw: SeesawRecord) -> list[str]:
    """What each specialist gained on its own domain, and what the worst harm was that it did to another."""
    base = seesaw.models.get("base")
    harm: tuple[float, str, str] = (0.0, "", "")
    gains: list[float] = []
    for domain, teachers in seesaw.teachers.items():
        for name in teachers:
            scores = seesaw.models.get(f"teachers/{name}")
            if base is None or scores is None:
                continue
            gains.append(scores[domain].score - base[domain].score)
            changes = ((scores[d].score - base[d].score, name, d) for d in seesaw.domains if d != domain)
            harm = min(harm, *changes) if len(seesaw.domains) > 1 else harm
    if not gains:
        return []
    low, high = f"{100 * min(gains):.1f}", f"{100 * max(gains):.1f}"
    sentence = f"Each specialist gains {low if low == high else f'{low} to {high}'} points on its own domain"
    if min(gains) <= 0:
        sentence = f"Specialists change by {points(min(gains))} to {points(max(gains))} points on their own domains"
    if harm[0] < 0:
        sentence += f"; the worst harm to another is the {harm[1]} teacher’s, {points(harm[0])} points on {harm[2]}"
    return [f"{sentence}."]


def _of_student(metrics: SeesawMetrics, intervals: SeesawIntervals) -> list[str]:
    sentences: list[str] = []
    if metrics.worst_recovery is not None:
        sentences.append(
            f"The student recovers {percent(metrics.mean_recovery)} of its teachers’ gains on average "
            f"(95% interval {between(intervals.mean_recovery)}) and {percent(metrics.worst_recovery)} in the "
            f"worst domain, {_worst_domain(metrics.recovery)} ({between(intervals.worst_recovery)})."
        )
    moved = {domain: change for domain, change in (metrics.points or {}).items() if change is not None}
    if moved:
        below, lowest = fallen(intervals.points), min(moved, key=lambda domain: moved[domain])
        if below:
            sentences.append(f"It falls below the base on {listed(below)}.")
        elif moved[lowest] < 0:
            change = f"{lowest} by {points(moved[lowest])} points"
            sentences.append(f"It falls below the base on no domain beyond chance; lowest is {change}.")
        else:
            sentences.append("It falls below the base on no domain.")
    if metrics.seesaw_share is not None:
        share = percent(metrics.seesaw_share)
        sentences.append(f"Over training, {share} of the movement beyond noise was traded between domains.")
    return sentences


def _of_selection(seesaw: SeesawRecord, steps: int | None) -> list[str]:
    early = [] if seesaw.stopped is None else [f"The run ended by its stop rule: {seesaw.stopped.why}."]
    chosen = seesaw.selected
    if chosen is None or chosen.by == "last" or steps is None:
        return early
    by = "recovery" if chosen.by == "worst_recovery" else "change over the base"
    return [
        *early,
        f"The student is that of step {chosen.step} of {steps}, whose worst domain’s {by} was the best on "
        f"validation questions; its scores here are on test questions.",
    ]


def _tiles(metrics: SeesawMetrics, intervals: SeesawIntervals) -> list[Tile]:
    regression, ends = metrics.max_regression, intervals.max_regression
    return [
        Tile(
            "Worst domain’s recovery",
            percent(metrics.worst_recovery),
            between(intervals.worst_recovery),
            "of its teacher’s gain over the base: the number to judge by",
        ),
        Tile(
            "Mean recovery",
            percent(metrics.mean_recovery),
            between(intervals.mean_recovery),
            "over domains; it hides a seesaw",
        ),
        Tile(
            "Largest regression",
            "–" if regression is None else f"{100 * regression:.1f}",
            "" if ends is None else f"{100 * ends.low:.1f}–{100 * ends.high:.1f}",
            "points below the base, worst domain",
        ),
        Tile("Seesaw share", percent(metrics.seesaw_share), "", "of the movement traded between domains"),
    ]
