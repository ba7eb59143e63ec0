"""Pages in a browser that is driven: looked at by axe, used by keys and pointer, printed."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deadline_kit import Deadline, patience
from page_kit import CHROMIUM

WITHOUT = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or bool(WITHOUT),
    reason="no chromium is installed to open the page with"
    if CHROMIUM is None
    else f"{', '.join(WITHOUT)} not installed: pip install 'mopd[dev]'",
)
SETTLED = "document.querySelectorAll('[data-chart]').length === document.querySelectorAll('.drawn').length"
"""That every chart which a page's script draws has been drawn."""


@contextlib.contextmanager
def opened(
    path: Path, *, width: int = 1280, scheme: str = "light", scripts: bool = True, own: bool = False
) -> Iterator[Any]:
    """A page as playwright has it. Afterwards it has neither complained nor asked for anything but its file.

    Args:
        scheme: ``light`` or ``dark``.
        scripts: whether the page's scripts run.
        own: let the test's scripts run too, against the page's policy.
    """
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            java_script_enabled=scripts,
            bypass_csp=own,
        )
        context.set_default_timeout(1000 * patience(60))
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        if scripts:
            page.wait_for_function(SETTLED) if own else _wait(page)
        yield page
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


def _wait(page: Any) -> None:
    """The page's policy forbids the driver's own polling by eval: look at the elements."""
    charts = page.locator("[data-chart]").count()
    if charts:
        page.locator(".drawn").nth(charts - 1).wait_for()


def becomes(look: Callable[[], Any], expected: Any) -> bool:
    """Whether what a page shows becomes what is expected: it draws a little after it is told to."""
    deadline = Deadline(20)
    while look() != expected:
        if not deadline.waits(0.05):
            return False
    return True


def serious(page: Any) -> dict[str, list[str]]:
    """Findings of axe of a serious or critical impact: rule -> the elements, as HTML."""
    import axe_playwright_python

    page.evaluate((Path(str(axe_playwright_python.__file__)).parent / "axe.min.js").read_text() + "; 0")
    found = page.evaluate("axe.run(document)")
    assert len(found["passes"]) > 20  # it has looked
    return {
        each["id"]: [node["html"][:200] for node in each["nodes"]]
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    }


def least_text(page: Any) -> float:
    """The size of the smallest text of any chart, in CSS px as it is shown."""
    return page.evaluate("""
      Math.min(...[...document.querySelectorAll('.chart svg text')].filter(t => t.getClientRects().length).map(t => {
        const svg = t.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width
        return parseFloat(getComputedStyle(t).fontSize) * scale
      }))""")
