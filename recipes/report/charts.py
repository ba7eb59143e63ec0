"""Inline SVG charts without scripts: lines against reference levels, and stacked shares.

A chart is drawn for a width of about 400 pixels, the column of a desktop's three or a phone's one, so that its text is
readable on both. Colours are CSS classes (``d0``, ``d1``, ... a domain each): light and dark are the page's affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TypeAlias

from markupsafe import Markup, escape

Point: TypeAlias = tuple[float, float]

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 40, 94, 12, 36
MAX_POINTS = 120
MAX_LABEL = 12
_LABEL_GAP = 14
MOST_LABELS = (HEIGHT - BOTTOM - TOP) // _LABEL_GAP + 1
"""Of a chart, as many as there is room for."""


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; ``band`` is its interval ``(x, low, high)`` at each point."""

    label: str
    css: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    marks: bool = False


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A horizontal reference; ``css`` holds its colour and ``teacher`` (dashed) or ``base`` (dotted)."""

    label: str
    css: str
    y: float


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where data lies on the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log_x: bool = False

    def x(self, value: float) -> float:
        if self.log_x:  # what is below the lowest, zero among it, lies at the left edge
            value = max(value, self.x_low)
            part = math.log(value / self.x_low) / (math.log(self.x_high / self.x_low) or 1.0)
        else:
            part = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    @property
    def x_ticks(self) -> list[float]:
        """On a logarithmic axis 0, which stands for all below it, then powers of ten and, of few, their 2 and 5."""
        if not self.log_x:
            return ticks(self.x_low, self.x_high)
        powers = range(math.floor(math.log10(self.x_low)), math.ceil(math.log10(self.x_high)) + 1)
        steps = (1, 2, 5) if len(powers) <= 3 else (1, 3) if len(powers) <= 4 else (1,)
        # The first fifth of the axis is where 0 has its label.
        first = self.x_low * (self.x_high / self.x_low) ** 0.12
        return [0.0, *(s * 10.0**p for p in powers for s in steps if first <= s * 10.0**p <= self.x_high)]

    def y(self, value: float) -> float:
        span = (self.y_high - self.y_low) or 1.0
        return HEIGHT - BOTTOM - (value - self.y_low) / span * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most ``most`` points: means of equally many neighbours each."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    chunks = [points[low:high] for low, high in pairwise(edges)]
    return [(fmean(x for x, _ in chunk), fmean(y for _, y in chunk)) for chunk in chunks]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover ``low..high`` in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    y_range: tuple[float, float],
    y_format: Callable[[float], str],
    levels: Sequence[ReferenceLine] = (),
    label_values: bool = True,
    x_end: float | None = None,
    x_label: str = "step",
    x_format: Callable[[float], str] = "{:g}".format,
    log_x: bool = False,
) -> Markup:
    """Lines over training steps (or whatever ``x_label`` says), each named at its end; references at the right edge.

    Args:
        title: what a screen reader says of it.
        label_values: put the last value behind each label.
        x_end: where the axis ends, if not at the last point: what is still to come.
        log_x: logarithmic, with 0 at the left edge.
    """
    xs = [x for line in lines for x, _ in line.points] or [0.0]
    log_x = log_x and any(x > 0 for x in xs)
    low = min(x for x in xs if x > 0) / 2 if log_x else min(xs)
    frame = _Frame(low, max(xs) if x_end is None else max(x_end, *xs), *y_range, log_x=log_x)
    parts = [_axes(frame, y_format, x_label=x_label, x_format=x_format)]
    labels: list[tuple[float, str, str]] = []
    for level in levels:
        parts.append(
            f'<line class="level {escape(level.css)}" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{frame.y(level.y):.1f}" y2="{frame.y(level.y):.1f}"/>'
        )
        labels.append((frame.y(level.y), level.css, _label(level.label, level.y, y_format, label_values)))
    for line in lines:
        if line.band:
            around = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
            parts.append(f'<path class="band {escape(line.css)}" d="{frame.path(around)}Z"/>')
        points = thin(line.points)
        if not points:
            continue
        parts.append(f'<path class="line {escape(line.css)}" d="{frame.path(points)}"/>')
        if line.marks:
            parts += [
                f'<circle class="mark {escape(line.css)}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6">'
                f"<title>{escape(x_label)} {escape(x_format(x))}: {escape(y_format(y))}</title></circle>"
                for x, y in points
            ]
        last = points[-1][1]
        labels.append((frame.y(last), line.css, _label(line.label, last, y_format, label_values)))
    parts += _placed(labels)
    return _svg(title, parts)


def share_chart(
    names: Sequence[tuple[str, str]], rows: Sequence[tuple[float, Sequence[float]]], *, title: str
) -> Markup:
    """Shares stacked to 100% over training steps.

    Args:
        names: label and CSS class of each share, from the bottom up.
        rows: step, and the shares at it in the order of ``names``.
    """
    columns = [thin([(x, shares[i]) for x, shares in rows]) for i in range(len(names))]
    frame = _Frame(rows[0][0], rows[-1][0], 0.0, 1.0)
    floor: list[Point] = [(x, 0.0) for x, _ in columns[0]]
    parts, labels = [], []
    for (label, css), column in zip(names, columns, strict=True):
        top = [(x, below + share) for (x, below), (_, share) in zip(floor, column, strict=True)]
        parts.append(f'<path class="area {escape(css)}" d="{frame.path([*floor, *reversed(top)])}Z"/>')
        middle = (floor[-1][1] + top[-1][1]) / 2
        labels.append((frame.y(middle), css, _label(label, column[-1][1], lambda y: f"{100 * y:.0f}%", True)))
        floor = top
    parts.append(_axes(frame, lambda y: f"{100 * y:.0f}%", x_label="step", x_format="{:g}".format))
    return _svg(title, parts + _placed(labels))


def _label(text: str, value: float, y_format: Callable[[float], str], with_value: bool) -> str:
    short = text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
    return f"{short} {y_format(value)}" if with_value else short


def _axes(frame: _Frame, y_format: Callable[[float], str], *, x_label: str, x_format: Callable[[float], str]) -> str:
    parts: list[str] = []
    for y in ticks(frame.y_low, frame.y_high):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(y):.1f}" y2="{frame.y(y):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{frame.y(y) + 4:.1f}" text-anchor="end">{escape(y_format(y))}</text>'
        )
    for x in frame.x_ticks:
        parts.append(
            f'<text class="tick" x="{frame.x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{escape(x_format(x))}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _placed(labels: Sequence[tuple[float, str, str]]) -> list[str]:
    """Labels at the right edge, pushed apart where they would overlap, and up where they would leave the drawing.

    Of more than :data:`MOST_LABELS` the first are placed; the others are left out.
    """
    ordered = sorted(labels[:MOST_LABELS])
    heights: list[float] = []
    for y, _, _ in ordered:
        heights.append(max(y, heights[-1] + _LABEL_GAP) if heights else max(y, TOP + 2))
    limit = HEIGHT - BOTTOM + 2.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - _LABEL_GAP
    return [
        f'<text class="label {escape(css)}" x="{WIDTH - RIGHT + 6}" y="{height + 4:.1f}">{escape(text)}</text>'
        for height, (_, css, text) in zip(heights, ordered, strict=True)
    ]


def _svg(title: str, parts: Sequence[str]) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>')
