"""The page of a comparison: its pictures against the numbers."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import Counter
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
from compare_kit import TEACHERS, levels, write_hand_run
from page_kit import Page
from svg_kit import at, labels, marks, x_scale, y_scale

from mopd.distill.metrics.episodes import measured_episodes
from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.tracking.jsonl import append_jsonl, read_jsonl
from mopd.distill.verdicts import EpisodeRecord
from mopd.recipes.compare.charts import frontier, heat_map, pareto_chart, recovery_charts, widest
from mopd.recipes.compare.comparison import Comparison, compare
from mopd.recipes.compare.page import BANDS, banded, chosen_pair, render, write_comparison
from mopd.recipes.compare.wording import ranked
from mopd.recipes.report.records import Ends

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


def numbers(comparison: Comparison) -> dict[str, int]:
    return {row.name: i for i, row in enumerate(comparison.rows)}


def test_the_page_is_whole_self_contained_and_escapes_names(comparison: Comparison, tmp_path: Path) -> None:
    path = write_comparison(comparison, tmp_path, ["math", "code"])
    html = path.read_text()
    page = Page(html)
    assert [a for a in page.addresses if not a.startswith("#")] == ["data:,"]
    assert not {"iframe", "img", "object", "b>&weak"} & set(page.tags)
    assert "<b>&weak" in page.sections["table"]
    charts = len(comparison.domains) + 2 + len(comparison.domains) + 1  # bars; worst and mean, domains; the plane
    assert html.count('<div class="still"><svg') == html.count('<script type="application/json"') == charts
    assert set(page.sections) >= {"table", "recovery", "compute", "transfer", "pareto", "settings"}
    styles = re.findall(r"<style>.*?</style>", html, re.S)
    assert not re.search(r"url\(|@import", "".join(styles))


def test_its_policy_lets_the_scripts_run_that_it_has_and_no_others(comparison: Comparison) -> None:
    html = render(comparison, ["math", "code"])
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    digests = {b64encode(sha256(each.encode()).digest()).decode() for each in scripts}
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)[0]
    allowed = set(re.findall(r"'sha256-(.*?)'", policy))
    assert digests < allowed  # the search's is there where there is something to search
    assert len(allowed) == 3
    assert "unsafe-eval" not in policy
    assert policy.startswith("default-src 'none'")


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
    charts = recovery_charts(rows, numbers(comparison), comparison.domains)
    assert [chart.title for chart in charts] == ["math", "code", "chat"]
    for chart in charts[:2]:
        svg = chart.picture.svg
        scale = {float(label.replace("−", "-")): x for label, x in x_scale(svg).items()}
        bars = [each for each in marks(svg, "rect") if "stroke" in each.given]
        whiskers = [each for each in marks(svg, "rule role-mark") if each.given["stroke"] == "var(--ink)"]
        for bar, whisker, row in zip(bars, whiskers, rows, strict=True):
            value, ends = row.metrics.recovery[chart.title], row.metrics_ci.recovery[chart.title]
            assert value is not None
            assert ends is not None
            (left, _), (right, _) = bar.path()
            expected = sorted((at(0, scale), at(100 * max(-0.5, value), scale)))
            assert sorted((left, right)) == pytest.approx(expected, abs=0.01)
            low, high = (at(100 * min(1.5, max(-0.5, end)), scale) for end in ends)
            assert (whisker.x, whisker.x + float(whisker.given["x2"])) == pytest.approx((low, high), abs=0.01)
    specs = [chart.picture.spec["layer"][0]["encoding"]["x"]["scale"]["domain"] for chart in charts]
    assert specs[0] == specs[1] == specs[2]
    assert [each for each in marks(charts[2].picture.svg, "rect") if "stroke" in each.given] == []
    assert all(row[1].endswith(" pt") for row in charts[2].picture.rows)
    assert [row[0] for row in charts[0].picture.rows] == [row.name for row in rows]


def test_the_heat_map_says_who_hurts_whom(comparison: Comparison) -> None:
    rows = {row.name: row for row in heat_map(comparison, ranked(comparison), dict.fromkeys(numbers(comparison), "d0"))}
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
    svg = pareto_chart(rows, numbers(comparison), others, ["math", "code"]).svg
    across = {float(label): x for label, x in x_scale(svg).items() if label.isdigit()}
    circles = [each for each in marks(svg, "symbol") if each.given["stroke"] != "var(--muted)"]
    for circle, row in zip(circles, rows, strict=True):
        scores = row.metrics.scores
        place = (at(100 * scores["math"], across), at(100 * scores["code"], y_scale(svg)))
        assert (circle.x, circle.y) == pytest.approx(place, abs=0.01)
    shown = {each.text for each in labels(svg)}
    assert shown == {*(str(i + 1) for i in range(len(rows))), "base", "teacher math"}


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
    assert "mark-area" not in page
    assert "lines are means over seeds" in page
    svgs = [s for s in re.findall(r"<svg.*?</svg>", render(few, ["math", "code"]), re.S) if "mark-area" in s]
    assert svgs
    for svg in svgs:
        ends = [y for area in marks(svg, "area") for _, y in area.path()]
        axis = min(each.y for each in marks(svg, "text role-axis-label") if each.given["text-anchor"] == "middle")
        assert min(ends) >= 9.99  # the plot's upper edge
        assert max(ends) < axis


def test_an_interval_as_wide_as_the_plane_is_not_drawn_over_the_marks(comparison: Comparison) -> None:
    narrow = [
        {d: Ends(score - 0.01, score + 0.01) for d, score in row.metrics.scores.items()} for row in ranked(comparison)
    ]

    def whiskers() -> Counter[int]:
        """How many rows have so many of the two."""
        rows = [
            replace(row, metrics_ci=replace(row.metrics_ci, scores=ends))
            for row, ends in zip(ranked(comparison), narrow, strict=True)
        ]
        svg = pareto_chart(rows, numbers(comparison), {}, ["math", "code"]).svg
        drawn = Counter(each.given["stroke"] for each in marks(svg, "rule role-mark"))
        return Counter(drawn.values())

    count = len(narrow)
    assert whiskers() == {2: count}
    narrow[0]["math"] = Ends(0.0, 1.0)
    assert whiskers() == {2: count - 1, 1: 1}
    narrow[0]["code"] = Ends(0.0, 1.0)
    assert whiskers() == {2: count - 1}


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


def test_episodes_and_their_pace_stand_beside_the_scores(comparison: Comparison, tmp_path: Path) -> None:
    assert "episodes" not in Page(render(comparison, ["math", "code"])).sections
    assert all(run.episodes == run.paces == {} for run in comparison.runs)
    folder = write_hand_run(tmp_path / "agents")
    record = EpisodeRecord(1.0, "done", turns=3, tool_calls=2, failed_first=True)
    answers = [Evaluation(**row) for row in read_jsonl(folder / "evaluations.jsonl")]
    played = [replace(row, episode=record) if row.domain == "code" else row for row in answers]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row.record()) + "\n" for row in played))
    pace = {"turns_per_minute": 1234.4, "tool_calls_per_minute": 60.0, "solved_per_minute": 30.0}
    cost = {"model": "student", "tokens": 3, "flops": 900.0, "seconds": 9.0}
    append_jsonl(folder / "exams.jsonl", [{**cost, "split": "test", **pace}])
    with_episodes = compare([folder])
    (run,) = with_episodes.record()["runs"]
    asked = sum(row.domain == "code" and row.model == "student" and row.split == "test" for row in answers)
    assert run["episodes"]["student"] == {"code": asdict(measured_episodes([record] * asked))}
    assert run["paces"] == {"student": pace}
    shown = " ".join(Page(render(with_episodes, ["math", "code"])).sections["episodes"].split())
    assert "studentcode100.0%" in shown  # cells one after another
    assert "student1,2346030" in shown
