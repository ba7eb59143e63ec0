"""Whether teachers leave a run room: refused below what the recipe asks, and never where it asks for nothing."""

from __future__ import annotations

import pytest
from results_kit import right, rows_of

from mopd.distill.errors import NoHeadroom
from mopd.recipes.run.baselines import refuse_low_headroom

TEACHERS = {"math": {"math": 1.0}, "code": {"code": 1.0}}
ROWS = [
    *rows_of("base", {"math": right(50), "code": right(60)}, split="validation"),
    *rows_of("teachers/math", {"math": right(90), "code": right(20)}, split="validation"),
    *rows_of("teachers/code", {"math": right(30), "code": right(55)}, split="validation"),
]


def test_without_a_rule_a_teacher_below_its_base_ends_nothing() -> None:
    refuse_low_headroom(ROWS, TEACHERS, 0.0, title="run")


def test_a_domain_below_the_rule_is_named_with_its_points() -> None:
    with pytest.raises(NoHeadroom, match=r"run: teachers differ from the base in code by -5\.0 points .* asks for 20"):
        refuse_low_headroom(ROWS, TEACHERS, 20.0, title="run")
    refuse_low_headroom(ROWS, {"math": {"math": 1.0}}, 40.0, title="run")
