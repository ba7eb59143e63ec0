"""The learning rate of every optimizer step, from hand computed tables."""

from __future__ import annotations

import pytest

from mopd.distill.recipe import AdamW
from mopd.distill.student.engine import learning_rate

TABLES = {
    # 2 steps of warm-up, then from 1 down to 0.2 at step 6, the last of 7.
    "constant": [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2],
    "cosine": [0.5, 1.0, 1.0, 0.2 + 0.8 * 0.853553, 0.6, 0.2 + 0.8 * 0.146447, 0.2],
}


@pytest.mark.parametrize("schedule", TABLES)
def test_curve(schedule: str) -> None:
    settings = {"lr": 1.0, "schedule": schedule, "warmup_steps": 2}
    end = {} if schedule == "constant" else {"final_lr_fraction": 0.2}
    optimizer = AdamW.model_validate(settings | end)
    assert [learning_rate(optimizer, k, 7) for k in range(7)] == pytest.approx(TABLES[schedule], abs=1e-6)


def test_no_warm_up_begins_at_the_peak() -> None:
    assert learning_rate(AdamW(lr=3.0, warmup_steps=0), 0, 10) == 3.0


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_run_shorter_than_its_warm_up_has_finite_rates(total: int) -> None:
    optimizer = AdamW(lr=1.0, warmup_steps=2)
    assert all(0 < learning_rate(optimizer, k, total) <= 1 for k in range(total))


@pytest.mark.parametrize(("total", "steps"), [(1, 0), (9, 0), (10, 1), (57, 5), (200, 20), (5000, 20)])
def test_a_warm_up_that_nobody_asked_for_is_a_tenth_and_20_at_most(total: int, steps: int) -> None:
    asked, unasked = AdamW(lr=1.0, warmup_steps=steps), AdamW(lr=1.0)
    assert [learning_rate(unasked, k, total) for k in range(total)] == [
        learning_rate(asked, k, total) for k in range(total)
    ]
