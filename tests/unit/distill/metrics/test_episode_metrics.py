"""What episodes come to: by hand, and how often the interval of a mean holds the true mean."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from mopd.distill.metrics.episodes import (
    evaluation_metrics,
    mean_count,
    measured_episodes,
    pace,
    read_episodes,
)
from mopd.distill.metrics.evaluate import Evaluation, interval
from mopd.distill.types import EpisodeRecord
from mopd.distill.verdicts import paces


def test_episodes_by_hand() -> None:
    measured = measured_episodes(
        [
            EpisodeRecord(1.0, "done", turns=2, tool_calls=1),
            EpisodeRecord(0.5, "done", turns=3, tool_calls=2, tool_errors=1, failed_first=True),
            EpisodeRecord(0.0, "turns", turns=8, tool_calls=8, tool_errors=8),
            EpisodeRecord(0.0, "failed", turns=1, failures=("timeout", "timeout")),
        ]
    )
    assert measured.solved == interval([1.0, 0.0, 0.0, 0.0])
    assert (measured.turns.mean, measured.tool_calls.mean, measured.tool_errors.mean) == (3.5, 2.75, 2.25)
    assert measured.ended == {"done": 2, "failed": 1, "turns": 1}
    assert measured.failures == {"timeout": 2}
    assert measured.solved_after_failure == interval([0.0])
    assert read_episodes(json.loads(json.dumps(asdict(measured)))) == measured


def rows_of_an_evaluation() -> list[Evaluation]:
    """Two episodes of ``code``, one solved after a failure, and two answers of ``sums``, one right."""
    records = [
        EpisodeRecord(1.0, "done", turns=4, tool_calls=3, tool_errors=1, failed_first=True),
        EpisodeRecord(0.0, "turns", turns=6, tool_calls=6, failures=("raised",)),
    ]
    episodes = [
        Evaluation("student", 2, "test", "code", f"c{n}", record.reward, episode=record)
        for n, record in enumerate(records)
    ]
    return [*episodes, *(Evaluation("student", 2, "test", "sums", f"s{n}", float(n)) for n in range(2))]


def test_the_metrics_of_an_evaluation_by_hand() -> None:
    rows = rows_of_an_evaluation()
    assert [Evaluation(**json.loads(json.dumps(row.record()))) for row in rows] == rows
    assert evaluation_metrics(rows) == {
        "turns/code": 5.0, "tool_calls/code": 4.5, "tool_errors/code": 0.5, "solved_after_failure/code": 1.0,
        "episode_failures/code/raised": 1.0,
    }  # fmt: skip


def test_the_pace_by_hand() -> None:
    rows = rows_of_an_evaluation()
    # 4 + 6 turns of episodes and 2 answers, 9 calls, an episode and an answer that are right; in half a minute.
    expected = {"turns_per_minute": 24.0, "tool_calls_per_minute": 18.0, "solved_per_minute": 4.0}
    assert pace(rows, 30.0) == expected
    assert pace(rows[2:], 30.0) == {}
    earlier = {"model": "student", "step": 0, "split": "test", "seconds": 1.0, **dict.fromkeys(expected, 1.0)}
    exams = [earlier, {**earlier, **expected}, {**earlier, "split": "validation"}, {"model": "base", "split": "test"}]
    assert paces(exams, "test") == {"student": expected}


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
