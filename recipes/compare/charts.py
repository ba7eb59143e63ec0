"""Pictures of a comparison: recovery as bars with whiskers, who hurts whom as a heat map, a plane of two domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from mopd.recipes.compare.comparison import ComparedRow, Comparison
from mopd.recipes.report.charts import Point, ticks
from mopd.recipes.report.records import PerDomain
from mopd.recipes.report.wording import between, percent, points

SHOWN = (-0.5, 1.5)
"""Bars and whiskers are cut at these recoveries: an interval of two seeds may be many times as wide as the page."""

WIDEST = 0.3
"""Of the plane of two domains, the widest interval that is drawn in it: those of few seeds would cover the marks."""

STRONG_TRANSFER = 1.0
"""The transfer, up or down, at which a cell of the heat map has its strongest colour."""

WIDTH, HEIGHT = 400, 350
LEFT, RIGHT, TOP, BOTTOM = 36, 12, 26, 38


@dataclass(frozen=True, slots=True)
class RecoveryBar:
    """A row's recovery on a domain; positions are percentages of a scale that all bars share.

    Attributes:
        text: the recovery, or the points gained where it is undefined.
        left, width: None where it is undefined.
        whisker: left end and width of the interval.
    """

    name: str
    css: str
    interval: str
    text: str
    left: float | None = None
    width: float | None = None
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class RecoveryPanel:
    """The bars of one domain; ``base`` and ``teacher`` are where the two lie."""

    domain: str
    base: float
    teacher: float
    bars: Sequence[RecoveryBar]


def recovery_bars(rows: Sequence[ComparedRow], css: Mapping[str, str], domains: Sequence[str]) -> list[RecoveryPanel]:
    """A panel a domain, a bar a row with its interval; positions are percentages of one scale for all panels."""
    values = [row.metrics.recovery[d] for row in rows for d in domains]
    ends = [end for row in rows for d in domains for end in row.metrics_ci.recovery[d] or ()]
    known = [value for value in (*values, *ends) if value is not None]
    low, high = max(SHOWN[0], min([0.0, *known])), min(SHOWN[1], max([1.05, *known]))

    def at(value: float) -> float:
        return (min(high, max(low, value)) - low) / (high - low) * 100

    def bar(row: ComparedRow, domain: str) -> RecoveryBar:
        value, interval = row.metrics.recovery[domain], row.metrics_ci.recovery[domain]
        colour, ends = css[row.name], between(interval)
        if value is None:
            return RecoveryBar(row.name, colour, ends, f"{points(row.metrics.points[domain])} pt")
        whisker = None if interval is None else (at(interval.low), at(interval.high) - at(interval.low))
        left, right = sorted((at(0.0), at(value)))
        return RecoveryBar(row.name, colour, ends, percent(value), left, right - left, whisker)

    return [RecoveryPanel(d, at(0.0), at(1.0), [bar(row, d) for row in rows]) for d in domains]


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


@dataclass(frozen=True, slots=True)
class _Plane:
    """Where scores lie on the drawing; both axes have one range, so that a step to the right is as long as one up."""

    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + self._part(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self._part(value) * (HEIGHT - TOP - BOTTOM)

    def path(self, marks: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in marks)

    def _part(self, value: float) -> float:
        return (min(self.high, max(self.low, value)) - self.low) / (self.high - self.low)


def pareto_chart(
    rows: Sequence[ComparedRow], css: Mapping[str, str], others: Mapping[str, Point], pair: Sequence[str]
) -> Markup:
    """Scores on two domains, a mark a row, its intervals up to :data:`WIDEST`, and the frontier that no row is beyond.

    Args:
        rows: as they are numbered, from 1.
        others: base and teachers by name, drawn hollow.
        pair: the domains of the horizontal and the vertical axis.
    """
    across, up = pair
    marks = [(row.metrics.scores[across], row.metrics.scores[up]) for row in rows]
    values = [value for mark in (*marks, *others.values()) for value in mark]
    # To the next whole tens of percents, a little beyond the outermost mark.
    low, high = math.floor(10 * min(values) - 0.2) / 10, math.ceil(10 * max(values) + 0.2) / 10
    plane = _Plane(max(0.0, low), min(1.0, high))
    parts = [*_plane_axes(plane, across, up), _edge(plane, frontier(marks))]
    parts += [_hollow(plane, name, mark) for name, mark in others.items()]
    for row, (x, y) in zip(rows, marks, strict=True):
        ends = [row.metrics_ci.scores[domain] for domain in pair]
        crosses = [[(end, y) for end in ends[0]], [(x, end) for end in ends[1]]]
        drawn = [c for c, (a, b) in zip(crosses, ends, strict=True) if b - a <= WIDEST * (plane.high - plane.low)]
        if drawn:
            parts.append(f'<path class="line {css[row.name]}" d="{"".join(map(plane.path, drawn))}"/>')
    for number, (row, (x, y)) in enumerate(zip(rows, marks, strict=True), start=1):
        title = escape(f"{row.name}: {across} {percent(x, 1)}, {up} {percent(y, 1)}")
        place = f'cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}"'
        parts.append(f'<circle class="mark {css[row.name]}" {place} r="8"><title>{title}</title></circle>')
        parts.append(_text("number", plane.x(x), plane.y(y) + 4, number, "middle"))
    label = escape(f"Scores on {across} and {up} of every row")
    body = "".join(parts)
    return Markup(f'<svg class="pareto" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>')


def _plane_axes(plane: _Plane, across: str, up: str) -> list[str]:
    parts: list[str] = []
    for tick in ticks(plane.low, plane.high):
        parts += [
            f'<path class="axis" d="{plane.path([(plane.low, tick), (plane.high, tick)])}"/>',
            f'<path class="axis" d="{plane.path([(tick, plane.low), (tick, plane.high)])}"/>',
            _text("tick", LEFT - 6, plane.y(tick) + 4, f"{100 * tick:.3g}", "end"),
            _text("tick", plane.x(tick), HEIGHT - BOTTOM + 16, f"{100 * tick:.3g}", "middle"),
        ]
    parts.append(_text("tick", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, f"{across}, %", "middle"))
    return [*parts, _text("tick", LEFT - 30, TOP - 10, f"{up}, %", "start")]


def _edge(plane: _Plane, edge: Sequence[Point]) -> str:
    """The frontier as stairs: a row is beaten by whatever lies above and to the right of it."""
    corners = [(left[0], right[1]) for left, right in pairwise(edge)]
    path = [point for i, mark in enumerate(edge) for point in [mark, *corners[i : i + 1]]]
    return f'<path class="frontier" d="{plane.path(path)}"/>'


def _hollow(plane: _Plane, name: str, mark: Point) -> str:
    x, y = plane.x(mark[0]), plane.y(mark[1])
    beside, anchor = (-9, "end") if x > WIDTH / 2 else (9, "start")
    return f'<circle class="other" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>' + _text("tick", x + beside, y + 4, name, anchor)


def _text(css: str, x: float, y: float, text: object, anchor: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
