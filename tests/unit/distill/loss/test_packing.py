"""No packing changes the loss, a domain weighs what its share says, and teachers and rewards add up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from batch_kit import SHARES, V, as_chunked, as_topk, cut_for, mixed_batch, scored
from naive import jensen_shannon, kl, topk_bucket, topk_left_out

from mopd.distill.loss.microbatch import collate
from mopd.distill.loss.registry import LOSSES
from mopd.distill.recipe import (
    JSD,
    K2,
    ChunkedReverseKL,
    ForwardKL,
    FullReverseKL,
    PolicyGradient,
    SkewedKL,
    TopKReverseKL,
    WeightedReverseKL,
)
from mopd.distill.student.plan import plan_updates
from mopd.distill.types import Full, ScoredRollout, TeacherScore, align_logits

SETTINGS = {
    "full_reverse_kl": FullReverseKL(estimator="full_reverse_kl"),
    "weighted_reverse_kl": WeightedReverseKL(estimator="weighted_reverse_kl", by="position", power=2.0),
    "forward_kl": ForwardKL(estimator="forward_kl"),
    "jsd": JSD(estimator="jsd", beta=0.3),
    "skewed_kl": SkewedKL(estimator="skewed_kl", direction="forward", skew=0.3),
    "topk_reverse_kl": TopKReverseKL(estimator="topk_reverse_kl", k=3, outside="bucket"),
    "chunked_reverse_kl": ChunkedReverseKL(estimator="chunked_reverse_kl", k=3, gate=(0.5, 2.0)),
    "policy_gradient": PolicyGradient(estimator="policy_gradient", gate=(0.5, 2.0), reward_weight=0.5),
    "k2": K2(estimator="k2", gate=(0.5, 2.0)),
}
"""Chosen so that the gate drops some tokens of the batch and keeps others."""


class Bigram(torch.nn.Module):
    """The smallest model whose logits depend on the token before, in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(V, V, generator=generator, dtype=torch.float64))

    def forward(self, token_ids_BT):
        return self.table[token_ids_BT]


def update(batch, name, *, shares=None, ranks=1, budget=10_000, pad_id=0, settings=None, rewards=True):
    """Loss and gradient of one update, as a student on ``ranks`` ranks accumulates them."""
    shares, settings = shares or SHARES, settings or SETTINGS[name]
    batch = [cut_for(LOSSES[name].payload, one) for one in batch]
    (plan,) = plan_updates(batch, shares=shares, updates=1, ranks=ranks, microbatch_tokens=budget)
    model, total = Bigram(), 0.0
    for members in (members for rank in plan.microbatches for members in rank):
        microbatch = collate(
            [batch[i] for i in members],
            token_weight=plan.token_weight,
            domains=list(shares),
            pad_id=pad_id,
            payload=LOSSES[name].payload,
            reward_advantages=[2.0 * batch[i].reward - 1.0 for i in members] if rewards else None,
            device="cpu",
            needs_each_teacher=LOSSES[name].needs_each_teacher,
        )
        logits = align_logits(model(microbatch.token_ids_BT))
        loss = (LOSSES[name].token_loss(logits, microbatch, settings).loss_BT * microbatch.weights_BT).sum()
        loss.backward()
        total += loss.item()
    return total, model.table.grad


def naive_chunked(one: ScoredRollout, t, table):
    """The first token of three on the teacher's support; the others by the log-ratio of them both."""
    ids, prompt = one.rollout.token_ids, len(one.rollout.prompt.token_ids)
    place = t - prompt
    if place % 3 == 0:
        support = as_topk(one).scores[0][1].payload.ids_TK[t].tolist()
        teacher = one.scores[0][1].payload.logprobs_TV[t].astype(np.float64)
        return topk_left_out(np.exp(table[ids[t - 1]]), np.exp(teacher), support)
    owed = as_chunked(one).scores[0][1].payload.owed_T[t]
    others = [u for u in range(prompt, len(ids)) if (u - prompt) // 3 == place // 3 and (u - prompt) % 3]
    ratio = np.exp(table[ids[t - 1]][ids[t]] - one.rollout.sampler_logprobs[t])
    advantage = min(5.0, max(-5.0, owed - sum(table[ids[u - 1]][ids[u]] for u in others)))
    return -ratio * advantage * table[ids[t - 1]][ids[t]] if 0.5 <= ratio <= 2.0 else 0.0


def naive_token_loss(one: ScoredRollout, t, table, name):
    logp = table[one.rollout.token_ids[t - 1]]
    y = one.rollout.token_ids[t]
    teacher = one.scores[0][1].payload.logprobs_TV[t].astype(np.float64)
    if name == "full_reverse_kl":
        return sum(np.exp(logp[v]) * (logp[v] - teacher[v]) for v in range(V))
    if name == "weighted_reverse_kl":
        left = np.cumsum(one.rollout.loss_mask[::-1])[::-1] ** 2.0  # trained tokens from each on, to the power
        weight = left[t] / left[one.rollout.loss_mask].mean()
        return weight * naive_token_loss(one, t, table, "full_reverse_kl")
    if name in ("forward_kl", "jsd"):
        return jensen_shannon(np.exp(logp), np.exp(teacher), {"forward_kl": 0, "jsd": 0.3}[name])
    if name == "skewed_kl":
        p, q = np.exp(logp), np.exp(teacher)
        return kl(q, 0.3 * q + 0.7 * p)
    if name == "topk_reverse_kl":
        support = as_topk(one).scores[0][1].payload.ids_TK[t].tolist()
        return topk_bucket(np.exp(logp), np.exp(teacher), support)
    if name == "chunked_reverse_kl":
        return naive_chunked(one, t, table)
    ratio = np.exp(logp[y] - one.rollout.sampler_logprobs[t])
    if not 0.5 <= ratio <= 2.0:
        return 0.0
    if name == "k2":
        return ratio * (teacher[y] - logp[y]) ** 2 / 2
    advantage = min(5.0, max(-5.0, teacher[y] - logp[y])) + 0.5 * (2.0 * one.reward - 1.0)
    return -ratio * advantage * logp[y]


def naive_update(batch, name):
    """sum_d g_d / sum(g) * (sum of d's token losses / number of d's trained tokens), token by token."""
    table = Bigram().table.detach().numpy()
    logp = table - np.log(np.exp(table).sum(-1, keepdims=True))
    total, dropped = 0.0, 0
    for domain, share in SHARES.items():
        losses = [
            naive_token_loss(one, t, logp, name)
            for one in batch
            if one.rollout.domain == domain
            for t in range(len(one.rollout.token_ids))
            if one.rollout.loss_mask[t]
        ]
        dropped += losses.count(0.0)
        total += share / sum(SHARES.values()) * sum(losses) / len(losses)
    return total, dropped


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_is_the_definition_and_dropped_tokens_stay_in_the_denominator(name):
    batch = mixed_batch()
    expected, dropped = naive_update(batch, name)
    assert update(batch, name)[0] == pytest.approx(expected, rel=1e-6)
    trained = sum(one.rollout.trained_tokens for one in batch)
    assert 0 < dropped < trained if LOSSES[name].payload in ("sampled", "chunked") else dropped == 0


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("ranks", "budget", "pad_id"), [(1, 1, 0), (2, 40, 0), (3, 64, 5), (5, 10_000, 1)])
def test_no_packing_changes_loss_or_gradient(name, ranks, budget, pad_id):
    batch = mixed_batch()
    loss, gradient = update(batch, name)
    other_loss, other_gradient = update(batch, name, ranks=ranks, budget=budget, pad_id=pad_id)
    # Weights are float32, the same in every packing; what is left is the order of a float64 sum.
    assert other_loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-12, atol=1e-14)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("name", SETTINGS)
def test_writing_more_does_not_make_a_domain_weigh_more(name):
    batch = mixed_batch()
    twice = batch + [one for one in batch if one.rollout.domain == "code"]
    loss, gradient = update(batch, name)
    more_loss, more_gradient = update(twice, name)
    assert more_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(more_gradient, gradient, rtol=1e-6, atol=1e-8)
    shifted = update(batch, name, shares={"math": 3.0, "code": 3.0})[0]
    assert shifted != pytest.approx(loss, rel=1e-3), "shares do matter"


def test_a_long_rollout_weighs_by_its_tokens_within_its_domain_only():
    batch = [scored(0, "math", answer=2), scored(1, "math", answer=10), scored(2, "code", answer=3)]
    (plan,) = plan_updates(batch, shares=SHARES, updates=1, ranks=1, microbatch_tokens=100)
    microbatch = collate(
        batch, token_weight=plan.token_weight, domains=list(SHARES), pad_id=0, payload="full", reward_advantages=None,
        device="cpu",
    )  # fmt: skip
    assert microbatch.weights_BT.sum(1).tolist() == pytest.approx([0.25 * 2 / 12, 0.25 * 10 / 12, 0.75])


# --- teachers and rewards ---------------------------------------------------------------------------------------------


def mixed_settings(alpha):
    """Unclipped, so that what teachers and rewards say adds up; the gate stays."""
    return PolicyGradient(estimator="policy_gradient", gate=(0.5, 2.0), advantage_clip=1e9, reward_weight=alpha)


def naive_gradient(batch, advantage_of):
    """``- sum_d g_d/N_d sum_t w_t A_t d log pi(y_t)`` at the table, with loops; ``advantage_of(one, t, logp)``."""
    table = Bigram().table.detach().numpy()
    logp = table - np.log(np.exp(table).sum(-1, keepdims=True))
    gradient = np.zeros_like(table)
    for domain, share in SHARES.items():
        mine = [one for one in batch if one.rollout.domain == domain]
        tokens = sum(one.rollout.trained_tokens for one in mine)
        for one in mine:
            ids = one.rollout.token_ids.tolist()
            for t in range(len(ids)):
                row, y = logp[ids[t - 1]], ids[t]
                ratio = np.exp(row[y] - one.rollout.sampler_logprobs[t])
                if one.rollout.loss_mask[t] and 0.5 <= ratio <= 2.0:
                    pull = share / sum(SHARES.values()) / tokens * ratio * advantage_of(one, t, row)
                    gradient[ids[t - 1]] -= pull * ((np.arange(V) == y) - np.exp(row))
    return gradient


def teacher_says(one, t, logp):
    y = one.rollout.token_ids[t]
    return one.scores[0][1].payload.logprobs_TV[t, y] - logp[y]


def reward_says(one, t, logp):
    return 2.0 * one.reward - 1.0


def test_alpha_0_is_pure_distillation():
    """Bit by bit what it is without any reward, and what the teachers alone say."""
    batch = mixed_batch()
    loss, gradient = update(batch, "policy_gradient", settings=mixed_settings(0.0))
    bare = [replace(one, reward=None) for one in batch]
    bare_loss, bare_gradient = update(bare, "policy_gradient", settings=mixed_settings(0.0), rewards=False)
    assert loss == bare_loss
    assert torch.equal(gradient, bare_gradient)
    np.testing.assert_allclose(gradient.numpy(), naive_gradient(batch, teacher_says), rtol=1e-5, atol=1e-8)
    assert not torch.equal(gradient, update(batch, "policy_gradient", settings=mixed_settings(0.1))[1])


def test_without_teachers_it_is_pure_reward_learning():
    """What rewards alone say; the same as under teachers that agree with the student in every token."""
    batch = [replace(one, scores=()) for one in mixed_batch()]
    _, gradient = update(batch, "policy_gradient", settings=mixed_settings(0.7))
    expected = naive_gradient(batch, lambda *it: 0.7 * reward_says(*it))
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-8)
    table = torch.cat([torch.zeros(1, V), Bigram().table.detach()]).log_softmax(-1)

    def echo(one):
        before = [0, *(one.rollout.token_ids + 1).tolist()[: len(one.rollout.token_ids) - 1]]
        return replace(one, scores=((1.0, TeacherScore("echo", Full(table[before].float().numpy()))),))

    echoed = update([echo(one) for one in batch], "policy_gradient", settings=mixed_settings(0.7))[1]
    torch.testing.assert_close(echoed, gradient, rtol=1e-4, atol=1e-7)
    assert gradient.abs().max() > 1e-2


def test_teachers_and_rewards_add_up():
    batch = mixed_batch()
    teachers = update(batch, "policy_gradient", settings=mixed_settings(0.0))[1]
    rewards = update([replace(one, scores=()) for one in batch], "policy_gradient", settings=mixed_settings(1.0))[1]
    both = update(batch, "policy_gradient", settings=mixed_settings(0.7))[1]
    torch.testing.assert_close(both, teachers + 0.7 * rewards, rtol=1e-6, atol=1e-8)  # rewards are float32
