"""Losses against references written from the definitions, with loops in float64, on enumerable vocabularies."""

import math

import pytest
import torch
from losses_kit import (
    CHUNKED,
    FORWARD,
    FULL,
    HALF,
    NLL,
    PLAIN,
    SQUARE,
    TOPK,
    V,
    every_token,
    graded,
    microbatch,
    rows,
    run,
)
from naive import kl, numeric_gradient, reverse_kl_gradient, score, softmax

from mopd.distill.loss.registry import LOSSES
from mopd.distill.recipe import K2, PolicyGradient

# --- full reverse KL --------------------------------------------------------------------------------------------------


def test_full_reverse_kl_is_the_definition_in_value_gradient_and_statistics():
    logits, teacher = rows(2, 3, V, seed=0), rows(2, 3, V, seed=1).log_softmax(-1)
    mask = [[False, True, True], [False, False, True]]
    tokens = [[0, 4, 1], [2, 3, 5]]
    sampler = rows(2, 3, seed=2) - 2
    out, gradient = run("full_reverse_kl", logits, microbatch(mask, tokens, teacher=teacher, sampler=sampler), FULL)
    for b in range(2):
        for t in range(3):
            if not mask[b][t]:
                assert out.loss_BT[b, t] == 0
                assert not gradient[b, t].any()
                assert all(stat[b, t] == 0 for stat in out.stats.values())
                continue
            z, q = logits[b, t].tolist(), teacher[b, t].exp().tolist()
            p, y = softmax(z), tokens[b][t]
            assert out.loss_BT[b, t].item() == pytest.approx(kl(p, q), abs=1e-12)
            assert gradient[b, t].tolist() == pytest.approx(
                numeric_gradient(lambda z, q=q: kl(softmax(z), q), z), abs=1e-9
            )
            assert {name: stat[b, t].item() for name, stat in out.stats.items()} == pytest.approx(
                {
                    "kl": kl(p, q),
                    "entropy": -sum(a * math.log(a) for a in p),
                    "advantage": math.log(q[y] / p[y]),
                    "ratio": p[y] / math.exp(sampler[b, t]),
                }
            )


def test_full_reverse_kl_gradient_is_autograds_for_any_weights():
    teacher, weights = rows(2, 3, V, seed=3).log_softmax(-1), rows(2, 3, seed=4)
    batch = microbatch([[False, True, True]] * 2, [[0, 1, 2]] * 2, teacher=teacher)
    logits = rows(2, 3, V, seed=5).requires_grad_()
    (ours,) = torch.autograd.grad(
        (LOSSES["full_reverse_kl"].token_loss(logits, batch, FULL).loss_BT * weights).sum(), logits
    )
    logp = logits.log_softmax(-1)
    kl_BT = (logp.exp() * (logp - teacher)).sum(-1) * batch.mask_BT
    (theirs,) = torch.autograd.grad((kl_BT * weights).sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_full_reverse_kl_is_exactly_zero_where_the_teacher_is_the_student(dtype):
    logits = rows(3, 4, 133, seed=6, dtype=dtype) * 5
    precision = torch.promote_types(dtype, torch.float32)
    batch = microbatch(
        [[False, True, True, True]] * 3, [[1, 2, 3, 4]] * 3, teacher=logits.to(precision).log_softmax(-1)
    )
    out, gradient = run("full_reverse_kl", logits, batch, FULL)
    assert gradient.dtype == dtype
    assert not out.loss_BT.any()
    assert not gradient.any()
    moved, away = run("full_reverse_kl", logits + 0.5 * rows(3, 4, 133, seed=7, dtype=dtype), batch, FULL)
    assert moved.loss_BT[:, 1:].min() > 1e-3
    assert away.any()


def test_half_precision_logits_lose_nothing_in_the_softmax():
    logits = rows(1, 2, 50, seed=8).bfloat16()
    teacher = rows(1, 2, 50, seed=9).log_softmax(-1)
    batch = microbatch([[False, True]], [[0, 1]], teacher=teacher.float())
    out, gradient = run("full_reverse_kl", logits, batch, FULL)
    p, q = softmax(logits[0, 1].double().tolist()), teacher[0, 1].exp().tolist()
    assert out.loss_BT.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert out.loss_BT[0, 1].item() == pytest.approx(kl(p, q), rel=1e-5)


def test_impossible_tokens_cost_nothing_unless_the_student_takes_them():
    never = -math.inf
    logits = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, never]]], dtype=torch.float64)
    allowed = torch.tensor([[[0.0, 0.0, 0.0], [0.5, 0.0, never]]], dtype=torch.float64).log_softmax(-1)
    batch = microbatch([[False, True]], [[0, 1]], teacher=allowed)
    out, gradient = run("full_reverse_kl", logits, batch, FULL)
    assert out.loss_BT[0, 1].item() == pytest.approx(kl(softmax([1.0, 2.0]), softmax([0.5, 0.0])))
    assert gradient.isfinite().all()
    forbidden = allowed.clone()
    forbidden[0, 1] = torch.tensor([0.0, never, never])
    out, _ = run("full_reverse_kl", logits, microbatch([[False, True]], [[0, 1]], teacher=forbidden), FULL)
    assert out.loss_BT[0, 1] == math.inf


@pytest.mark.parametrize(
    "settings", [FULL, FORWARD, HALF, TOPK, CHUNKED, PLAIN, SQUARE, NLL], ids=lambda s: s.estimator
)
def test_one_tensor_of_the_size_of_the_logits_is_kept_for_the_backward(settings):
    name, kept = settings.estimator, []
    batch = graded(name, [[True] * 3] * 2, [[0, 1, 2]] * 2, rows(2, 3, V, seed=10).log_softmax(-1))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        LOSSES[name].token_loss(rows(2, 3, V, seed=11).requires_grad_(), batch, settings)
    assert len({x.untyped_storage().data_ptr() for x in kept if x.numel() == 2 * 3 * V}) == 1


# --- policy gradient --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_policy", [True, False])
def test_expected_policy_gradient_is_the_gradient_of_the_reverse_kl(on_policy):
    student, teacher = rows(V, seed=12), rows(V, seed=13)
    sampler = student if on_policy else student + 0.3 * rows(V, seed=14)
    logits, batch = every_token(student, teacher, sampler_V=sampler.log_softmax(-1))
    _, gradient = run("policy_gradient", logits, batch, PLAIN)
    # Row v is what drawing token v does; the sampler draws it with mu(v), and w_t corrects for that.
    expected = (sampler.softmax(-1).unsqueeze(-1) * gradient[:, 1]).sum(0)
    p, q = softmax(student.tolist()), softmax(teacher.tolist())
    assert expected.tolist() == pytest.approx(reverse_kl_gradient(p, q), abs=1e-9)
    assert max(abs(x) for x in expected.tolist()) > 1e-2


def test_policy_gradient_token_by_token_with_clip_gate_and_reward():
    student, teacher = torch.tensor([2.0, 0.0, -1.0, 0.5]).double(), torch.tensor([-1.0, 0.2, 2.0, 0.4]).double()
    log_ratio = torch.tensor([0.0, 0.2, -0.1, 1.0]).double()  # the last token is outside the gate
    logits, batch = every_token(
        student, teacher, sampler_V=student.log_softmax(-1) - log_ratio, reward=[1.0, -1.0, 0.5, 2.0]
    )
    settings = PolicyGradient(estimator="policy_gradient", advantage_clip=1.5, gate=(0.5, 2.0), reward_weight=0.4)
    out, gradient = run("policy_gradient", logits, batch, settings)
    p, q = softmax(student.tolist()), softmax(teacher.tolist())
    for v, reward in enumerate([1.0, -1.0, 0.5, 2.0]):
        gap = math.log(q[v] / p[v])
        advantage = min(1.5, max(-1.5, gap)) + 0.4 * reward
        ratio = math.exp(log_ratio[v])
        weight = ratio if 0.5 <= ratio <= 2.0 else 0.0
        assert out.loss_BT[v, 1].item() == pytest.approx(-weight * advantage * math.log(p[v]), abs=1e-12)
        assert gradient[v, 1].tolist() == pytest.approx([-weight * advantage * s for s in score(p, v)], abs=1e-12)
        assert {name: stat[v, 1].item() for name, stat in out.stats.items()} == pytest.approx(
            {
                "kl": -gap,
                "entropy": -sum(a * math.log(a) for a in p),
                "advantage": advantage,
                "ratio": ratio,
                "gate_dropped": float(v == 3),
                "clipped": float(abs(gap) > 1.5),
            }
        )
    assert {bool(x) for x in out.stats["clipped"][:, 1]} == {True, False}, "the case shows both"


def test_policy_gradient_is_zero_where_the_teacher_is_the_student():
    student = rows(V, seed=15)
    logits, batch = every_token(student, student)
    out, gradient = run("policy_gradient", logits, batch, PLAIN)
    assert not out.loss_BT.any()
    assert not gradient.any()


def test_without_reward_weight_rewards_change_nothing_and_without_a_teacher_only_rewards_count():
    student, teacher = rows(V, seed=16), rows(V, seed=17)
    rewards = rows(V, seed=18).tolist()
    plain = run("policy_gradient", *every_token(student, teacher), PLAIN)[1]
    alpha_0 = run("policy_gradient", *every_token(student, teacher, reward=rewards), PLAIN)[1]
    torch.testing.assert_close(alpha_0, plain, rtol=0, atol=0)

    rewarded = PLAIN.model_copy(update={"reward_weight": 0.7})
    logits, batch = every_token(student, torch.full((V,), math.nan).double(), reward=rewards, taught=[False] * V)
    gradient = run("policy_gradient", logits, batch, rewarded)[1]
    p = softmax(student.tolist())
    for v in range(V):
        assert gradient[v, 1].tolist() == pytest.approx([-0.7 * rewards[v] * s for s in score(p, v)], abs=1e-12)
    with pytest.raises(ValueError, match="no reward advantages"):
        run("policy_gradient", *every_token(student, teacher), rewarded)


# --- k2 ---------------------------------------------------------------------------------------------------------------


def test_expected_k2_gradient_is_the_gradient_of_the_reverse_kl():
    student, teacher = rows(V, seed=23), rows(V, seed=24)
    sampler = student + 0.3 * rows(V, seed=25)
    logits, batch = every_token(student, teacher, sampler_V=sampler.log_softmax(-1))
    _, gradient = run("k2", logits, batch, SQUARE)
    expected = (sampler.softmax(-1).unsqueeze(-1) * gradient[:, 1]).sum(0)
    p, q = softmax(student.tolist()), softmax(teacher.tolist())
    assert expected.tolist() == pytest.approx(reverse_kl_gradient(p, q), abs=1e-9)
    assert max(abs(x) for x in expected.tolist()) > 1e-2


def test_k2_is_half_the_square_of_the_gap_and_linear_beyond_the_clip():
    student, teacher = torch.tensor([2.0, 0.0, -1.0, 0.5]).double(), torch.tensor([-1.0, 0.2, 2.0, 0.4]).double()
    log_ratio = torch.tensor([0.0, 0.2, -0.1, 1.0]).double()  # the last token is outside the gate
    logits, batch = every_token(student, teacher, sampler_V=student.log_softmax(-1) - log_ratio)
    out, gradient = run("k2", logits, batch, K2(estimator="k2", advantage_clip=1.5, gate=(0.5, 2.0)))
    p, q = softmax(student.tolist()), softmax(teacher.tolist())
    sides = set()
    for v in range(4):
        gap, ratio = math.log(q[v] / p[v]), math.exp(log_ratio[v])
        inside = abs(gap) <= 1.5
        weight = ratio if 0.5 <= ratio <= 2.0 else 0.0
        value = gap**2 / 2 if inside else 1.5 * (abs(gap) - 0.75)
        slope = gap if inside else math.copysign(1.5, gap)
        assert out.loss_BT[v, 1].item() == pytest.approx(weight * value, abs=1e-12)
        assert gradient[v, 1].tolist() == pytest.approx([-weight * slope * s for s in score(p, v)], abs=1e-12)
        assert out.stats["clipped"][v, 1] == float(not inside)
        sides.add(inside)
    assert sides == {True, False}, "the case shows both"


def test_k2_pulls_as_the_policy_gradient_does_with_the_same_bounds():
    student, teacher = 3 * rows(V, seed=26), 3 * rows(V, seed=27)
    logits, batch = every_token(student, teacher, sampler_V=(student + 0.5 * rows(V, seed=28)).log_softmax(-1))
    bounds = {"advantage_clip": 1.0, "gate": (0.7, 1.4)}
    square, ours = run("k2", logits, batch, K2(estimator="k2", **bounds))
    surrogate, theirs = run("policy_gradient", logits, batch, PolicyGradient(estimator="policy_gradient", **bounds))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert 0 < square.stats["gate_dropped"].sum() < V
    assert square.stats.keys() == surrogate.stats.keys()
    assert all(torch.equal(stat, surrogate.stats[name]) for name, stat in square.stats.items())


def test_k2_is_zero_where_the_teacher_is_the_student_and_where_nobody_graded():
    student = rows(V, seed=29)
    for logits, batch in (every_token(student, student), every_token(student, 2 * student, taught=[False] * V)):
        out, gradient = run("k2", logits, batch, SQUARE)
        assert not out.loss_BT.any()
        assert not gradient.any()


# --- negative log-likelihood ------------------------------------------------------------------------------------------


def test_nll_is_the_definition_in_value_and_gradient():
    logits = rows(1, 3, V, seed=19)
    out, gradient = run("nll", logits, microbatch([[False, True, True]], [[0, 4, 1]]), NLL)
    for t, y in ((1, 4), (2, 1)):
        p = softmax(logits[0, t].tolist())
        assert out.loss_BT[0, t].item() == pytest.approx(-math.log(p[y]), abs=1e-12)
        assert gradient[0, t].tolist() == pytest.approx([-s for s in score(p, y)], abs=1e-12)
        assert out.stats["entropy"][0, t].item() == pytest.approx(-sum(a * math.log(a) for a in p))
