"""Vega-Lite specifications as pictures: SVG for pages, PNG for model cards, JSON for what a page draws by itself.

vl-convert, which holds Vega and a JavaScript engine, is imported where something is drawn: no other command pays for
it. Nothing here needs a network or a browser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

INK, MUTED, GRID, CARD = "#1c1e21", "#5f656e", "#e6e6e3", "#ffffff"
"""Of pages on white: text, axes and references, lines behind the data, the ground."""
COLOURS = ("#213a9d", "#da7518", "#187f61", "#1d95ff", "#7e0e20", "#917598")
DARK_COLOURS = ("#6262e6", "#fcc94e", "#44b892", "#c8f0fe", "#dd563a", "#9899ba")
"""Of series on white and on a dark ground: apart for all three kinds of colour blindness (tests/unit/recipes/report/
test_colours.py), and of a contrast of 3 at least with the ground."""
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 3), (9, 3, 2, 3))
SHAPES = ("circle", "square", "triangle-up", "diamond")
"""The first six series have a solid line and circles, the next six other dashes and shapes: 24 that differ."""

_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", CARD: "card"} | {c: f"c{i}" for i, c in enumerate(COLOURS)}
_OUTLINES = {
    "circle": '<circle cx="13" cy="6" r="4"/>',
    "square": '<rect x="9.5" y="2.5" width="7" height="7"/>',
    "triangle-up": '<path d="M13 1.5L17.5 10H8.5z"/>',
    "diamond": '<path d="M13 1L18 6L13 11L8 6z"/>',
}
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)


def colour(series: int | None) -> str:
    """Of a series, by its number from 0; None: of what is not one of several."""
    return MUTED if series is None else COLOURS[series % len(COLOURS)]


def dash(series: int | None) -> tuple[int, ...]:
    """Lengths of dashes and gaps of a series' line in px; none: solid."""
    return () if series is None else DASHES[series // len(COLOURS) % len(DASHES)]


def shape(series: int | None) -> str:
    """Of a series' marks, as Vega names it."""
    return SHAPES[0] if series is None else SHAPES[series // len(COLOURS) % len(SHAPES)]


def css_class(series: int) -> str:
    """The classes of a page's element that has the colour of a series, and of a dot that has its shape."""
    return f"d{series % len(COLOURS)} s{series // len(COLOURS) % len(SHAPES)}"


def key(series: int) -> Markup:
    """A piece of a series' line with its mark, 26 px wide: what a legend shows. It says nothing to a screen reader."""
    dashes = f' stroke-dasharray="{" ".join(map(str, dash(series)))}"' if dash(series) else ""
    line = f'<path d="M0 6H26"{dashes}/>'
    inside = f"{line}{_OUTLINES[shape(series)]}"
    return Markup(f'<svg class="key {css_class(series)}" viewBox="0 0 26 12" aria-hidden="true">{inside}</svg>')


def stylesheet() -> Markup:
    """Colours of series as CSS variables and classes, for a light and a dark page."""
    light = " ".join(f"--c{i}: {c};" for i, c in enumerate(COLOURS))
    dark = " ".join(f"--c{i}: {c};" for i, c in enumerate(DARK_COLOURS))
    classes = " ".join(f".d{i} {{ --c: var(--c{i}) }}" for i in range(len(COLOURS)))
    return Markup(
        f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"{classes} .plain {{ --c: var(--muted) }}"
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart.

    Attributes:
        title: what it shows, in a line of plain text.
        spec: Vega-Lite, in the colours of a white page.
        head: of the table of its numbers.
        rows: of that table, as text: what is drawn, to be read without eyes or without a pointer.
    """

    title: str
    spec: Mapping[str, Any]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def svg(self) -> Markup:
        """Drawn, for a page: colours are the page's variables, and a screen reader is given the title."""
        return _svg(self.spec, self.title)

    @property
    def live(self) -> Markup:
        """The specification as JSON for a page's script element, in the page's colours."""
        text = json.dumps(_in_colours_of_page(self.spec), allow_nan=False, separators=(",", ":"))
        return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))

    def png(self, scale: float = 2.0) -> bytes:
        """Drawn on white, ``scale`` pixels to a CSS pixel."""
        import vl_convert

        return vl_convert.vegalite_to_png(dict(self.spec), scale=scale)


@cache
def script() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, which come with vl-convert; about 0.9 MB."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def _svg(spec: Mapping[str, Any], title: str) -> Markup:
    import vl_convert

    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(dict(spec)))
    for element in root.iter():
        for name in ("fill", "stroke"):
            if (given := element.get(name, "")) in _NAMES:
                element.set(name, f"var(--{_NAMES[given]})")
        for name in ("font-family", "role", "aria-roledescription", "aria-hidden"):
            element.attrib.pop(name, None)
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.set("role", "img")
    root.set("aria-label", title)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _in_colours_of_page(value: Any) -> Any:
    """Colours as the page's variables; data stays as it is, for a name may look like a colour."""
    if isinstance(value, Mapping):
        kept = ("values", "datasets", "domain")
        return {name: part if name in kept else _in_colours_of_page(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_colours_of_page(part) for part in value]
    return f"var(--{_NAMES[value]})" if isinstance(value, str) and value in _NAMES else value
