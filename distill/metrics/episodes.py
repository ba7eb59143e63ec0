"""What became of a step's episodes: turns, calls of tools, errors, and who got it right after a first failure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from mopd.distill.types import EpisodeRecord, Metrics, Rollout


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
    metrics: Metrics = {}
    for domain, records in episodes.items():
        if not records:
            continue
        metrics[f"turns/{domain}"] = fmean(record.turns for record in records)
        metrics[f"tool_calls/{domain}"] = fmean(record.tool_calls for record in records)
        metrics[f"tool_errors/{domain}"] = fmean(record.tool_errors for record in records)
        metrics[f"episode_reward/{domain}"] = fmean(record.reward for record in records)
        if failed := [record for record in records if record.failed_first]:
            metrics[f"solved_after_failure/{domain}"] = fmean(float(record.reward == 1.0) for record in failed)
        for reason in sorted({reason for record in records for reason in record.failures}):
            count = sum(record.failures.count(reason) for record in records)
            metrics[f"episode_failures/{domain}/{reason}"] = float(count)
    return metrics
