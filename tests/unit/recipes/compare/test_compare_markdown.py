"""A comparison as Markdown: its numbers, its place in a page, and names that mean nothing there."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare_kit import levels, write_hand_run

from mopd.distill.types import UserError
from mopd.recipes.compare.comparison import Comparison, compare
from mopd.recipes.compare.markdown import BEGIN, END, markdown, write_markdown


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    home = tmp_path_factory.mktemp("runs")
    other = {"method": "mix_rl", "trials": 6}
    return compare([write_hand_run(home / "mopd"), write_hand_run(home / "a|b_c", other, student=levels(70, 62, 70))])


def cells(text: str, name: str) -> list[list[str]]:
    """Rows of all tables that begin with a name."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [[cell.strip() for cell in line.strip("|").replace("\\|", "&").split("|")] for line in lines]


def test_the_tables_hold_the_numbers(comparison: Comparison) -> None:
    text = markdown(comparison)
    recovery, losses, parity, curve = cells(text, "mopd")
    assert recovery[1:3] == ["1", "–"]
    assert recovery[3].startswith("75% (")  # 30/40 and 15/20
    assert recovery[4].startswith("75% (")
    assert recovery[5] == "−6.0 pt"
    assert losses[1].startswith("5.9 (")
    assert losses[4:] == ["450 / 590", "3 s / 31 s"]
    assert parity[1].startswith("1×")
    assert recovery[-1] == "–"
    assert curve[1:] == ["60.0", "60.8", "61.7", "63.3", "75.0", "75.0 (400)"]
    other = cells(text, r"a\|b\_c")[0]
    assert other[2] == "6"
    assert cells(text, "math") == [["math", "100%", "−200%", "–"]]
    for line in (line for line in text.splitlines() if line.startswith("|")):
        assert line.replace("\\|", "").count("|") in (5, 6, 7, 8, 12), line


def test_each_seed_is_shown_and_curves_end_where_their_runs_do(tmp_path: Path) -> None:
    """A cascade is first measured after its first link, and nothing is said of less or more compute than it took."""
    low = write_hand_run(tmp_path / "mopd-1", {"seed": 1}, student=levels(60, 80, 70))
    other = write_hand_run(
        tmp_path / "other", {"method": "mix_rl"}, curve={10: levels(60, 60, 60), 20: levels(90, 60, 60)}
    )
    text = markdown(compare([write_hand_run(tmp_path / "mopd-0", student=levels(70, 76, 70)), low, other]))
    seeds = next(row for row in cells(text, "mopd") if row[1].startswith("math 50"))
    assert seeds[:3] == ["mopd", "math 50%", "math 25%"]  # not per token
    assert next(row for row in cells(text, "other") if row[1].startswith("code 75"))[2] == "–"
    assert "seed 0 | seed 1 | mean |" in text
    assert cells(text, "other")[-1][1] == "–"


def test_it_goes_between_the_markers_and_leaves_the_rest_alone(comparison: Comparison, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\n{BEGIN}\nout of date\n{END}\nmore\n")
    write_markdown(comparison, page)
    write_markdown(comparison, page)
    text = page.read_text()
    assert text.startswith(f"# Mine\n\n{BEGIN}\n\n**mopd keeps")
    assert text.endswith(f"{END}\nmore\n")
    assert text.count("keeps at least 44%") == 1
    assert "out of date" not in text


def test_a_file_of_its_own_can_be_written_again(comparison: Comparison, tmp_path: Path) -> None:
    for _ in range(2):
        write_markdown(comparison, tmp_path / "deep" / "new.md")
    assert (tmp_path / "deep" / "new.md").read_text().count(BEGIN) == 1


def test_a_page_without_markers_is_not_overwritten(comparison: Comparison, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("precious\n")
    with pytest.raises(UserError, match="--markdown"):
        write_markdown(comparison, page)
    assert page.read_text() == "precious\n"
