"""What a comparison says, in words: who is ahead and by how much, who pays, and what a reader has to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mopd.distill.metrics.seesaw import SEESAW_SHARE
from mopd.recipes.compare.groups import rivals
from mopd.recipes.report.data import Row
from mopd.recipes.report.run import si
from mopd.recipes.report.wording import GOOD_WORST_RECOVERY, Level, fallen, listed, percent, points


def ranked(comparison: Row) -> list[Row]:
    """Rows from the highest worst recovery down; those that have none at the end, as they were given."""
    known = [row for row in comparison["rows"] if row["metrics"]["worst_recovery"] is not None]
    known.sort(key=lambda row: -row["metrics"]["worst_recovery"])
    return known + [row for row in comparison["rows"] if row["metrics"]["worst_recovery"] is None]


def headline(comparison: Row) -> tuple[Level, str]:
    """One sentence, and the colour it is said in."""
    rows = rivals(ranked(comparison))
    first, worst = rows[0], rows[0]["metrics"]["worst_recovery"]
    if worst is None:
        return "mixed", "No recovery to compare: nowhere is a teacher clearly better than the base"
    said = f"{first['name']} keeps {percent(worst)} of its teachers’ gain in the worst domain"
    pending: Level | None = None if all(row["finished"] for row in rows) else "pending"
    if len(rows) == 1:
        kept = worst >= GOOD_WORST_RECOVERY and not fallen(first["metrics_ci"]) and not first["seesaws"]
        return pending or ("good" if kept else "mixed"), said
    second = rows[1]
    if second["metrics"]["worst_recovery"] is None:
        return pending or "mixed", f"{said}; no other row has a recovery"
    if set(first["seeds"]) != set(second["seeds"]):
        return pending or "mixed", f"{said}; {second['name']} has other seeds, so which is ahead is not known"
    difference, low, high = second["behind"]["worst_recovery"]
    told = f"{-100 * difference:.0f} points more than {second['name']}"
    if high < 0:
        return pending or "good", f"{said}, {told}"
    return pending or "mixed", f"{said}, {told}, which chance may explain (95% interval {span(-high, -low)})"


def span(low: float, high: float) -> str:
    """An interval of differences in points: ``-3 to 12``."""
    return f"{100 * low:.0f} to {100 * high:.0f}".replace("-", "−")


def sentences(comparison: Row) -> list[str]:
    """What carries the headline: means, losses, seesaws, cost."""
    rows = ranked(comparison)
    return [
        *_means(rivals(rows)),
        *_losses(rows),
        *_seesaws(rows, comparison["runs"]),
        *_costs(rows),
        *_parities(comparison, rows),
    ]


def _means(rows: Sequence[Row]) -> list[str]:
    known = [row for row in rows if row["metrics"]["mean_recovery"] is not None]
    if len(known) < 2:
        return []
    best = max(known, key=lambda row: row["metrics"]["mean_recovery"])
    told = f"The highest mean recovery is {best['name']}’s, {percent(best['metrics']['mean_recovery'])}"
    if best is not rows[0]:
        told += f", but its worst domain keeps only {percent(best['metrics']['worst_recovery'])}: the mean hides it"
    return [f"{told}."]


def _losses(rows: Sequence[Row]) -> list[str]:
    lost = {row["name"]: fallen(row["metrics_ci"]) for row in rows}
    told = [f"{name} falls below its base on {listed(domains)}." for name, domains in lost.items() if domains]
    who = "None" if len(rows) > 1 else rows[0]["name"]
    beyond = "on any domain" if len(rows) > 1 else "on no domain"
    return told or [f"{who} falls below its base {beyond} beyond chance."]


def _seesaws(rows: Sequence[Row], runs: Sequence[Row]) -> list[str]:
    known = [row for row in rows if row["metrics"]["seesaw_share"] is not None]
    if not known:
        return []
    traded = "of the movement beyond noise was traded between domains"
    told = [f"{row['name']} is a seesaw{_of_seeds(row)}: {_share(row)} {traded}." for row in known if row["seesaws"]]
    tested = [run for run in runs if run["metrics"]["seesaw_correlation_p"] is not None]
    if tested and not told:
        most = max(tested, key=lambda run: run["metrics"]["seesaw_share"])
        told = [f"No trajectory is a seesaw beyond chance: at most {_share(most)} {traded} ({most['name']})."]
    few = [run for run in runs if run not in tested and (run["metrics"]["seesaw_share"] or 0) > SEESAW_SHARE]
    if few:
        shares = listed([f"{run['name']} ({percent(run['metrics']['seesaw_share'])})" for run in few])
        told.append(f"Too few evaluations to test whether it is one, though much {traded}: {shares}.")
    return told


def _of_seeds(row: Row) -> str:
    return f" on {row['seesaws']} of {row['n']} seeds" if row["n"] > 1 else ""


def _share(one: Row) -> str:
    return f"{percent(one['metrics']['seesaw_share'])} (noise alone: {percent(one['metrics']['seesaw_noise'], 1)})"


def _costs(rows: Sequence[Row]) -> list[str]:
    known = [row for row in rows if row["cost"]["training"] and row["cost"]["training"]["flops"]]
    if not known:
        return []
    cheap, dear = (choose(known, key=lambda row: row["cost"]["training"]["flops"]) for choose in (min, max))
    told = f"Training took {flop(cheap['cost']['training']['flops'])} ({cheap['name']})"
    if cheap is not dear:
        told += f" to {flop(dear['cost']['training']['flops'])} ({dear['name']})"
    made = [row["cost"]["teachers"]["flops"] for row in known if row["cost"]["teachers"]]
    if made and max(made):
        told += f"; making the teachers takes {flop(max(made))} on top"
    return [f"{told}."]


def _parities(comparison: Row, rows: Sequence[Row]) -> list[str]:
    """What the others compute to reach the worst domain's score of the reference."""
    reference, level = comparison["parity"]["reference"], comparison["parity"]["levels"]["worst_score"]
    others = [(row["name"], row["parity"]["worst_score"]) for row in rows if row["name"] != reference]
    reached = [f"{name} takes {times(told)} its compute" for name, told in others if told["ratio"] is not None]
    failed = [(name, told["tried"]) for name, told in others if told["flops"] is None and told["tried"]]
    never = [f"{name} (in {_factor(tried)})" for name, tried in failed]
    told = [listed(reached)] if reached else []
    told += [f"{listed(never)} never {'does' if len(never) == 1 else 'do'}"] if never else []
    said = f"To score {percent(level)} in the worst domain, as {reference} did within a point"
    return [f"{said}, {'; '.join(told)}."] if told else []


def times(told: Row) -> str:
    """Compute to parity: ``3.2×``; of who never gets there, ``never``; a dash where the reference needs none."""
    return "never" if told["flops"] is None else "–" if told["ratio"] is None else _factor(told["ratio"])


def times_interval(told: Row) -> str:
    """Its 95% interval, ``2.1× to 5×``; without one, how much was tried."""
    if told["ratio"] is None:
        return f"in {_factor(told['tried'])}" if told["flops"] is None and told["tried"] else ""
    low, high = ("never" if end is None else _factor(end) for end in told["ratio_ci"])
    return f"{low} to {high}"


def with_teachers(told: Row) -> Row | None:
    """The same with the making of teachers counted; None where that is not known."""
    made = told["with_teachers"]
    return None if made is None else {**told, **made}


def _factor(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"


def flop(amount: float) -> str:
    """``4.65e12`` as ``4.65 TFLOP``."""
    told = si(amount)
    return f"{told}FLOP" if told[-1].isalpha() else f"{told} FLOP"


def notes(comparison: Row) -> list[str]:
    """What a reader has to know before believing a number."""
    runs: Sequence[Any] = comparison["runs"]
    told: list[str] = []
    under_way = [f"{run['name']} (step {run['step']} of {run['steps']})" for run in runs if not run["finished"]]
    if under_way:
        told.append(f"Not finished: {listed(under_way)}.")
    if comparison["split"] == "validation":
        told.append("Scores are on validation questions, which are fewer than those of a test.")
    bases = {row["name"]: {run["base"] for run in runs if run["row"] == row["name"]} for row in comparison["rows"]}
    if len({frozenset(names) for names in bases.values()}) > 1:
        told.append(
            "Rows begin from different bases: each recovery is of the gap between a run’s own base and teachers."
        )
    for domain in comparison["domains"]:
        bare = [run["name"] for run in runs if run["against"][domain] is None]
        if bare:
            told.append(f"No teacher to measure {listed(bare)} against on {domain}: points are told, no recovery.")
        weak = [r["name"] for r in runs if r["against"][domain] and r["metrics"]["recovery"][domain] is None]
        if weak:
            told.append(
                f"On {domain}, the teacher of {listed(weak)} is not clearly better than the base: no recovery there, "
                "and `worst` and `mean` are of the other domains."
            )
    told += _borrowed(comparison)
    shown = [row["name"] for row in comparison["rows"] if row["method"] == "supervised"]
    if 0 < len(shown) < len(comparison["rows"]):
        told.append(f"{listed(shown)} learnt from gold answers, which no other method sees: a bound, not a rival.")
    if len({frozenset(row["seeds"]) for row in comparison["rows"]}) > 1:
        told.append("Rows have different seeds: their means are of other bases; differences are of common seeds alone.")
    single = [row["name"] for row in comparison["rows"] if row["n"] == 1]
    if single:
        told.append(f"One seed only: {listed(single)}. Their intervals are over questions, not over seeds.")
    return told


def _borrowed(comparison: Row) -> list[str]:
    """Whose teachers rows are measured against that have none of their own, or a weaker one; row by row."""
    row_of = {run["name"]: run["row"] for run in comparison["runs"]}
    domains_of: dict[tuple[str, str], list[str]] = {}  # borrower and lender
    for domain in comparison["domains"]:
        for run in comparison["runs"]:
            lender = row_of[run["against"][domain]["run"]] if domain in run["borrowed"] else run["row"]
            if lender != run["row"]:
                domains_of.setdefault((run["row"], lender), []).append(domain)
    borrowers: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (borrower, lender), domains in domains_of.items():
        borrowers.setdefault((lender, tuple(dict.fromkeys(domains))), []).append(borrower)
    return [
        f"On {listed(domains)}, {listed(rows)} {'is' if len(rows) == 1 else 'are'} measured against the "
        f"{'teacher' if len(domains) == 1 else 'teachers'} of {lender}, which began from the same base."
        for (lender, domains), rows in borrowers.items()
    ]


def signed(interval: Sequence[float] | None) -> str:
    """``[difference, low, high]`` as ``−23.0 (−30 to −17)``, in points."""
    return "" if interval is None else f"{points(interval[0])} ({span(interval[1], interval[2])})"
