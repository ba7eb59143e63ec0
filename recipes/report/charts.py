"""Every chart of report, comparison, model card and W&B, as a Vega-Lite specification with the table of its numbers.

A chart for a page is 320 px wide, what a phone has room for, and is shown at that size or larger: its text is of 12 px.
Where its parts lie is set here to the pixel, so that labels at the ends of lines are pushed apart and a bar's name, bar
and value have a row of their own. A row that is not chosen is dimmed by the parameter ``chosen``, which only a page's
script sets. Numbers are drawn as they are given: percentages are percentages already.

Specifications are written as what they are, JSON: altair's builder took 0.2 s of processor time a chart, and a report
is written at every evaluation. A test holds each against altair's copy of the Vega-Lite schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeAlias

from mopd.distill.tracking.sink import CHANGES
from mopd.recipes.report.drawing import CARD, GRID, INK, MUTED, Picture, colour, dash, shape

Point: TypeAlias = tuple[float, float]
Format: TypeAlias = Callable[[float], str]
Spec: TypeAlias = dict[str, Any]

WIDTH = 320
FONT = 12
MAX_POINTS = 120
TABLE_ROWS = 12
"""Of the table of a line, as many points at most: means of equally many neighbours."""
_GAP = 13
"""px from one label to the next."""
_LETTER = 7.2
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


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    y_range: tuple[float, float],
    y_format: Format,
    levels: Sequence[ReferenceLine] = (),
    label_values: bool = True,
    x_end: float | None = None,
    x_label: str = "step",
    x_format: Format = "{:g}".format,
    log_x: bool = False,
) -> Picture:
    """Lines over training steps (or whatever ``x_label`` says), each named at its end; references at the right edge.

    Args:
        label_values: put the last value behind each label.
        x_end: where the axis ends, if not at the last point: what is still to come.
        log_x: logarithmic, with 0 at the left edge.
    """
    lines = [replace(line, points=thin(line.points)) for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points] or [0.0]
    log_x = log_x and any(x > 0 for x in xs)
    low = min(x for x in xs if x > 0) / 2 if log_x else min(xs)
    high = max(xs) if x_end is None else max(x_end, *xs)
    lines = [_not_below(line, low) for line in lines] if log_x else lines
    labels = [_Label(line.points[-1][1], line.label, line.series, line.name) for line in lines]
    labels += [_Label(level.y, level.label, level.series) for level in levels]
    if label_values:
        labels = [replace(each, text=f"{each.text} {y_format(each.y)}") for each in labels]
    right = 14 + min(104, round(max((len(each.text) for each in labels), default=0) * _LETTER))
    frame = Frame(
        x=(low, high if high > low else low + 1),
        y=y_range,
        right=right,
        height=max(180, _GAP * len(labels)),
        log_x=log_x,
        x_ticks=[low, *log_ticks(low, high)] if log_x else ticks(low, high, 4),
        y_ticks=ticks(*y_range),
    )
    layers = _levels(frame, levels)
    layers += [_bands([line for line in lines if line.band])] if any(line.band for line in lines) else []
    layers += _drawn(lines, x_label, x_format, y_format) if lines else []
    layers += _placed(frame, labels)
    spec = _spec(frame, layers, _axes(frame, x_label, x_format, y_format))
    return Picture(title, spec, *_table(lines, levels, x_label, x_format, y_format))


def share_chart(
    names: Sequence[tuple[str, int]], rows: Sequence[tuple[float, Sequence[float]]], *, title: str
) -> Picture:
    """Shares stacked to 100% over training steps.

    Args:
        names: label and series of each share, from the bottom up.
        rows: step, and the shares at it in the order of ``names``.
    """
    columns = [thin([(x, 100 * shares[i]) for x, shares in rows]) for i in range(len(names))]
    right = 14 + min(92, round(max(len(label) + 4 for label, _ in names) * _LETTER))
    xs = (rows[0][0], rows[-1][0])
    frame = Frame(
        x=xs, y=(0, 100), right=right, height=max(180, _GAP * len(names)), x_ticks=ticks(*xs, 4), y_ticks=ticks(0, 100)
    )
    floor = [0.0] * len(columns[0])
    values: list[Spec] = []
    labels: list[_Label] = []
    for (label, series), column in zip(names, columns, strict=True):
        top = [below + share for below, (_, share) in zip(floor, column, strict=True)]
        values += [
            {"series": label, "x": x, "y": below, "y2": above, "share": round(share, 1)}
            for (x, share), below, above in zip(column, floor, top, strict=True)
        ]
        labels.append(_Label((floor[-1] + top[-1]) / 2, f"{label} {column[-1][1]:.0f}%", series, label))
        floor = top
    lines = [Line(label, series, column) for (label, series), column in zip(names, columns, strict=True)]
    area = _layer(
        {"type": "area", "stroke": CARD, "strokeWidth": 1.5}, values,
        x=_at("x"), y=_at("y"), y2={"field": "y2"}, color=_colours(lines), opacity=_chosen(0.9),
    )  # fmt: skip
    layers = [area, *_placed(frame, labels)]
    spec = _spec(frame, layers, _axes(frame, "step", "{:g}".format, lambda y: f"{y:.0f}%"))
    return Picture(title, spec, *_table(lines, (), "step", "{:g}".format, lambda y: f"{y:.0f}%"))


def bar_chart(
    bars: Sequence[Bar],
    *,
    title: str,
    x_range: tuple[float, float],
    x_format: Format,
    x_label: str,
    head: Sequence[str],
    reference: float | None = None,
) -> Picture:
    """A bar a row with its interval, its name before it and its value behind it, over an axis.

    Args:
        x_range: bars and intervals are cut there.
        head: of the table: what a bar is, its value, its interval.
        reference: a second value to compare with, dashed; the first is 0.
    """
    low, high = x_range
    shown = [_cut(bar.label) for bar in bars]
    left = 12 + round(max(map(len, shown)) * _LETTER)
    right = 12 + round(max(len(bar.text) for bar in bars) * _LETTER)
    plot = WIDTH - left - right
    frame = Frame(
        x=x_range, y=(-len(bars), 0), left=left, right=right, bottom=38, top=8, height=22 * len(bars),
        x_ticks=ticks(low, high, plot // 45),
    )  # fmt: skip
    values = [_bar_row(bar, label, i, low, high) for i, (bar, label) in enumerate(zip(bars, shown, strict=True))]
    drawn = [row for row in values if "value" in row]
    lines = [Line(bar.whole_name, bar.series, []) for bar in bars]
    layers = [_layer({"type": "rule", "color": MUTED}, [{"x": 0.0}], x=_at("x"))] if low <= 0 <= high else []
    if reference is not None:
        layers.append(_layer({"type": "rule", "color": MUTED, "strokeDash": [4, 3]}, [{"x": reference}], x=_at("x")))
    if drawn:
        tooltip = {"series": head[0], "text": head[1]} | (
            {"interval": head[2]} if any(b.interval for b in bars) else {}
        )
        layers.append(
            _layer(
                {"type": "bar", "height": 13, "strokeWidth": 1}, drawn,
                x=_at("start"), x2={"field": "value"}, y=_at("y"), color=_colours(lines), stroke=_colours(lines),
                fillOpacity={"field": "fill", "type": "quantitative", "scale": None},
                opacity=_chosen(1.0), tooltip=_tooltip(tooltip),
            )
        )  # fmt: skip
    layers += _whiskers([row for row in drawn if "low" in row])
    for place, name, align, weight in ((-6, "label", "right", "normal"), (plot + right - 2, "text", "right", "bold")):
        mark = {"type": "text", "align": align, "baseline": "middle", "fontWeight": weight, "color": INK}
        written = {"x": {"value": place}, "text": {"field": name}, "opacity": _chosen(1.0, 0.35)}
        layers.append(_layer(mark, values, y=_at("y"), **written))
    axes = _axes(frame, x_label, x_format, None)
    rows = [[bar.whole_name, bar.text, bar.interval] for bar in bars]
    kept = head if any(row[2] for row in rows) else head[:2]
    return Picture(title, _spec(frame, layers, axes), kept, [row[: len(kept)] for row in rows])


def plane_chart(
    marks: Sequence[Mark],
    others: Sequence[tuple[str, Point]],
    edge: Sequence[Point],
    *,
    title: str,
    pair: tuple[str, str],
    axis_range: tuple[float, float],
    written: Format,
) -> Picture:
    """Scores on two domains, in %: a numbered mark a row with its intervals, and the frontier that no row is beyond.

    Args:
        marks: as they are numbered, from 1.
        others: base and teachers by name, drawn as small diamonds.
        edge: of the frontier, from left to right.
        axis_range: of both axes, so that a step to the right is as long as one up.
        written: a score as text.
    """
    frame = Frame(
        x=axis_range, y=axis_range, left=38, right=14, top=26, bottom=40, height=WIDTH - 52,
        x_ticks=ticks(*axis_range), y_ticks=ticks(*axis_range),
    )  # fmt: skip
    lines = [Line(mark.name, mark.series, []) for mark in marks]
    corners = [(left[0], right[1]) for left, right in pairwise(edge)]
    stairs = [point for i, point in enumerate(edge) for point in [point, *corners[i : i + 1]]]
    path = [{"x": x, "y": y, "order": i} for i, (x, y) in enumerate(stairs)]
    line = {"type": "line", "color": MUTED, "strokeWidth": 1.2, "strokeDash": [5, 4]}
    layers = [_layer(line, path, x=_at("x"), y=_at("y"), order={"field": "order", "type": "quantitative"})]
    rule: Spec = {"x": _at("x"), "y": _at("y"), "color": _colours(lines), "opacity": _chosen(0.8)}
    rows = [_cross(m, {"x": m.across[0], "x2": m.across[1]}) for m in marks if m.across is not None]
    layers += [_layer({"type": "rule", "strokeWidth": 2}, rows, **rule, x2={"field": "x2"})] if rows else []
    rows = [_cross(m, {"y": m.up[0], "y2": m.up[1]}) for m in marks if m.up is not None]
    layers += [_layer({"type": "rule", "strokeWidth": 2}, rows, **rule, y2={"field": "y2"})] if rows else []
    layers += _others(sum(axis_range) / 2, others)
    layers += _numbered(marks, lines, pair, written)
    axes = _axes(frame, f"{pair[0]}, %", "{:g}".format, "{:g}".format, y_label=f"{pair[1]}, %")
    spec = _spec(frame, layers, axes)
    table = [[f"{n} · {m.name}", written(m.at[0]), written(m.at[1])] for n, m in enumerate(marks, start=1)]
    table += [[name, written(x), written(y)] for name, (x, y) in others]
    return Picture(title, spec, ["row", *pair], table)


@dataclass(frozen=True, slots=True)
class ModelBars:
    """The changes of one model against the base, a bar a domain."""

    model: str
    bars: Sequence[Bar]


def seesaw_chart(models: Sequence[ModelBars], *, title: str) -> Picture:
    """Every model's change on every domain with its interval, in one picture with a legend: for a model card."""
    domains = {bar.label: bar.series for model in models for bar in model.bars}
    values = [
        {"model": model.model, "domain": bar.label, "points": bar.value}
        | {"low": bar.ends and bar.ends[0], "high": bar.ends and bar.ends[1]}
        for model in models
        for bar in model.bars
    ]
    rows = [[m.model, b.whole_name, b.text, b.interval] for m in models for b in m.bars]
    lines = [Line(name, series, []) for name, series in domains.items()]
    order = [model.model for model in models]
    spec = _seesaw_spec({"values": values}, lines, order, title, dict(zip(CHANGES, CHANGES, strict=True)))
    return Picture(title, spec, ["model", "domain", "points", "95% interval"], rows)


def seesaw_preset() -> Spec:
    """The specification of :func:`seesaw_chart` as a custom chart of W&B, which fills in data and field names."""
    fields = {name: f"${{field:{name}}}" for name in CHANGES}
    return _seesaw_spec({"name": "wandb"}, None, None, "The seesaw: change against the base, in points", fields)


def _seesaw_spec(
    data: Spec, lines: Sequence[Line] | None, order: Sequence[str] | None, title: str, fields: dict[str, str]
) -> Spec:
    """``lines`` and ``order`` None: colours and order are those of the data, whatever that will be."""
    scale = {"range": [colour(i) for i in range(6)]}
    if lines is not None:
        scale = {"domain": [line.label for line in lines], "range": [colour(line.series) for line in lines]}
    position = {
        "y": {"field": fields["model"], "type": "nominal", "sort": order, "title": None,
              "axis": {"labelFontSize": 13, "labelLimit": 200, "ticks": False, "domain": False}},
        "yOffset": {"field": fields["domain"], "type": "nominal", "sort": None},
    }  # fmt: skip
    points = {"field": fields["points"], "type": "quantitative"}
    bar = {
        "mark": {"type": "bar", "height": {"band": 0.86}},
        "encoding": {
            **position,
            "x": {**points, "title": "points, with 95% intervals"},
            "color": {"field": fields["domain"], "type": "nominal", "sort": None, "scale": scale,
                      "legend": {"orient": "top", "title": None, "labelFontSize": 13, "columns": 4}},
            "tooltip": [{"field": fields[name]} for name in CHANGES],
        },
    }  # fmt: skip
    rule = {
        "mark": {"type": "rule", "color": INK, "strokeWidth": 1.2},
        "encoding": {
            **position,
            "x": {"field": fields["low"], "type": "quantitative"},
            "x2": {"field": fields["high"]},
        },
    }
    zero = {"mark": {"type": "rule", "color": MUTED}, "encoding": {"x": {"datum": 0}}}
    return {
        "$schema": SCHEMA,
        "data": data,
        "title": {"text": title, "anchor": "start", "fontSize": 15, "color": INK, "offset": 12},
        "width": 480,
        "height": {"step": 17, "for": "offset"},
        "background": CARD,
        "padding": 12,
        "layer": [bar, rule, zero],
        "config": {**_CONFIG, "axis": {**_CONFIG["axis"], "titleFontSize": 13}},
    }


_CONFIG: Spec = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": FONT, "titleFontSize": FONT, "labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID,
        "tickColor": MUTED, "domainColor": MUTED, "titleFontWeight": "normal",
        "labelOverlap": False, "labelFlush": False, "aria": False,
    },
    "text": {"fontSize": FONT, "color": INK},
}  # fmt: skip


def _not_below(line: Line, low: float) -> Line:
    """What is below the lowest, zero among it, lies at the left edge."""
    points = [(max(x, low), y) for x, y in line.points]
    return replace(line, points=points, band=[(max(x, low), a, b) for x, a, b in line.band])


def _layer(mark: Spec, values: Sequence[Spec], **encoding: Spec | list[Spec]) -> Spec:
    """A mark says nothing to a screen reader: the page says what the whole is, and has its numbers as a table."""
    return {"data": {"values": list(values)}, "mark": {**mark, "aria": False}, "encoding": encoding}


def _at(name: str) -> Spec:
    """A position by data; scale and axis are added by :func:`_spec`."""
    return {"field": name, "type": "quantitative"}


def _chosen(shown: float, dimmed: float = 0.12) -> Spec:
    test = "chosen == '' || datum.series == chosen"
    return {"condition": {"test": test, "value": shown}, "value": min(shown, dimmed)}


def _by_series(lines: Sequence[Line], of: Callable[[int | None], Any]) -> Spec:
    by_name = {line.whole_name: of(line.series) for line in lines}
    scale = {"domain": [*by_name], "range": [*by_name.values()]}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": None}


def _colours(lines: Sequence[Line]) -> Spec:
    return _by_series(lines, colour)


def _tooltip(titles: Mapping[str, str]) -> list[Spec]:
    return [{"field": name, "type": "nominal", "title": title} for name, title in titles.items()]


def _drawn(lines: Sequence[Line], x_label: str, x_format: Format, y_format: Format) -> list[Spec]:
    """Paths, and marks of the lines that have them, of which each says where it is."""
    values = {
        line.whole_name: [
            {"series": line.whole_name, "x": x, "y": y, "at": f"{x_label} {x_format(x)}", "value": y_format(y)}
            for x, y in line.points
        ]
        for line in lines
    }
    place = {"x": _at("x"), "y": _at("y"), "color": _colours(lines), "opacity": _chosen(1.0)}
    path = _layer(
        {"type": "line", "strokeWidth": 2, "strokeJoin": "round"}, [row for rows in values.values() for row in rows],
        **place, strokeDash=_by_series(lines, lambda series: list(dash(series)) or [1, 0]),
        tooltip=_tooltip({"series": " "}),
    )  # fmt: skip
    marked = [row for line in lines if line.marks for row in values[line.whole_name]]
    tooltip = _tooltip({"series": " ", "at": "at", "value": "value"})
    marks = {"type": "point", "filled": True, "size": 32, "opacity": 1}
    shapes = _by_series(lines, shape)
    return [path, *([_layer(marks, marked, **place, shape=shapes, tooltip=tooltip)] if marked else [])]


def _bands(lines: Sequence[Line]) -> Spec:
    values = [{"series": line.whole_name, "x": x, "y": a, "y2": b} for line in lines for x, a, b in line.band]
    place = {"x": _at("x"), "y": _at("y"), "y2": {"field": "y2"}}
    return _layer({"type": "area"}, values, **place, color=_colours(lines), opacity=_chosen(0.16, 0.04))


def _levels(frame: Frame, levels: Sequence[ReferenceLine]) -> list[Spec]:
    across = {"x": {"value": 0}, "x2": {"value": frame.plot}}
    return [
        _layer(
            {"type": "rule", "color": colour(level.series), "strokeWidth": 1.5,
             "strokeDash": [6, 4] if level.dashed else [2, 3]},
            [{"y": level.y}], y=_at("y"), **across,
        )
        for level in levels
    ]  # fmt: skip


def _cut(label: str) -> str:
    """Without its middle where it is long: names of rows differ in how they end as well."""
    half = MAX_LABEL // 2
    return label if len(label) <= MAX_LABEL else f"{label[:half]}…{label[len(label) - half :]}"


def _bar_row(bar: Bar, label: str, place: int, low: float, high: float) -> Spec:
    """A bar's data: it lies half a row below the upper edge of its place, and what is beyond the axis is cut."""
    row: Spec = {"series": bar.whole_name, "label": label, "text": bar.text, "interval": bar.interval}
    row |= {"y": -place - 0.5, "fill": 0.35 if bar.faint else 1.0}

    def within(value: float) -> float:
        return min(high, max(low, value))

    if bar.value is not None:
        row |= {"start": within(0.0), "value": within(bar.value)}
        row |= {} if bar.ends is None else {"low": within(bar.ends[0]), "high": within(bar.ends[1])}
    return row


def _whiskers(rows: Sequence[Spec]) -> list[Spec]:
    """The intervals, with a stroke at each end; on a dark bar ink is seen by the ground around it."""
    if not rows:
        return []
    between = {"x": _at("low"), "x2": {"field": "high"}, "y": _at("y"), "opacity": _chosen(1.0)}
    layers = [_layer({"type": "rule", "color": CARD, "strokeWidth": 3.2}, rows, **between)]
    layers.append(_layer({"type": "rule", "color": INK, "strokeWidth": 1.2}, rows, **between))
    stroke = {"type": "tick", "color": INK, "thickness": 1.2, "height": 7, "orient": "vertical"}
    ends = [_layer(stroke, rows, x=_at(end), y=_at("y"), opacity=_chosen(1.0)) for end in ("low", "high")]
    return [*layers, *ends]


def _cross(mark: Mark, ends: Spec) -> Spec:
    return {"series": mark.name, "x": mark.at[0], "y": mark.at[1], **ends}


def _others(middle: float, others: Sequence[tuple[str, Point]]) -> list[Spec]:
    """Base and teachers as small diamonds, named towards the middle of the plot."""
    layers: list[Spec] = []
    diamond = {"type": "point", "shape": "diamond", "size": 60, "fill": CARD, "stroke": MUTED, "opacity": 1}
    for right in (False, True):
        rows = [{"name": name, "x": x, "y": y} for name, (x, y) in others if (x > middle) == right]
        beside = {"align": "right", "dx": -9} if right else {"align": "left", "dx": 9}
        text = {"type": "text", "baseline": "middle", "color": MUTED, **beside}
        if rows:
            layers.append(_layer(diamond, rows, x=_at("x"), y=_at("y")))
            layers.append(_layer(text, rows, x=_at("x"), y=_at("y"), text={"field": "name"}))
    return layers


def _numbered(marks: Sequence[Mark], lines: Sequence[Line], pair: tuple[str, str], written: Format) -> list[Spec]:
    values = [
        {"series": mark.name, "x": mark.at[0], "y": mark.at[1], "number": str(number)}
        | {"across": written(mark.at[0]), "up": written(mark.at[1])}
        for number, mark in enumerate(marks, start=1)
    ]
    place: Spec = {"x": _at("x"), "y": _at("y"), "opacity": _chosen(1.0)}
    circle = {"type": "point", "shape": "circle", "size": 300, "filled": True, "fill": CARD, "strokeWidth": 2.2}
    number = {"type": "text", "baseline": "middle", "dy": 0.5, "fontWeight": "bold", "color": INK}
    tooltip = _tooltip({"series": " ", "across": pair[0], "up": pair[1]})
    return [
        _layer(circle, values, **place, stroke=_colours(lines), tooltip=tooltip),
        _layer(number, values, **place, text={"field": "number"}),
    ]


@dataclass(frozen=True, slots=True)
class _Label:
    """A label at the right edge, at the height of a value."""

    y: float
    text: str
    series: int | None
    name: str = ""


def _placed(frame: Frame, labels: Sequence[_Label]) -> list[Any]:
    """Labels at the right edge, pushed apart where they would overlap, with a line to where each would be."""
    if not labels:
        return []
    ordered = sorted(labels, key=lambda each: (-each.y, each.text))
    heights: list[float] = []
    for each in ordered:
        here = max(frame.pixel(each.y), 2.0)
        heights.append(max(here, heights[-1] + _GAP) if heights else here)
    limit = frame.height - 2.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - _GAP
    values = [
        {"series": each.name or each.text, "y": frame.value(height), "from": each.y, "text": each.text}
        for height, each in zip(heights, ordered, strict=True)
    ]
    lines = [Line(each.name or each.text, each.series, []) for each in ordered]
    faded = _chosen(1.0, 0.25)
    leader = _layer(
        {"type": "rule", "strokeWidth": 1.5}, values, x={"value": frame.plot + 1}, x2={"value": frame.plot + 9},
        y=_at("from"), y2={"field": "y"}, color=_colours(lines), opacity=faded,
    )  # fmt: skip
    written = {"type": "text", "align": "left", "baseline": "middle", "color": INK}
    place = {"x": {"value": frame.plot + 11}, "y": _at("y")}
    return [leader, _layer(written, values, **place, text={"field": "text"}, opacity=faded)]


def _axes(frame: Frame, x_label: str, x_format: Format, y_format: Format | None, *, y_label: str = "") -> Spec:
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


def _spec(frame: Frame, layers: Sequence[Spec], axes: Spec) -> Spec:
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
        "config": _CONFIG,
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


def _table(
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
