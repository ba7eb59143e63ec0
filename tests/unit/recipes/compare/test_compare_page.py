"""The page of a comparison: its pictures against the numbers, and looked at by a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from compare_kit import TEACHERS, levels, write_hand_run
from page_kit import CHROMIUM, Page, browse

from mopd.recipes.compare.charts import frontier, heat_map, pareto_chart, recovery_bars, widest
from mopd.recipes.compare.comparison import Comparison, compare
from mopd.recipes.compare.page import BANDS, banded, chosen_pair, render, write_comparison
from mopd.recipes.compare.wording import ranked
from mopd.recipes.report.page import POLICY
from mopd.recipes.report.records import Ends

WIDTHS = (390, 768, 1280)
STUDENTS = {"mopd": (88, 79), "prompts_811_unnormalised": (80, 75), "cascade": (62, 80), "<b>&weak": (45, 58)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Five rows: two seeds of mopd, three others, and one taught by a single teacher."""
    home = tmp_path_factory.mktemp("runs")
    folders = []
    for i, (name, (math, code)) in enumerate(STUDENTS.items()):
        curve = {0: levels(50, 60, 70), 10: levels((50 + math) // 2, 62, 70), 20: levels(math, code, 70)}
        student = levels(math, code, 70)
        folders.append(write_hand_run(home / name, {"run.steps": 20 + i}, student=student, curve=curve))
    second = {"seed": 1}
    folders.append(write_hand_run(home / "mopd-1", second, student=levels(84, 77, 70)))
    assert compare([folders[0], folders[-1]]).rows[0].n == 2
    single = {"domains.code.teacher": None, "domains.code.evaluate_only": True}
    single |= {"teachers": {"math": {"model": "stage:math"}}}
    folders.append(write_hand_run(home / "alone", single, teachers={"math": TEACHERS["math"]}))
    return compare(folders)


def colours(comparison: Comparison) -> dict[str, str]:
    return {row.name: f"d{i}" for i, row in enumerate(comparison.rows)}


def test_the_page_is_whole_self_contained_and_escapes_names(comparison: Comparison, tmp_path: Path) -> None:
    path = write_comparison(comparison, tmp_path, ["math", "code"])
    html = path.read_text()
    page = Page(html)
    assert [a for a in page.addresses if not a.startswith("#")] == ["data:,"]
    assert "url(" not in html
    assert "@import" not in html
    assert not {"script", "iframe", "img", "object", "b>&weak"} & set(page.tags)
    assert "<b>&weak" in page.sections["table"]
    assert page.tags.count("svg") == 2 + len(comparison.domains) + 1  # worst and mean, domains, the plane
    assert set(page.sections) >= {"table", "recovery", "compute", "transfer", "pareto", "settings"}


def test_the_numbers_of_the_page_are_those_of_comparison_json(comparison: Comparison) -> None:
    table = " ".join(Page(render(comparison, ["math", "code"])).sections["table"].split())
    for row in comparison.rows:
        value, ends = row.metrics.recovery["math"], row.metrics_ci.recovery["math"]
        assert value is not None
        assert ends is not None
        interval = " to " if min(ends) < 0 else "–"
        shown = f"{100 * value:.0f}% {100 * ends[0]:.0f}{interval}{100 * ends[1]:.0f}%".replace("-", "−")
        assert re.search(rf"{re.escape(row.name)}.*?{re.escape(shown)}", table)


def test_bars_lie_on_one_scale_and_whiskers_at_their_ends(comparison: Comparison) -> None:
    rows = ranked(comparison)
    panels = recovery_bars(rows, colours(comparison), comparison.domains)
    assert [panel.domain for panel in panels] == ["math", "code", "chat"]
    scale = {(panel.base, panel.teacher) for panel in panels}
    assert len(scale) == 1
    zero, one = scale.pop()
    for panel in panels[:2]:
        for bar, row in zip(panel.bars, rows, strict=True):
            value, ends = row.metrics.recovery[panel.domain], row.metrics_ci.recovery[panel.domain]
            assert value is not None
            assert ends is not None
            assert bar.left is not None
            assert bar.width is not None
            start, end = bar.left, bar.left + bar.width
            assert (start, end) == pytest.approx(tuple(sorted((zero, zero + value * (one - zero)))), abs=1e-6)
            low, high = (min(1.5, max(-0.5, e)) for e in ends)
            assert bar.whisker == pytest.approx((zero + low * (one - zero), (high - low) * (one - zero)), abs=1e-6)
            assert 0 <= start <= end <= 100
    assert {bar.width for bar in panels[2].bars} == {None}
    assert all(bar.text.endswith(" pt") for bar in panels[2].bars)


def test_the_heat_map_says_who_hurts_whom(comparison: Comparison) -> None:
    rows = {row.name: row for row in heat_map(comparison, ranked(comparison), colours(comparison))}
    # The teachers of the kit: 40/40 and -40/20; -20/40 and 20/20; chat has none.
    assert [cell.text for cell in rows["math"].cells] == ["100%", "−200%", "–"]
    assert [cell.text for cell in rows["code"].cells] == ["−50%", "100%", "–"]
    assert [cell.css for cell in rows["code"].cells] == ["down", "up", "none"]
    assert [cell.strength for cell in rows["code"].cells] == ["0.30", "0.60", "0.00"]
    assert [cell.own for cell in rows["code"].cells] == [False, True, False]
    assert rows["alone"].note == "student, taught by math alone"
    assert rows["cascade"].note == "student"


def test_the_frontier_is_what_nobody_beats() -> None:
    marks = [(0.5, 0.9), (0.7, 0.7), (0.6, 0.6), (0.9, 0.2), (0.7, 0.5), (0.5, 0.8), (0.9, 0.2)]
    beaten = {a for a in marks for b in marks if b[0] >= a[0] and b[1] >= a[1] and b != a}
    assert frontier(marks) == sorted(set(marks) - beaten) == [(0.5, 0.9), (0.7, 0.7), (0.9, 0.2)]
    assert frontier([(0.5, 0.5)]) == [(0.5, 0.5)]


def test_marks_lie_where_the_axes_say(comparison: Comparison) -> None:
    rows = ranked(comparison)
    others = {"base": (0.5, 0.6), "teacher math": (0.9, 0.2)}
    root = ElementTree.fromstring(pareto_chart(rows, colours(comparison), others, ["math", "code"]))
    labels = [text for text in root.findall("text") if (text.text or "").isdigit() and "tick" in text.attrib["class"]]
    across = {float(t.text or 0): float(t.attrib["x"]) for t in labels if t.attrib["text-anchor"] == "middle"}
    up = {float(t.text or 0): float(t.attrib["y"]) - 4 for t in labels if t.attrib["text-anchor"] == "end"}
    assert len(across) == len(up) > 3

    def at(value: float, known: dict[float, float]) -> float:
        low, high = min(known), max(known)
        return known[low] + (100 * value - low) / (high - low) * (known[high] - known[low])

    marks = [c for c in root.findall("circle") if "mark" in c.attrib["class"]]
    for mark, row in zip(marks, rows, strict=True):
        scores = row.metrics.scores
        assert float(mark.attrib["cx"]) == pytest.approx(at(scores["math"], across), abs=0.2)
        assert float(mark.attrib["cy"]) == pytest.approx(at(scores["code"], up), abs=0.2)
    numbers = [text.text for text in root.findall("text") if text.attrib["class"] == "number"]
    assert numbers == [str(i + 1) for i in range(len(rows))]
    stairs = root.find("path[@class='frontier']")
    assert stairs is not None
    corners = [tuple(map(float, c.split(","))) for c in re.findall(r"[\d.]+,[\d.]+", stairs.attrib["d"])]
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))


def test_bands_are_drawn_inside_their_chart_and_not_of_many_rows(tmp_path: Path) -> None:
    folders = []
    for i in range(BANDS + 1):
        for seed, math in enumerate((10, 90)):
            curve = {0: levels(math, 60, 70), 20: levels(math, 60, 70)}
            folders.append(write_hand_run(tmp_path / f"m{i}-{seed}", {"run.steps": 20 + i, "seed": seed}, curve=curve))
    few, many = compare(folders[:-2]), compare(folders)
    assert (banded(few.rows), banded(many.rows)) == (True, False)
    assert "bands span the seeds" in render(few, ["math", "code"])
    page = render(many, ["math", "code"])
    assert 'class="band' not in page
    assert "lines are means over seeds" in page
    svgs = [s for s in re.findall(r"<svg.*?</svg>", render(few, ["math", "code"]), re.S) if 'class="band' in s]
    assert svgs
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        height = float(root.attrib["viewBox"].split()[3])
        ends = [float(y) for path in root.findall("path") for y in re.findall(r"[\d.]+,([\d.]+)", path.attrib["d"])]
        axis = max(float(t.attrib["y"]) for t in root.findall("text") if (t.text or "").isdigit())
        assert max(ends) < axis < height


def test_an_interval_as_wide_as_the_plane_is_not_drawn_over_the_marks(comparison: Comparison) -> None:
    narrow = [
        {d: Ends(score - 0.01, score + 0.01) for d, score in row.metrics.scores.items()} for row in ranked(comparison)
    ]

    def whiskers() -> list[str]:
        rows = [
            replace(row, metrics_ci=replace(row.metrics_ci, scores=ends))
            for row, ends in zip(ranked(comparison), narrow, strict=True)
        ]
        root = ElementTree.fromstring(pareto_chart(rows, colours(comparison), {}, ["math", "code"]))
        return [p.attrib["d"] for p in root.findall("path") if p.attrib["class"].startswith("line")]

    assert [path.count("M") for path in whiskers()] == [2] * len(narrow)
    narrow[0]["math"] = Ends(0.0, 1.0)
    assert [path.count("M") for path in whiskers()] == [1] + [2] * (len(narrow) - 1)
    narrow[0]["code"] = Ends(0.0, 1.0)
    assert len(whiskers()) == len(narrow) - 1


def test_the_pair_is_the_widest_unless_given(comparison: Comparison) -> None:
    spread = {
        d: max(r.metrics.scores[d] for r in comparison.rows) - min(r.metrics.scores[d] for r in comparison.rows)
        for d in comparison.domains
    }
    assert set(widest(comparison.rows, comparison.domains)) == set(sorted(spread, key=lambda d: -spread[d])[:2])
    assert chosen_pair(comparison, None) == ["math", "code"]
    assert chosen_pair(comparison, "code, math") == ["code", "math"]
    assert widest(comparison.rows, ["chat"]) == ["chat"]
    assert 'id="pareto"' not in render(comparison, ["chat"])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the page with")
def test_a_browser_opens_it_without_complaint_and_nothing_is_cut_off(comparison: Comparison, tmp_path: Path) -> None:
    """Frames as wide as a phone, a tablet and a desk; a script of the test's own measures what would be cut off.

    It also complains once a frame, which proves that a complaint would be seen; the page itself has no scripts.
    """
    html = write_comparison(comparison, tmp_path, ["math", "code"]).read_text()
    tell = """function tell() {
      const inside = (e) => e.closest('.scroll') && (innerWidth == 768 || e.closest('.leaves'))  // these may scroll
      const cut = [...document.querySelectorAll('body *')].filter((e) => {
        const box = e.getBoundingClientRect()
        return box.width && (box.right > innerWidth + 1 || box.left < -1) && !inside(e)
      }).concat([...document.querySelectorAll('svg text')].filter((e) => {
        const [box, card] = [e.getBoundingClientRect(), e.closest('.card').getBoundingClientRect()]
        return box.right > card.right || box.left < card.left || box.bottom > card.bottom
      })).map((e) => e.tagName + '.' + e.getAttribute('class'))
      parent.told.push(document.documentElement.scrollWidth + '/' + innerWidth + '/' + (cut.join('+') || 'none'))
    }"""
    page = html.replace(POLICY, "").replace("</body>", "<script>console.error('seen'); tell()</script></body>")
    page = page.replace("<head>", f"<head><script>{tell}</script>")
    frames = "".join(f'<iframe style="width:{w}px;border:0" srcdoc="{escape(page)}"></iframe>' for w in WIDTHS)
    done = "<script>onload = () => { document.title = told.sort().join(' ') }</script>"
    (tmp_path / "frames.html").write_text(f"<title></title><script>told = []</script>{frames}{done}")
    dom, complaints = browse(tmp_path / "frames.html", tmp_path / "profile")
    assert len(complaints.splitlines()) == len(WIDTHS)
    assert all("seen" in complaint for complaint in complaints.splitlines())
    measured = re.findall(r"(\d+)/(\d+)/(\S+)", re.findall(r"<title>(.*?)</title>", dom)[0])
    assert {int(window) for _, window, _ in measured} == set(WIDTHS)
    assert [found for found in measured if int(found[0]) > int(found[1]) or found[2] != "none"] == []
