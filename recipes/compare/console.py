"""The comparison for the console: one table of recoveries, one of what was lost and what it cost."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mopd.recipes.compare.comparison import ComparedRow, Comparison
from mopd.recipes.compare.wording import (
    flops_of,
    headline,
    measures,
    notes,
    ranked,
    seconds_of,
    times,
    times_interval,
    with_teachers,
    worst_forgetting,
)
from mopd.recipes.report.wording import between, percent, points
from mopd.recipes.tables import Fitted


def console_tables(comparison: Comparison) -> Group:
    """The headline, the tables and the notes."""
    lines = [Text(f"- {note}", style="dim") for note in notes(comparison)]
    tables = [_recoveries(comparison), _costs(comparison), *_parities(comparison)]
    return Group(*map(Fitted, tables), Text(headline(comparison)[1], style="bold"), *lines)


def _recoveries(comparison: Comparison) -> Table:
    table = Table(title=f"recovery of the teachers’ gain, 95% intervals, {comparison.split} questions")
    several = len(comparison.domains) > 1
    _columns(table, "run", *comparison.domains, *(("mean", "worst", "imbalance") if several else ()))
    for row in ranked(comparison):
        metrics, ends = row.metrics, row.metrics_ci
        of_all = (
            (metrics.mean_recovery, ends.mean_recovery),
            (metrics.worst_recovery_estimate, ends.worst_recovery),
            (metrics.imbalance_estimate, ends.imbalance),
        )
        table.add_row(
            _name(row),
            *(_recovered(row, domain) for domain in comparison.domains),
            *(_with_interval(percent(value), between(interval)) for value, interval in of_all if several),
        )
    return table


def _costs(comparison: Comparison) -> Table:
    table = Table(title="points lost, and the cost of training, without and with the making of its teachers")
    _columns(table, "run", "regression", "forgetting", "seesaw\n(noise)", "FLOP\n+ teachers", "time\n+ teachers")
    for row in ranked(comparison):
        metrics, cost = row.metrics, row.cost
        low, high = row.metrics_ci.max_regression
        table.add_row(
            _name(row),
            _with_interval(f"{100 * metrics.max_regression_estimate:.1f}", f"{100 * low:.1f}–{100 * high:.1f}"),
            worst_forgetting(metrics),
            _with_interval(percent(metrics.seesaw_share), percent(metrics.seesaw_noise, 1)),
            _with_interval(flops_of(cost.training), flops_of(cost.with_teachers)),
            _with_interval(seconds_of(cost.training), seconds_of(cost.with_teachers)),
        )
    return table


def _parities(comparison: Comparison) -> list[Table]:
    """What every row computes to reach the reference; no table for a single row."""
    rows = ranked(comparison)
    if len(rows) == 1:
        return []
    reference, titles = comparison.parity.reference, measures(comparison)
    table = Table(title=f"compute to reach what {reference} reached, of its own; without and with its teachers’ making")
    _columns(table, "run", *titles.values())
    for row in rows:
        cells: list[Text] = []
        for name in titles:
            alone = row.parity[name]
            counted = with_teachers(alone)
            without = f"{times(alone)} {_bracketed(times_interval(alone))}"
            made = "unknown" if counted is None else f"{times(counted)} {_bracketed(times_interval(counted))}"
            cells.append(_with_interval(without, made))
        table.add_row(_name(row), *cells)
    return [table]


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)


def _name(row: ComparedRow) -> Text:
    remarks = [f"{row.n} seeds"] if row.n > 1 else [] if row.finished else [f"step {row.step}"]
    remarks += [f"{row.trials} tried"] if row.trials else []
    return Text.assemble((row.name, "bold"), (f"\n{', '.join(remarks)}" if remarks else "", "dim"))


def _recovered(row: ComparedRow, domain: str) -> Text:
    """Recovery, or the points gained where it is undefined."""
    recovered = row.metrics.recovery[domain]
    if recovered is None:
        return Text(f"{points(row.metrics.points[domain])} pt")
    return _with_interval(percent(recovered), between(row.metrics_ci.recovery[domain]))


def _with_interval(value: str, interval: str) -> Text:
    return Text.assemble(value, (f"\n{interval}", "dim"))
