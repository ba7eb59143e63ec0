"""Advantages, clip, gate and reward groups against tables and loops."""

import math

import pytest
import torch
from naive import expectation, kl, numeric_gradient, score, softmax

from mopd.distill.loss.sampled import (
    STD_EPSILON,
    clip_gap,
    extrapolated_gap,
    gated_ratio,
    group_advantages,
    teacher_gap,
)


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_gap_is_positive_where_the_teacher_likes_the_token_more_and_has_no_gradient():
    gap = teacher_gap(teacher_logprobs_N=leaf(-1.0, -3.0, -2.0), student_logprobs_N=leaf(-2.5, -0.5, -2.0))
    assert gap.tolist() == [1.5, -2.5, 0.0]
    assert not gap.requires_grad


def test_extrapolation_by_hand_and_without_gradient():
    gap = extrapolated_gap(
        teacher_logprobs_N=leaf(-1.0, -3.0, -2.0),
        student_logprobs_N=leaf(-2.5, -0.5, -2.0),
        reference_logprobs_N=leaf(-3.0, -1.0, -2.0),
        strength=1.25,
    )
    assert gap.tolist() == [1.5 + 0.25 * 2.0, -2.5 + 0.25 * -2.0, 0.0]
    assert not gap.requires_grad


@pytest.mark.parametrize("strength", [1.0, 1.25, 0.5])
def test_extrapolation_is_a_pull_towards_one_teacher_and_away_from_the_reference(strength):
    """Its expected gradient is that of ``lambda KL(pi || T) - (lambda - 1) KL(pi || ref)``."""
    z, teacher, reference = [0.3, -0.2, 0.5, 0.0], [0.1, 0.9, -0.4, 0.2], [0.0, 0.1, 0.2, -0.5]
    p, q, r = softmax(z), softmax(teacher), softmax(reference)
    gap = extrapolated_gap(
        teacher_logprobs_N=leaf(*q).log(),
        student_logprobs_N=leaf(*p).log(),
        reference_logprobs_N=leaf(*r).log(),
        strength=strength,
    )
    expected = expectation(p, lambda v: [-gap[v].item() * s for s in score(p, v)])
    mixed = numeric_gradient(lambda z: strength * kl(softmax(z), q) - (strength - 1) * kl(softmax(z), r), z)
    assert expected == pytest.approx(mixed, abs=1e-9)
    mean = [strength * math.log(a) + (1 - strength) * math.log(b) for a, b in zip(q, r, strict=True)]
    assert gap.tolist() == pytest.approx([m - math.log(a) for m, a in zip(mean, p, strict=True)], abs=1e-12)


def test_clip_bounds_are_inside_and_broken_gaps_stay_broken():
    gap = leaf(-7.0, -5.0, -4.9, 0.0, 5.0, 5.1, math.inf, -math.inf, math.nan)
    clipped_gap, clipped = clip_gap(gap, 5.0)
    assert clipped_gap[:6].tolist() == [-5.0, -5.0, -4.9, 0.0, 5.0, 5.0]
    assert clipped_gap[6:8].tolist() == [math.inf, -math.inf]
    assert clipped_gap[8].isnan()
    assert clipped.tolist() == [True, False, False, False, False, True, False, False, False]
    assert not clipped_gap.requires_grad


@pytest.mark.parametrize(
    ("log_ratio", "gate", "kept"),
    [
        (0.0, (1.0, 2.0), True),  # exp(0) is exactly the lower bound
        (0.0, (0.5, 1.0), True),  # and exactly the upper one
        (-1e-9, (1.0, 2.0), False),
        (1e-9, (0.5, 1.0), False),
        (math.log(1.9), (0.5, 2.0), True),
        (math.log(2.1), (0.5, 2.0), False),
        (math.log(0.4), (0.5, 2.0), False),
        (math.inf, (0.5, 2.0), False),
    ],
)
def test_gate_keeps_its_bounds_and_drops_what_is_outside(log_ratio, gate, kept):
    gated = gated_ratio(student_logprobs_N=leaf(log_ratio - 3.0 + 3.0), sampler_logprobs_N=leaf(0.0), gate=gate)
    assert gated.dropped_N.item() is not kept
    assert gated.ratio_N.item() == pytest.approx(math.exp(log_ratio))
    assert gated.weight_N.item() == (gated.ratio_N.item() if kept else 0.0)
    assert not gated.weight_N.requires_grad
    assert not gated.ratio_N.requires_grad


def test_a_ratio_that_is_not_a_number_is_not_dropped():
    gated = gated_ratio(student_logprobs_N=leaf(-1.0), sampler_logprobs_N=leaf(math.nan), gate=(0.5, 2.0))
    assert gated.weight_N.isnan().all()
    assert not gated.dropped_N.any()


def test_reward_groups_are_those_of_a_loop():
    rewards = [1.0, 0.0, 0.25, 0.5, 0.0, 0.0, 1.0, 1.0]
    groups = [7, 3, 7, 7, 3, 3, 3, 7]
    expected = []
    for reward, group in zip(rewards, groups, strict=True):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        mean = sum(own) / len(own)
        std = math.sqrt(sum((r - mean) ** 2 for r in own) / len(own))
        expected.append((reward - mean) / (std + STD_EPSILON))
    assert group_advantages(rewards, groups) == pytest.approx(expected, abs=1e-12)
    by_group = {g: sum(a for a, h in zip(expected, groups, strict=True) if h == g) for g in groups}
    assert by_group == pytest.approx(dict.fromkeys(groups, 0.0), abs=1e-12)


def test_the_scale_of_a_domains_rewards_is_its_own_affair():
    """A prompt, and so a group, is of one domain: what another domain pays changes nothing, nor does the unit."""
    small, large = [0.2, 0.0, 0.1, 0.2], [1.0, 0.0, 0.5, 1.0]
    alone = group_advantages(large, [0, 0, 1, 1])
    both = group_advantages(small + large, [2, 2, 3, 3, 0, 0, 1, 1])
    assert both[4:] == alone
    assert both[:4] == pytest.approx(alone, rel=5 * STD_EPSILON / 0.05)
    assert max(map(abs, alone)) > 0.9


def test_groups_that_prefer_nothing_give_exactly_zero():
    # The mean of three 0.1 is not 0.1 in floating point; divided by an epsilon that would be a push.
    assert group_advantages([0.1, 0.1, 0.1, 1.0], [0, 0, 0, 1]) == [0.0] * 4


def test_a_sample_without_reward_gives_zero_and_counts_in_no_mean():
    with_gap = group_advantages([1.0, None, 0.0], [0, 0, 0])
    assert with_gap[1] == 0.0
    assert [with_gap[0], with_gap[2]] == group_advantages([1.0, 0.0], [0, 0])


def test_rewards_and_groups_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        group_advantages([1.0, 0.0], [0])
