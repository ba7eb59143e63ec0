"""What episodes come to: by hand, and how often the interval of a mean holds the true mean."""

from __future__ import annotations

import numpy as np
import pytest

from mopd.distill.metrics.episodes import mean_count, measured_episodes
from mopd.distill.metrics.evaluate import interval
from mopd.distill.types import EpisodeRecord


def test_episodes_by_hand() -> None:
    measured = measured_episodes(
        [
            EpisodeRecord(1.0, "done", turns=2, tool_calls=1),
            EpisodeRecord(0.5, "done", turns=3, tool_calls=2, tool_errors=1),
            EpisodeRecord(0.0, "turns", turns=8, tool_calls=8, tool_errors=8),
            EpisodeRecord(0.0, "failed", turns=1, failures=("timeout", "timeout")),
        ]
    )
    assert measured.solved == interval([1.0, 0.0, 0.0, 0.0])
    assert (measured.turns.mean, measured.tool_calls.mean, measured.tool_errors.mean) == (3.5, 2.75, 2.25)
    assert measured.ended == {"done": 2, "failed": 1, "turns": 1}
    assert measured.failures == {"timeout": 2}


def test_an_interval_of_a_mean_by_hand() -> None:
    # Standard error of 1, 2, 3, 6: sqrt(14 / 3 / 4); Student's 97.5% quantile of 3 degrees of freedom: 3.18245.
    count = mean_count([1, 2, 3, 6])
    assert count.mean == 3.0
    assert count.low == pytest.approx(max(0.0, 3.0 - 3.18245 * (14 / 3 / 4) ** 0.5), abs=1e-4)
    assert count.high == pytest.approx(3.0 + 3.18245 * (14 / 3 / 4) ** 0.5, abs=1e-4)
    assert (mean_count([4]).low, mean_count([4]).high) == (None, None)
    assert (mean_count([2, 2, 2]).low, mean_count([2, 2, 2]).high) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no episodes"):
        mean_count([])


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    counts_RN = 1 + np.random.default_rng(0).poisson(3.0, (2000, 40))
    intervals = [mean_count(counts.tolist()) for counts in counts_RN]
    held = np.mean([(each.low or 0.0) <= 4.0 <= (each.high or 0.0) for each in intervals])
    assert 0.93 < held < 0.97
