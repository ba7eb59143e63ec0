"""The comparison for the console: one table of recoveries, one of what was lost and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mopd.recipes.compare.wording import headline, notes, ranked, times, times_interval, with_teachers
from mopd.recipes.report.data import Row
from mopd.recipes.report.run import duration, si
from mopd.recipes.report.wording import between, percent, points

COSTS = ("training", "with_teachers")
"""Of a run alone, and with the making of its teachers."""


def console_tables(comparison: Row) -> Group:
    """The headline, the tables and the notes."""
    told = [Text(f"- {note}", style="dim") for note in notes(comparison)]
    tables = [_recoveries(comparison), _costs(comparison), *_parities(comparison)]
    return Group(*tables, Text(headline(comparison)[1], style="bold"), *told)


def _recoveries(comparison: Row) -> Table:
    domains: Sequence[str] = comparison["domains"]
    table = Table(title=f"recovery of the teachers’ gain, 95% intervals, {comparison['split']} questions")
    _columns(table, "run", *domains, "mean", "worst", "imbalance")
    for row in ranked(comparison):
        values, intervals = row["metrics"], row["metrics_ci"]
        names = ("mean_recovery", "worst_recovery", "imbalance")
        overall = [_with_interval(percent(values[name]), between(intervals[name])) for name in names]
        table.add_row(_name(row), *(_recovered(row, domain) for domain in domains), *overall)
    return table


def _costs(comparison: Row) -> Table:
    table = Table(title="points lost, and the cost of training, without and with the making of its teachers")
    _columns(table, "run", "regression", "forgetting", "seesaw\n(noise)", "FLOP\n+ teachers", "time\n+ teachers")
    for row in ranked(comparison):
        values, cost = row["metrics"], row["cost"]
        low, high = row["metrics_ci"]["max_regression"]
        share = (percent(values["seesaw_share"]), (f"\n{percent(values['seesaw_noise'], 1)}", "dim"))
        table.add_row(
            _name(row),
            _with_interval(f"{100 * values['max_regression']:.1f}", f"{100 * low:.1f}–{100 * high:.1f}"),
            worst_forgetting(values),
            Text.assemble(*share),
            *(_with_interval(*(spent(cost[part], unit) for part in COSTS)) for unit in ("flops", "seconds")),
        )
    return table


def _parities(comparison: Row) -> list[Table]:
    """What every row computes to reach the reference; no table for a single row."""
    rows = ranked(comparison)
    if len(rows) == 1:
        return []
    reference, levels = comparison["parity"]["reference"], comparison["parity"]["levels"]
    table = Table(title=f"compute to reach what {reference} reached, of its own; without and with its teachers’ making")
    _columns(table, "run", *(f"{WHAT[name]}\n{percent(level, 1)}" for name, level in levels.items()))
    for row in rows:
        cells = []
        for name in levels:
            told = row["parity"][name]
            made = with_teachers(told)
            without = f"{times(told)} {_bracketed(times_interval(told))}"
            counted = "unknown" if made is None else f"{times(made)} {_bracketed(times_interval(made))}"
            cells.append(_with_interval(without, counted))
        table.add_row(_name(row), *cells)
    return [table]


WHAT = {"worst_score": "worst domain’s score", "mean_score": "mean score"}
"""The measures of distill/metrics/compute_to_parity.py, for people."""


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")


def _name(row: Row) -> Text:
    told = [f"{row['n']} seeds"] if row["n"] > 1 else [] if row["finished"] else [f"step {row['step']}"]
    told += [f"{row['trials']} tried"] if row["trials"] else []
    return Text.assemble((row["name"], "bold"), (f"\n{', '.join(told)}" if told else "", "dim"))


def _recovered(row: Row, domain: str) -> Text:
    """Recovery, or the points gained where it is undefined."""
    recovered, ends = row["metrics"]["recovery"][domain], row["metrics_ci"]["recovery"][domain]
    if recovered is None:
        return Text(f"{points(row['metrics']['points'][domain])} pt")
    return _with_interval(percent(recovered), between(ends))


def _with_interval(value: str, interval: str) -> Text:
    return Text.assemble(value, (f"\n{interval}", "dim"))


def worst_forgetting(values: Row) -> str:
    """The largest forgetting over domains, in points."""
    known = [lost for lost in (values["forgetting"] or {}).values() if lost is not None]
    return f"{100 * max(known):.1f}" if known else "–"


def spent(amount: Any, unit: str) -> str:
    """FLOPs or seconds for people; what cannot be known is said to be unknown."""
    if amount is None:
        return "unknown"
    return si(amount[unit]) if unit == "flops" else duration(amount[unit])
