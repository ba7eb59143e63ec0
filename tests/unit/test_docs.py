"""What the pages say is there: files that they link to, recipes and commands that they name, code that they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from house_kit import REPOSITORY
from track_kit import tracked_run, write_run

from mopd.distill.tracking.sinks import SinkThread
from mopd.distill.tracking.tracker import Tracker
from mopd.recipes.cli import app

PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    files = [target for target in targets if "://" not in target]
    assert [target for target in files if not (page.parent / target).exists()] == []


def test_every_command_that_a_page_names_is_one() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for page in PAGES:
        for code in re.findall(r"`mopd ([a-z][a-z-]*)[ `]|^    mopd ([a-z][a-z-]*)", page.read_text(), re.MULTILINE):
            assert "".join(code) in commands, f"{page.name}: mopd {''.join(code)}"


def test_the_readme_is_short_and_its_tree_is_of_folders_that_exist() -> None:
    assert len(README.splitlines()) <= 220
    tree = README.partition("## The tree\n\n")[2].partition("\n\nA folder's")[0].splitlines()
    assert len(tree) <= 25
    top = ""
    for line in tree:
        depth = len(line) - len(line.lstrip())
        names = re.findall(r"(?:^| {2,})([a-z_]+(?:/|\.py))(?= )", line)
        top = names[0] if depth == 4 else top
        for name in names:
            assert (REPOSITORY / (name if depth == 4 else f"{top}{name}")).exists(), line


def test_the_sink_that_is_shown_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown: dict[str, type] = {}
    page = (REPOSITORY / "docs" / "files.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(next(block for block in blocks if "class Lines" in block), shown)
    thread = SinkThread(lambda: shown["Lines"], tracked_run(tmp_path), title="lines")
    with Tracker(tmp_path, sinks=[thread]) as tracker:
        write_run(tracker)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"tiny {line}" for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_chart_of_ones_own_is_drawn_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "pages.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == "['step', 'mine'] ['0', '31.5']\n"
