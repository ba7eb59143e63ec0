"""Every chart of report, comparison, model card and W&B, as a Vega-Lite specification with the table of its numbers.

A chart for a page is 320 px wide, what a phone has room for, and is shown at that size or larger: its text is of 12 px.
Where its parts lie is set here to the pixel, so that labels at the ends of lines are pushed apart and a bar's name, bar
and value have a row of their own. A row that is not chosen is dimmed by the parameter ``chosen``, which only a page's
script sets. Numbers are drawn as they are given: percentages are percentages already.

Specifications are written as what they are, JSON: altair's builder took 0.2 s of processor time a chart, and a report
is written at every evaluation. A test holds each against altair's copy of the Vega-Lite schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from mopd.distill.tracking.sink import CHANGES
from mopd.recipes.report.chart_parts import (
    CONFIG,
    LABEL_GAP,
    LETTER_WIDTH,
    SCHEMA,
    WIDTH,
    Bar,
    EdgeLabel,
    Format,
    Frame,
    Line,
    Mark,
    Point,
    ReferenceLine,
    Spec,
    axes_of,
    band_layer,
    bar_row,
    chart_spec,
    diamond_layers,
    label_layers,
    level_layers,
    line_layers,
    log_ticks,
    mark_layer,
    numbered_layers,
    opacity,
    quantitative,
    series_colours,
    table_of,
    thin,
    ticks,
    tooltip_of,
    whisker_layers,
    without_middle,
)
from mopd.recipes.report.drawing import CARD, INK, MUTED, Picture, colour


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
    labels = [EdgeLabel(line.points[-1][1], line.label, line.series, line.name) for line in lines]
    labels += [EdgeLabel(level.y, level.label, level.series) for level in levels]
    if label_values:
        labels = [replace(each, text=f"{each.text} {y_format(each.y)}") for each in labels]
    right = 14 + min(104, round(max((len(each.text) for each in labels), default=0) * LETTER_WIDTH))
    frame = Frame(
        x=(low, high if high > low else low + 1),
        y=y_range,
        right=right,
        height=max(180, LABEL_GAP * len(labels)),
        log_x=log_x,
        x_ticks=[low, *log_ticks(low, high)] if log_x else ticks(low, high, 4),
        y_ticks=ticks(*y_range),
    )
    layers = level_layers(frame, levels)
    layers += [band_layer([line for line in lines if line.band])] if any(line.band for line in lines) else []
    layers += line_layers(lines, x_label, x_format, y_format) if lines else []
    layers += label_layers(frame, labels)
    spec = chart_spec(frame, layers, axes_of(frame, x_label, x_format, y_format))
    return Picture(title, spec, *table_of(lines, levels, x_label, x_format, y_format))


def share_chart(
    names: Sequence[tuple[str, int]], rows: Sequence[tuple[float, Sequence[float]]], *, title: str
) -> Picture:
    """Shares stacked to 100% over training steps.

    Args:
        names: label and series of each share, from the bottom up.
        rows: step, and the shares at it in the order of ``names``.
    """
    columns = [thin([(x, 100 * shares[i]) for x, shares in rows]) for i in range(len(names))]
    right = 14 + min(92, round(max(len(label) + 4 for label, _ in names) * LETTER_WIDTH))
    xs = (rows[0][0], rows[-1][0])
    frame = Frame(
        x=xs,
        y=(0, 100),
        right=right,
        height=max(180, LABEL_GAP * len(names)),
        x_ticks=ticks(*xs, 4),
        y_ticks=ticks(0, 100),
    )
    floor = [0.0] * len(columns[0])
    values: list[Spec] = []
    labels: list[EdgeLabel] = []
    for (label, series), column in zip(names, columns, strict=True):
        top = [below + share for below, (_, share) in zip(floor, column, strict=True)]
        values += [
            {"series": label, "x": x, "y": below, "y2": above, "share": round(share, 1)}
            for (x, share), below, above in zip(column, floor, top, strict=True)
        ]
        labels.append(EdgeLabel((floor[-1] + top[-1]) / 2, f"{label} {column[-1][1]:.0f}%", series, label))
        floor = top
    lines = [Line(label, series, column) for (label, series), column in zip(names, columns, strict=True)]
    area = mark_layer(
        {"type": "area", "stroke": CARD, "strokeWidth": 1.5}, values,
        x=quantitative("x"), y=quantitative("y"), y2={"field": "y2"}, color=series_colours(lines), opacity=opacity(0.9),
    )  # fmt: skip
    layers = [area, *label_layers(frame, labels)]
    spec = chart_spec(frame, layers, axes_of(frame, "step", "{:g}".format, lambda y: f"{y:.0f}%"))
    return Picture(title, spec, *table_of(lines, (), "step", "{:g}".format, lambda y: f"{y:.0f}%"))


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
    shown = [without_middle(bar.label) for bar in bars]
    left = 12 + round(max(map(len, shown)) * LETTER_WIDTH)
    right = 12 + round(max(len(bar.text) for bar in bars) * LETTER_WIDTH)
    plot = WIDTH - left - right
    frame = Frame(
        x=x_range, y=(-len(bars), 0), left=left, right=right, bottom=38, top=8, height=22 * len(bars),
        x_ticks=ticks(low, high, plot // 45),
    )  # fmt: skip
    values = [bar_row(bar, label, i, low, high) for i, (bar, label) in enumerate(zip(bars, shown, strict=True))]
    drawn = [row for row in values if "value" in row]
    lines = [Line(bar.whole_name, bar.series, []) for bar in bars]
    layers = (
        [mark_layer({"type": "rule", "color": MUTED}, [{"x": 0.0}], x=quantitative("x"))] if low <= 0 <= high else []
    )
    if reference is not None:
        layers.append(
            mark_layer({"type": "rule", "color": MUTED, "strokeDash": [4, 3]}, [{"x": reference}], x=quantitative("x"))
        )
    if drawn:
        tooltip = {"series": head[0], "text": head[1]} | (
            {"interval": head[2]} if any(b.interval for b in bars) else {}
        )
        layers.append(
            mark_layer(
                {"type": "bar", "height": 13, "strokeWidth": 1}, drawn,
                x=quantitative("start"), x2={"field": "value"}, y=quantitative("y"),
                color=series_colours(lines), stroke=series_colours(lines),
                fillOpacity={"field": "fill", "type": "quantitative", "scale": None},
                opacity=opacity(1.0), tooltip=tooltip_of(tooltip),
            )
        )  # fmt: skip
    layers += whisker_layers([row for row in drawn if "low" in row])
    for place, name, align, weight in ((-6, "label", "right", "normal"), (plot + right - 2, "text", "right", "bold")):
        mark = {"type": "text", "align": align, "baseline": "middle", "fontWeight": weight, "color": INK}
        written = {"x": {"value": place}, "text": {"field": name}, "opacity": opacity(1.0, 0.35)}
        layers.append(mark_layer(mark, values, y=quantitative("y"), **written))
    axes = axes_of(frame, x_label, x_format, None)
    rows = [[bar.whole_name, bar.text, bar.interval] for bar in bars]
    kept = head if any(row[2] for row in rows) else head[:2]
    return Picture(title, chart_spec(frame, layers, axes), kept, [row[: len(kept)] for row in rows])


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
    layers = [
        mark_layer(
            line, path, x=quantitative("x"), y=quantitative("y"), order={"field": "order", "type": "quantitative"}
        )
    ]
    rule: Spec = {
        "x": quantitative("x"),
        "y": quantitative("y"),
        "color": series_colours(lines),
        "opacity": opacity(0.8),
    }
    rows = [_cross(m, {"x": m.across[0], "x2": m.across[1]}) for m in marks if m.across is not None]
    layers += [mark_layer({"type": "rule", "strokeWidth": 2}, rows, **rule, x2={"field": "x2"})] if rows else []
    rows = [_cross(m, {"y": m.up[0], "y2": m.up[1]}) for m in marks if m.up is not None]
    layers += [mark_layer({"type": "rule", "strokeWidth": 2}, rows, **rule, y2={"field": "y2"})] if rows else []
    layers += diamond_layers(sum(axis_range) / 2, others)
    layers += numbered_layers(marks, lines, pair, written)
    axes = axes_of(frame, f"{pair[0]}, %", "{:g}".format, "{:g}".format, y_label=f"{pair[1]}, %")
    spec = chart_spec(frame, layers, axes)
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
        "config": {**CONFIG, "axis": {**CONFIG["axis"], "titleFontSize": 13}},
    }


def _not_below(line: Line, low: float) -> Line:
    """What is below the lowest, zero among it, lies at the left edge."""
    points = [(max(x, low), y) for x, y in line.points]
    return replace(line, points=points, band=[(max(x, low), a, b) for x, a, b in line.band])


def _cross(mark: Mark, ends: Spec) -> Spec:
    return {"series": mark.name, "x": mark.at[0], "y": mark.at[1], **ends}
