"""What charts are made of: lines, bars, marks and labels as data, and each as layers of a Vega-Lite specification."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeAlias

from mopd.recipes.report.drawing import CARD, GRID, INK, MUTED, colour, dash, shape

Point: TypeAlias = tuple[float, float]
Format: TypeAlias = Callable[[float], str]
Spec: TypeAlias = dict[str, Any]

WIDTH = 320
FONT = 12
MAX_POINTS = 120
TABLE_ROWS = 12
"""Of the table of a line, as many points at most: means of equally many neighbours."""
LABEL_GAP = 13
"""px from one label to the next."""
LETTER_WIDTH = 7.2
"""px, of a letter of such text in a wide font (DejaVu Sans)."""
MAX_LABEL = 17
"""Letters of a bar's name, of which the table and the pointer have all."""
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; ``band`` is its interval ``(x, low, high)`` at each point. ``series`` None: one of its own."""

    label: str
    series: int | None
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    marks: bool = False
    name: str = ""
    """In the table and at the pointer, where the label is short."""

    @property
    def whole_name(self) -> str:
        """The name, else the label."""
        return self.name or self.label


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A horizontal reference, ``dashed`` (a teacher's) or dotted (the base's)."""

    label: str
    series: int | None
    y: float
    dashed: bool


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from 0, with its interval; ``value`` None: only its text is shown. ``faint``: beside the point."""

    label: str
    series: int | None
    value: float | None
    ends: tuple[float, float] | None
    text: str
    interval: str = ""
    faint: bool = False
    name: str = ""

    @property
    def whole_name(self) -> str:
        """The name, else the label."""
        return self.name or self.label


@dataclass(frozen=True, slots=True)
class Mark:
    """A row on the plane of two domains, and the intervals that are drawn: horizontal and vertical."""

    name: str
    series: int
    at: Point
    across: tuple[float, float] | None
    up: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the data of a chart lies: plot and margins in px, and the ranges of both axes."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: int = 38
    right: int = 92
    top: int = 10
    bottom: int = 40
    height: int = 180
    width: int = WIDTH
    log_x: bool = False
    x_ticks: Sequence[float] = field(default=())
    y_ticks: Sequence[float] = field(default=())

    @property
    def plot(self) -> int:
        """Width of the plot in px."""
        return self.width - self.left - self.right

    def pixel(self, y: float) -> float:
        """px below the plot's upper edge."""
        low, high = self.y
        return self.height * (high - y) / ((high - low) or 1.0)

    def value(self, pixel: float) -> float:
        """The inverse of :meth:`pixel`."""
        low, high = self.y
        return high - pixel / self.height * ((high - low) or 1.0)


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


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten and, of few, their 2 and 5; none in the first eighth, where 0 has its label."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 2 else (1, 3) if len(powers) <= 3 else (1,)
    first = low * (high / low) ** 0.12
    return [s * 10.0**p for p in powers for s in steps if first <= s * 10.0**p <= high]


CONFIG: Spec = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": FONT, "titleFontSize": FONT, "labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID,
        "tickColor": MUTED, "domainColor": MUTED, "titleFontWeight": "normal",
        "labelOverlap": False, "labelFlush": False, "aria": False,
    },
    "text": {"fontSize": FONT, "color": INK},
}  # fmt: skip


def mark_layer(mark: Spec, values: Sequence[Spec], **encoding: Spec | list[Spec]) -> Spec:
    """A mark says nothing to a screen reader: the page says what the whole is, and has its numbers as a table."""
    return {"data": {"values": list(values)}, "mark": {**mark, "aria": False}, "encoding": encoding}


def quantitative(name: str) -> Spec:
    """A position by data; scale and axis are added by :func:`chart_spec`."""
    return {"field": name, "type": "quantitative"}


def opacity(shown: float, dimmed: float = 0.12) -> Spec:
    """How dark a mark is: where another row than its own is chosen, ``dimmed``."""
    test = "chosen == '' || datum.series == chosen"
    return {"condition": {"test": test, "value": shown}, "value": min(shown, dimmed)}


def by_series(lines: Sequence[Line], of: Callable[[int | None], Any]) -> Spec:
    """A channel with a value for each line, by its name."""
    by_name = {line.whole_name: of(line.series) for line in lines}
    scale = {"domain": [*by_name], "range": [*by_name.values()]}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": None}


def series_colours(lines: Sequence[Line]) -> Spec:
    """The colours of the lines."""
    return by_series(lines, colour)


def tooltip_of(titles: Mapping[str, str]) -> list[Spec]:
    """What the pointer shows: fields of the data by their titles."""
    return [{"field": name, "type": "nominal", "title": title} for name, title in titles.items()]


def line_layers(lines: Sequence[Line], x_label: str, x_format: Format, y_format: Format) -> list[Spec]:
    """Paths, and marks of the lines that have them, of which each says where it is."""
    values = {
        line.whole_name: [
            {"series": line.whole_name, "x": x, "y": y, "at": f"{x_label} {x_format(x)}", "value": y_format(y)}
            for x, y in line.points
        ]
        for line in lines
    }
    place = {"x": quantitative("x"), "y": quantitative("y"), "color": series_colours(lines), "opacity": opacity(1.0)}
    path = mark_layer(
        {"type": "line", "strokeWidth": 2, "strokeJoin": "round"}, [row for rows in values.values() for row in rows],
        **place, strokeDash=by_series(lines, lambda series: list(dash(series)) or [1, 0]),
        tooltip=tooltip_of({"series": " "}),
    )  # fmt: skip
    marked = [row for line in lines if line.marks for row in values[line.whole_name]]
    tooltip = tooltip_of({"series": " ", "at": "at", "value": "value"})
    marks = {"type": "point", "filled": True, "size": 32, "opacity": 1}
    shapes = by_series(lines, shape)
    return [path, *([mark_layer(marks, marked, **place, shape=shapes, tooltip=tooltip)] if marked else [])]


def band_layer(lines: Sequence[Line]) -> Spec:
    """The intervals of the lines."""
    values = [{"series": line.whole_name, "x": x, "y": a, "y2": b} for line in lines for x, a, b in line.band]
    place = {"x": quantitative("x"), "y": quantitative("y"), "y2": {"field": "y2"}}
    return mark_layer({"type": "area"}, values, **place, color=series_colours(lines), opacity=opacity(0.16, 0.04))


def level_layers(frame: Frame, levels: Sequence[ReferenceLine]) -> list[Spec]:
    """The horizontal references, over the whole plot."""
    across = {"x": {"value": 0}, "x2": {"value": frame.plot}}
    return [
        mark_layer(
            {"type": "rule", "color": colour(level.series), "strokeWidth": 1.5,
             "strokeDash": [6, 4] if level.dashed else [2, 3]},
            [{"y": level.y}], y=quantitative("y"), **across,
        )
        for level in levels
    ]  # fmt: skip


def without_middle(label: str) -> str:
    """Without its middle where it is long: names of rows differ in how they end as well."""
    half = MAX_LABEL // 2
    return label if len(label) <= MAX_LABEL else f"{label[:half]}…{label[len(label) - half :]}"


def bar_row(bar: Bar, label: str, place: int, low: float, high: float) -> Spec:
    """A bar's data: it lies half a row below the upper edge of its place, and what is beyond the axis is cut."""
    row: Spec = {"series": bar.whole_name, "label": label, "text": bar.text, "interval": bar.interval}
    row |= {"y": -place - 0.5, "fill": 0.35 if bar.faint else 1.0}

    def within(value: float) -> float:
        return min(high, max(low, value))

    if bar.value is not None:
        row |= {"start": within(0.0), "value": within(bar.value)}
        row |= {} if bar.ends is None else {"low": within(bar.ends[0]), "high": within(bar.ends[1])}
    return row


def whisker_layers(rows: Sequence[Spec]) -> list[Spec]:
    """The intervals, with a stroke at each end; on a dark bar ink is seen by the ground around it."""
    if not rows:
        return []
    between = {"x": quantitative("low"), "x2": {"field": "high"}, "y": quantitative("y"), "opacity": opacity(1.0)}
    layers = [mark_layer({"type": "rule", "color": CARD, "strokeWidth": 3.2}, rows, **between)]
    layers.append(mark_layer({"type": "rule", "color": INK, "strokeWidth": 1.2}, rows, **between))
    stroke = {"type": "tick", "color": INK, "thickness": 1.2, "height": 7, "orient": "vertical"}
    ends = [
        mark_layer(stroke, rows, x=quantitative(end), y=quantitative("y"), opacity=opacity(1.0))
        for end in ("low", "high")
    ]
    return [*layers, *ends]


def diamond_layers(middle: float, others: Sequence[tuple[str, Point]]) -> list[Spec]:
    """Base and teachers as small diamonds, named towards the middle of the plot."""
    layers: list[Spec] = []
    diamond = {"type": "point", "shape": "diamond", "size": 60, "fill": CARD, "stroke": MUTED, "opacity": 1}
    for right in (False, True):
        rows = [{"name": name, "x": x, "y": y} for name, (x, y) in others if (x > middle) == right]
        beside = {"align": "right", "dx": -9} if right else {"align": "left", "dx": 9}
        text = {"type": "text", "baseline": "middle", "color": MUTED, **beside}
        if rows:
            layers.append(mark_layer(diamond, rows, x=quantitative("x"), y=quantitative("y")))
            layers.append(mark_layer(text, rows, x=quantitative("x"), y=quantitative("y"), text={"field": "name"}))
    return layers


def numbered_layers(marks: Sequence[Mark], lines: Sequence[Line], pair: tuple[str, str], written: Format) -> list[Spec]:
    """The rows on the plane of two domains: circles with their numbers."""
    values = [
        {"series": mark.name, "x": mark.at[0], "y": mark.at[1], "number": str(number)}
        | {"across": written(mark.at[0]), "up": written(mark.at[1])}
        for number, mark in enumerate(marks, start=1)
    ]
    place: Spec = {"x": quantitative("x"), "y": quantitative("y"), "opacity": opacity(1.0)}
    circle = {"type": "point", "shape": "circle", "size": 300, "filled": True, "fill": CARD, "strokeWidth": 2.2}
    number = {"type": "text", "baseline": "middle", "dy": 0.5, "fontWeight": "bold", "color": INK}
    tooltip = tooltip_of({"series": " ", "across": pair[0], "up": pair[1]})
    return [
        mark_layer(circle, values, **place, stroke=series_colours(lines), tooltip=tooltip),
        mark_layer(number, values, **place, text={"field": "number"}),
    ]


@dataclass(frozen=True, slots=True)
class EdgeLabel:
    """A label at the right edge, at the height of a value."""

    y: float
    text: str
    series: int | None
    name: str = ""


def label_layers(frame: Frame, labels: Sequence[EdgeLabel]) -> list[Any]:
    """Labels at the right edge, pushed apart where they would overlap, with a line to where each would be."""
    if not labels:
        return []
    ordered = sorted(labels, key=lambda each: (-each.y, each.text))
    heights: list[float] = []
    for each in ordered:
        here = max(frame.pixel(each.y), 2.0)
        heights.append(max(here, heights[-1] + LABEL_GAP) if heights else here)
    limit = frame.height - 2.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - LABEL_GAP
    values = [
        {"series": each.name or each.text, "y": frame.value(height), "from": each.y, "text": each.text}
        for height, each in zip(heights, ordered, strict=True)
    ]
    lines = [Line(each.name or each.text, each.series, []) for each in ordered]
    faded = opacity(1.0, 0.25)
    leader = mark_layer(
        {"type": "rule", "strokeWidth": 1.5}, values, x={"value": frame.plot + 1}, x2={"value": frame.plot + 9},
        y=quantitative("from"), y2={"field": "y"}, color=series_colours(lines), opacity=faded,
    )  # fmt: skip
    written = {"type": "text", "align": "left", "baseline": "middle", "color": INK}
    place = {"x": {"value": frame.plot + 11}, "y": quantitative("y")}
    return [leader, mark_layer(written, values, **place, text={"field": "text"}, opacity=faded)]


def axes_of(frame: Frame, x_label: str, x_format: Format, y_format: Format | None, *, y_label: str = "") -> Spec:
    """Axes with their ticks and labels as they are to be written; ``y_format`` None: no vertical axis."""
    edge = {frame.x_ticks[0]: "0"} if frame.log_x else {}
    plain = {"nice": False, "zero": False, "padding": 0}
    x = {
        "scale": {"type": "log" if frame.log_x else "linear", "domain": list(frame.x), **plain},
        "axis": _axis(frame.x_ticks, lambda value: edge.get(value) or x_format(value))
        | {"title": x_label, "grid": y_format is None or bool(y_label), "titlePadding": 6},
    }
    y: Spec = {"scale": {"domain": list(frame.y), **plain}, "axis": None}
    if y_format is not None:
        y["axis"] = _axis(frame.y_ticks, y_format) | {"title": None, "domain": False, "ticks": False}
    if y_label:
        y["axis"] |= {
            "title": y_label, "titleAngle": 0, "titleAlign": "left", "titleAnchor": "start",
            "titleX": -30, "titleY": -14,
        }  # fmt: skip
    return {"x": x, "y": y}


def _axis(values: Sequence[float], written: Format) -> Spec:
    """Ticks at ``values``, labelled as they are to be written."""
    quoted = ", ".join("'" + written(value).replace("\\", "\\\\").replace("'", "\\'") + "'" for value in values)
    return {"values": list(values), "labelExpr": f"[{quoted}][indexof({json.dumps(list(values))}, datum.value)]"}


def chart_spec(frame: Frame, layers: Sequence[Spec], axes: Spec) -> Spec:
    """The layers over one pair of axes, with margins to the pixel."""
    spec: Spec = {
        "$schema": SCHEMA,
        "params": [{"name": "chosen", "value": ""}],
        "layer": list(layers),
        "width": frame.plot,
        "height": frame.height,
        "autosize": {"type": "none"},
        "padding": {"left": frame.left, "right": frame.right, "top": frame.top, "bottom": frame.bottom},
        "resolve": {"scale": dict.fromkeys(("color", "stroke", "strokeDash", "shape"), "independent")},
        "config": CONFIG,
        "background": "transparent",
    }
    _set_axes(spec, axes)
    return spec


def _set_axes(node: Spec, axes: Spec) -> None:
    """Scale and axis of both directions, in every layer that has positions by data."""
    for layer in node.get("layer", ()):
        _set_axes(layer, axes)
    for name, channel in node.get("encoding", {}).items():
        if name in axes and "field" in channel:
            channel.update(axes[name])


def table_of(
    lines: Sequence[Line], levels: Sequence[ReferenceLine], x_label: str, x_format: Format, y_format: Format
) -> tuple[list[str], list[list[str]]]:
    """A chart's numbers: a row a line, a column a point that all lines have; else a row a point."""
    shown = [(line, thin(line.points, TABLE_ROWS)) for line in lines]
    if len({tuple(x for x, _ in points) for _, points in shown}) == 1:
        steps = [x_format(round(x)) for x, _ in shown[0][1]]
        columns = [[y_format(y) for _, y in points] for _, points in shown]
        rows = [[step, *values] for step, *values in zip(steps, *columns, strict=True)]
        rows += [[level.label, *[y_format(level.y)] * len(lines)] for level in levels]
        return [x_label, *(line.whole_name for line in lines)], rows
    rows = [[line.whole_name, x_format(round(x)), y_format(y)] for line, points in shown for x, y in points]
    return ["line", x_label, "value"], rows + [[level.label, "all", y_format(level.y)] for level in levels]
