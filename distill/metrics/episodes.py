"""What became of episodes, of a step or of an evaluation: turns, calls of tools, errors, who got it right at last."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from scipy.stats import t as student_t

from mopd.distill.metrics.evaluate import Evaluation, Interval, interval
from mopd.distill.verdicts import EpisodeRecord

if TYPE_CHECKING:  # whoever only reads answers doesn't wait for torch
    from mopd.distill.types import Metrics, Rollout

ENDINGS = {
    "done": "the environment", "turns": "the limit of turns", "tokens": "the limit of tokens",
    "failed": "a failure of the environment",
}  # fmt: skip
"""What ended an episode, in words."""


def episode_metrics(rollouts: Iterable[Rollout]) -> Metrics:
    """By domain: means over episodes, and counts of those that failed. An episode that was cut into several rollouts
    counts once. Empty where there are no episodes.

    Example:
        Two episodes of ``math``, one of three turns that was right after a failure and one of a single turn that was
        wrong, give ``turns/math`` 2 and ``solved_after_failure/math`` 1.
    """
    episodes: dict[str, list[EpisodeRecord]] = {}
    for rollout in rollouts:
        if rollout.episode is not None:
            known = episodes.setdefault(rollout.domain, [])
            if "/turn-" not in rollout.prompt.id:  # not one that a cut ended before
                known.append(rollout.episode)
    rewards = {f"episode_reward/{d}": fmean(r.reward for r in records) for d, records in episodes.items() if records}
    return _means(episodes) | rewards


def evaluation_metrics(rows: Iterable[Evaluation]) -> Metrics:
    """The same of one evaluation, whose rewards are its scores: ``turns/D``, ``tool_calls/D`` and so on."""
    episodes: dict[str, list[EpisodeRecord]] = {}
    for row in rows:
        if row.episode is not None:
            episodes.setdefault(row.domain, []).append(row.episode)
    return _means(episodes)


def _means(episodes: Mapping[str, Sequence[EpisodeRecord]]) -> Metrics:
    metrics: Metrics = {}
    for domain, records in episodes.items():
        if not records:
            continue
        metrics[f"turns/{domain}"] = fmean(record.turns for record in records)
        metrics[f"tool_calls/{domain}"] = fmean(record.tool_calls for record in records)
        metrics[f"tool_errors/{domain}"] = fmean(record.tool_errors for record in records)
        if failed := [record for record in records if record.failed_first]:
            metrics[f"solved_after_failure/{domain}"] = fmean(float(record.reward == 1.0) for record in failed)
        for reason in sorted({reason for record in records for reason in record.failures}):
            count = sum(record.failures.count(reason) for record in records)
            metrics[f"episode_failures/{domain}/{reason}"] = float(count)
    return metrics


def pace(rows: Sequence[Evaluation], seconds: float) -> dict[str, float]:
    """``turns_per_minute``, ``tool_calls_per_minute`` and ``solved_per_minute`` of an evaluation, over all domains.

    An answer to a prompt is one turn, and solved where its score is 1. Empty where no domain is an environment.

    Args:
        seconds: that all answers took, side by side.
    """
    if seconds <= 0 or all(row.episode is None for row in rows):
        return {}
    counts = {
        "turns": sum(1 if row.episode is None else row.episode.turns for row in rows),
        "tool_calls": sum(0 if row.episode is None else row.episode.tool_calls for row in rows),
        "solved": sum(row.correct == 1.0 for row in rows),
    }
    return {f"{name}_per_minute": round(60 * count / seconds, 1) for name, count in counts.items()}


@dataclass(frozen=True, slots=True)
class MeanCount:
    """The mean of a count over ``n`` episodes with its 95% interval; no ends where one episode tells of no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class MeasuredEpisodes:
    """How a model fares in an environment.

    Attributes:
        solved: part of the episodes whose reward is 1.
        turns: messages that it wrote in an episode.
        tool_calls, tool_errors: in an episode.
        solved_after_failure: part of the episodes in which the environment first told of a failure that were solved;
            None where there are none.
        ended: how many episodes ended how; see :class:`distill.types.EpisodeRecord`.
        failures: how many attempts failed of the environment's own fault, by reason.
    """

    solved: Interval
    turns: MeanCount
    tool_calls: MeanCount
    tool_errors: MeanCount
    solved_after_failure: Interval | None
    ended: dict[str, int]
    failures: dict[str, int]


def measured_episodes(records: Sequence[EpisodeRecord]) -> MeasuredEpisodes:
    """What the episodes of one domain come to.

    Raises:
        ValueError: there are none.

    Example:
        Episodes of two and of four turns, the first solved, have a mean of 3 turns and .5 solved.
    """
    failed = [record for record in records if record.failed_first]
    return MeasuredEpisodes(
        solved=interval([float(record.reward == 1.0) for record in records]),
        turns=mean_count([record.turns for record in records]),
        tool_calls=mean_count([record.tool_calls for record in records]),
        tool_errors=mean_count([record.tool_errors for record in records]),
        solved_after_failure=interval([float(record.reward == 1.0) for record in failed]) if failed else None,
        ended=dict(sorted(Counter(record.ended for record in records).items())),
        failures=dict(sorted(Counter(reason for record in records for reason in record.failures).items())),
    )


def read_episodes(record: Mapping[str, Any]) -> MeasuredEpisodes:
    """What ``asdict`` made of :class:`MeasuredEpisodes`."""
    after = record["solved_after_failure"]
    counts = {name: MeanCount(**record[name]) for name in ("turns", "tool_calls", "tool_errors")}
    return MeasuredEpisodes(
        solved=Interval(**record["solved"]),
        solved_after_failure=None if after is None else Interval(**after),
        ended=record["ended"],
        failures=record["failures"],
        **counts,
    )


def mean_count(counts: Sequence[int]) -> MeanCount:
    """The mean of counts, with the 95% interval of Student's t; it does not reach below 0.

    Raises:
        ValueError: there are none.

    Source: Student, Biometrika 6 (1908) 1-25.
    """
    n = len(counts)
    if n == 0:
        raise ValueError("no episodes: a mean needs at least one")
    mean = fmean(counts)
    if n == 1:
        return MeanCount(mean, None, None, n)
    half = float(student_t.ppf(0.975, n - 1)) * stdev(counts) / math.sqrt(n)
    return MeanCount(mean, max(0.0, mean - half), mean + half, n)
