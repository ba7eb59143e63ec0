"""What the text of a `model` or `from` key means: the student as it starts, a stage's result, a path or a Hub id."""

from __future__ import annotations

SELF = "self"
"""A teacher's model: the student as it starts, frozen. It holds a domain that has no expert where it is."""
PREFIX = "stage:"
"""Begins a source that is the result of a stage."""


def stage_name(source: object) -> str | None:
    """The stage that a source names; None for an architecture, a path and a Hub id."""
    return source.removeprefix(PREFIX) if isinstance(source, str) and source.startswith(PREFIX) else None


def is_path(source: str) -> bool:
    """Whether a source is a path; any other text that names no stage is a Hub id."""
    return source.startswith(("./", "../", "/"))
