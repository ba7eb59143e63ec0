"""The page of a comparison of 24 rows, opened, used and looked at in a real browser."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from browser_kit import becomes, least_text, needs_browser, opened, serious
from compare_kit import levels, write_hand_run

from mopd.recipes.compare.comparison import compare
from mopd.recipes.compare.page import write_comparison
from mopd.recipes.compare.wording import ranked

pytestmark = needs_browser
ROWS = 24
CUT_OFF = """() => {
  const inside = e => e.closest('.scroll') && (innerWidth > 640 || e.closest('.leaves') || e.closest('.numbers'))
  const cut = [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect()
    return box.width > 1 && (box.right > innerWidth + 1 || box.left < -1) && !inside(e)
  }).concat([...document.querySelectorAll('.chart svg text')].filter(e => {
    const [box, card] = [e.getBoundingClientRect(), e.closest('.card').getBoundingClientRect()]
    return box.width && (box.right > card.right || box.left < card.left || box.bottom > card.bottom)
  }))
  return cut.map(e => e.tagName + '.' + e.getAttribute('class') + ' ' + e.textContent.slice(0, 20))
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows, one of a name that is markup and some of a long one."""
    home, draw, folders = tmp_path_factory.mktemp("runs"), random.Random(0), []
    for i in range(ROWS):
        math, code = draw.randint(40, 92), draw.randint(45, 82)
        curve = {s: levels(50 + (math - 50) * s // 20, 60 + (code - 60) * s // 20, 70) for s in (0, 10, 20)}
        name = "<b>&weak" if i == 3 else f"prompts_811_unnormalised_{i}"
        folders.append(write_hand_run(home / name, {"run.steps": 20 + i}, student=levels(math, code, 64), curve=curve))
    comparison = compare(folders)
    assert len(ranked(comparison)) == ROWS
    return write_comparison(comparison, home / "out", ["math", "code"])


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_cut_off_and_text_of_charts_can_be_read(page: Path, width: int) -> None:
    with opened(page, width=width, own=True) as tab:
        assert tab.evaluate(CUT_OFF) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert least_text(tab) >= 11
        labels = tab.locator(".drawn .live svg").first.locator("text").all_text_contents()
        assert len([each for each in labels if " · " in each]) == ROWS


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing_serious(page: Path, width: int, scheme: str) -> None:
    with opened(page, width=width, scheme=scheme, own=True) as tab:
        assert serious(tab) == {}
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert serious(tab) == {}


def test_axe_would_find_something(page: Path) -> None:
    with opened(page, own=True) as tab:
        tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\"><input>')")
        assert set(serious(tab)) == {"image-alt", "label"}


def test_a_row_is_chosen_by_keys_or_pointer_and_the_others_are_dimmed(page: Path) -> None:
    """Under the page's own policy, which no script but its own passes."""
    with opened(page) as tab:
        bars = tab.locator("#recovery .live").first.locator("g.mark-rect.layer_2_marks path")

        def dimmed() -> list[bool]:
            return [float(bars.nth(i).get_attribute("opacity")) < 0.5 for i in range(bars.count())]

        count = bars.count()
        assert becomes(dimmed, [False] * count)
        tab.locator(".choose select").focus()
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowDown")
        assert becomes(dimmed, [i != 1 for i in range(count)])
        assert tab.locator("#table tbody").first.locator("tr:not(.dim)").count() == 1
        bars.nth(4).click()
        assert becomes(dimmed, [i != 4 for i in range(count)])
        fifth = tab.locator("#table tbody").first.locator("tr").nth(4).get_attribute("data-row")
        assert tab.locator(".choose select").input_value() == fifth
        bars.nth(4).click()  # once more: all again
        assert becomes(dimmed, [False] * count)


def test_the_numbers_of_a_mark_stand_at_the_pointer(page: Path) -> None:
    with opened(page) as tab:
        row = tab.locator("#table tbody").first.locator("tr").nth(2)
        name, math = row.get_attribute("data-row"), row.locator("td b").first.text_content()
        tab.locator("#recovery .live").first.locator("g.mark-rect.layer_2_marks path").nth(2).hover()
        tip = tab.locator("#vg-tooltip-element")
        tip.wait_for()
        assert name in tip.text_content()
        assert math in tip.text_content()


def test_the_numbers_of_a_chart_are_reached_without_a_pointer(page: Path) -> None:
    with opened(page) as tab:
        summary = tab.locator("#recovery summary").first
        summary.focus()
        tab.keyboard.press("Enter")
        rows = tab.locator("#recovery .numbers").first.locator("tbody tr")
        assert rows.count() == ROWS
        assert rows.first.is_visible()
        ends = [
            row.locator("td .ci").first.text_content() for row in tab.locator("#table tbody").first.locator("tr").all()
        ]
        assert [row.locator("td").last.text_content() for row in rows.all()] == ends


def test_a_table_is_sorted_by_any_column_from_the_keyboard(page: Path) -> None:
    with opened(page) as tab:
        table = tab.locator("#table table").first

        def column(i: int) -> list[float]:
            cells = table.locator(f"tbody tr td:nth-child({i})").all()
            return [float(cell.get_attribute("data-value")) for cell in cells if cell.get_attribute("data-value")]

        table.get_by_role("button", name="math").focus()
        tab.keyboard.press("Enter")
        assert column(2) == sorted(column(2), reverse=True)
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        tab.keyboard.press("Enter")
        assert column(2) == sorted(column(2)) != sorted(column(2), reverse=True)
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
        table.get_by_role("button", name="Row").press("Enter")
        names = [each.get_attribute("data-row") for each in table.locator("tbody tr").all()]
        assert len(names) == len(set(names)) == ROWS
        # A column without numbers has nothing to sort by: chat has no teacher.
        assert table.get_by_role("button", name="chat").count() == 0


def test_without_scripts_and_in_print_the_pictures_are_there(page: Path) -> None:
    with opened(page, scripts=False) as tab:
        assert tab.locator(".still svg").first.is_visible()
        assert tab.locator(".choose").is_hidden()
    with opened(page) as tab:
        assert not tab.locator(".still svg").first.is_visible()
        tab.emulate_media(media="print")
        stills = tab.locator(".still svg").all()
        assert stills
        assert all(each.is_visible() for each in stills)
        assert not any(each.is_visible() for each in tab.locator(".live").all())
        for mark in (".dot", ".heat td.up"):
            kept = "e => getComputedStyle(e).printColorAdjust"
            assert tab.locator(mark).first.evaluate(kept) == "exact"
