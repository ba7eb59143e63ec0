"""Whether a built site is whole: every link leads to a page and a place in it, and no page asks another host.

python docs/site/links.py build/site/html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED_RELS = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch"}
LOADED_RELS |= {"manifest", "apple-touch-icon", "mask-icon"}
"""Kinds of `<link>` that a browser asks for as it shows a page; others only name something."""
ASKS = {"src", "srcset", "poster", "data", "background"}
"""Attributes whose address is asked for, on whatever element they stand."""
OF_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""")
HAS_NO_FILE = ("data", "mailto", "javascript", "blob")


class Page(HTMLParser):
    """What a page of HTML names: the places in it, where it links to, and what it has a browser ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = {"", "top"}
        self.links: list[str] = []
        self.asked: list[str] = []
        self._in_style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element names."""
        given = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.asked += [address for name in ASKS & given.keys() for address in _addresses(name, given[name])]
        self.asked += OF_CSS.findall(given.get("style", ""))
        target = given.get("href", given.get("xlink:href"))
        if target is None:
            return
        if tag in ("a", "area"):
            self.links.append(target)
        elif tag in ("use", "image") or LOADED_RELS & set(given.get("rel", "").split()):
            self.asked.append(target)

    def handle_endtag(self, tag: str) -> None:
        """A style sheet ends."""
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        """Note what a style sheet in the page asks for."""
        if self._in_style:
            self.asked += OF_CSS.findall(data)


def _addresses(attribute: str, value: str) -> list[str]:
    """The addresses of an attribute; `srcset` has several, each with a size behind it."""
    return [part.split()[0] for part in value.split(",") if part.strip()] if attribute == "srcset" else [value]


def problems(folder: Path) -> list[str]:
    """What is broken in a built site, one sentence each; empty where nothing is.

    Args:
        folder: of the site; index.html lies in it.
    """
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        return [f"{folder} holds no page"]
    broken: list[str] = []
    for path, page in pages.items():
        for address in page.links:
            broken += [f"{path.relative_to(folder.resolve())}: {why}" for why in _of_link(address, path, folder, pages)]
        for address in page.asked:
            broken += [f"{path.relative_to(folder.resolve())}: {why}" for why in _of_request(address, path, folder)]
    for path in sorted(folder.rglob("*.css")):
        for address in OF_CSS.findall(path.read_text(encoding="utf-8")):
            broken += [f"{path.relative_to(folder)}: {why}" for why in _of_request(address, path, folder)]
    return broken


def _of_link(address: str, path: Path, folder: Path, pages: dict[Path, Page]) -> Iterator[str]:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return  # another host's, which a reader may follow
    target = _file(parts.path, path, folder)
    if not target.is_file():
        yield f"links to {address}, and there is no such file"
    elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
        yield f"links to {address}, and that page has no such place"


def _of_request(address: str, path: Path, folder: Path) -> Iterator[str]:
    parts = urlsplit(address)
    if parts.netloc or (parts.scheme and parts.scheme not in HAS_NO_FILE):
        yield f"asks another host for {address}"
    elif not parts.scheme and parts.path and not _file(parts.path, path, folder).is_file():
        yield f"asks for {address}, and there is no such file"


def _file(address: str, page: Path, folder: Path) -> Path:
    """The file that an address means on a page; a folder's is its index.html."""
    start = folder if address.startswith("/") else page.parent
    target = (start / unquote(address).lstrip("/")).resolve() if address else page.resolve()
    return target / "index.html" if target.is_dir() else target


def main(folder: Path) -> int:
    """Print what is broken; the exit code."""
    broken = problems(folder)
    for line in broken:
        print(line, file=sys.stderr)
    if not broken:
        print(f"{folder}: {sum(1 for _ in folder.rglob('*.html'))} pages, every link leads somewhere")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
