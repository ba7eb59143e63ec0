"""The learning rate of an optimizer step: a pure function of its number, so a resumed run draws the same curve."""

from __future__ import annotations

import math

from mopd.distill.recipe import Optimizer


def learning_rate(optimizer: Optimizer, k: int, total: int) -> float:
    """Learning rate of optimizer step ``k`` of ``total``.

    Linear warm-up over ``warmup_steps`` steps (step 0 already moves, the last of them is at the peak), then the
    schedule from the peak down to ``final_lr_fraction`` of it, which the last step has.

    Args:
        optimizer: the recipe's optimizer.
        k: number of the optimizer step in the run, from 0.
        total: optimizer steps of the whole run.
    """
    if k < optimizer.warmup_steps:
        return optimizer.lr * (k + 1) / optimizer.warmup_steps
    progress = min(1.0, (k - optimizer.warmup_steps) / max(1, total - 1 - optimizer.warmup_steps))
    match optimizer.schedule:
        case "constant":
            remaining = 1.0
        case "linear":
            remaining = 1.0 - progress
        case "cosine":
            remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    final = 1.0 if optimizer.schedule == "constant" else optimizer.final_lr_fraction
    return optimizer.lr * (final + (1.0 - final) * remaining)
