"""Charts drawn as SVG, read back as XML: what is drawn lies where the numbers say, and the table has the numbers."""

from __future__ import annotations

import json
import struct
from itertools import pairwise, product

import altair
import pytest
from jsonschema import ValidationError
from svg_kit import at, labels, marks, read, x_scale, y_scale

from mopd.recipes.report.chart_parts import (
    MAX_LABEL,
    MAX_POINTS,
    TABLE_ROWS,
    Bar,
    Line,
    Mark,
    ReferenceLine,
    thin,
    ticks,
)
from mopd.recipes.report.charts import (
    ModelBars,
    bar_chart,
    line_chart,
    plane_chart,
    seesaw_chart,
    seesaw_preset,
    share_chart,
)
from mopd.recipes.report.drawing import CARD, COLOURS, Picture

PERCENT = "{:.3g}".format
POINTS = [(0.0, 50.0), (100.0, 75.0), (200.0, 90.0)]
LEVELS = (ReferenceLine("teacher", 1, 95, dashed=True), ReferenceLine("base", None, 50, dashed=False))


def chart(levels: tuple[ReferenceLine, ...] = (), *, name: str = "student") -> Picture:
    band = [(x, y - 10, y + 5) for x, y in POINTS]
    line = Line(name, 1, POINTS, band, marks=True)
    return line_chart([line], title="a <chart>", y_range=(40, 100), y_format=PERCENT, levels=levels)


def bars(count: int = 3) -> Picture:
    rows = [
        Bar(f"{i} · row", i, 20.0 * i - 20, (20.0 * i - 30, 20.0 * i), f"{i}%", f"{i} to {i}") for i in range(count)
    ]
    rows.append(Bar("undefined", 3, None, None, "+2 pt"))
    head = ["row", "recovery", "95% interval"]
    return bar_chart(rows, title="b", x_range=(-50, 150), x_format="{:g}".format, x_label="%", head=head, reference=100)


def plane(count: int = 3) -> Picture:
    rows = [Mark(f"row {i}", i, (40.0 + i, 90.0 - 2 * i), (38.0 + i, 43.0 + i), None) for i in range(count)]
    others = [("base", (35.0, 40.0)), ("teacher", (90.0, 45.0))]
    edge = [row.at for row in rows]
    return plane_chart(
        rows, others, edge, title="p", pair=("math", "code"), axis_range=(30, 100), written="{:.1f}".format
    )


def seesaw() -> Picture:
    rows = [Bar(d, i, 10.0 - 20 * i, (8.0 - 20 * i, 12.0 - 20 * i), "t", "i") for i, d in enumerate(("math", "code"))]
    return seesaw_chart([ModelBars(model, rows) for model in ("math", "student")], title="The seesaw")


def shares() -> Picture:
    rows = [(step, [0.5, 0.3, 0.2]) for step in range(5)]
    return share_chart([("math", 0), ("code", 1), ("chat", 2)], rows, title="shares")


@pytest.mark.parametrize("picture", [chart(LEVELS), bars(24), plane(24), shares(), seesaw()], ids=lambda p: p.title)
def test_every_specification_is_vega_lite(picture: Picture) -> None:
    """altair holds the schema of Vega-Lite; that it would see an error is seen by one."""
    altair.Chart.from_dict(dict(picture.spec))
    json.dumps(picture.spec, allow_nan=False)
    layer = {**picture.spec["layer"][0], "mark": {"type": "no mark of Vega-Lite"}}
    with pytest.raises(ValidationError):
        altair.Chart.from_dict({**picture.spec, "layer": [layer]})


def test_what_is_sent_to_wandb_is_the_picture_of_a_card_without_its_data() -> None:
    preset = seesaw_preset()
    altair.Chart.from_dict(preset)
    assert preset["data"] == {"name": "wandb"}
    fields = {layer["encoding"]["y"]["field"] for layer in preset["layer"][:2]}
    assert fields == {"${field:model}"}
    drawn = seesaw().spec
    assert [layer["mark"] for layer in preset["layer"]] == [layer["mark"] for layer in drawn["layer"]]
    assert preset["config"] == drawn["config"]


def test_points_lie_where_the_axis_says() -> None:
    picture = chart()
    root = read(picture.svg)
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", "a <chart>")
    symbols, ys, xs = marks(picture.svg, "symbol"), y_scale(picture.svg), x_scale(picture.svg)
    assert [each.y for each in symbols] == pytest.approx([at(y, ys) for _, y in POINTS], abs=0.01)
    assert [each.x for each in symbols] == pytest.approx([xs["0"], xs["100"], xs["200"]], abs=0.01)
    (line,) = marks(picture.svg, "line")
    corners = line.path()
    assert [x for x, _ in corners] == pytest.approx([each.x for each in symbols], abs=0.01)
    assert [y for _, y in corners] == pytest.approx([each.y for each in symbols], abs=0.01)
    assert picture.head == ["step", "student"]
    assert picture.rows == [["0", "50"], ["100", "75"], ["200", "90"]]


def test_the_band_goes_along_its_upper_ends_and_back_along_its_lower() -> None:
    svg = chart().svg
    (area,) = marks(svg, "area")
    heights = [y for _, y in area.path()]
    known = [at(value, y_scale(svg)) for value in (40, 65, 80, 95, 80, 55)]
    assert heights == pytest.approx(known, abs=0.01)
    assert area.given["d"].endswith("Z")


def test_levels_are_drawn_and_labelled_at_their_value() -> None:
    picture = chart(LEVELS)
    teacher, base = [each for each in marks(picture.svg, "rule role-mark") if "stroke-dasharray" in each.given]
    assert [teacher.y, base.y] == pytest.approx([at(95, y_scale(picture.svg)), at(50, y_scale(picture.svg))], abs=0.01)
    assert [teacher.given["stroke"], base.given["stroke"]] == ["var(--c1)", "var(--muted)"]
    assert {each.text for each in labels(picture.svg)} == {"student 90", "teacher 95", "base 50"}
    assert picture.rows[-2:] == [["teacher", "95"], ["base", "50"]]


def test_labels_never_overlap_nor_leave_the_drawing_nor_are_left_out() -> None:
    for value, count in product((0.0, 0.5, 1.0), (6, 24)):
        lines = [Line(f"domain {i}", i, [(0, 0.3), (1, value + i * 1e-3)]) for i in range(count)]
        svg = line_chart(lines, title="", y_range=(0, 1.03), y_format=PERCENT).svg
        ys = sorted(each.y for each in labels(svg))
        assert len(ys) == count
        assert min(b - a for a, b in pairwise(ys)) >= 12.9
        assert ys[0] > 10
        assert ys[-1] < float(read(svg).attrib["viewBox"].split()[3])


def test_twenty_four_lines_have_names_and_looks_of_their_own() -> None:
    lines = [Line(f"{i + 1} ·", i, [(0, 50 + i), (1, 60 + i)], marks=True, name=f"row {i}") for i in range(24)]
    picture = line_chart(lines, title="", y_range=(0, 100), y_format=PERCENT)
    drawn = marks(picture.svg, "line")
    assert len({(each.given["stroke"], each.given["stroke-dasharray"]) for each in drawn}) == 24
    symbols = marks(picture.svg, "symbol")
    assert len({(each.given["fill"], each.given["d"]) for each in symbols}) == 24
    assert sorted(each.text for each in labels(picture.svg)) == sorted(f"{i + 1} · {60 + i}" for i in range(24))
    assert picture.head == ["step", *(f"row {i}" for i in range(24))]
    ends = [(each.x, each.y) for each in symbols[1::2]]
    leaders = [each for each in marks(picture.svg, "rule role-mark") if "x2" in each.given]
    assert sorted(each.y for each in leaders) == pytest.approx(sorted(y for _, y in ends), abs=0.01)


def test_an_axis_may_end_where_the_run_will() -> None:
    line = Line("student", 0, [(0, 0.5), (50, 0.6)], marks=True)
    short = marks(line_chart([line], title="", y_range=(0, 1), y_format=PERCENT, x_end=200).svg, "symbol")
    whole = marks(line_chart([line], title="", y_range=(0, 1), y_format=PERCENT).svg, "symbol")
    assert short[0].x == whole[0].x
    assert (short[1].x - short[0].x) * 4 == pytest.approx(whole[1].x - whole[0].x, abs=0.01)


def test_shares_are_stacked_to_the_whole() -> None:
    picture = shares()
    areas = {each.given["fill"]: each.path() for each in marks(picture.svg, "area")}
    for i, (below, above) in enumerate([(0, 50), (50, 80), (80, 100)]):
        heights = [y for _, y in areas[f"var(--c{i})"]]
        known = [at(below, y_scale(picture.svg)), at(above, y_scale(picture.svg))]
        assert [max(heights), min(heights)] == pytest.approx(known, abs=0.01)
    assert sorted(each.text for each in labels(picture.svg)) == ["chat 20%", "code 30%", "math 50%"]
    assert picture.rows[0] == ["0", "50%", "30%", "20%"]


def test_bars_start_at_zero_and_end_with_their_interval_where_the_axis_says() -> None:
    picture = bars()
    scale = {float(label): x for label, x in x_scale(picture.svg).items()}
    boxes = [each for each in marks(picture.svg, "rect") if "stroke" in each.given]
    for box, value in zip(boxes, (-20, 0, 20), strict=True):
        (left, above), (right, below) = box.path()
        assert sorted((left, right)) == pytest.approx(sorted((at(0, scale), at(value, scale))), abs=0.01)
        names = [each for each in labels(picture.svg) if above < each.y < below + 4]
        assert len(names) == 2  # before and behind
    whiskers = [each for each in marks(picture.svg, "rule role-mark") if each.given["stroke"] == "var(--ink)"]
    for whisker, (low, high) in zip(whiskers, ((-30, 0), (-10, 20), (10, 40)), strict=True):
        ends = (whisker.x, whisker.x + float(whisker.given["x2"]))
        assert ends == pytest.approx((at(low, scale), at(high, scale)), abs=0.01)
    dashed = [each.x for each in marks(picture.svg, "rule role-mark") if "stroke-dasharray" in each.given]
    assert dashed == pytest.approx([at(100, scale)], abs=0.01)
    assert "+2 pt" in {each.text for each in labels(picture.svg)}
    assert picture.rows[-1] == ["undefined", "+2 pt", ""]


def test_bars_are_cut_at_the_axis_and_the_table_is_not() -> None:
    far = Bar("far", 0, 900.0, (-800.0, 2000.0), "900%", "−800 to 2000%")
    picture = bar_chart([far], title="b", x_range=(-50, 150), x_format=PERCENT, x_label="%", head=["a", "b", "c"])
    (left, _), (right, _) = next(each for each in marks(picture.svg, "rect") if "stroke" in each.given).path()
    scale = {float(label): x for label, x in x_scale(picture.svg).items()}
    assert (left, right) == pytest.approx((at(0, scale), at(150, scale)), abs=0.01)
    assert picture.rows == [["far", "900%", "−800 to 2000%"]]


def test_marks_of_the_plane_lie_where_the_axes_say_and_the_frontier_is_stairs() -> None:
    picture = plane()
    across = {float(label): x for label, x in x_scale(picture.svg).items() if label.isdigit()}
    numbers = {each.text: each for each in labels(picture.svg)}
    circles = [each for each in marks(picture.svg, "symbol") if each.given["stroke"] != "var(--muted)"]
    for i, circle in enumerate(circles):
        place = (at(40 + i, across), at(90 - 2 * i, y_scale(picture.svg)))
        assert (circle.x, circle.y) == pytest.approx(place, abs=0.01)
        assert (numbers[str(i + 1)].x, numbers[str(i + 1)].y) == pytest.approx(place, abs=6)
    (stairs,) = marks(picture.svg, "line")
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(stairs.path()))
    assert len(stairs.path()) == 5
    rules = [each for each in marks(picture.svg, "rule role-mark") if "x2" in each.given]
    assert len(rules) == 3
    assert [picture.rows[0], picture.rows[-1]] == [["1 · row 0", "40.0", "90.0"], ["teacher", "90.0", "45.0"]]


def test_names_are_escaped_and_a_long_bar_loses_its_middle() -> None:
    svg = chart(name="<b>&weak").svg
    assert "<b>" not in svg
    assert "<b>&weak 90" in {each.text for each in labels(svg)}
    rows = [Bar(f"7 · prompts_811_{end}", 0, 1.0, None, "1") for end in ("unnormalised_shares", "summed_over_domains")]
    picture = bar_chart(rows, title="b", x_range=(0, 2), x_format=PERCENT, x_label="%", head=["row", "b", "c"])
    shown = [each.text for each in labels(picture.svg) if "…" in each.text]
    assert [len(text) for text in shown] == [MAX_LABEL, MAX_LABEL]
    assert len(set(shown)) == 2
    assert [row[0] for row in picture.rows] == [row.label for row in rows]


def test_colours_become_those_of_the_page_and_names_that_look_like_one_stay() -> None:
    assert COLOURS[1] not in chart().svg
    live = json.loads(chart(name=COLOURS[1]).live)
    scale = next(layer["encoding"]["color"]["scale"] for layer in live["layer"] if "color" in layer["encoding"])
    assert (scale["domain"], scale["range"]) == ([COLOURS[1]], ["var(--c1)"])
    assert live["layer"][0]["data"]["values"][0]["series"] == COLOURS[1]
    assert "<" not in chart(name="</script>").live


def test_a_png_is_drawn_on_white_at_the_size_that_is_asked() -> None:
    drawn = seesaw().png(scale=2.0)
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", drawn[16:24])
    twice = struct.unpack(">II", seesaw().png(scale=4.0)[16:24])
    assert 900 < width < 1600
    assert (2 * width, 2 * height) == pytest.approx(twice, abs=2)
    assert seesaw().spec["background"] == CARD


def test_a_table_of_many_points_has_means_of_neighbours() -> None:
    line = Line("loss", None, [(float(i), float(i)) for i in range(1200)])
    picture = line_chart([line], title="", y_range=(0, 1200), y_format=PERCENT)
    assert len(picture.rows) == TABLE_ROWS
    assert picture.rows[0] == ["50", "49.5"]


def test_lines_of_different_steps_have_a_row_for_each_point() -> None:
    lines = [Line("a", 0, [(0, 1), (1, 2)]), Line("b", 1, [(0, 3), (7, 4)])]
    picture = line_chart(lines, title="", y_range=(0, 5), y_format=PERCENT)
    assert picture.rows == [["a", "0", "1"], ["a", "1", "2"], ["b", "0", "3"], ["b", "7", "4"]]


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
            near = [points[i] for i in range(n) if edges[k] <= i < edges[k + 1]]
            assert (x, y) == pytest.approx((sum(p[0] for p in near) / len(near), sum(p[1] for p in near) / len(near)))


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
    line = Line("student", 0, [(0, 0.5)], marks=True)
    assert len(marks(line_chart([line], title="", y_range=(0, 1), y_format=PERCENT).svg, "symbol")) == 1


def test_on_a_logarithmic_axis_equal_factors_are_equal_steps_and_zero_is_at_the_edge() -> None:
    points = [(0.0, 0.5), (1e9, 0.6), (1e10, 0.7), (1e11, 0.8)]
    svg = line_chart(
        [Line("a", 0, points, marks=True)], title="t", y_range=(0, 1), y_format=PERCENT, x_format="{:.0e}".format,
        log_x=True,
    ).svg  # fmt: skip
    xs = [each.x for each in marks(svg, "symbol")]
    assert xs[2] - xs[1] == pytest.approx(xs[3] - xs[2], abs=0.01)
    assert xs[0] < xs[1]
    scale = x_scale(svg)
    assert scale["0"] == pytest.approx(xs[0], abs=0.01)
    assert scale["1e+10"] == pytest.approx(xs[2], abs=0.01)


def test_a_logarithmic_axis_of_nothing_but_zero_is_an_even_one() -> None:
    line = Line("a", 0, [(0.0, 0.5)], marks=True)
    assert marks(line_chart([line], title="t", y_range=(0, 1), y_format=PERCENT, log_x=True).svg, "symbol")
