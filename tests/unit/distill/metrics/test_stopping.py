"""The stop rule against tables worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mopd.distill.metrics.stop_rule import stop_reason
from mopd.distill.recipe import StopRecipe


def table(name: str, *values: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    """Steps 0, 10, 20, ... with a metric of two domains; others are as they should be."""
    return [{"step": 10 * i, "kind": "eval", f"{name}/a": a, f"{name}/b": b} for i, (a, b) in enumerate(values)]


@pytest.mark.parametrize(
    ("rule", "rows", "told"),
    [
        (
            {"truncation": 0.5},
            table("truncation", (0.0, 0.0), (0.1, 0.6), (0.1, 0.9)),
            "truncation/b was 0.6, 0.9",
        ),
        # One evaluation is not two; two domains in turn are not one.
        ({"truncation": 0.5}, table("truncation", (0.0, 0.0), (0.1, 0.1), (0.1, 0.9)), None),
        ({"truncation": 0.5}, table("truncation", (0.0, 0.0), (0.9, 0.1), (0.1, 0.9)), None),
        # It has recovered since; and a bound is not beyond itself.
        ({"truncation": 0.5}, table("truncation", (0.0, 0.0), (0.9, 0.0), (0.9, 0.0), (0.2, 0.0)), None),
        ({"truncation": 0.5}, table("truncation", (0.0, 0.0), (0.5, 0.0), (0.5, 0.0)), None),
        # The base does not count.
        ({"truncation": 0.5}, table("truncation", (0.9, 0.0), (0.9, 0.0)), None),
        (
            {"truncation": 0.5, "evaluations": 1},
            table("truncation", (0.9, 0.0), (0.9, 0.0)),
            "at steps 10, above 0.5",
        ),
        ({"truncation": 0.5, "evaluations": 3}, table("truncation", (0, 0), (0.9, 0.0), (0.9, 0.0)), None),
        (
            {"repetition": 0.5},
            table("repetition", (0.0, 0.0), (0.7, 0.0), (0.8, 0.0)),
            "repetition/a was 0.7, 0.8",
        ),
        ({"kl": 1.0}, table("held_out_kl", (0.1, 0.1), (2.0, 0.1), (3.0, 0.1)), "held_out_kl/a was 2, 3"),
        ({"kl": 1.0}, table("held_out_kl", (0.1, 0.1), (None, 0.1), (3.0, 0.1)), None),
        ({"kl": 1.0}, table("kl", (0.1, 0.1), (9.0, 9.0), (9.0, 9.0)), None),
        (
            {"length": 0.5},
            table("length", (40, 8), (19, 8), (10, 8)),
            "length/a was 19, 10 at steps 10, 20, below 0.5",
        ),
        ({"length": 0.5}, table("length", (40, 8), (21, 5), (10, 5)), None),
        ({"length": 0.5}, table("length", (40, 8), (19, 8), (10, 8))[1:], None),  # nobody knows the base's
        ({}, table("truncation", (0, 0), (1, 1), (1, 1)), None),
        ({"truncation": 0.5}, [], None),
    ],
)
def test_it_fires_where_one_domain_is_beyond_one_bound_each_time(
    rule: dict[str, Any], rows: list[dict[str, Any]], told: str | None
) -> None:
    why = stop_reason(StopRecipe(**rule), rows)
    assert why is None if told is None else why is not None and told in why


@pytest.mark.parametrize("bound", [{"truncation": 1.5}, {"length": 0.0}, {"kl": -1.0}, {"evaluations": 0}])
def test_bounds_that_are_none_are_refused(bound: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="StopRecipe"):
        StopRecipe(**bound)
