"""The docs site (`make docs`): every page is on it, every link leads somewhere, and nothing asks another host."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from browser_kit import needs_browser
from deadline_kit import patience
from house_kit import REPOSITORY
from page_kit import CHROMIUM

from mopd.distill.recipe.messages import leaves

SITE = REPOSITORY / "docs" / "site"
needs_zensical = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="zensical is not installed: pip install 'mopd[docs]'"
)


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of docs/site, with this repository's packages."""
    command = [sys.executable, str(SITE / program), *map(str, arguments)]
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=SITE, env=settings, capture_output=True, text=True)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    out = tmp_path_factory.mktemp("site")
    done = run("build.py", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


@needs_zensical
def test_every_page_of_the_repository_is_on_the_site_and_in_its_navigation(html: Path) -> None:
    def names(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [name for value in (entry.values() if isinstance(entry, dict) else entry) for name in names(value)]

    listed = names(tomllib.loads((SITE / "zensical.toml").read_text())["project"]["nav"])
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")}
    others = {"index.md", "contributing.md", "security.md", "changelog.md", "keys.md", "notebook.md"}
    assert sorted(listed) == sorted(pages | others)
    for name in listed:
        heading = re.findall(r"<h1[^>]*>(.+?)<", (html / name).with_suffix(".html").read_text())
        assert len(heading) == 1, name
    search = (html / "search.js").read_text()
    assert "seesaw.html" in search
    assert "files/recipes" not in search  # files are on the site for those who follow a link


@needs_zensical
def test_pages_read_as_they_do_in_the_repository(html: Path) -> None:
    texts = {path.stem: path.read_text() for path in html.glob("*.html")}
    for page in sorted((REPOSITORY / "docs").glob("*.md")):
        blocks = re.findall(r"^```\w+[^\n]*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        shown = re.findall(r"<pre>(.*?)</pre>", texts[page.stem], re.DOTALL)
        code = [unescape(re.sub(r"<[^>]*>", "", block)).strip() for block in shown]
        assert [block for block in blocks if block.strip() not in code] == [], page.name
        tables = len(re.findall(r"\n\|[ :|-]+\|\n", page.read_text()))
        assert texts[page.stem].count("<table>") == tables, page.name
    assert 'href="files/recipes/quickstart.yaml.html"' in texts["index"]
    assert ">Statistics</a>" in texts["concepts"]
    notebook = json.loads((REPOSITORY / "docs" / "notebook.ipynb").read_text())["cells"]
    assert texts["notebook"].count("<pre>") == sum(cell["cell_type"] == "code" for cell in notebook)


@needs_zensical
@needs_browser
def test_a_browser_asks_nobody_and_finds_a_key(html: Path) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    errors: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 390, "height": 900})
        context.set_default_timeout(1000 * patience(60))
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("datasets", "faults", "seesaw", "keys"):
            page.goto((html / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto((html / "index.html").as_uri())
        page.locator(".md-search__button").click()
        page.get_by_role("combobox").fill("advantage_clip")
        page.get_by_text("loss with estimator policy_gradient").first.wait_for()
        browser.close()
    assert errors == []
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def copied(tmp_path: Path) -> Path:
    """The pages of the repository, and what they link to, to be changed."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "runs", "models", "*.parquet")
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=ignored)
    return source


@needs_zensical
@pytest.mark.parametrize(
    ("added", "complaint"),
    [
        ("[gone](no-such-page.md)", "no-such-page.md"),
        ("[gone](statistics.md#no-such-place)", "no-such-place"),
        ("[gone](../recipes/no-such-recipe.yaml)", "no-such-recipe"),
        ("![gone](no-such-picture.svg)", "no-such-picture.svg"),
        ('<img src="https://example.com/counter.gif" alt="">', "asks another host for https://example.com/counter.gif"),
    ],
)
def test_what_is_broken_ends_the_build_and_is_named(tmp_path: Path, added: str, complaint: str) -> None:
    source = copied(tmp_path)
    with (source / "docs" / "compare.md").open("a") as page:
        page.write(f"\n{added}\n")
    done = run("build.py", "--source", source, "--out", tmp_path / "site")
    assert done.returncode == 1, done.stdout + done.stderr
    assert complaint in re.sub("\x1b\\[[0-9;]*m", "", done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("head", "body", "complaint"),
    [
        ("", '<a href="b.html">b</a><a href="#here">c</a><p id="here">', ""),
        ("", '<a href="https://example.com/">elsewhere</a>', ""),
        ("", '<a href="c.html">b</a>', "no such file"),
        ("", '<a href="b.html#there">b</a>', "no such place"),
        ('<script src="//example.com/a.js"></script>', "", "another host"),
        ('<link rel="preconnect" href="https://fonts.example.com">', "", "another host"),
        ('<link rel="canonical" href="https://example.com/a.html">', "", ""),
        ("<style>@font-face {src: url(https://example.com/f.woff2)}</style>", "", "another host"),
        ("", '<img srcset="data:image/gif;base64,AA 1x, https://example.com/a.png 2x">', "another host"),
        ("", '<p style="background: url(gone.png)">', "no such file"),
    ],
)
def test_the_check_of_links_tells_right_from_wrong(tmp_path: Path, head: str, body: str, complaint: str) -> None:
    (tmp_path / "index.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>")
    (tmp_path / "b.html").write_text("<html></html>")
    done = run("links.py", tmp_path)
    assert (done.returncode, complaint in done.stderr) == (1 if complaint else 0, True)


def test_every_leaf_of_a_recipe_is_on_the_page_of_keys_with_its_line() -> None:
    done = run("keys.py")
    assert done.returncode == 0, done.stderr
    shown: dict[str, str] = {}  # all rows of a path: of a task those of a dataset, a generator and an environment
    for section in done.stdout.split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        also = re.findall(r"`([^`]+)`", (re.findall(r"^The same at (.*)\.$", section, re.MULTILINE) or [""])[0])
        for place in (heading, *also):
            above = "" if place.startswith("Keys of") else f"{place.split(' ')[0]}."
            for row, key in re.findall(r"^(\| `(\w+)` \|.*)$", section, re.MULTILINE):
                shown[f"{above}{key}"] = shown.get(f"{above}{key}", "") + row
    for leaf in leaves():
        row = shown[leaf.path.replace("*", "NAME")]
        assert " ".join(str(leaf.field.description).split())[:40].replace("<", "&lt;") in row, leaf.path
    assert "| whole number, 1 to 1,000,000,000 |" in shown["run.steps"]
    assert {"methods", "seeds", "parallel", "extends"} <= shown.keys()
