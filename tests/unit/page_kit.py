"""Pages as a reader has them: parsed, and opened in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from deadline_kit import patience


class Page(HTMLParser):
    """Text by enclosing section, every address, and whether every element was closed."""

    VOID = frozenset({"meta", "link", "br", "circle", "img", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[tuple[str, str]] = []
        self.addresses: list[str] = []
        self.sections: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [str(given[key]) for key in ("href", "src", "srcset", "action", "data") if key in given]
        if tag not in self.VOID:
            self.open.append((tag, given.get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        section = next((name for tag, name in reversed(self.open) if tag == "section"), "")
        self.sections[section] = self.sections.get(section, "") + data


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


WIDTHS = (360, 768, 1280)


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """Open a file in a browser; its document afterwards, and what it complained of."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    ]
    command += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--window-size=1400,900", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=patience(300), check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
