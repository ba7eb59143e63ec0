"""Pictures of a comparison: recovery as bars with whiskers, who hurts whom as a heat map, a plane of two domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mopd.recipes.compare.comparison import ComparedRow, Comparison
from mopd.recipes.report.chart_parts import Bar, Mark, Point
from mopd.recipes.report.charts import bar_chart, plane_chart
from mopd.recipes.report.drawing import Picture
from mopd.recipes.report.records import Ends, PerDomain
from mopd.recipes.report.wording import between, percent, points

SHOWN = (-0.5, 1.5)
"""Bars and whiskers are cut at these recoveries: an interval of two seeds may be many times as wide as the page."""

WIDEST = 0.3
"""Of the plane of two domains, the widest interval that is drawn in it: those of few seeds would cover the marks."""

STRONG_TRANSFER = 1.0
"""The transfer, up or down, at which a cell of the heat map has its strongest colour."""


@dataclass(frozen=True, slots=True)
class TitledChart:
    """A chart with its heading."""

    title: str
    picture: Picture


def recovery_charts(
    rows: Sequence[ComparedRow], series: Mapping[str, int], domains: Sequence[str]
) -> list[TitledChart]:
    """A chart a domain, a bar a row with its interval, numbered from 1; one scale for all of them, in %.

    Where recovery is undefined, a row has no bar, and the points that it gained.
    """
    values = [row.metrics.recovery[d] for row in rows for d in domains]
    ends = [end for row in rows for d in domains for end in row.metrics_ci.recovery[d] or ()]
    known = [value for value in (*values, *ends) if value is not None]
    x_range = (100 * max(SHOWN[0], min([0.0, *known])), 100 * min(SHOWN[1], max([1.05, *known])))

    def bar(number: int, row: ComparedRow, domain: str) -> Bar:
        value, interval = row.metrics.recovery[domain], row.metrics_ci.recovery[domain]
        label = f"{number} · {row.name}"
        if value is None:
            return Bar(label, series[row.name], None, None, f"{points(row.metrics.points[domain])} pt", name=row.name)
        drawn = None if interval is None else (100 * interval.low, 100 * interval.high)
        return Bar(label, series[row.name], 100 * value, drawn, percent(value), between(interval), name=row.name)

    return [
        TitledChart(
            domain,
            bar_chart(
                [bar(number, row, domain) for number, row in enumerate(rows, start=1)],
                title=f"Recovery on {domain} of every row, in %",
                x_range=x_range,
                x_format=lambda x: f"{x:g}".replace("-", "−"),
                x_label="recovery, %",
                head=["row", "recovery", "95% interval"],
                reference=100.0,
            ),
        )
        for domain in domains
    ]


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A model's change on a domain: as text, ``up``, ``down`` or ``none``, how strong the colour is, and whether it is
    a teacher's own domain."""

    text: str
    css: str
    strength: str
    own: bool


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A model of the heat map: a teacher, without a colour, or the student of a row."""

    name: str
    note: str
    css: str
    cells: Sequence[HeatCell]


def heat_map(comparison: Comparison, rows: Sequence[ComparedRow], css: Mapping[str, str]) -> list[HeatRow]:
    """Teachers, then students: each one's change on every domain as a part of what the domain's teacher gains."""
    domains = comparison.domains
    heat = [HeatRow(t.name, "teacher", "", _cells(t.transfer, domains, t.own)) for t in comparison.transfer]
    for row in rows:
        single = row.taught_by[0] if len(row.taught_by) == 1 else None
        note = "student" if single is None else f"student, taught by {single} alone"
        heat.append(HeatRow(row.name, note, css[row.name], _cells(row.metrics.recovery, domains, ())))
    return heat


def _cells(values: PerDomain, domains: Sequence[str], own: Sequence[str]) -> list[HeatCell]:
    return [_cell(values[domain], own=domain in own) for domain in domains]


def _cell(value: float | None, *, own: bool) -> HeatCell:
    return HeatCell(
        text=percent(value),
        css="none" if value is None else "down" if value < 0 else "up",
        strength=f"{min(1.0, abs(value or 0.0) / STRONG_TRANSFER) * 0.6:.2f}",
        own=own,
    )


def frontier(marks: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in one coordinate without losing in the other, from left to right."""
    best: list[Point] = []
    for x, y in sorted(set(marks), reverse=True):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best[::-1]


def widest(rows: Sequence[ComparedRow], domains: Sequence[str]) -> list[str]:
    """The two domains whose scores differ most between rows, in the order of the recipe; all if there are fewer."""

    def spread(domain: str) -> float:
        scores = [row.metrics.scores[domain] for row in rows]
        return max(scores) - min(scores)

    chosen = sorted(domains, key=spread, reverse=True)[:2]
    return [domain for domain in domains if domain in chosen]


def pareto_chart(
    rows: Sequence[ComparedRow], series: Mapping[str, int], others: Mapping[str, Point], pair: Sequence[str]
) -> Picture:
    """Scores on two domains, a mark a row, its intervals up to :data:`WIDEST`, and the frontier that no row is beyond.

    Args:
        rows: as they are numbered, from 1.
        others: scores of base and teachers by name.
        pair: the domains of the horizontal and the vertical axis.
    """
    across, up = pair
    marks = [(row.metrics.scores[across], row.metrics.scores[up]) for row in rows]
    values = [value for mark in (*marks, *others.values()) for value in mark]
    # To the next whole tens of percents, a little beyond the outermost mark.
    low, high = math.floor(10 * min(values) - 0.2) * 10, math.ceil(10 * max(values) + 0.2) * 10
    axis_range = (max(0.0, low), min(100.0, high))

    def within(ends: Ends) -> tuple[float, float]:
        low, high = (min(axis_range[1], max(axis_range[0], 100 * end)) for end in ends)
        return low, high

    def mark(row: ComparedRow, at: Point) -> Mark:
        ends = row.metrics_ci.scores
        wide = [WIDEST * (axis_range[1] - axis_range[0]) < 100 * (ends[d].high - ends[d].low) for d in pair]
        crosses = [None if is_wide else within(ends[d]) for d, is_wide in zip(pair, wide, strict=True)]
        return Mark(row.name, series[row.name], (100 * at[0], 100 * at[1]), *crosses)

    return plane_chart(
        [mark(row, at) for row, at in zip(rows, marks, strict=True)],
        [(name, (100 * x, 100 * y)) for name, (x, y) in others.items()],
        [(100 * x, 100 * y) for x, y in frontier(marks)],
        title=f"Scores on {across} and {up} of every row, in %",
        pair=(across, up),
        axis_range=axis_range,
        written="{:.1f}".format,
    )
