"""Colours of series, as the colour-blind see them: apart, and apart from the page."""

from __future__ import annotations

import re
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest

from mopd.recipes.report.drawing import CARD, COLOURS, DARK_COLOURS, colour, dash, shape, stylesheet
from mopd.recipes.report.page import TEMPLATE

Array = npt.NDArray[np.float64]
VISIONS: dict[str, Array] = {
    "all cones": np.eye(3),
    # Machado, Oliveira, Fernandes: A physiologically-based model for simulation of color vision deficiency, 2009,
    # table 1, severity 1.0: of linear RGB.
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
APART = 15.0
"""CIEDE2000 at which no one takes one for the other; 2.3 is a just noticeable difference."""


def linear(text: str) -> Array:
    rgb = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array) -> Array:
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(first: Array, second: Array) -> float:
    """Sharma, Wu, Dalal: The CIEDE2000 color-difference formula, 2005, equations 2 to 22."""
    (L1, a1, b1), (L2, a2, b2) = first, second
    mean_C = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    G = 0.5 * (1 - np.sqrt(mean_C**7 / (mean_C**7 + 25.0**7)))
    a1, a2 = (1 + G) * a1, (1 + G) * a2
    C1, C2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if C1 * C2 else 0.0
    dL, dC, dH = L2 - L1, C2 - C1, 2 * np.sqrt(C1 * C2) * np.sin(np.radians(turn) / 2)
    L, C = (L1 + L2) / 2, (C1 + C2) / 2
    h = h1 + h2 if not C1 * C2 else ((h1 + turn / 2) % 360)
    T = 1 - 0.17 * np.cos(np.radians(h - 30)) + 0.24 * np.cos(np.radians(2 * h))
    T += 0.32 * np.cos(np.radians(3 * h + 6)) - 0.2 * np.cos(np.radians(4 * h - 63))
    S_L = 1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2)
    S_C, S_H = 1 + 0.045 * C, 1 + 0.015 * C * T
    R = -np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2)))) * 2 * np.sqrt(C**7 / (C**7 + 25.0**7))
    x, y, z = dL / S_L, dC / S_C, dH / S_H
    return float(np.sqrt(x * x + y * y + z * z + R * y * z))


def contrast(first: str, second: str) -> float:
    """WCAG 2.2: relative luminances, the lighter first."""
    low, high = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(each)) for each in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Pairs 1, 7, 17 and 25 of the paper's table of test data.
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ],
)
def test_the_distance_is_that_of_the_paper(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    assert ciede2000(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("palette", [COLOURS, DARK_COLOURS])
@pytest.mark.parametrize("vision", VISIONS)
def test_every_two_colours_are_apart_for_every_kind_of_sight(palette: tuple[str, ...], vision: str) -> None:
    seen = [lab(VISIONS[vision] @ linear(each)) for each in palette]
    assert min(ciede2000(a, b) for a, b in combinations(seen, 2)) >= APART


def test_red_and_green_are_not_apart_for_everyone() -> None:
    """That the simulation simulates: what a palette must not do is seen as such."""
    red, green = (lab(VISIONS["deuteranopia"] @ linear(each)) for each in ("#b03030", "#4d7a2a"))
    assert ciede2000(red, green) < APART < ciede2000(lab(linear("#b03030")), lab(linear("#4d7a2a")))


def test_colours_stand_out_from_the_page_and_text_can_be_read() -> None:
    style = (TEMPLATE.parent / "report_style.html.j2").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w+);", part)) for part in style.split("prefers-color-scheme: dark")[:2]
    )
    light = {name: value.replace("#fff", "#ffffff") if value == "#fff" else value for name, value in light.items()}
    assert light["card"] == CARD
    for page, palette in ((light, COLOURS), (dark, DARK_COLOURS)):
        assert min(contrast(each, page["card"]) for each in palette) >= 3.0
        for ground, text in product(("bg", "card"), ("ink", "muted", "good", "mixed", "bad", "pending")):
            least = 4.5 if text in ("ink", "muted") else 3.0  # the others are headings and single signs
            assert contrast(page[ground], page[text]) >= least, (ground, text)
    variables = re.findall(r"--c(\d): (#\w+);", stylesheet())
    assert [value for _, value in variables] == [*COLOURS, *DARK_COLOURS]


def test_twenty_four_series_differ_in_colour_or_in_dashes_and_shape() -> None:
    looks = [(colour(i), dash(i), shape(i)) for i in range(24)]
    assert len({(c, d) for c, d, _ in looks}) == len({(c, s) for c, _, s in looks}) == 24
    assert looks[:6] == [(each, (), "circle") for each in COLOURS]
