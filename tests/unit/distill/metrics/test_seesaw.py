"""The seesaw metrics against tables worked out by hand, a published table, naive loops and simulated noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mopd.distill.metrics import seesaw

# MOPD paper (arXiv 2606.30406), table 2: AIME25, AIME26 | IFBench, IFEval | SWE-bench Verified.
PAPER = {
    "sft": (45.42, 54.48, 42.69, 84.17, 35.80),
    "teachers": (54.79, 63.65, 78.40, 95.50, 51.20),
    "mix_rl": (52.71, 63.75, 75.00, 94.58, 48.80),
    "cascade_rl": (48.54, 61.88, 77.11, 95.80, 47.80),
    "off_policy": (51.56, 63.44, 80.95, 93.35, 45.80),
    "merge_average": (47.81, 59.58, 53.74, 88.79, 39.60),
    "merge_task_arithmetic": (49.38, 63.96, 78.23, 95.81, 48.80),
    "mopd": (51.46, 65.31, 77.89, 93.84, 50.40),
}


def domains(model: str) -> np.ndarray:
    a, b, c, d, e = PAPER[model]
    return np.array([(a + b) / 2, (c + d) / 2, e]) / 100


def paper_recovery(model: str) -> np.ndarray:
    base, teacher = domains("sft"), domains("teachers")
    return seesaw.recovery(domains(model), base, teacher, defined_D=seesaw.has_headroom(base, teacher))


@pytest.mark.parametrize(
    ("model", "mean"),
    [
        ("mix_rl", 0.882),
        ("merge_task_arithmetic", 0.857),
        ("off_policy", 0.824),
        ("cascade_rl", 0.775),
        ("merge_average", 0.328),
        ("mopd", 0.937),
        ("teachers", 1.0),
        ("sft", 0.0),
    ],
)
def test_mean_recovery_of_the_papers_table(model: str, mean: float) -> None:
    assert round(float(seesaw.mean_recovery(paper_recovery(model))), 3) == mean


def test_worst_recovery_and_imbalance_of_the_papers_student() -> None:
    recovered = paper_recovery("mopd")
    assert round(float(seesaw.worst_recovery(recovered)), 3) == 0.910
    assert round(float(seesaw.imbalance(recovered)), 3) == 0.044


def test_a_table_by_hand() -> None:
    base, teacher = np.array([0.5, 0.6, 0.8]), np.array([0.9, 0.8, 0.9])
    student = np.array([0.8, 0.85, 0.75])
    recovered = seesaw.recovery(student, base, teacher, defined_D=seesaw.has_headroom(base, teacher))
    # 0.3/0.4, 0.25/0.2, -0.05/0.1
    np.testing.assert_allclose(recovered, [0.75, 1.25, -0.5])
    assert seesaw.mean_recovery(recovered) == pytest.approx(0.5)
    assert seesaw.worst_recovery(recovered) == pytest.approx(-0.5)
    assert seesaw.imbalance(recovered) == pytest.approx(1.75)
    # (0.25 + 0 + 1.5) / 3: the second domain's surplus sets nothing off.
    assert seesaw.pareto_gap(recovered) == pytest.approx(1.75 / 3)
    assert seesaw.max_regression(student, base) == pytest.approx(0.05)
    assert seesaw.max_regression(base + 0.1, base) == 0.0


def test_headroom_needs_two_points_and_three_standard_errors() -> None:
    base = np.array([0.80, 0.80, 0.80, 0.80, 0.80])
    teacher = np.array([0.819, 0.82, 0.85, 0.85, np.nan])
    se = np.array([0.0, 0.0, 0.016, 0.017, 0.0])
    np.testing.assert_array_equal(seesaw.has_headroom(base, teacher, se), [False, True, True, False, False])


def test_undefined_domains_are_left_out_and_stay_undefined() -> None:
    base, teacher, student = np.array([0.5, 0.8]), np.array([0.9, 0.81]), np.array([0.7, 0.4])
    recovered = seesaw.recovery(student, base, teacher, defined_D=seesaw.has_headroom(base, teacher))
    assert recovered[0] == pytest.approx(0.5)
    assert math.isnan(recovered[1])
    assert seesaw.mean_recovery(recovered) == seesaw.worst_recovery(recovered) == pytest.approx(0.5)
    nothing = np.array([np.nan, np.nan])
    for measure in (seesaw.mean_recovery, seesaw.worst_recovery, seesaw.imbalance, seesaw.pareto_gap):
        assert math.isnan(measure(nothing))


def test_measures_take_leading_axes_like_a_loop_over_them() -> None:
    rng = np.random.default_rng(0)
    base, teacher, student = rng.random((7, 3)), 1 + rng.random((7, 3)), rng.random((7, 3))
    everywhere = np.array([True, False, True])
    together = seesaw.recovery(student, base, teacher, defined_D=everywhere)
    for row in range(7):
        alone = seesaw.recovery(student[row], base[row], teacher[row], defined_D=everywhere)
        np.testing.assert_array_equal(together[row], alone)
        for measure in (seesaw.mean_recovery, seesaw.worst_recovery, seesaw.imbalance, seesaw.pareto_gap):
            assert measure(together)[row] == measure(alone)
    assert seesaw.max_regression(student, base).shape == (7,)
    assert seesaw.forgetting(rng.random((7, 5, 3))).shape == (7, 3)
    assert seesaw.seesaw_share(rng.random((7, 5, 3)), 0.01).shape == (7,)


def test_a_level_resample_is_undefined_not_infinite() -> None:
    level = seesaw.recovery(np.array([0.6]), np.array([0.5]), np.array([0.5]), defined_D=np.array([True]))
    assert math.isnan(level[0])


def test_forgetting_by_hand() -> None:
    curve = np.array([[0.5, 0.6], [0.9, 0.7], [0.8, 0.75]])
    np.testing.assert_allclose(seesaw.forgetting(curve), [0.1, 0.0])


def test_forgetting_of_pure_noise_is_what_the_docstring_says() -> None:
    noise = np.random.default_rng(0).normal(size=(20000, 11, 1))
    assert seesaw.forgetting(noise).mean() == pytest.approx(1.6, abs=0.05)


def test_transfer_matrix_by_hand() -> None:
    base, own = np.array([0.5, 0.6]), np.array([0.9, 0.8])
    teachers = np.array([[0.9, 0.2], [0.4, 0.8]])
    matrix = seesaw.transfer_matrix(teachers, base, own, defined_D=np.array([True, True]))
    np.testing.assert_allclose(matrix, [[1.0, -2.0], [-0.25, 1.0]])


def naive_share(curve: np.ndarray, se: np.ndarray, z: float) -> float:
    """The definition of the notes, with loops."""
    above, below = 0.0, 0.0
    for t in range(len(curve) - 1):
        gain = loss = 0.0
        for d in range(curve.shape[1]):
            change = curve[t + 1, d] - curve[t, d]
            if abs(change) < z * math.sqrt(se[t, d] ** 2 + se[t + 1, d] ** 2):
                continue
            gain, loss = gain + max(change, 0), loss + max(-change, 0)
        above, below = above + min(gain, loss), below + max(gain, loss)
    return above / below if below else 0.0


def test_seesaw_share_by_hand() -> None:
    curve = np.array([[0.5, 0.5], [0.7, 0.4], [0.7, 0.4], [0.8, 0.6]])
    # min: 0.1, 0, 0; max: 0.2, 0, 0.3
    assert seesaw.seesaw_share(curve, 0.0) == pytest.approx(0.2)
    # With SE 0.04 a change must reach 2 sqrt(2) 0.04 = 0.113: the loss of 0.1 no longer counts.
    assert seesaw.seesaw_share(curve, 0.04) == 0.0
    assert seesaw.seesaw_share(np.full((4, 2), 0.5), 0.01) == 0.0
    assert seesaw.seesaw_share(np.array([[0.5, 0.5], [0.8, 0.2]]), 0.0) == pytest.approx(1.0)


def test_seesaw_share_agrees_with_loops() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        curve, se = rng.random((9, 3)), rng.random((9, 3)) * 0.2
        assert seesaw.seesaw_share(curve, se) == pytest.approx(naive_share(curve, se, 2.0))


def test_noise_floor_and_a_true_seesaw() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20000, 11, 3))
    assert seesaw.seesaw_share(noise, 1.0).mean() == pytest.approx(0.01, abs=0.005)
    walk = (3 * rng.normal(size=(20000, 11, 1))).cumsum(axis=1) * np.array([1.0, -1.0, 0.0])
    rise = np.arange(11.0)[:, None]
    traded = seesaw.seesaw_share(noise + walk + rise, 1.0).mean()
    assert traded == pytest.approx(0.28, abs=0.02)
    assert seesaw.seesaw_share(noise + walk + 3 * rise, 1.0).mean() < traded - 0.1


def test_seesaw_correlation_agrees_with_loops() -> None:
    curve = np.random.default_rng(3).random((8, 3))
    change = np.diff(curve, axis=0)
    pairs = [max(0.0, -np.corrcoef(change[:, i], change[:, j])[0, 1]) for i, j in itertools.combinations(range(3), 2)]
    rho, _ = seesaw.seesaw_correlation(curve, permutations=10)
    assert rho == pytest.approx(np.mean(pairs))


def test_permutation_p_value_is_the_share_of_all_orders() -> None:
    curve = np.array([[0.5, 0.5], [0.8, 0.3], [0.7, 0.35], [0.9, 0.1], [0.95, 0.2]])
    change = np.diff(curve, axis=0)

    def rho(order: tuple[int, ...]) -> float:
        return max(0.0, -np.corrcoef(change[:, 0], change[list(order), 1])[0, 1])

    orders = list(itertools.permutations(range(4)))
    exact = sum(rho(order) >= rho((0, 1, 2, 3)) - 1e-12 for order in orders) / len(orders)
    _, p = seesaw.seesaw_correlation(curve, permutations=20000)
    assert p == pytest.approx(exact, abs=0.01)


def test_correlation_tells_a_seesaw_from_a_common_rise_and_is_seeded() -> None:
    rng = np.random.default_rng(5)
    walk = rng.normal(size=(12, 1)).cumsum(axis=0)
    against = np.concatenate([walk, -walk], axis=1) + 0.1 * rng.normal(size=(12, 2))
    rho, p = seesaw.seesaw_correlation(against)
    assert rho > 0.9
    assert p < 0.01
    assert seesaw.seesaw_correlation(against) == (rho, p)
    together = np.concatenate([walk, walk], axis=1) + 0.1 * rng.normal(size=(12, 2))
    rho, p = seesaw.seesaw_correlation(together)
    assert rho == 0.0
    assert p == 1.0


def test_correlation_of_domains_that_do_not_move_is_zero() -> None:
    still = np.stack([np.full(6, 0.5), np.arange(6) / 10 + np.array([0, 0.1, 0, 0.1, 0, 0.1])], axis=1)
    assert seesaw.seesaw_correlation(still)[0] == 0.0
    assert all(math.isnan(x) for x in seesaw.seesaw_correlation(np.zeros((3, 2))))
    with pytest.raises(ValueError, match="checkpoints, domains"):
        seesaw.seesaw_correlation(np.zeros(4))


def test_correlation_of_pure_noise_is_rarely_significant() -> None:
    rng = np.random.default_rng(0)
    hits = [seesaw.seesaw_correlation(rng.normal(size=(11, 3)), permutations=200)[1] < 0.05 for _ in range(400)]
    assert 0.03 < np.mean(hits) < 0.12


def test_a_seesaw_needs_share_and_significance() -> None:
    assert seesaw.is_seesaw(0.2, 0.01)
    assert not seesaw.is_seesaw(0.1, 0.01)
    assert not seesaw.is_seesaw(0.2, 0.2)
    assert not seesaw.is_seesaw(0.2, float("nan"))
