"""The report, looked at by a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from browser_kit import least_text, needs_browser, opened, serious
from page_kit import WIDTHS
from run_kit import write_run

from mopd.recipes.report.page import write_report

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "run", n_test=300, n_validation=50)
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree | {"description": "a_name_without_a_gap_" * 8}))
    return write_report(run)


@pytest.mark.parametrize("width", [390, *WIDTHS])
def test_it_fits_phone_and_desk_and_text_of_charts_can_be_read(page: Path, width: int) -> None:
    with opened(page, width=width) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert least_text(tab) >= 11


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing_serious(page: Path, width: int, scheme: str) -> None:
    with opened(page, width=width, scheme=scheme) as tab:
        assert serious(tab) == {}
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert serious(tab) == {}


def test_bars_are_there_in_print(page: Path) -> None:
    with opened(page) as tab:
        tab.emulate_media(media="print")
        assert tab.locator("#seesaw .chart path[fill='var(--c0)']").first.is_visible()
        for mark in (".dot", ".meter i", ".tok"):
            assert tab.locator(mark).first.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"


def test_the_numbers_of_a_chart_are_reached_without_a_pointer(page: Path) -> None:
    with opened(page) as tab:
        summary = tab.locator("#seesaw summary").first
        summary.focus()
        tab.keyboard.press("Enter")
        table = tab.locator("#seesaw .numbers table").first
        assert table.is_visible()
        assert table.locator("th[scope=row]").all_text_contents() == ["math", "code", "reasoning"]
