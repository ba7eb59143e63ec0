"""What the text of a `model` or `from` key means: the student as it starts, a stage's result, a path or a Hub id.

A Hub id goes about with its revision, as ``ORG/NAME@REVISION``; recipes have a leaf for that.
"""

from __future__ import annotations

SELF = "self"
"""A teacher's model: the student as it starts, frozen. It holds a domain that has no expert where it is."""
PREFIX = "stage:"
"""Begins a source that is the result of a stage."""


def stage_name(source: object) -> str | None:
    """The stage that a source names; None for an architecture, a path and a Hub id."""
    return source.removeprefix(PREFIX) if isinstance(source, str) and source.startswith(PREFIX) else None


def is_hub_id(source: object) -> bool:
    """Whether a source is a model of the Hub."""
    return isinstance(source, str) and source != SELF and stage_name(source) is None and not is_path(source)


def at_revision(source: str, revision: str | None) -> str:
    """A Hub id with the branch, tag or commit that is meant of it: ``ORG/NAME@REVISION``."""
    return source if revision is None else f"{source}@{revision}"


def hub_name(source: str) -> tuple[str, str | None]:
    """(Hub id, revision) of :func:`at_revision`."""
    name, _, revision = source.partition("@")
    return name, revision or None


def is_path(source: str) -> bool:
    """Whether a source is a path; any other text that names no stage is a Hub id."""
    return source.startswith(("./", "../", "/"))
