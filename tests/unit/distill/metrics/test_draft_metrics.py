"""Counts of guesses as metrics, computed by hand; and when heads are called stale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from student_kit import make_rollout

from mopd.distill.metrics.drafts import STALE, WINDOW, draft_metrics, stale_domains, total_counts
from mopd.distill.types import DraftCounts


def test_counts_are_added_up_by_domain() -> None:
    rng = np.random.default_rng(0)
    domains = ("math", "math", "code", "math")
    rollouts = [make_rollout(rng, i, domain, prompt=2, completion=10) for i, domain in enumerate(domains)]
    rollouts[0] = replace(rollouts[0], drafts=DraftCounts(4, 10, (4, 3), (3, 2)))
    rollouts[1] = replace(rollouts[1], drafts=DraftCounts(2, 5, (2, 2), (2, 1)))
    rollouts[2] = replace(rollouts[2], drafts=DraftCounts(0, 0, (0, 0), (0, 0)))
    assert draft_metrics(rollouts) == {
        "draft_tokens_per_forward/math": 15 / 6,
        "drafted/math": 15 / 30,
        "draft_accepted_1/math": 5 / 6,
        "draft_accepted_2/math": 3 / 5,
    }
    assert total_counts([None, rollouts[2].drafts]) is None


def test_heads_are_stale_where_they_have_clearly_fallen_and_not_before() -> None:
    noise = np.random.default_rng(1).normal(0, 0.02, 200)
    rises = 0.5 + 0.4 * np.minimum(1, np.arange(200) / 50) + noise
    falls = np.where(np.arange(200) < 100, 0.9, 0.9 - 1.5 * STALE) + noise
    rows = [{"draft_overlap_1/up": u, "draft_overlap_1/down": d} for u, d in zip(rises, falls, strict=True)]
    assert stale_domains(rows[:100], ["up", "down", "absent"]) == {}
    assert set(stale_domains(rows, ["up", "down"])) == {"down"}
    best, now = stale_domains(rows, ["down"])["down"]
    assert (best, now) == (pytest.approx(0.9, abs=0.02), pytest.approx(0.75, abs=0.02))
    assert stale_domains(rows[: 2 * WINDOW - 1], ["up"]) == {}
