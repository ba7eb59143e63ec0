"""Does one domain pay for another? Measures of the seesaw: pure functions of a table of scores.

Sources are named where a measure has one elsewhere; the others are defined here.

Shape legend: D domains (always the last axis), C checkpoints in the order of training, ``...`` any leading axes (the
seeds of a row, for one). Scores are fractions 0..1, so a point is 0.01. NaN means undefined, and is written
as null in seesaw.json; it is never replaced by 0. Where a domain has several benchmarks, they are averaged to the
domain's score *first*, and normalised afterwards.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Float64: TypeAlias = npt.NDArray[np.float64]

MIN_HEADROOM = 0.02
"""A teacher less than 2 points above the base leaves nothing to recover: the quotient would be noise."""

MIN_HEADROOM_SE = 3.0
"""The same, in standard errors of the headroom."""

NOISE_FLOOR = 2.0
"""z: a change between checkpoints below z standard errors of the difference counts as none."""

SEESAW_SHARE = 0.15
"""The share above which a trajectory is called a seesaw, if its correlation is significant too."""


def has_headroom(base_D: Float64, teacher_D: Float64, headroom_se_D: Float64 | float = 0.0) -> npt.NDArray[np.bool_]:
    """Which domains have a recovery: ``H_d = s_d(T_d) - s_d(0) >= max(2 points, 3 SE)``.

    Args:
        base_D: score of the student before distillation, ``(D,)``.
        teacher_D: score of each domain's own teacher, ``(D,)``; NaN where the domain has none.
        headroom_se_D: standard error of ``H_d``; paired where both answered the same questions.
    """
    needed_D = np.maximum(MIN_HEADROOM, MIN_HEADROOM_SE * np.asarray(headroom_se_D))
    # A headroom of exactly two points is enough, whatever 0.82 - 0.80 is in binary.
    return np.asarray(teacher_D - base_D >= needed_D - 1e-12)


def recovery(student_D: Float64, base_D: Float64, teacher_D: Float64, *, defined_D: npt.NDArray[np.bool_]) -> Float64:
    """Recovered share of the teacher's gain, ``R_d = (s_d - s_d(0)) / H_d``; 1 is the teacher, 0 the base.

    Args:
        student_D: scores, ``(..., D)``, as are ``base_D`` and ``teacher_D``.
        defined_D: from :func:`has_headroom`, ``(D,)``; decided once, on the point estimates, so that every number
            of a run is of the same domains.

    Returns:
        ``(..., D)``; NaN where the domain has too little headroom: report points there.

    Example:
        Base 0.50, teacher 0.90, student 0.80: ``R = 0.3 / 0.4 = 0.75``.
    """
    headroom_D = np.where(defined_D, teacher_D - base_D, np.nan)
    # A resample may put teacher and base level; its quotient is undefined, too.
    headroom_D = np.where(headroom_D == 0, np.nan, headroom_D)
    return (student_D - base_D) / headroom_D


def mean_recovery(recovery_D: Float64) -> Float64:
    """Mean of the defined recoveries. It hides the seesaw: never report it without the worst."""
    defined_D = ~np.isnan(recovery_D)
    count = defined_D.sum(axis=-1)
    total = np.where(defined_D, recovery_D, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def worst_recovery(recovery_D: Float64) -> Float64:
    """``W = min_d R_d`` over the defined recoveries: the number to select checkpoints by."""
    lowest = np.where(np.isnan(recovery_D), np.inf, recovery_D).min(axis=-1)
    return np.where(np.isinf(lowest), np.nan, lowest)


def imbalance(recovery_D: Float64) -> Float64:
    """``B = max_d R_d - min_d R_d`` over the defined recoveries."""
    return -worst_recovery(-recovery_D) - worst_recovery(recovery_D)


def pareto_gap(recovery_D: Float64) -> Float64:
    """Mean over domains of ``[1 - R_d]_+``: what is missing to every teacher at once, with nothing set off."""
    return mean_recovery(np.maximum(1.0 - recovery_D, 0.0))


def max_regression(student_D: Float64, base_D: Float64) -> Float64:
    """``MR = max_d [s_d(0) - s_d]_+`` as a fraction, over all domains: those without a teacher, too."""
    return np.maximum(base_D - student_D, 0.0).max(axis=-1)


def forgetting(curve_CD: Float64) -> Float64:
    """``F_d = max_t s_d(t) - s_d(end)``, ``(..., C, D) -> (..., D)``. Source: Chaudhry et al., arXiv 1801.10112.

    Noise biases it upward: about 1.6 standard errors of one score at 11 checkpoints.
    """
    return curve_CD.max(axis=-2) - curve_CD[..., -1, :]


def transfer_matrix(
    models_JD: Float64, base_D: Float64, teacher_D: Float64, *, defined_D: npt.NDArray[np.bool_]
) -> Float64:
    """``X[j, d] = (s_d(model j) - s_d(0)) / H_d``: an off-diagonal negative is who hurts whom.

    Args:
        models_JD: one row for each teacher itself, or for the student taught by it alone.

    Returns:
        ``(J, D)``, NaN in the columns of domains without headroom. The notes' ``X_{d,j}`` is its transpose.
    """
    return recovery(models_JD, base_D, teacher_D, defined_D=defined_D)


def changes(curve_CD: Float64, se_CD: Float64 | float, z: float = NOISE_FLOOR) -> Float64:
    """Changes between neighbouring checkpoints, ``(..., C - 1, D)``; those within the noise are 0.

    Args:
        se_CD: standard error of each *score*; that of a difference is ``sqrt(se_t^2 + se_{t+1}^2)``, sqrt(2) times
            one score's where they are equal. Checkpoints answer the same questions, so this is on the safe side.
    """
    variance_CD = np.broadcast_to(np.asarray(se_CD, dtype=float) ** 2, curve_CD.shape)
    floor_CD = z * np.sqrt(sliding_window_view(variance_CD, 2, axis=-2).sum(axis=-1))
    difference_CD = np.diff(curve_CD, axis=-2)
    return np.where(np.abs(difference_CD) < floor_CD, 0.0, difference_CD)


def seesaw_share(curve_CD: Float64, se_CD: Float64 | float, z: float = NOISE_FLOOR) -> Float64:
    """Share of the movement that one domain takes from another: ``S = sum_t min(G_t, L_t) / sum_t max(G_t, L_t)``.

    ``G_t`` and ``L_t`` are the summed gains and losses over domains between checkpoints t and t + 1, changes within
    the noise left out (:func:`changes`); 0/0 is 0. S is 0 if domains only ever rise together and 1 if every gain is
    paid in full. With 3 domains and 11 checkpoints pure noise gives about 0.01; a rise of one SE a checkpoint and two
    domains against each other in a random walk of 3 SE a checkpoint give 0.28.

    Returns:
        shape ``(...)``.
    """
    change_CD = changes(curve_CD, se_CD, z)
    gains_C = np.maximum(change_CD, 0.0).sum(axis=-1)
    losses_C = np.maximum(-change_CD, 0.0).sum(axis=-1)
    traded = np.minimum(gains_C, losses_C).sum(axis=-1)
    moved = np.maximum(gains_C, losses_C).sum(axis=-1)
    return np.where(moved > 0, traded / np.where(moved > 0, moved, 1.0), 0.0)


def noise_share(se_CD: Float64, *, draws: int = 2000, seed: int = 0) -> float:
    """The seesaw share that noise alone gives on average: of a student that never changes, measured with these errors.

    Args:
        se_CD: standard error of each score of the curve, ``(C, D)``.
    """
    noise_NCD = np.random.default_rng(seed).normal(size=(draws, *se_CD.shape)) * se_CD
    return float(seesaw_share(noise_NCD, se_CD).mean())


def _opposition(change_CD: Float64) -> Float64:
    """Mean over pairs of ``max(0, -corr_t)``; a domain that never moves correlates with nothing."""
    centred_CD = change_CD - change_CD.mean(axis=-2, keepdims=True)
    norm_D = np.sqrt((centred_CD**2).sum(axis=-2))
    unit_CD = centred_CD / np.where(norm_D > 1e-12, norm_D, np.inf)[..., None, :]
    correlation_DD = np.swapaxes(unit_CD, -1, -2) @ unit_CD
    first, second = np.triu_indices(change_CD.shape[-1], k=1)
    return np.maximum(-correlation_DD[..., first, second], 0.0).mean(axis=-1)


def seesaw_correlation(curve_CD: Float64, *, permutations: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Do domains move against each other? ``rho = mean over pairs of max(0, -corr_t(change_i, change_j))``, and its p.

    The p-value is that of a permutation test: each domain's changes are shuffled over time on their own, which keeps
    what a domain does and breaks what domains do together. The clipped mean is above 0 by chance alone, so ``rho``
    says nothing without ``p``. The changes of a noisy score are not independent over time (a high checkpoint gives
    a rise, then a fall), so the test is somewhat liberal: with 3 domains and 11 checkpoints, pure noise falls below
    p = 0.05 in about 8% of runs. That is why :func:`is_seesaw` asks for the share, too.

    Returns:
        ``(rho, p)``; both NaN with fewer than two domains or four checkpoints, where there is nothing to permute.
    """
    if curve_CD.ndim != 2:
        raise ValueError(f"the curve has shape {curve_CD.shape}; (checkpoints, domains) needed")
    if curve_CD.shape[0] < 4 or curve_CD.shape[1] < 2:
        return float("nan"), float("nan")
    change_CD = changes(curve_CD, 0.0)
    observed = float(_opposition(change_CD))
    copies_PCD = np.broadcast_to(change_CD, (permutations, *change_CD.shape))
    shuffled_PCD = np.random.default_rng(seed).permuted(copies_PCD, axis=1)
    # The observed order is one of the possible ones: hence the 1s, without which p could be 0.
    as_high = int((_opposition(shuffled_PCD) >= observed - 1e-12).sum())
    return observed, (1 + as_high) / (1 + permutations)


def is_seesaw(share: float, correlation_p: float) -> bool:
    """A trajectory is a seesaw where ``S > 0.15`` and ``rho`` is above its permutation 95%."""
    return bool(share > SEESAW_SHARE and correlation_p < 0.05)
