"""How well draft heads guess: counts of a batch as metrics, and whether heads no longer know their student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mopd.distill.types import DraftCounts, Metrics, Rollout

WINDOW = 10
"""Steps over which a guess's part of right ones is averaged."""
STALE = 0.1
"""A fall of that part below its best, from which on heads are called stale."""


def total_counts(counts: Iterable[DraftCounts | None]) -> DraftCounts | None:
    """What guesses did for several rollouts; None where none were made."""
    there = [count for count in counts if count is not None and count.forwards]
    if not there:
        return None
    offered, accepted = np.array([(c.offered, c.accepted) for c in there]).sum(0).tolist()
    return DraftCounts(sum(c.forwards for c in there), sum(c.tokens for c in there), tuple(offered), tuple(accepted))


def draft_metrics(rollouts: Sequence[Rollout]) -> Metrics:
    """By domain, of the rollouts that were written with guesses: tokens a forward, the part of tokens that were written
    so, and how often a guess at each position of a round was right where those before it were."""
    metrics: Metrics = {}
    for domain in dict.fromkeys(rollout.domain for rollout in rollouts):
        own = [rollout for rollout in rollouts if rollout.domain == domain]
        counts = total_counts(rollout.drafts for rollout in own)
        if counts is None:
            continue
        metrics[f"draft_tokens_per_forward/{domain}"] = counts.tokens / counts.forwards
        metrics[f"drafted/{domain}"] = counts.tokens / max(1, sum(rollout.trained_tokens for rollout in own))
        for j, (offered, accepted) in enumerate(zip(counts.offered, counts.accepted, strict=True), start=1):
            if offered:
                metrics[f"draft_accepted_{j}/{domain}"] = accepted / offered
    return metrics


def stale_domains(rows: Sequence[Mapping[str, float]], domains: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Domains in which guesses have become worse, with the best part of right first guesses and that of now.

    Args:
        rows: metrics of the training steps, in order; ``draft_overlap_1/DOMAIN`` is looked at.
    """
    stale: dict[str, tuple[float, float]] = {}
    for domain in domains:
        values = [row[name] for row in rows if row.get(name := f"draft_overlap_1/{domain}") is not None]
        if len(values) < 2 * WINDOW:
            continue
        means = np.convolve(values, np.full(WINDOW, 1 / WINDOW), mode="valid")
        if means.max() - means[-1] > STALE:
            stale[domain] = float(means.max()), float(means[-1])
    return stale
