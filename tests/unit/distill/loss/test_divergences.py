"""Forward KL and Jensen-Shannon against their definitions, with loops in float64; temperature; several teachers."""

import math
from dataclasses import replace

import pytest
import torch
from losses_kit import FORWARD, FULL, HALF, PLAIN, SQUARE, V, every_token, graded, microbatch, rows, run
from naive import jensen_shannon, kl, numeric_gradient, reverse_kl_gradient, softmax

from mopd.distill.recipe import JSD, SkewedKL, WeightedReverseKL

BETAS = (0, 0.1, 0.5, 0.9, 1)


def jsd(beta):
    return JSD(estimator="jsd", beta=beta)


def skewed(direction, skew):
    return SkewedKL(estimator="skewed_kl", direction=direction, skew=skew)


SKEWED = [skewed(direction, skew) for direction in ("forward", "reverse") for skew in (1e-3, 0.1, 0.5, 0.9)]
SETTINGS = [FORWARD, *map(jsd, BETAS), *SKEWED]


def definition(settings, p, q):
    if settings.estimator == "full_reverse_kl":
        return kl(p, q)
    if settings.estimator == "skewed_kl":
        first, second = (p, q) if settings.direction == "reverse" else (q, p)
        return kl(first, [settings.skew * a + (1 - settings.skew) * b for a, b in zip(first, second, strict=True)])
    return jensen_shannon(p, q, 0 if settings.estimator == "forward_kl" else settings.beta)


def told(settings):
    return "-".join(str(value) for name, value in settings if name in ("estimator", "beta", "direction", "skew"))


@pytest.mark.parametrize("settings", SETTINGS, ids=told)
def test_divergence_is_the_definition_in_value_gradient_and_statistics(settings):
    name = settings.estimator
    logits, teacher = 2 * rows(2, 3, V, seed=0), 2 * rows(2, 3, V, seed=1)
    mask = [[False, True, True], [False, False, True]]
    tokens = [[0, 4, 1], [2, 3, 5]]
    sampler = rows(2, 3, seed=2) - 2
    batch = graded(name, mask, tokens, teacher.log_softmax(-1), sampler=sampler)
    out, gradient = run(name, logits, batch, settings)
    for b, t in ((0, 1), (0, 2), (1, 2)):
        z, q, y = logits[b, t].tolist(), softmax(teacher[b, t].tolist()), tokens[b][t]
        p = softmax(z)
        assert out.loss_BT[b, t].item() == pytest.approx(definition(settings, p, q), abs=1e-12)
        numeric = numeric_gradient(lambda z, q=q: definition(settings, softmax(z), q), z)
        assert gradient[b, t].tolist() == pytest.approx(numeric, abs=1e-9)
        assert {name: stat[b, t].item() for name, stat in out.stats.items()} == pytest.approx(
            {
                "kl": kl(p, q),  # the reverse one, whatever the loss: runs are compared by it
                "entropy": -sum(a * math.log(a) for a in p),
                "advantage": math.log(q[y] / p[y]),
                "ratio": p[y] / math.exp(sampler[b, t]),
            }
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=told)
def test_divergence_is_exactly_zero_where_the_teacher_is_the_student(settings, dtype):
    name, logits = settings.estimator, 5 * rows(3, 4, 133, seed=6, dtype=dtype)
    teacher = logits.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1)
    batch = graded(name, [[False, True, True, True]] * 3, [[1, 2, 3, 4]] * 3, teacher)
    out, gradient = run(name, logits, batch, settings)
    assert gradient.dtype == dtype
    assert not out.loss_BT.any()
    assert not gradient.any()
    moved, away = run(name, logits + 0.5 * rows(3, 4, 133, seed=7, dtype=dtype), batch, settings)
    assert moved.loss_BT[:, 1:].min() > 1e-5
    assert away.any()


@pytest.mark.parametrize("settings", SETTINGS, ids=told)
def test_float32_holds_where_the_two_are_far_apart(settings):
    """Probabilities of e^-150 are 0 in float32: no overflow, no NaN, and the value of float64."""
    z, w = [150.0, 0.0, 3.0], [0.0, 150.0, 1.0]
    name, teacher = settings.estimator, torch.tensor([[[0.0] * 3, w]]).log_softmax(-1)
    batch = graded(name, [[False, True]], [[0, 1]], teacher)
    out, gradient = run(name, torch.tensor([[[0.0] * 3, z]]), batch, settings)
    exact = definition(settings, softmax(z), softmax(w))
    assert out.loss_BT[0, 1].item() == pytest.approx(exact, rel=1e-5)
    numeric = numeric_gradient(lambda z: definition(settings, softmax(z), softmax(w)), z)
    assert gradient[0, 1].tolist() == pytest.approx(numeric, abs=1e-4)


def test_the_ends_are_the_two_kls_and_the_interior_vanishes_towards_them():
    logits, teacher = rows(1, 2, V, seed=8), rows(1, 2, V, seed=9).log_softmax(-1)

    def value(settings):
        return run(settings.estimator, logits, graded(settings.estimator, [[False, True]], [[0, 1]], teacher), settings)

    for end, kl_ in ((0, FORWARD), (1, FULL)):
        ours, theirs = value(jsd(end)), value(kl_)
        torch.testing.assert_close(ours[0].loss_BT, theirs[0].loss_BT, rtol=1e-12, atol=0)
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-12, atol=1e-15)
        near = [value(jsd(abs(end - e)))[0].loss_BT[0, 1].item() for e in (1e-2, 1e-3, 1e-4)]
        assert near[0] > near[1] > near[2] > 0
        assert near[2] == pytest.approx(1e-4 * theirs[0].loss_BT[0, 1].item(), rel=1e-2), "over beta it is the KL"


@pytest.mark.parametrize("settings", SKEWED, ids=told)
def test_a_skewed_kl_is_bounded_however_far_the_two_are_apart(settings):
    for distance in (10.0, 1e3, 1e4):
        logits = torch.tensor([[[0.0, 0.0], [distance, 0.0]]])
        teacher = torch.tensor([[[0.0, 0.0], [0.0, distance]]]).log_softmax(-1)
        out, gradient = run("skewed_kl", logits, graded("skewed_kl", [[False, True]], [[0, 1]], teacher), settings)
        assert 0 < out.loss_BT[0, 1].item() <= -math.log(settings.skew) * (1 + 1e-5)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("settings", [FORWARD, HALF, *SKEWED], ids=told)
def test_several_teachers_give_the_weighted_sum_of_their_divergences(settings):
    """Row 0 has two teachers, row 1 has one: its second slot is empty and says nothing."""
    logits, first, second = rows(2, 2, V, seed=10), rows(2, 2, V, seed=11), rows(2, 2, V, seed=12)
    slots = [([0.25, 1.0], first.log_softmax(-1)), ([0.75, 0.0], second.log_softmax(-1))]
    slots[1][1][1] = math.nan
    out, gradient = run(
        settings.estimator, logits, microbatch([[False, True]] * 2, [[0, 1]] * 2, slots=slots), settings
    )
    for b, weights in ((0, (0.25, 0.75)), (1, (1.0, 0.0))):
        q = [softmax(teacher[b, 1].tolist()) for teacher in (first, second)]

        def total(z, weights=weights, q=q):
            return sum(w * definition(settings, softmax(z), one) for w, one in zip(weights, q, strict=True))

        z = logits[b, 1].tolist()
        assert out.loss_BT[b, 1].item() == pytest.approx(total(z), abs=1e-12)
        assert gradient[b, 1].tolist() == pytest.approx(numeric_gradient(total, z), abs=1e-9)
        reverse = sum(w * kl(softmax(z), one) for w, one in zip(weights, q, strict=True))
        assert out.stats["kl"][b, 1].item() == pytest.approx(reverse)


@pytest.mark.parametrize("settings", [PLAIN, SQUARE], ids=told)
def test_expected_gradients_of_several_teachers_are_the_weighted_sum_of_their_kls(settings):
    student, first, second = rows(V, seed=30), rows(V, seed=31), rows(V, seed=32)
    mean = 0.25 * first.log_softmax(-1) + 0.75 * second.log_softmax(-1)  # what collation hands over: not normalised
    logits, batch = every_token(student, first)
    batch = replace(batch, teacher=torch.stack([torch.zeros_like(mean), mean], dim=1))
    _, gradient = run(settings.estimator, logits, batch, settings)
    expected = (student.softmax(-1).unsqueeze(-1) * gradient[:, 1]).sum(0)
    p = softmax(student.tolist())
    parts = [reverse_kl_gradient(p, softmax(teacher.tolist())) for teacher in (first, second)]
    assert expected.tolist() == pytest.approx([0.25 * a + 0.75 * b for a, b in zip(*parts, strict=True)], abs=1e-9)


TEMPERATURE = 0.6


@pytest.mark.parametrize("settings", [FULL, FORWARD, HALF], ids=told)
def test_under_a_temperature_the_divergence_is_of_the_tempered_distributions(settings):
    """Sampler, policy and teacher are under one temperature, and so is what the loss measures; raw logits move."""
    raw, teacher = rows(V, seed=13), rows(V, seed=14)
    z = raw.expand(1, 2, V).clone().requires_grad_()
    tempered_teacher = (teacher / TEMPERATURE).log_softmax(-1).expand(1, 2, V)
    batch = graded(settings.estimator, [[False, True]], [[0, 1]], tempered_teacher)
    out, at_tempered = run(settings.estimator, z / TEMPERATURE, batch, settings)
    (gradient,) = torch.autograd.grad(z / TEMPERATURE, z, at_tempered)

    def tempered(z):
        q = softmax([a / TEMPERATURE for a in teacher.tolist()])
        return definition(settings, softmax([a / TEMPERATURE for a in z]), q)

    assert out.loss_BT[0, 1].item() == pytest.approx(tempered(raw.tolist()), abs=1e-12)
    assert gradient[0, 1].tolist() == pytest.approx(numeric_gradient(tempered, raw.tolist()), abs=1e-9)
    assert tempered(raw.tolist()) != pytest.approx(
        definition(settings, softmax(raw.tolist()), softmax(teacher.tolist())), rel=0.05
    )


@pytest.mark.parametrize("settings", [PLAIN, SQUARE], ids=told)
def test_under_a_temperature_expected_sampled_gradients_are_those_of_the_tempered_kl(settings):
    raw, teacher = rows(V, seed=15), rows(V, seed=16)
    logits, batch = every_token(raw / TEMPERATURE, teacher / TEMPERATURE)
    _, gradient = run(settings.estimator, logits, batch, settings)
    drawn = (raw / TEMPERATURE).softmax(-1)
    expected = (drawn.unsqueeze(-1) * gradient[:, 1]).sum(0) / TEMPERATURE

    def tempered(z):
        return kl(*(softmax([a / TEMPERATURE for a in logits]) for logits in (z, teacher.tolist())))

    assert expected.tolist() == pytest.approx(numeric_gradient(tempered, raw.tolist()), abs=1e-9)


@pytest.mark.parametrize("by", ["entropy", "position"])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_a_weighted_kl_is_the_kl_times_weights_whose_mean_over_each_rollout_is_one(by, power):
    """Weights by the definition, in loops; they move no gradient; of one token it is the KL itself."""
    settings = WeightedReverseKL(estimator="weighted_reverse_kl", by=by, power=power)
    logits, teacher = 2 * rows(3, 5, V, seed=20), 2 * rows(3, 5, V, seed=21)
    mask = [[False, True, True, False, True], [False, False, False, True, False], [False, True, True, True, True]]
    tokens = [[0, 4, 1, 2, 3]] * 3
    batch = graded("weighted_reverse_kl", mask, tokens, teacher.log_softmax(-1))
    out, gradient = run("weighted_reverse_kl", logits, batch, settings)
    unweighted = graded("full_reverse_kl", mask, tokens, teacher.log_softmax(-1))
    plain, plain_gradient = run("full_reverse_kl", logits, unweighted, FULL)
    for b, trained in enumerate(mask):
        places = [t for t, is_trained in enumerate(trained) if is_trained]
        if by == "entropy":
            raised = [(-sum(a * math.log(a) for a in softmax(logits[b, t].tolist()))) ** power for t in places]
        else:
            raised = [(len(places) - i) ** power for i in range(len(places))]
        weights = [len(places) * value / sum(raised) for value in raised]
        for t, weight in zip(places, weights, strict=True):
            assert out.loss_BT[b, t].item() == pytest.approx(weight * plain.loss_BT[b, t].item(), rel=1e-9)
            assert gradient[b, t].tolist() == pytest.approx((weight * plain_gradient[b, t]).tolist(), abs=1e-12)
    assert out.stats["kl"].tolist() == plain.stats["kl"].tolist(), "what runs are compared by stays unweighted"
    assert out.loss_BT[1, 3].item() == pytest.approx(plain.loss_BT[1, 3].item())


def test_a_rollout_that_is_certain_everywhere_weighs_its_tokens_alike():
    logits = torch.tensor([[[0.0, 0.0], [500.0, 0.0], [500.0, 0.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[0.0, 0.0], [0.0, 3.0], [1.0, 0.0]]], dtype=torch.float64).log_softmax(-1)
    mask, tokens = [[False, True, True]], [[0, 1, 0]]
    settings = WeightedReverseKL(estimator="weighted_reverse_kl")
    out, _ = run("weighted_reverse_kl", logits, graded("weighted_reverse_kl", mask, tokens, teacher), settings)
    plain, _ = run("full_reverse_kl", logits, graded("full_reverse_kl", mask, tokens, teacher), FULL)
    torch.testing.assert_close(out.loss_BT, plain.loss_BT)
