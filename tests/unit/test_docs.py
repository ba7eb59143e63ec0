"""What the pages say is there: files that they link to, recipes and commands that they name, code that they show."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from house_kit import REPOSITORY, read_all
from track_kit import tracked_run, write_run
from typer.testing import CliRunner

from mopd.distill.recipe.study import load
from mopd.distill.tracking.sinks import SinkThread
from mopd.distill.tracking.tracker import Tracker
from mopd.recipes import SHIPPED
from mopd.recipes.cli import app

PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
README = (REPOSITORY / "README.md").read_text()
DEVELOPERS_WORDS = {"resolve", "host", "guard", "session", "view", "shard", "piece", "stretch"}
"""Words of CONTRIBUTING.md that no user meets, besides names in the code, which stand in backticks."""
CHEAP = ("mopd compare-architectures", "mopd throughput", "mopd schema", "mopd recipes", "mopd --version")
"""Commands that take a moment and nothing else: they are run as a page writes them."""


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


def command_lines(page: Path) -> Iterator[list[str]]:
    """Every command of a page, in blocks and amid text, as a shell takes it apart."""
    text = page.read_text()
    lines = re.findall(r"^(?: {4}(?:(?:[A-Z_]+=\S+ )*mopd|make|python|pip)|mopd) [^`|│─\n]*$", text, re.MULTILINE)
    for line in [*lines, *re.findall(r"`((?:mopd|make|python|pip) [^`\n]*)`", text)]:
        needed = re.sub(r"(?<= )\[[^\]]*\]", "", line).replace(" ...", " NAME")  # without what may be left out
        words = shlex.split(needed, comments=True)
        while "=" in words[0]:
            words = words[1:]
        yield words


def parsed(words: list[str]) -> Any:
    """What the command line makes of a command's words, which it refuses with an exception; nothing is run."""
    commands: Any = typer.main.get_command(app)
    name, *rest = words
    rest += ["NAME"] * all(word.startswith("--") for word in rest)  # a page that is about an option names no recipe
    return commands.commands[name].make_context(name, rest)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_command_of_a_page_has_options_targets_and_modules_that_are_there(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for program, *words in command_lines(page):
        if program == "make":
            targets = [word for word in words if "=" not in word and word not in ("&&", "make")]
            assert [name for name in targets if f"\n{name}:" not in makefile] == [], words
        elif program == "python":
            module = words[1] if words[0] == "-m" else words[0]
            there = importlib.util.find_spec(module) if words[0] == "-m" else (REPOSITORY / module).is_file()
            assert there, words
        elif program == "pip":
            asked = re.findall(r"mopd\[(.+?)\]", " ".join(words))
            assert [extra for names in asked for extra in names.split(",") if extra not in extras] == [], words
        elif len(words) > 1:  # the name alone is no command line
            given = parsed(words).params
            shipped = str(given.get("recipe"))
            if shipped in {path.stem for path in SHIPPED.glob("*.yaml")}:
                assert load(shipped, given["overrides"] or [], shipped=SHIPPED)


def test_commands_that_take_a_moment_are_run_as_they_are_written() -> None:
    lines = {" ".join(words) for page in PAGES for words in command_lines(page)}
    chosen = sorted(line for line in lines if line.startswith(CHEAP))
    assert {line.split()[1] for line in chosen} == {name.split()[1] for name in CHEAP}
    for line in chosen:
        _, *words = shlex.split(line)
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, line
        assert outcome.stdout, line


def test_concepts_and_contributing_have_the_same_words() -> None:
    page = (REPOSITORY / "docs" / "concepts.md").read_text()
    bold = [" ".join(word.split()).lower() for word in re.findall(r"\*\*(.+?)\*\*", page, re.DOTALL)]
    assert len(bold) == len(set(bold)), "a word is told twice"
    table = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("| word | what it is |\n|---|---|\n")[2]
    rows = table.partition("\n\n")[0].splitlines()
    words = {word for row in rows for word in row.split("|")[1].strip().split(", ")} - {"W"}
    assert set(bold) - {word.lower() for word in words} == {"sink"}  # in the code a type: `Sink`
    assert {word for word in words if not word.startswith("`")} - DEVELOPERS_WORDS - set(bold) == set()


def messages() -> list[str]:
    """Every text of the packages as a reader sees it, with dots for what differs."""
    texts = []
    for source in read_all():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_the_messages_that_the_page_on_faults_has_are_those_of_the_code() -> None:
    page = (REPOSITORY / "docs" / "faults.md").read_text()
    section = page.partition("## What is printed, and what to do\n")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    assert len(rows) >= 25
    written = messages()
    for row in rows:
        (shown,) = re.findall(r"^\| (?:`` ?(.+?) ?``|`([^`]+)`) \|", row)
        parts = "".join(shown).split("…")
        pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in written if max(parts, key=len) in text), row


def test_the_page_of_results_has_the_numbers_of_the_pages_that_it_names() -> None:
    page = (REPOSITORY / "docs" / "results.md").read_text()
    rows = [row.strip("|").split("|") for row in page.splitlines() if row.startswith("| ") and "](" in row]
    assert len(rows) > 10
    for _, came_of_it, _, date, link in rows:
        when = date.strip()
        (target,) = re.findall(r"\]\(([^)#]+)", link)
        text = " ".join((REPOSITORY / "docs" / target).read_text().split())
        shown = re.findall(r"(?<![\w.-])\d*\.?\d+(?![\w-])", came_of_it.replace("SmolLM2", ""))
        missing = [number for number in shown if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text)]
        assert missing == [], link
        assert [part for part in re.findall(r"[0-9a-f]{7}", when) if part not in text] == [], link
        assert not when or when.split(", ")[0].split(" and ")[-1] in text, link


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
