"""Builds the docs site: the pages of docs/ and of the repository's top, and one of every leaf of a recipe.

    python docs/site/build.py [--out build/site]

The pages stay as they are in the repository. Beside a copy of zensical.toml they are laid out anew: README.md is the
first page, what they link to outside of docs/ is on the site as well (recipes and Python files as pages, anything else
as a file), the notebook is a page, and keys.md is written from the schema. Exit code 1: zensical or links.py has
something to complain of.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keys
import links

REPOSITORY = Path(__file__).resolve().parents[2]
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
TOP |= {"CHANGELOG.md": "changelog.md"}
"""Pages of the repository's top, by their names on the site."""
SHOWN_AS = {".yaml": "yaml", ".py": "python"}
"""Languages of the files that become pages of their own, by ending."""
CODE_OR_LINK = re.compile(
    r"(?P<code>^(?P<fence>`{3,}).*?^(?P=fence)$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s]+)(?P<place>#[^)\s]*)?\)",
    re.MULTILINE | re.DOTALL,
)
TITLED_FENCE = re.compile(r"^(`{3,}\w+) (\S+)$", re.MULTILINE)
"""A block that is named behind its language."""


class Site:
    """The site's pages as zensical is given them.

    Args:
        source: the repository.
        pages: the folder to lay them out in.
    """

    def __init__(self, source: Path, pages: Path) -> None:
        self.source, self.pages = source, pages
        self._laid: set[str] = set()

    def lay_out(self) -> None:
        """Write every page, and all that pages link to."""
        for path in [*map(self.source.joinpath, TOP), *sorted((self.source / "docs").glob("*.md"))]:
            self._lay(path.relative_to(self.source).as_posix())
        (self.pages / "keys.md").write_text(keys.page(), encoding="utf-8")

    def _lay(self, path: str) -> str:
        """Put a file of the repository on the site, once; returns its name there."""
        name, written = self._name(path)
        if name not in self._laid:
            self._laid.add(name)
            target = self.pages / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if written is None:
                shutil.copy(self.source / path, target)
            else:
                target.write_text(written(path, name), encoding="utf-8")
        return name

    def _name(self, path: str) -> tuple[str, Callable[[str, str], str] | None]:
        """What a file of the repository is called on the site, and what writes it there; None: it is copied."""
        ending = Path(path).suffix
        if ending == ".md":
            return TOP.get(path, path.removeprefix("docs/")), self._page
        if ending == ".ipynb":
            return Path(path).with_suffix(".md").name, self._notebook
        if ending in SHOWN_AS:
            return f"files/{path}.md", self._file
        return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}", None

    def _page(self, path: str, name: str) -> str:
        text = (self.source / path).read_text(encoding="utf-8")

        def moved(match: re.Match[str]) -> str:
            target = match["path"]
            if match["code"] or "://" in target or target.startswith("mailto:"):
                return match[0]
            file = os.path.normpath(Path(path).parent / target)
            if not (self.source / file).is_file():
                return match[0]  # zensical names the page and the line
            relative = os.path.relpath(self._lay(file), Path(name).parent)
            text = self._title(file) if match["text"].endswith(".md") else match["text"]
            return f"[{text}]({relative}{match['place'] or ''})"

        return TITLED_FENCE.sub(r'\1 title="\2"', CODE_OR_LINK.sub(moved, text))

    def _title(self, path: str) -> str:
        """The heading of a page, which says more than the name of its file does where there are no files."""
        return (self.source / path).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(": ")[0]

    def _file(self, path: str, name: str) -> str:
        text = (self.source / path).read_text(encoding="utf-8")
        hidden = "---\nsearch:\n  exclude: true\n---\n\n"  # who searches looks for pages
        return f"{hidden}# `{path}`\n\n````{SHOWN_AS[Path(path).suffix]}\n{text.rstrip()}\n````\n"

    def _notebook(self, path: str, name: str) -> str:
        cells = json.loads((self.source / path).read_text(encoding="utf-8"))["cells"]
        texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
        shown = [f"```python\n{text}\n```" if code else text for text, code in texts]
        return "\n\n".join([*shown, f"The notebook itself: [{Path(path).name}]({self._copied(path)})."]) + "\n"

    def _copied(self, path: str) -> str:
        shutil.copy(self.source / path, self.pages / Path(path).name)
        return Path(path).name


def build(source: Path, out: Path) -> int:
    """Lay the site out and build it; returns the exit code.

    Args:
        source: the repository.
        out: made anew; the site is in html/ of it.
    """
    shutil.rmtree(out, ignore_errors=True)
    pages = out / "pages"
    pages.mkdir(parents=True)
    Site(source, pages).lay_out()
    for asset in ("iframe-worker.js", "site.css"):
        shutil.copy(Path(__file__).with_name(asset), pages)
    shutil.copy(Path(__file__).with_name("zensical.toml"), out)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=out)
    return built.returncode or links.main(out / "html")


def main() -> int:
    """The program; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Build the docs site.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "site", help="made anew")
    parser.add_argument("--source", type=Path, default=REPOSITORY, help="the repository whose pages are built")
    given = parser.parse_args()
    return build(given.source.resolve(), given.out.resolve())


if __name__ == "__main__":
    sys.exit(main())
