"""Charts drawn as SVG, read back as XML: what is drawn lies where the numbers say."""

from __future__ import annotations

import re
from itertools import pairwise, product
from xml.etree import ElementTree

import pytest

from mopd.recipes.report.charts import (
    MAX_POINTS,
    MOST_LABELS,
    Line,
    ReferenceLine,
    line_chart,
    share_chart,
    thin,
    ticks,
)


def percent(y: float) -> str:
    return f"{100 * y:.3g}"


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def scale(root: ElementTree.Element) -> dict[float, float]:
    """Value of each tick of the vertical axis -> its height on the drawing."""
    heights = [float(line.attrib["y1"]) for line in root.findall("line[@class='grid']")]
    labels = [text.text or "" for text in root.findall("text[@text-anchor='end']")]
    return {float(label.rstrip("%")) / 100: height for label, height in zip(labels, heights, strict=True)}


def height_of(value: float, root: ElementTree.Element) -> float:
    known = scale(root)
    low, high = min(known), max(known)
    return known[low] + (value - low) / (high - low) * (known[high] - known[low])


def chart(levels: tuple[ReferenceLine, ...] = ()) -> ElementTree.Element:
    points = [(0.0, 0.5), (100.0, 0.75), (200.0, 0.9)]
    band = [(x, y - 0.1, y + 0.05) for x, y in points]
    line = Line("student", "d1", points, band, marks=True)
    return drawn(line_chart([line], title="a <chart>", y_range=(0.4, 1.0), y_format=percent, levels=levels))


def test_points_lie_where_the_axis_says() -> None:
    root = chart()
    assert root.attrib["aria-label"] == "a <chart>"
    marks = root.findall("circle")
    for mark, value in zip(marks, (0.5, 0.75, 0.9), strict=True):
        assert float(mark.attrib["cy"]) == pytest.approx(height_of(value, root), abs=0.11)
    xs = [float(mark.attrib["cx"]) for mark in marks]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    titles = ["step 0: 50", "step 100: 75", "step 200: 90"]
    assert [mark.findtext("title") for mark in marks] == titles
    path = root.find("path[@class='line d1']")
    assert path is not None
    assert [float(y) for y in re.findall(r",([\d.]+)", path.attrib["d"])] == [float(m.attrib["cy"]) for m in marks]


def test_the_band_goes_along_its_upper_ends_and_back_along_its_lower() -> None:
    root = chart()
    path = root.find("path[@class='band d1']")
    assert path is not None
    heights = [float(y) for y in re.findall(r",([\d.]+)", path.attrib["d"])]
    expected = [height_of(value, root) for value in (0.55, 0.8, 0.95, 0.8, 0.65, 0.4)]
    assert heights == pytest.approx(expected, abs=0.11)
    assert path.attrib["d"].endswith("Z")


def test_levels_are_drawn_and_labelled_at_their_value() -> None:
    root = chart((ReferenceLine("teacher", "d1 teacher", 0.95), ReferenceLine("base", "base", 0.5)))
    line = root.find("line[@class='level d1 teacher']")
    assert line is not None
    assert float(line.attrib["y1"]) == float(line.attrib["y2"]) == pytest.approx(height_of(0.95, root), abs=0.11)
    labels = {text.attrib["class"]: text.text for text in root.findall("text") if "label" in text.attrib["class"]}
    assert labels == {"label d1": "student 90", "label d1 teacher": "teacher 95", "label base": "base 50"}


def test_labels_never_overlap_nor_leave_the_drawing() -> None:
    for value, count in product((0.0, 0.5, 1.0), (6, 20)):
        lines = [Line(f"domain {i}", f"d{i}", [(0, 0.3), (1, value + i * 1e-3)]) for i in range(count)]
        root = drawn(line_chart(lines, title="", y_range=(0, 1.01), y_format=percent))
        ys = sorted(float(t.attrib["y"]) for t in root.findall("text") if "label" in t.attrib["class"])
        assert min(b - a for a, b in pairwise(ys)) >= 13.9
        assert len(ys) == min(count, MOST_LABELS)
        assert ys[0] > 0
        assert ys[-1] < float(root.attrib["viewBox"].split()[3])


def test_an_axis_may_end_where_the_run_will() -> None:
    line = Line("student", "d0", [(0, 0.5), (50, 0.6)], marks=True)
    short = drawn(line_chart([line], title="", y_range=(0, 1), y_format=percent, x_end=200))
    whole = drawn(line_chart([line], title="", y_range=(0, 1), y_format=percent))
    start, at_short, at_whole = (
        float(r.findall("circle")[i].attrib["cx"]) for r, i in ((whole, 0), (short, 1), (whole, 1))
    )
    assert (at_short - start) * 4 == pytest.approx(at_whole - start, abs=0.5)


def test_shares_are_stacked_to_the_whole() -> None:
    rows = [(step, [0.5, 0.3, 0.2]) for step in range(5)]
    root = drawn(share_chart([("math", "d0"), ("code", "d1"), ("chat", "d2")], rows, title=""))
    tops = {}
    for path in root.findall("path"):
        heights = [float(y) for y in re.findall(r",([\d.]+)", path.attrib["d"])]
        tops[path.attrib["class"]] = (max(heights), min(heights))
    for css, (below, above) in {"d0": (0.0, 0.5), "d1": (0.5, 0.8), "d2": (0.8, 1.0)}.items():
        assert tops[f"area {css}"] == pytest.approx((height_of(below, root), height_of(above, root)), abs=0.11)
    labels = [text.text for text in root.findall("text") if "label" in text.attrib["class"]]
    assert sorted(filter(None, labels)) == ["chat 20%", "code 30%", "math 50%"]


def test_names_are_escaped_and_long_ones_cut() -> None:
    line = Line("<b>&instruction_following", "d0", [(0, 1), (1, 2)])
    svg = line_chart([line], title="", y_range=(0, 2), y_format=percent, label_values=False)
    assert "<b>" not in svg
    label = next(text for text in drawn(svg).findall("text") if "label" in text.attrib["class"])
    assert label.text == "<b>&instruc…"


@pytest.mark.parametrize("n", [1, MAX_POINTS, MAX_POINTS + 1, 1000])
def test_thinning_keeps_the_mean_and_the_order(n: int) -> None:
    points = [(float(i), float(i % 7)) for i in range(n)]
    kept = thin(points)
    assert len(kept) == min(n, MAX_POINTS)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert kept[0][0] <= n / MAX_POINTS
    if n == 1000:
        # Each is the mean of 8 or 9 neighbours, worked out one by one here.
        edges = [round(i * n / MAX_POINTS) for i in range(MAX_POINTS + 1)]
        for k, (x, y) in enumerate(kept):
            mine = [points[i] for i in range(n) if edges[k] <= i < edges[k + 1]]
            assert (x, y) == pytest.approx((sum(p[0] for p in mine) / len(mine), sum(p[1] for p in mine) / len(mine)))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.5, 1, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (0, 200, [0, 50, 100, 150, 200]),
        (1, 850, [200, 400, 600, 800]),
        (0, 0.021, [0, 0.005, 0.01, 0.015, 0.02]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_single_point_is_drawn() -> None:
    root = drawn(
        line_chart([Line("student", "d0", [(0, 0.5)], marks=True)], title="", y_range=(0, 1), y_format=percent)
    )
    assert len(root.findall("circle")) == 1


def test_on_a_logarithmic_axis_equal_factors_are_equal_steps_and_zero_is_at_the_edge() -> None:
    points = [(0.0, 0.5), (1e9, 0.6), (1e10, 0.7), (1e11, 0.8)]
    told = line_chart(
        [Line("a", "d0", points, marks=True)], title="t", y_range=(0, 1), y_format=percent, x_format="{:.0e}".format,
        log_x=True,
    )  # fmt: skip
    root = drawn(told)
    xs = [float(mark.attrib["cx"]) for mark in root.findall("circle")]
    assert xs[2] - xs[1] == pytest.approx(xs[3] - xs[2], abs=0.11)
    assert xs[0] < xs[1]
    labels = {t.text: float(t.attrib["x"]) for t in root.findall("text[@text-anchor='middle']")}
    assert labels["0e+00"] == pytest.approx(xs[0], abs=0.11)
    assert labels["1e+10"] == pytest.approx(xs[2], abs=0.11)


def test_a_logarithmic_axis_of_nothing_but_zero_is_an_even_one() -> None:
    root = drawn(line_chart([Line("a", "d0", [(0.0, 0.5)])], title="t", y_range=(0, 1), y_format=percent, log_x=True))
    assert root.find("path[@class='line d0']") is not None
