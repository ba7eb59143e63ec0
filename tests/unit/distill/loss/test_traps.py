"""Why the recipe refuses the estimators of TRAPS: their expected gradients, by enumeration of a small vocabulary."""

import math
import random

import pytest
from naive import cosine, expectation, kl, numeric_gradient, reverse_kl_gradient, score, softmax

from mopd.distill.loss.registry import LOSSES
from mopd.distill.recipe import TRAPS

V = 6
RANDOM = random.Random(0)
P = softmax([RANDOM.gauss(0, 1) for _ in range(V)])
Q = softmax([RANDOM.gauss(0, 1) for _ in range(V)])
LIKELY = sorted(range(V), key=lambda v: -Q[v])[:2]  # the teacher's top 2


def trap_k1_backprop():
    gradient = expectation(P, lambda v: score(P, v))
    assert gradient == pytest.approx([0.0] * V, abs=1e-12)


def trap_k3_backprop():
    # k3 = q/p - 1 - log(q/p), whose derivative with respect to log p is 1 - q/p.
    gradient = expectation(P, lambda v: [(1 - Q[v] / P[v]) * s for s in score(P, v)])
    forward_kl = numeric_gradient(lambda z: kl(Q, softmax(z)), [math.log(a) for a in P])
    assert gradient == pytest.approx(forward_kl, abs=1e-9)
    assert gradient != pytest.approx(reverse_kl_gradient(P, Q), abs=1e-2)


def trap_k3_advantage():
    def k3(v):
        return Q[v] / P[v] - 1 - math.log(Q[v] / P[v])

    gradient = expectation(P, lambda v: [k3(v) * s for s in score(P, v)])
    assert cosine(gradient, reverse_kl_gradient(P, Q)) < 0.9


def trap_topk_truncated():
    def truncated(z):
        p = softmax(z)
        return math.fsum(p[v] * math.log(p[v] / Q[v]) for v in LIKELY)

    gradient = numeric_gradient(truncated, [math.log(a) for a in Q])
    assert max(abs(g) for g in gradient) > 1e-2, "student and teacher agree, and still it pushes"


def trap_topk_advantage():
    def same_for_any_token(_):
        return -math.fsum(P[v] * math.log(P[v] / Q[v]) for v in LIKELY)

    gradient = expectation(P, lambda v: [-same_for_any_token(v) * s for s in score(P, v)])
    assert gradient == pytest.approx([0.0] * V, abs=1e-12)


def trap_topk_renormalized():
    def gradient(support):
        def renormalized(z):
            p = softmax(z)
            p_k = [p[v] / math.fsum(p[u] for u in support) for v in support]
            q_k = [Q[v] / math.fsum(Q[u] for u in support) for v in support]
            return kl(p_k, q_k)

        return numeric_gradient(renormalized, [math.log(a) for a in P])

    assert gradient(LIKELY[:1]) == pytest.approx([0.0] * V, abs=1e-9)
    assert gradient(LIKELY) != pytest.approx(reverse_kl_gradient(P, Q), abs=1e-2)


@pytest.mark.parametrize("name", sorted(TRAPS))
def test_a_refused_estimator_fails_for_the_reason_given(name):
    globals()[f"trap_{name}"]()
    assert name not in LOSSES


def test_k2_is_right_so_it_is_no_trap():
    gradient = expectation(P, lambda v: [math.log(P[v] / Q[v]) * s for s in score(P, v)])
    assert gradient == pytest.approx(reverse_kl_gradient(P, Q), abs=1e-9)
    assert not any("k2" in name for name in TRAPS)
