"""The examples of docs/own.md, which the tests run as a reader would copy them."""

from __future__ import annotations

from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "own.md").read_text()


def example(heading: str) -> str:
    """The first Python block below a heading of the page, for example ``"A loss"``."""
    section = PAGE.split(f"# {heading}\n", 1)[1].split("\n##", 1)[0]
    return section.split("```python\n", 1)[1].split("```", 1)[0]
