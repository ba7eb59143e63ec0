"""Top-k reverse KL against its definitions, with loops in float64; the support that a teacher ships."""

import itertools
import math

import pytest
import torch
from losses_kit import BUCKET, FULL, TOPK, V, graded, microbatch, rows, run, topk_arrays
from naive import kl, numeric_gradient, softmax, topk_bucket, topk_left_out

from mopd.distill.payloads import Support, likeliest, top_k

DEFINITIONS = {"left_out": topk_left_out, "bucket": topk_bucket}
NAME = "topk_reverse_kl"


WHOSE = ("teacher", "student", "union")


def naive_likeliest(q, *, k=2, besides=(0,)):
    """The k likeliest tokens of those that are not there yet, then those."""
    return [*sorted((v for v in range(len(q)) if v not in besides), key=lambda v: -q[v])[:k], *besides]


def naive_support(q, mu=None, *, support):
    """Of a teacher's distribution and, where it matters, that which the student sampled from."""
    if support.whose == "teacher":
        return naive_likeliest(q, k=support.k, besides=support.forced)
    students = naive_likeliest(mu, k=support.k, besides=support.forced)
    return students if support.whose == "student" else naive_likeliest(q, k=support.k, besides=students)


def told(settings):
    return settings.outside


def slot(teacher, tokens, *, support, weight=1.0, sampler=None):
    """A teacher's slot from its logits, and from the sampler's where the support is the student's, with loops."""
    ids, kept, rest, sampled = [], [], [], []
    students = (teacher if sampler is None else sampler).reshape(-1, V).tolist()
    drawn = torch.as_tensor(tokens).reshape(-1).tolist()
    for row, other, y in zip(teacher.reshape(-1, V).tolist(), students, drawn, strict=True):
        q = softmax(row)
        chosen = naive_support(q, softmax(other), support=support)
        ids.append(chosen)
        kept.append([math.log(q[v]) for v in chosen])
        left = [q[v] for v in range(V) if v not in chosen]
        rest.append(math.log(math.fsum(left)) if left else -math.inf)
        sampled.append(math.log(q[y]))
    shape = teacher.shape[:2]
    weights = torch.as_tensor(weight, dtype=torch.float64).expand(shape[0])
    doubles = [torch.tensor(x, dtype=torch.float64).reshape(*shape, -1) for x in (kept, rest, sampled)]
    return weights, topk_arrays(
        torch.tensor(ids).reshape(*shape, -1), doubles[0], doubles[1][..., 0], doubles[2][..., 0]
    )


@pytest.mark.parametrize("settings", [TOPK, BUCKET], ids=told)
@pytest.mark.parametrize(("whose", "k"), [*itertools.product(WHOSE, [1, 2]), ("teacher", 4), ("student", 4)])
def test_loss_is_the_definition_in_value_gradient_and_statistics(settings, whose, k):
    logits, teacher = 2 * rows(2, 3, V, seed=0), 2 * rows(2, 3, V, seed=1)
    mask, tokens = [[False, True, True], [False, False, True]], [[0, 4, 1], [2, 3, 5]]
    sampler = rows(2, 3, seed=2) - 2
    wanted, wrote = Support(k, (0,), whose), 2 * rows(2, 3, V, seed=3)
    slots = [slot(teacher, tokens, support=wanted, sampler=wrote)]
    out, gradient = run(NAME, logits, microbatch(mask, tokens, slots=slots, sampler=sampler), settings)
    drawn_outside = set()
    for b, t in ((0, 1), (0, 2), (1, 2)):
        z, q, y = logits[b, t].tolist(), softmax(teacher[b, t].tolist()), tokens[b][t]
        p, support = softmax(z), naive_support(q, softmax(wrote[b, t].tolist()), support=wanted)

        def definition(z, q=q, support=support):
            return DEFINITIONS[settings.outside](softmax(z), q, support)

        assert out.loss_BT[b, t].item() == pytest.approx(definition(z), abs=1e-12)
        assert gradient[b, t].tolist() == pytest.approx(numeric_gradient(definition, z), abs=1e-9)
        assert {name: stat[b, t].item() for name, stat in out.stats.items()} == pytest.approx(
            {
                "kl": topk_bucket(p, q, support),
                "entropy": -sum(a * math.log(a) for a in p),
                "advantage": math.log(q[y] / p[y]),
                "ratio": p[y] / math.exp(sampler[b, t]),
            }
        )
        drawn_outside.add(y not in support)
    assert True in drawn_outside or whose != "teacher" or k == 4, "the advantage is known outside of the support too"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("settings", [TOPK, BUCKET], ids=told)
def test_loss_is_exactly_zero_where_the_teacher_is_the_student(settings, whose, dtype):
    logits = 5 * rows(3, 4, 133, seed=6, dtype=dtype)
    teacher = logits.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1)
    mask, tokens, support = [[False, True, True, True]] * 3, torch.tensor([[1, 2, 3, 4]] * 3), Support(2, (0,), whose)
    ids, kept, rest = top_k(teacher, support, likeliest(teacher + rows(3, 4, 133, seed=5), support))
    arrays = topk_arrays(ids, kept, rest, teacher.gather(-1, tokens[..., None])[..., 0])
    batch = microbatch(mask, tokens, slots=[([1.0] * 3, arrays)])
    out, gradient = run(NAME, logits, batch, settings)
    assert gradient.dtype == dtype
    assert not out.loss_BT.any()
    assert not gradient.any()
    moved, away = run(NAME, logits + 0.5 * rows(3, 4, 133, seed=7, dtype=dtype), batch, settings)
    assert moved.loss_BT[:, 1:].min() > 1e-5
    assert away.any()


@pytest.mark.parametrize("settings", [TOPK, BUCKET], ids=told)
@pytest.mark.parametrize("support", [Support(V - 1, (0,)), Support(V - 1, (0,), "student"), Support(3, (0,), "union")])
def test_where_the_support_is_everything_it_is_the_exact_reverse_kl(settings, support):
    logits, teacher = rows(1, 2, V, seed=8), rows(1, 2, V, seed=9)
    slots = [slot(teacher, [[0, 1]], support=support, sampler=rows(1, 2, V, seed=19))]
    ours, gradient = run(NAME, logits, microbatch([[False, True]], [[0, 1]], slots=slots), settings)
    batch = microbatch([[False, True]], [[0, 1]], teacher=teacher.log_softmax(-1))
    exact, exact_gradient = run("full_reverse_kl", logits, batch, FULL)
    torch.testing.assert_close(ours.loss_BT, exact.loss_BT, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-12, atol=1e-14)


def test_eq_5_is_silent_on_what_the_teacher_finds_unlikely_and_the_bucket_is_not():
    """The two agree on the support, and the student puts its mass elsewhere: only the bucket brings it back."""
    teacher = torch.tensor([[[0.0] * V, [3.0, 2.0, 1.0, -9.0, -9.0, -9.0]]]).double()
    p = torch.tensor([*teacher[0, 1].softmax(-1)[:3] * 0.5, 0.4, 0.05, 0.05]).double()
    slots = [slot(teacher, [[0, 1]], support=Support(2, (0,)))]
    batch = microbatch([[False, True]], [[0, 1]], slots=slots)
    logits = torch.stack([torch.zeros(V).double(), p.log()])[None]
    (left_out, gradient), (bucket, brought_back) = (run(NAME, logits, batch, one) for one in (TOPK, BUCKET))
    assert (brought_back[0, 1, 3:] > 0).all(), "descent takes mass from outside"
    assert brought_back[0, 1, 3] > 5 * gradient[0, 1, 3].abs()
    assert left_out.stats["kl"][0, 1] == bucket.loss_BT[0, 1], "the statistic shows it in both"
    exact = kl(p.tolist(), softmax(teacher[0, 1].tolist()))
    assert left_out.loss_BT[0, 1] < bucket.loss_BT[0, 1] < exact


@pytest.mark.parametrize("settings", [TOPK, BUCKET], ids=told)
def test_several_teachers_have_supports_of_their_own(settings):
    logits, first, second = rows(2, 2, V, seed=10), 2 * rows(2, 2, V, seed=11), 2 * rows(2, 2, V, seed=12)
    tokens, support = [[0, 1]] * 2, Support(2, (0,))
    slots = [slot(first, tokens, support=support, weight=[0.25, 1.0])]
    slots.append(slot(second, tokens, support=support, weight=[0.75, 0.0]))
    slots[1][1]["logprobs_TK"][1] = math.nan  # an empty slot may hold anything
    out, gradient = run(NAME, logits, microbatch([[False, True]] * 2, tokens, slots=slots), settings)
    for b, weights in ((0, (0.25, 0.75)), (1, (1.0, 0.0))):
        q = [softmax(teacher[b, 1].tolist()) for teacher in (first, second)]

        def total(z, weights=weights, q=q):
            parts = [DEFINITIONS[settings.outside](softmax(z), one, naive_support(one, support=support)) for one in q]
            return sum(w * part for w, part in zip(weights, parts, strict=True))

        z = logits[b, 1].tolist()
        assert out.loss_BT[b, 1].item() == pytest.approx(total(z), abs=1e-12)
        assert gradient[b, 1].tolist() == pytest.approx(numeric_gradient(total, z), abs=1e-9)


@pytest.mark.parametrize("settings", [TOPK, BUCKET], ids=told)
def test_under_a_temperature_the_divergence_is_of_the_tempered_distributions(settings):
    raw, teacher, temperature = rows(V, seed=13), rows(V, seed=14), 0.6
    z = raw.expand(1, 2, V).clone().requires_grad_()
    slots = [slot((teacher / temperature).expand(1, 2, V), [[0, 1]], support=Support(2, (0,)))]
    batch = microbatch([[False, True]], [[0, 1]], slots=slots)
    out, at_tempered = run(NAME, z / temperature, batch, settings)
    (gradient,) = torch.autograd.grad(z / temperature, z, at_tempered)

    def tempered(z):
        p, q = (softmax([a / temperature for a in one]) for one in (z, teacher.tolist()))
        return DEFINITIONS[settings.outside](p, q, naive_support(q, support=Support(2, (0,))))

    assert out.loss_BT[0, 1].item() == pytest.approx(tempered(raw.tolist()), abs=1e-12)
    assert gradient[0, 1].tolist() == pytest.approx(numeric_gradient(tempered, raw.tolist()), abs=1e-9)


def test_whole_distributions_are_refused():
    batch = graded("forward_kl", [[False, True]], [[0, 1]], rows(1, 2, V, seed=15).log_softmax(-1))
    with pytest.raises(ValueError, match="needs top-k scores"):
        run(NAME, rows(1, 2, V, seed=16), batch, TOPK)


# --- the support ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forced", [(), (0,), (1, 4)])
@pytest.mark.parametrize("k", [1, 3, 6, 100])
def test_support_is_the_likeliest_and_the_forced_once_each(k, forced):
    logp = rows(2, 3, V, seed=17).log_softmax(-1)
    ids, logprobs, rest = top_k(logp, Support(k, forced))
    assert ids.shape == (2, 3, min(V, k + len(forced)))
    for b in range(2):
        for t in range(3):
            row = logp[b, t].tolist()
            assert sorted(ids[b, t].tolist()) == sorted(naive_likeliest(row, k=k, besides=forced))
            assert [row[v] for v in ids[b, t].tolist()] == logprobs[b, t].tolist()
            left = math.fsum(math.exp(row[v]) for v in range(V) if v not in ids[b, t].tolist())
            assert math.exp(rest[b, t]) == pytest.approx(left, rel=1e-12)


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_support_of_student_and_union_has_every_token_once_and_as_many_everywhere(whose, k):
    teacher, student = rows(2, 3, V, seed=17).log_softmax(-1), rows(2, 3, V, seed=18)
    support = Support(k, (4,), whose)
    given = likeliest(student, support)
    ids, logprobs, rest = top_k(teacher, support, given)
    assert ids.shape[-1] == min(V, (2 if whose == "union" else 1) * k + 1)
    for b, t in itertools.product(range(2), range(3)):
        q, chosen = teacher[b, t].tolist(), ids[b, t].tolist()
        assert sorted(chosen) == sorted(naive_support(q, student[b, t].tolist(), support=support))
        assert len({*chosen, 4}) == len(chosen)
        ours, theirs = (set(naive_likeliest(one, k=k, besides=(4,))) for one in (student[b, t].tolist(), q))
        assert {"teacher": theirs, "student": ours, "union": ours | theirs}[whose] <= set(chosen)
        assert logprobs[b, t].tolist() == [q[v] for v in chosen]
        left = math.fsum(math.exp(q[v]) for v in range(V) if v not in chosen)
        assert math.exp(rest[b, t]) == pytest.approx(left, rel=1e-12)


def test_a_support_that_needs_the_students_tokens_does_not_do_without():
    with pytest.raises(ValueError, match="the support is union, and the rollout does not carry"):
        top_k(rows(1, V, seed=19), Support(2, (), "union"))


def test_the_union_pushes_where_eq_5_on_the_teachers_support_is_silent():
    """They agree on what the teacher finds likely, and the student has a favourite besides: it is in the union."""
    teacher = torch.tensor([[[0.0] * V, [3.0, 2.0, 1.0, -9.0, -9.0, -9.0]]]).double()
    p = torch.tensor([*teacher[0, 1].softmax(-1)[:3] * 0.5, 0.4, 0.05, 0.05]).double()
    logits = torch.stack([torch.zeros(V).double(), p.log()])[None]
    gradients = {}
    for whose in WHOSE:
        slots = [slot(teacher, [[0, 1]], support=Support(2, (0,), whose), sampler=logits)]
        _, gradients[whose] = run(NAME, logits, microbatch([[False, True]], [[0, 1]], slots=slots), TOPK)
    for whose in ("student", "union"):
        assert gradients[whose][0, 1, 3] > 5 * gradients["teacher"][0, 1, 3].abs(), "descent takes its mass"


def test_the_rest_keeps_its_digits_in_float32():
    """A rest of e^-20 is far below the rounding of 1 - sum."""
    logp = torch.tensor([20.0, 1.0, 0.0, 0.0]).log_softmax(-1)
    _, _, rest = top_k(logp, Support(2, ()))
    assert rest.item() == pytest.approx(math.log(2) - math.log(math.exp(20) + math.e + 2), abs=1e-5)
