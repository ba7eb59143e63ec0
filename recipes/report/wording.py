"""What the numbers of a run say, in words: does the seesaw remain?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mopd.distill.metrics.power import BAR
from mopd.distill.metrics.quotients import Ends
from mopd.distill.metrics.seesaw import is_seesaw
from mopd.recipes.report.records import PerDomain, SeesawIntervals, SeesawMetrics, SeesawRecord
from mopd.recipes.resolve.run_folder import RunState

Tone: TypeAlias = Literal["good", "mixed", "bad", "pending"]
"""The colour that a headline is said in."""


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


def at_least(low: float) -> str:
    """A lower end as ``74%``: never more than it is."""
    return percent(math.floor(100 * low + 1e-9) / 100)


def at_most(high: float) -> str:
    """An upper end as ``74%``: never less than it is."""
    return percent(math.ceil(100 * high - 1e-9) / 100)


UNFINISHED: dict[RunState, str] = {
    "interrupted": "Interrupted",
    "broken": "Broken off",
    "killed": "Ended from outside",
}
"""What a run without a result is called; others are under way."""


def judge(
    seesaw: SeesawRecord, *, finished: bool, step: int, steps: int, state: RunState = "running", selects: bool = True
) -> RunVerdict:
    """The verdict on a seesaw.json, or on what there is of one.

    Args:
        state: how the run stands where it is not finished.
        selects: whether the run had steps to choose the student from; a merge or a cascade has one result.
    """
    metrics, intervals = seesaw.metrics, seesaw.intervals
    alone = len(seesaw.domains) == 1
    sentences = [
        *_of_specialists(seesaw),
        *_of_student(metrics, intervals, alone=alone),
        *_of_selection(seesaw, steps if selects else None, alone=alone),
    ]
    tone, headline = _headline(seesaw)
    if "student" not in seesaw.models:
        tone, headline = "pending", "Nothing to judge yet: the student has not been measured"
    if not finished:
        tone, headline = "pending", f"{UNFINISHED.get(state, 'Under way')}: step {step} of {steps}"
    return RunVerdict(tone, headline, sentences, _tiles(metrics, intervals, alone=alone))


def fallen(points_at_once: Mapping[str, Ends | None] | None) -> list[str]:
    """Domains in which the student is below the base beyond chance: the whole interval of its points is below 0.

    Args:
        points_at_once: intervals that hold for all domains that are looked at together.
    """
    return [domain for domain, ends in (points_at_once or {}).items() if ends is not None and ends.high < 0]


def _at_once(intervals: SeesawIntervals) -> Mapping[str, Ends | None] | None:
    """Older versions wrote the intervals of each domain alone."""
    return intervals.points_at_once or intervals.points


def trades(share: float | None, p: float | None) -> bool:
    """Whether a trajectory is a seesaw; not where its share or the p-value of its correlation is undefined."""
    return share is not None and p is not None and is_seesaw(share, p)


def _headline(seesaw: SeesawRecord) -> tuple[Tone, str]:
    metrics, worst = seesaw.metrics, seesaw.intervals.worst_recovery
    alone = len(seesaw.domains) == 1
    below, moved = fallen(_at_once(seesaw.intervals)), metrics.points or {}
    if below:
        depth = listed([f"{domain} is {points(moved[domain])} points" for domain in below]).replace("−", "")
        return "bad", f"{'' if alone else 'The seesaw remains: '}{depth} below the model it began from"
    if worst is None or metrics.worst_recovery is None:
        return "mixed", _nothing_to_recover(seesaw)
    if worst.low >= BAR:
        return _gone(seesaw, worst)
    if worst.high < BAR:
        most = at_most(worst.high)
        if alone:
            return "bad", f"The student keeps at most {most} of its teacher’s gain"
        return "bad", f"The seesaw remains: the worst domain keeps at most {most} of its teacher’s gain"
    return "mixed", _not_known(seesaw, worst)


def _nothing_to_recover(seesaw: SeesawRecord) -> str:
    alone, judged = len(seesaw.domains) == 1, seesaw.verdict
    if judged is None or judged.needed is None or judged.needed <= judged.questions:
        better = "the teacher is not" if alone else "no domain has a teacher that is"
        return f"No recovery to report: {better} clearly better than the base"
    asked = f"from {judged.questions:,} questions{_a_domain(seesaw)}"
    better = "the teacher is not" if alone else "no teacher is"
    needed = f"about {judged.needed:,} would show a gain of ten points"
    return f"No recovery to report: {asked}, {better} clearly better than the base; {needed}"


def _a_domain(seesaw: SeesawRecord) -> str:
    return "" if len(seesaw.domains) == 1 else " a domain"


def _gone(seesaw: SeesawRecord, worst: Ends) -> tuple[Tone, str]:
    """The worst domain keeps enough beyond chance."""
    metrics, least = seesaw.metrics, at_least(worst.low)
    recovered = metrics.recovery or {}
    unknown = [d for d, teachers in seesaw.teachers.items() if teachers and recovered.get(d) is None]
    if len(seesaw.domains) == 1:
        return "good", f"The student keeps at least {least} of its teacher’s gain"
    if unknown:
        kept = f"One student keeps at least {least} of the gain where there is one to keep"
        return "mixed", f"{kept}; {listed(unknown)} had too little to measure"
    gone = f"The seesaw is gone: one student keeps at least {least} of every specialist’s gain"
    if trades(metrics.seesaw_share, metrics.seesaw_correlation_p):
        return "mixed", f"{gone}, though on the way one domain’s gain was another’s loss"
    return "good", gone


def _not_known(seesaw: SeesawRecord, worst: Ends) -> str:
    alone, judged = len(seesaw.domains) == 1, seesaw.verdict
    who = "the student keeps" if alone else "the worst domain keeps"
    kept = f"{who} {between(worst)} of its teacher’s gain"
    question = "" if alone else " whether the seesaw is gone"
    if judged is None:
        return f"Not known{question}: {kept}"
    sentence = f"Not known from {judged.questions:,} questions{_a_domain(seesaw)}{question}: {kept}"
    if judged.needed is None or judged.needed <= judged.questions:
        return f"{sentence}, which is too near to the bar of {percent(BAR)}"
    return f"{sentence}; about {judged.needed:,} would tell whether it is {percent(BAR)}"


def _lowest(by_domain: PerDomain | None) -> str:
    defined = {domain: value for domain, value in (by_domain or {}).items() if value is not None}
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
    if len(gains) == 1:
        sentence = f"The specialist changes by {points(gains[0])} points on its own domain"
    elif min(gains) <= 0:
        sentence = f"Specialists change by {points(min(gains))} to {points(max(gains))} points on their own domains"
    else:
        sentence = f"Each specialist gains {low if low == high else f'{low} to {high}'} points on its own domain"
    if harm[0] < 0:
        sentence += f"; the worst harm to another is the {harm[1]} teacher’s, {points(harm[0])} points on {harm[2]}"
    return [f"{sentence}."]


def _of_student(metrics: SeesawMetrics, intervals: SeesawIntervals, *, alone: bool) -> list[str]:
    """``alone``: there is one domain, and nothing is said of others."""
    sentences: list[str] = []
    if metrics.worst_recovery is not None and alone:
        interval = f"95% interval {between(intervals.worst_recovery)}"
        sentences.append(f"The student recovers {percent(metrics.worst_recovery)} of its teacher’s gain ({interval}).")
    elif metrics.worst_recovery is not None:
        sentences.append(
            f"The student recovers {percent(metrics.mean_recovery)} of its teachers’ gains on average "
            f"(95% interval {between(intervals.mean_recovery)}), {percent(metrics.pooled_recovery)} of their sum "
            f"({between(intervals.pooled_recovery)}), and {percent(_worst(metrics))} in the worst domain "
            f"({between(intervals.worst_recovery)}); lowest is {_lowest(metrics.recovery)}."
        )
    moved = {domain: change for domain, change in (metrics.points or {}).items() if change is not None}
    if moved:
        below, lowest = fallen(_at_once(intervals)), _lowest(moved)
        nowhere = "" if alone else " on no domain"
        if below:
            sentences.append(f"It falls below the base on {listed(below)}.")
        elif moved[lowest] < 0 and alone:
            sentences.append(f"It is {points(moved[lowest])} points from the base, which chance may explain.")
        elif moved[lowest] < 0:
            change = f"{lowest} by {points(moved[lowest])} points"
            sentences.append(f"It falls below the base{nowhere} beyond chance; lowest is {change}.")
        else:
            sentences.append("It does not fall below the base." if alone else f"It falls below the base{nowhere}.")
    if metrics.seesaw_share is not None and not alone:
        share = percent(metrics.seesaw_share)
        sentences.append(f"Over training, {share} of the movement beyond noise was traded between domains.")
    return sentences


def _worst(metrics: SeesawMetrics) -> float | None:
    """The worst recovery as it is shown: its estimate; the plain minimum where an older version wrote nothing else."""
    return metrics.worst_recovery if metrics.worst_recovery_estimate is None else metrics.worst_recovery_estimate


def _of_selection(seesaw: SeesawRecord, steps: int | None, *, alone: bool) -> list[str]:
    early = [] if seesaw.stopped is None else [f"The run ended by its stop rule: {seesaw.stopped.why}."]
    chosen = seesaw.selected
    if chosen is None or chosen.by == "last" or steps is None:
        return early
    by = "recovery" if chosen.by == "worst_recovery" else "change over the base"
    by = by if alone else f"worst domain’s {by}"
    if chosen.bound is None:
        reason = f"whose {by} was the best on validation questions"
    else:
        reason = f"whose {by} is surest on validation questions: at least {at_least(chosen.bound)}"
    sentences = [
        f"The student is that of step {chosen.step} of {steps}, {reason}; its scores here are on test questions."
    ]
    others = (chosen.among or 1) - 1
    if chosen.as_good is not None and others > 0:
        noise = f"Chance may have put it before {chosen.as_good} of the {others} other steps that were measured"
        if chosen.as_good == 0:
            noise = f"It is ahead of the {others} other steps that were measured beyond chance"
        elif chosen.needed is not None:
            asked = f"{chosen.needed:,} validation questions{_a_domain(seesaw)}"
            noise += f"; about {asked} would tell ten points apart"
        sentences.append(f"{noise}.")
    return [*early, *sentences]


def _tiles(metrics: SeesawMetrics, intervals: SeesawIntervals, *, alone: bool) -> list[Tile]:
    regression, ends = metrics.max_regression_estimate, intervals.max_regression
    regression = metrics.max_regression if regression is None else regression
    lost = Tile(
        "Regression" if alone else "Largest regression",
        "–" if regression is None else f"{100 * regression:.1f}",
        "" if ends is None else f"{100 * ends.low:.1f}–{100 * ends.high:.1f}",
        "points below the base" if alone else "points below the base, worst domain",
    )
    worst = Tile(
        "Recovery" if alone else "Worst domain’s recovery",
        percent(_worst(metrics)),
        between(intervals.worst_recovery),
        "of its teacher’s gain over the base: the number to judge by",
    )
    if alone:
        return [worst, lost]
    return [
        worst,
        Tile(
            "Mean recovery",
            percent(metrics.mean_recovery),
            between(intervals.mean_recovery),
            "over domains; it hides a seesaw",
        ),
        lost,
        Tile("Seesaw share", percent(metrics.seesaw_share), "", "of the movement traded between domains"),
    ]
