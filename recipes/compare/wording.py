"""What a comparison says, in words: who is ahead and by how much, who pays, and what a reader has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from mopd.distill.metrics.seesaw import SEESAW_SHARE
from mopd.recipes.compare.comparison import (
    ComparedMetrics,
    ComparedRow,
    ComparedRun,
    Comparison,
    Difference,
    chosen_by_value,
    rivals,
)
from mopd.recipes.compare.cost import Cost
from mopd.recipes.compare.parity import RowParity
from mopd.recipes.report.wording import Tone, at_least, between, duration, fallen, listed, percent, points, si

MEASURE_NAMES = {"worst_score": "worst domain’s score", "mean_score": "mean score"}
"""The measures of distill/metrics/compute_to_parity.py, for people."""


def measures(comparison: Comparison) -> dict[str, str]:
    """What is to be reached, by measure, with its level; of a single domain both measures are its score."""
    names = {"worst_score": "score"} if len(comparison.domains) == 1 else MEASURE_NAMES
    levels = comparison.parity.levels
    return {
        name: f"{title} {percent(levels[name], 1)}" if levels[name] > 0 else f"{title} (is 0)"
        for name, title in names.items()
    }


def ranked(comparison: Comparison) -> list[ComparedRow]:
    """Rows from the highest worst recovery down, on validation questions by its lower end; those that have none at the
    end, as they were given."""
    by = {row.name: chosen_by_value(comparison.split, row.metrics, row.metrics_ci) for row in comparison.rows}
    worst = {name: value for name, value in by.items() if value is not None}
    known = [row for row in comparison.rows if row.name in worst]
    known.sort(key=lambda row: -worst[row.name])
    return known + [row for row in comparison.rows if row.name not in worst]


def headline(comparison: Comparison) -> tuple[Tone, str]:
    """One sentence, and the colour it is said in."""
    rows = rivals(ranked(comparison))
    first = rows[0]
    if first.at_least is None:
        return "mixed", "No recovery to compare: nowhere is a teacher clearly better than the base"
    where = "" if len(comparison.domains) == 1 else " in the worst domain"
    kept = f"keeps at least {at_least(first.at_least)}" if first.at_least > 0 else "may keep nothing"
    sentence = f"{first.name} {kept} of its {_teachers(comparison)} gain{where}"
    pending: Tone | None = None if all(row.finished for row in rows) else "pending"
    if len(rows) == 1:
        gone = first.verdict is not None and first.verdict.seesaw == "gone"
        good = gone and not fallen(first.metrics_ci.points_at_once) and not first.seesaws
        return pending or ("good" if good else "mixed"), sentence
    second = rows[1]
    if second.at_least is None:
        return pending or "mixed", f"{sentence}; no other row has a recovery"
    behind = None if second.behind is None else second.behind.worst_recovery
    if set(first.seeds) != set(second.seeds) or behind is None:
        return pending or "mixed", f"{sentence}; {second.name} has other seeds, so which is ahead is not known"
    ahead = f"{-100 * behind.value:.0f}"
    lead = f"{ahead} {'point' if ahead == '1' else 'points'} more than {second.name}"
    interval = f"95% interval {span(-behind.high, -behind.low)}"
    if behind.high < 0:
        return pending or "good", f"{sentence}, {lead} ({interval})"
    return pending or "mixed", f"{sentence}, {lead}, which chance may explain ({interval})"


def _teachers(comparison: Comparison) -> str:
    return "teacher’s" if len(comparison.domains) == 1 else "teachers’"


def span(low: float, high: float) -> str:
    """An interval of differences in points: ``-3 to 12``."""
    return f"{100 * low:.0f} to {100 * high:.0f}".replace("-0 ", "0 ").replace("-", "−")


def sentences(comparison: Comparison) -> list[str]:
    """What carries the headline: means, losses, seesaws, cost."""
    rows = ranked(comparison)
    return [
        *_known(comparison, rivals(rows)[0]),
        *(_means(rivals(rows)) if len(comparison.domains) > 1 else []),
        *_losses(comparison, rows),
        *(_seesaws(rows, comparison.runs) if len(comparison.domains) > 1 else []),
        *_costs(rows),
        *_parities(comparison, rows),
        *_sampled(rows, comparison.runs),
    ]


def _sampled(rows: Sequence[ComparedRow], runs: Sequence[ComparedRun]) -> list[str]:
    """Each row's student by greedy and by sampled answers, the mean of its runs; nothing where none sampled any."""
    sentences: list[str] = []
    for row in rows:
        drawn = [run for run in runs if run.row == row.name and "student" in run.sampled]
        if not drawn:
            continue
        parts = [
            f"{domain} {percent(fmean(run.models['student'][domain].score for run in drawn), 1)} greedy, "
            f"{percent(fmean(run.sampled['student'][domain].score for run in drawn), 1)} sampled"
            for domain in drawn[0].sampled["student"]
            if all(domain in run.sampled["student"] and domain in run.models["student"] for run in drawn)
        ]
        sentences.append(f"{row.name} by greedy and by sampled answers: {'; '.join(parts)}.")
    return sentences


def _known(comparison: Comparison, row: ComparedRow) -> list[str]:
    """Whether the leader's worst domain keeps enough, where its interval does not say so, and what would tell."""
    judged, ends = row.verdict, row.metrics_ci.worst_recovery
    if judged is None or ends is None or judged.seesaw != "unknown":
        return []
    alone = len(comparison.domains) == 1
    asked = f"{judged.questions:,} questions{'' if alone else ' a domain'}{f' and {row.n} seeds' if row.n > 1 else ''}"
    who = row.name if alone else f"{row.name}’s worst domain"
    sentence = (
        f"Not known from {asked} whether {who} keeps {percent(judged.bar)} of its teacher’s gain ({between(ends)})"
    )
    if judged.needed is None:
        return [f"{sentence}: its seeds differ by too much, more of them would tell."]
    if judged.needed <= judged.questions:
        return [f"{sentence}, which it is too near to."]
    return [f"{sentence}; about {judged.needed:,} questions would tell."]


def _means(rows: Sequence[ComparedRow]) -> list[str]:
    means = {row.name: value for row in rows if (value := row.metrics.mean_recovery) is not None}
    known = [row for row in rows if row.name in means]
    if len(known) < 2:
        return []
    best = max(known, key=lambda row: means[row.name])
    sentence = f"The highest mean recovery is {best.name}’s, {percent(best.metrics.mean_recovery)}"
    if best is not rows[0]:
        worst = f"{percent(best.metrics.worst_recovery_estimate)} ({between(best.metrics_ci.worst_recovery)})"
        sentence += f", and its worst domain keeps {worst}, which the mean hides"
    return [f"{sentence}."]


def _losses(comparison: Comparison, rows: Sequence[ComparedRow]) -> list[str]:
    """Who is below its base, by intervals that hold for all rows and domains together."""
    alone = len(comparison.domains) == 1
    lost = {row.name: fallen(row.metrics_ci.points_at_once) for row in rows}
    falls = [
        f"{name} falls below its base{'' if alone else f' on {listed(domains)}'}."
        for name, domains in lost.items()
        if domains
    ]
    if falls:
        return falls
    if len(rows) > 1:
        return [f"None falls below its base{'' if alone else ' on any domain'} beyond chance."]
    if alone:
        return [f"{rows[0].name} does not fall below its base beyond chance."]
    return [f"{rows[0].name} falls below its base on no domain beyond chance."]


def _seesaws(rows: Sequence[ComparedRow], runs: Sequence[ComparedRun]) -> list[str]:
    known = [row for row in rows if row.metrics.seesaw_share is not None]
    if not known:
        return []
    traded = "of the movement beyond noise was traded between domains"
    lines = [f"{row.name} is a seesaw{_of_seeds(row)}: {_share(row.metrics)} {traded}." for row in known if row.seesaws]
    tested = [run for run in runs if run.metrics.seesaw_correlation_p is not None]
    if tested and not lines:
        most = max(tested, key=lambda run: run.metrics.seesaw_share or 0.0)
        lines = [f"No trajectory is a seesaw beyond chance: at most {_share(most.metrics)} {traded} ({most.name})."]
    few = [run for run in runs if run not in tested and (run.metrics.seesaw_share or 0) > SEESAW_SHARE]
    if few:
        shares = listed([f"{run.name} ({percent(run.metrics.seesaw_share)})" for run in few])
        lines.append(f"Too few evaluations to test whether it is one, though much {traded}: {shares}.")
    return lines


def _of_seeds(row: ComparedRow) -> str:
    return f" on {row.seesaws} of {row.n} seeds" if row.n > 1 else ""


def _share(metrics: ComparedMetrics) -> str:
    return f"{percent(metrics.seesaw_share)} (noise alone: {percent(metrics.seesaw_noise, 1)})"


def _costs(rows: Sequence[ComparedRow]) -> list[str]:
    known = [(row, row.cost.training.flops) for row in rows if row.cost.training and row.cost.training.flops]
    if not known:
        return []
    (cheap, least), (dear, most) = (choose(known, key=lambda pair: pair[1]) for choose in (min, max))
    sentence = f"Training took {flop(least)} ({cheap.name})"
    if cheap is not dear:
        sentence += f" to {flop(most)} ({dear.name})"
    made = [row.cost.teachers.flops for row, _ in known if row.cost.teachers]
    if made and max(made):
        sentence += f"; making the teachers takes {flop(max(made))} on top"
    return [f"{sentence}."]


def _parities(comparison: Comparison, rows: Sequence[ComparedRow]) -> list[str]:
    """What the others compute to reach the worst domain's score of the reference."""
    reference, measure = comparison.parity.reference, "worst_score"
    others = [(row.name, row.parity[measure]) for row in rows if row.name != reference]
    reached = [f"{name} takes {times(parity)} its compute" for name, parity in others if parity.ratio is not None]
    never = [f"{name} (in {_factor(parity.tried)})" for name, parity in others if parity.flops is None and parity.tried]
    parts = [listed(reached)] if reached else []
    parts += [f"{listed(never)} never {'does' if len(never) == 1 else 'do'}"] if never else []
    level = comparison.parity.levels[measure]
    if level <= 0:
        return [
            f"The last validation score of {reference} is 0 within a point: nothing is asked of the others’ compute."
        ]
    where = "" if len(comparison.domains) == 1 else " in the worst domain"
    sentence = f"To score {percent(level)}{where}, as {reference} did within a point"
    return [f"{sentence}, {'; '.join(parts)}."] if parts else []


def times(parity: RowParity) -> str:
    """Compute to parity: ``3.2×``; of who never gets there, ``never``; a dash where the reference needs none."""
    return "never" if parity.flops is None else "–" if parity.ratio is None else _factor(parity.ratio)


def times_interval(parity: RowParity) -> str:
    """Its 95% interval, ``2.1× to 5×``; without one, how much was tried."""
    if parity.ratio is None or parity.ratio_ci is None:
        return f"in {_factor(parity.tried)}" if parity.flops is None and parity.tried else ""
    low, high = ("never" if end is None else _factor(end) for end in parity.ratio_ci)
    return f"{low} to {high}"


def with_teachers(parity: RowParity) -> RowParity | None:
    """The same with the making of teachers counted; None where that is not known."""
    counted = parity.with_teachers
    if counted is None:
        return None
    return replace(parity, ratio=counted.ratio, ratio_ci=counted.ratio_ci, tried=counted.tried)


def _factor(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"


def flop(amount: float) -> str:
    """``4.65e12`` as ``4.65 TFLOP``."""
    text = si(amount)
    return f"{text}FLOP" if text[-1].isalpha() else f"{text} FLOP"


def flops_of(cost: Cost | None) -> str:
    """FLOPs for people; what cannot be known is said to be unknown."""
    return "unknown" if cost is None else si(cost.flops)


def seconds_of(cost: Cost | None) -> str:
    """Seconds for people; what cannot be known is said to be unknown."""
    return "unknown" if cost is None else duration(cost.seconds)


def worst_forgetting(metrics: ComparedMetrics) -> str:
    """The largest forgetting over domains, in points."""
    known = [lost for lost in (metrics.forgetting_estimate or {}).values() if lost is not None]
    return f"{100 * max(known):.1f}" if known else "–"


def signed(difference: Difference | None) -> str:
    """A difference with its interval as ``−23.0 (−30 to −17)``, in points."""
    return "" if difference is None else f"{points(difference.value)} ({span(difference.low, difference.high)})"


def notes(comparison: Comparison) -> list[str]:
    """What a reader has to know before believing a number."""
    runs, lines = comparison.runs, list[str]()
    under_way = [f"{run.name} (step {run.step} of {run.steps})" for run in runs if not run.finished]
    if under_way:
        lines.append(f"Not finished: {listed(under_way)}.")
    if comparison.split == "validation":
        lines.append("Scores are on validation questions, which are fewer than those of a test.")
        lines += _choice(comparison) + _trials(comparison)
    bases = {row.name: {run.base for run in runs if run.row == row.name} for row in comparison.rows}
    if len({frozenset(names) for names in bases.values()}) > 1:
        lines.append(
            "Rows begin from different bases: each recovery is of the gap between a run’s own base and teachers."
        )
    for domain in comparison.domains:
        bare = [run.name for run in runs if run.against[domain] is None]
        if bare:
            lines.append(f"No teacher to measure {listed(bare)} against on {domain}: points are told, no recovery.")
        weak = [run.name for run in runs if run.against[domain] and run.metrics.recovery[domain] is None]
        if weak:
            lines.append(
                f"On {domain}, the teacher of {listed(weak)} is not clearly better than the base: no recovery there, "
                "and `worst` and `mean` are of the other domains."
            )
    lines += _borrowed(comparison)
    gold = [row.name for row in comparison.rows if row.method == "supervised"]
    if 0 < len(gold) < len(comparison.rows):
        lines.append(f"{listed(gold)} learnt from gold answers, which no other method sees: a bound, not a rival.")
    if len({frozenset(row.seeds) for row in comparison.rows}) > 1:
        lines.append(
            "Rows have different seeds: their means are of other bases; differences are of common seeds alone."
        )
    lines += _over_seeds(comparison)
    shared = [row.name for row in comparison.rows if row.n > 1 and _one_base(comparison, row.name)]
    if shared:
        lines.append(
            f"The seeds of {listed(shared)} share one base and its specialists (`stages_seed`): intervals over them "
            "are of the method's own chance, not of other bases."
        )
    single = [row.name for row in comparison.rows if row.n == 1]
    if single:
        lines.append(f"One seed only: {listed(single)}. Their intervals are over questions, not over seeds.")
    return lines


def _choice(comparison: Comparison) -> list[str]:
    """How far the order of the rows is noise."""
    if comparison.leader is None or len(comparison.rows) == 1:
        return []
    worst = {row.name: row.behind.worst_recovery for row in comparison.rows if row.behind is not None}
    others = [row.name for row in ranked(comparison) if row.name in worst]
    near = [name for name in others if (d := worst[name]) is not None and d.high > 0]
    by = "Rows are ordered by the lower end of the worst domain’s recovery"
    if not near:
        return [f"{by}; {comparison.leader} is ahead of all others beyond chance."]
    return [f"{by}; chance may have put {comparison.leader} before {listed(near)}."]


def _trials(comparison: Comparison) -> list[str]:
    """Of values of one number that were tried: the best, whether a better one may lie beyond, and how sure that is."""
    lines: list[str] = []
    for tried in comparison.tried:
        if tried.best is None:
            continue
        value = tried.values[tried.rows.index(tried.best)]
        shown = ", ".join(f"{each:g}" for each in tried.values)
        where = "inside of what was tried"
        if tried.edge is not None:
            where = f"the {tried.edge} that was tried, so a better one may lie beyond it"
        sure = ""
        if tried.ahead is not None:
            beyond = "" if tried.ahead.low > 0 else ", which chance may explain"
            sure = (
                f"; it is {100 * tried.ahead.value:.1f} points of worst recovery ahead of {tried.next} "
                f"({span(tried.ahead.low, tried.ahead.high)}){beyond}"
            )
        lines.append(f"Of `{tried.leaf}` {shown} the best is {value:g} ({tried.best}), {where}{sure}.")
    return lines


def _one_base(comparison: Comparison, row: str) -> bool:
    """Whether all runs of a row have the same base and specialists."""
    seeds = {run.stages_seed for run in comparison.runs if run.row == row}
    return len(seeds) == 1 and None not in seeds


def _over_seeds(comparison: Comparison) -> list[str]:
    """The two ways of taking the worst domain of several seeds, where any row has several."""
    several = [row for row in comparison.rows if row.n > 1 and row.metrics.worst_by_seed is not None]
    if not several or len(comparison.domains) == 1:
        return []
    each = [
        f"{row.name} {percent(row.metrics.worst_by_seed)} ({between(row.metrics_ci.worst_by_seed)})" for row in several
    ]
    return [
        "Worst is the least of the domains’ means over seeds. The mean of each seed’s own worst domain, which is no "
        f"higher: {listed(each)}."
    ]


def _borrowed(comparison: Comparison) -> list[str]:
    """Whose teachers rows are measured against that have none of their own, or a weaker one; row by row."""
    row_of = {run.name: run.row for run in comparison.runs}
    domains_of: dict[tuple[str, str], list[str]] = {}  # borrower and lender
    for domain in comparison.domains:
        for run in comparison.runs:
            lender = _lender(run, domain, row_of)
            if lender != run.row:
                domains_of.setdefault((run.row, lender), []).append(domain)
    borrowers: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (borrower, lender), domains in domains_of.items():
        borrowers.setdefault((lender, tuple(dict.fromkeys(domains))), []).append(borrower)
    return [
        f"On {listed(domains)}, {listed(rows)} {'is' if len(rows) == 1 else 'are'} measured against the "
        f"{'teacher' if len(domains) == 1 else 'teachers'} of {lender}, which began from the same base."
        for (lender, domains), rows in borrowers.items()
    ]


def _lender(run: ComparedRun, domain: str, row_of: Mapping[str, str]) -> str:
    """The row whose teacher of the domain a run is measured against: its own unless it borrows."""
    against = run.against[domain]
    return run.row if against is None or domain not in run.borrowed else row_of[against.run]
