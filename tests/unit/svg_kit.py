"""A chart's SVG as what is drawn where: every mark with its place on the drawing, by the group that it stands in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Drawn:
    """A mark: its kind by Vega's group (``symbol``, ``text role-axis-label``), its place in px, and what it is."""

    group: str
    x: float
    y: float
    text: str
    given: Mapping[str, str]

    def path(self) -> list[tuple[float, float]]:
        """The corners of a path of absolute M and L, or of a bar's ``M x,y h width v height``."""
        d = self.given["d"]
        corners = [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.e]+),([-\d.e]+)", d)]
        if across := re.match(r"M[-\d.e]+,[-\d.e]+h([-\d.e]+)v([-\d.e]+)", d):
            (x, y), width, height = corners[0], *map(float, across.groups())
            corners = [(x, y), (x + width, y + height)]
        return [(x + self.x, y + self.y) for x, y in corners]


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def marks(svg: str, group: str = "") -> list[Drawn]:
    """The marks whose group's class begins with ``mark-<group>``, in the order in which they are drawn."""
    return [each for each in _walk(read(svg), 0.0, 0.0, "") if each.group.startswith(group)]


def _walk(element: ElementTree.Element, x: float, y: float, group: str) -> Iterator[Drawn]:
    if moved := re.match(r"translate\(([-\d.e]+),([-\d.e]+)\)", element.get("transform", "")):
        x, y = x + float(moved[1]), y + float(moved[2])
    kind = element.get("class", "")
    if kind.startswith("mark-"):
        group = kind.removeprefix("mark-")
    if element.tag != f"{SVG}g" and element.tag != f"{SVG}svg" and kind not in ("background", "foreground"):
        yield Drawn(group, x, y, element.text or "", element.attrib)
    for child in element:
        yield from _walk(child, x, y, group)


def labels(svg: str) -> list[Drawn]:
    """What stands at the ends of lines, before bars and behind them."""
    return marks(svg, "text role-mark")


def y_scale(svg: str) -> Mapping[float, float]:
    """Value of each tick of the vertical axis -> its height on the drawing, in px from above."""
    ticks = [each for each in marks(svg, "text role-axis-label") if each.given["text-anchor"] == "end"]
    return {float(each.text.rstrip("%")): each.y - 4 - 0.5 for each in ticks}  # half a letter, half a pixel


def x_scale(svg: str) -> Mapping[str, float]:
    """Label of each tick of the horizontal axis -> its place in px from the left."""
    ticks = [each for each in marks(svg, "text role-axis-label") if each.given["text-anchor"] == "middle"]
    return {each.text: each.x - 0.5 for each in ticks}


def at(value: float, scale: Mapping[float, float]) -> float:
    """Where a value lies, by the first and the last tick of a linear axis."""
    low, high = min(scale), max(scale)
    return scale[low] + (value - low) / (high - low) * (scale[high] - scale[low])
