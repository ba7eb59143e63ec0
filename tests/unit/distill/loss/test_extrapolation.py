"""Extrapolation beyond a teacher: its expected gradient by enumeration, the route of its reference, and refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from batch_kit import as_sampled, mixed_batch, scored
from check_kit import recipe, routes_problems
from losses_kit import PLAIN, SQUARE, V, every_token, rows, run
from naive import kl, numeric_gradient, score, softmax

from mopd.distill.loss.microbatch import collate
from mopd.distill.types import TeacherScore
from mopd.recipes.resolve.resolved import resolve

ANCHOR = {"math": {"model": "stage:math"}, "anchor": {"model": "self"}}
BEYOND = {"estimator": "policy_gradient", "extrapolation": 1.25, "reference": "anchor"}


@pytest.mark.parametrize("settings", [PLAIN, SQUARE], ids=lambda s: s.estimator)
@pytest.mark.parametrize("strength", [0.5, 1.25, 2.0])
@pytest.mark.parametrize("on_policy", [True, False])
def test_the_expected_gradient_is_towards_the_teacher_and_away_from_the_reference(settings, strength, on_policy):
    """That of ``lambda KL(pi || T) - (lambda - 1) KL(pi || ref)``, summed over every token that may be drawn."""
    student, teacher, reference = rows(V, seed=40), rows(V, seed=41), rows(V, seed=42)
    sampler = student if on_policy else student + 0.3 * rows(V, seed=43)
    logits, batch = every_token(student, teacher, sampler_V=sampler.log_softmax(-1), reference_V=reference)
    beyond = settings.model_copy(update={"extrapolation": strength, "reference": "anchor"})
    out, gradient = run(settings.estimator, logits, batch, beyond)
    expected = (sampler.softmax(-1).unsqueeze(-1) * gradient[:, 1]).sum(0)
    q, r = softmax(teacher.tolist()), softmax(reference.tolist())
    mixed = numeric_gradient(
        lambda z: strength * kl(softmax(z), q) - (strength - 1) * kl(softmax(z), r), student.tolist()
    )
    assert expected.tolist() == pytest.approx(mixed, abs=1e-9)
    plain, to_teacher = run(settings.estimator, logits, batch, settings)
    assert not torch.allclose(gradient, to_teacher)
    torch.testing.assert_close(out.stats["kl"], plain.stats["kl"], rtol=0, atol=0, msg="kl stays that to the teacher")


@pytest.mark.parametrize("name", ["policy_gradient", "k2"])
def test_token_by_token_the_clip_is_on_the_whole_advantage(name):
    student, teacher, reference = 2 * rows(V, seed=44), 2 * rows(V, seed=45), 2 * rows(V, seed=46)
    logits, batch = every_token(student, teacher, reference_V=reference)
    base = {"policy_gradient": PLAIN, "k2": SQUARE}[name]
    settings = base.model_copy(update={"extrapolation": 1.25, "reference": "anchor", "advantage_clip": 1.5})
    out, gradient = run(name, logits, batch, settings)
    p, q, r = (softmax(x.tolist()) for x in (student, teacher, reference))
    sides = set()
    for v in range(V):
        advantage = math.log(q[v] / p[v]) + 0.25 * math.log(q[v] / r[v])
        clipped = min(1.5, max(-1.5, advantage))
        assert gradient[v, 1].tolist() == pytest.approx([-clipped * s for s in score(p, v)], abs=1e-12)
        assert out.stats["clipped"][v, 1] == float(clipped != advantage)
        sides.add(clipped != advantage)
    assert sides == {True, False}, "the case shows both"


def test_nobody_graded_means_no_pull_and_a_reference_that_is_the_teacher_none_beyond_it():
    student, teacher = rows(V, seed=47), rows(V, seed=48)
    beyond = PLAIN.model_copy(update={"extrapolation": 1.25, "reference": "anchor"})
    untaught = every_token(student, teacher, reference_V=rows(V, seed=49), taught=[False] * V)
    assert not run("policy_gradient", *untaught, beyond)[1].any()
    anchored = run("policy_gradient", *every_token(student, teacher, reference_V=teacher), beyond)[1]
    torch.testing.assert_close(anchored, run("policy_gradient", *every_token(student, teacher), PLAIN)[1])
    with pytest.raises(ValueError, match="no reference"):
        run("policy_gradient", *every_token(student, teacher), beyond)


def with_reference(one, weight=0.0):
    """The same rollout, graded by an anchor as well."""
    payload = as_sampled(scored(one.rollout.index + 100, one.rollout.domain)).scores[0][1].payload
    n = len(one.rollout.token_ids)
    payload = replace(payload, logprobs_T=np.resize(payload.logprobs_T, n))
    others = tuple((w * (1 - weight), score) for w, score in one.scores)
    return replace(one, scores=((weight, TeacherScore("anchor", payload)), *others))


def test_a_reference_of_weight_0_changes_no_mean_and_comes_apart():
    plain = [as_sampled(one) for one in mixed_batch(5)]
    settings = {"token_weight": {"math": 1.0, "code": 1.0}, "domains": ["math", "code"], "pad_id": 0}
    settings |= {"payload": "sampled", "reward_advantages": None, "device": "cpu"}
    alone = collate(plain, **settings)
    batch = [with_reference(one) for one in plain]
    both = collate(batch, **settings, reference="anchor")
    assert alone.reference_BT is None
    torch.testing.assert_close(both.teacher, alone.teacher, rtol=0, atol=0)
    for b, one in enumerate(batch):
        said = one.scores[0][1].payload.logprobs_T
        trained = one.rollout.loss_mask
        assert both.reference_BT[b, : len(said)].numpy()[trained].tolist() == said[trained].tolist()
        assert not both.reference_BT[b, len(said) :].any()
    half = collate([with_reference(one, 0.5) for one in plain], **settings, reference="anchor")
    torch.testing.assert_close(half.reference_BT, both.reference_BT, msg="whatever its weight")
    with pytest.raises(ValueError, match=r"rollout 0 of domain 'math' has no score of reference 'anchor'"):
        collate(plain, **settings, reference="anchor")


def test_the_reference_is_asked_in_every_taught_domain_and_in_no_other():
    domains = {
        "math": {"task": "arithmetic", "teacher": "math"},
        "code": {"task": "list_programs", "teachers": {"math": 0.25, "anchor": 0.75}},
        "order": {"task": "ordering", "reward": True},
    }
    loss = {**BEYOND, "reward_weight": 1.0}
    one = recipe(domains=domains, teachers=ANCHOR, loss=loss, rollout={"samples_per_prompt": 2})
    asked = resolve(one).routes
    assert asked == {
        "math": {"anchor": 0.0, "math": 1.0},
        "code": {"anchor": 0.75, "math": 0.25},
        "order": {},
    }
    assert all(sum(weights.values()) == 1 for weights in asked.values() if weights)
    assert routes_problems(one) == []


@pytest.mark.parametrize(
    ("loss", "teachers", "told"),
    [
        (BEYOND, ANCHOR, None),
        ({**BEYOND, "estimator": "k2"}, ANCHOR, None),
        ({**BEYOND, "reference": None}, {"math": ANCHOR["math"]}, "no `loss.reference` says what to go away from"),
        ({**BEYOND, "extrapolation": 1.0}, ANCHOR, "`loss.reference` is 'anchor' and would change nothing"),
        ({**BEYOND, "reference": "ancor"}, ANCHOR, "no teacher 'ancor' is declared under `teachers`; did you mean"),
        ({**BEYOND, "reference": "math"}, {"math": ANCHOR["math"]}, "whose model is stage:math; what the student"),
        ({"estimator": "policy_gradient"}, ANCHOR, "`teachers.anchor`: no domain uses this teacher"),
    ],
)
def test_what_a_recipe_may_say_of_it(loss, teachers, told):
    found = routes_problems(recipe(loss=loss, teachers=teachers))
    assert found == [] if told is None else any(told in problem for problem in found)


def test_it_needs_a_teacher_to_go_beyond():
    rewarded = {"math": {"task": "arithmetic", "reward": True}}
    changes = {"domains": rewarded, "teachers": {"anchor": {"model": "self"}}, "rollout": {"samples_per_prompt": 2}}
    one = recipe(loss={**BEYOND, "reward_weight": 1.0}, **changes)
    found = routes_problems(one)
    assert any("goes beyond a teacher, and no domain has one" in problem for problem in found)


@pytest.mark.parametrize("strength", [0.0, -1.0, math.inf, math.nan])
def test_a_strength_that_is_none_is_refused(strength):
    with pytest.raises(ValueError, match="extrapolation"):
        recipe(loss={**BEYOND, "extrapolation": strength}, teachers=ANCHOR)
