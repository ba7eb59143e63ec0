"""The split of a batch into updates, ranks and microbatches, and the tensors of a microbatch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from batch_kit import SHARES, V, as_sampled, as_topk, cut_for, log_softmax, mixed_batch, scored

from mopd.distill.loss.microbatch import collate, trained_columns
from mopd.distill.loss.registry import LOSSES, bind
from mopd.distill.loss.teacher_tensors import combine_teachers, sampled_logprobs
from mopd.distill.recipe import FullReverseKL, PolicyGradient, TopKReverseKL
from mopd.distill.student.plan import plan_updates
from mopd.distill.types import RunError, ScoredRollout, UserError

FULL = FullReverseKL(estimator="full_reverse_kl")
LOSS_OF = {
    "full": FULL,
    "sampled": PolicyGradient(estimator="policy_gradient"),
    "topk": TopKReverseKL(estimator="topk_reverse_kl", k=3),
}


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2, 5])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 20, 33, 10_000])
def test_plan_keeps_its_promises(updates, ranks, budget):
    batch = mixed_batch(31)
    plans = plan_updates(batch, shares=SHARES, updates=updates, ranks=ranks, microbatch_tokens=budget)
    assert plans == plan_updates(batch, shares=SHARES, updates=updates, ranks=ranks, microbatch_tokens=budget)
    taken = [i for plan in plans for rank in plan.microbatches for members in rank for i in members]
    assert sorted(taken) == list(range(31)), "every rollout once"
    for domain in SHARES:
        counts = [
            sum(batch[i].rollout.domain == domain for rank in plan.microbatches for members in rank for i in members)
            for plan in plans
        ]
        assert max(counts) - min(counts) <= 1, "every domain spread evenly over the updates"
    for plan in plans:
        assert len(plan.microbatches) == ranks
        assert len({len(rank) for rank in plan.microbatches}) == 1, "as many microbatches on every rank"
        for members in (members for rank in plan.microbatches for members in rank):
            width = max((len(batch[i].rollout.token_ids) for i in members), default=0)
            assert len(members) <= 1 or width * len(members) <= budget
        for number in zip(*plan.microbatches, strict=True):
            assert max(map(len, number)) - min(map(len, number)) <= 1, "ranks carry the same load at the same time"


def test_weights_are_share_over_trained_tokens_by_hand():
    batch = [scored(0, "math", answer=4), scored(1, "math", answer=6), scored(2, "code", answer=2)]
    (plan,) = plan_updates(batch, shares=SHARES, updates=1, ranks=1, microbatch_tokens=100)
    assert plan.token_weight == pytest.approx({"math": 0.25 / 10, "code": 0.75 / 2})
    assert plan.microbatches == (((1, 0, 2),),), "longest first"


def test_padding_is_small_because_lengths_are_sorted():
    batch = [scored(i, "math", prompt=1, answer=1 + 30 * (i % 2)) for i in range(16)]
    (plan,) = plan_updates(batch, shares={"math": 1.0}, updates=1, ranks=2, microbatch_tokens=128)
    lengths = [
        [len(batch[i].rollout.token_ids) for i in members] for rank in plan.microbatches for members in rank if members
    ]
    padded = sum(max(row) * len(row) for row in lengths)
    assert padded == 8 * 32 + 8 * 2


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 33, 10_000])
def test_a_packed_plan_has_as_many_tokens_a_microbatch_and_no_more_of_them(ranks, budget):
    batch = mixed_batch(31)
    settings = {"shares": SHARES, "updates": 1, "ranks": ranks, "microbatch_tokens": budget}
    (plan,), (padded,) = (plan_updates(batch, **settings, packing=packing) for packing in (True, False))
    assert sorted(i for rank in plan.microbatches for members in rank for i in members) == list(range(31))
    assert len({len(rank) for rank in plan.microbatches}) == 1
    assert len(plan.microbatches[0]) <= len(padded.microbatches[0])
    assert plan.token_weight == padded.token_weight
    for members in (members for rank in plan.microbatches for members in rank):
        assert len(members) <= 1 or sum(len(batch[i].rollout.token_ids) for i in members) <= budget


def test_a_rollout_above_the_budget_is_alone():
    batch = [scored(0, "math", answer=50), scored(1, "math", answer=5), scored(2, "math", answer=5)]
    (plan,) = plan_updates(batch, shares={"math": 1.0}, updates=1, ranks=1, microbatch_tokens=16)
    assert plan.microbatches == (((0,), (1, 2)),)


def test_fewer_rollouts_than_ranks_leave_dummies():
    (plan,) = plan_updates([scored(0, "math")], shares={"math": 1.0}, updates=1, ranks=3, microbatch_tokens=100)
    assert plan.microbatches == (((0,),), ((),), ((),))


def test_refusals_name_the_domain():
    batch = [scored(0, "math"), scored(1, "math"), scored(2, "code")]
    with pytest.raises(UserError, match=r"'code' has 1 rollouts for 2 updates.*updates_per_step"):
        plan_updates(batch, shares=SHARES, updates=2, ranks=1, microbatch_tokens=100)
    with pytest.raises(UserError, match="'code' has 0 rollouts"):
        plan_updates(batch[:2], shares=SHARES, updates=1, ranks=1, microbatch_tokens=100)
    empty = [*batch[:2], scored(2, "code", answer=0)]
    with pytest.raises(RunError, match="'code' has no trained token"):
        plan_updates(empty, shares=SHARES, updates=1, ranks=1, microbatch_tokens=100)
    with pytest.raises(ValueError, match="rollout 2 is of domain 'code'"):
        plan_updates(batch, shares={"math": 1.0}, updates=1, ranks=1, microbatch_tokens=100)


# --- collation --------------------------------------------------------------------------------------------------------


def gather(rollouts, **more):
    settings = {"token_weight": {"math": 0.5, "code": 2.0}, "domains": ["math", "code"], "pad_id": 0}
    settings |= {"payload": "full", "reward_advantages": None, "device": "cpu"}
    return collate(rollouts, **(settings | more))


def test_collate_places_every_token_and_pads_on_the_right():
    rollouts = [scored(0, "math", answer=2), scored(1, "code", answer=5)]
    batch = gather(rollouts, reward_advantages=[0.5, -1.0], pad_id=1)
    assert batch.token_ids_BT.shape == (2, 8)
    assert batch.domain_B.tolist() == [0, 1]
    assert batch.reward_advantage_B.tolist() == [0.5, -1.0]
    for b, one in enumerate(rollouts):
        n = len(one.rollout.token_ids)
        assert batch.token_ids_BT[b].tolist() == [*one.rollout.token_ids.tolist(), *[1] * (8 - n)]
        assert batch.attention_mask_BT[b].tolist() == [1] * n + [0] * (8 - n)
        assert batch.mask_BT[b].tolist() == [*one.rollout.loss_mask.tolist(), *[False] * (8 - n)]
        assert batch.weights_BT[b].tolist() == [[0.0, [0.5, 2.0][b]][trained] for trained in batch.mask_BT[b].tolist()]
        assert batch.sampler_logprobs_BT[b, :n].tolist() == one.rollout.sampler_logprobs.tolist()
        trained = one.rollout.loss_mask
        assert np.array_equal(batch.teacher[b, :n].numpy()[trained], one.scores[0][1].payload.logprobs_TV[trained])
    assert gather(rollouts, payload=None).teacher is None
    assert gather(rollouts).reward_advantage_B is None
    sampled = gather([as_sampled(one) for one in rollouts], payload="sampled")
    assert torch.equal(sampled.teacher[0, :5], batch.teacher[0, :5].gather(1, batch.token_ids_BT[0, :5, None])[:, 0])


@pytest.mark.parametrize(
    ("payload", "each"), [("full", False), ("sampled", False), (None, False), ("full", True), ("topk", True)]
)
def test_dummy_trains_nothing(payload, each):
    batch = gather([], payload=payload, reward_advantages=[], needs_each_teacher=each)
    assert len(batch.per_teacher) == each
    assert batch.token_ids_BT.shape == (1, 2)
    assert batch.attention_mask_BT.all()
    assert not batch.mask_BT.any()
    assert not batch.weights_BT.any()
    assert batch.reward_advantage_B.tolist() == [0.0]


def test_one_combined_teacher_is_the_weighted_sum_of_kls():
    one = scored(5, "math", teachers=2)
    batch = gather([one])
    logits = torch.randn(*batch.token_ids_BT.shape, V, generator=torch.Generator().manual_seed(0))
    loss = LOSSES["full_reverse_kl"].token_loss(logits, batch, FULL).loss_BT[0].numpy()
    logp = log_softmax(logits[0].double().numpy())
    for t in range(3, 7):
        expected = sum(
            weight * sum(np.exp(logp[t, v]) * (logp[t, v] - score.payload.logprobs_TV[t, v]) for v in range(V))
            for weight, score in one.scores
        )
        assert loss[t] == pytest.approx(expected, abs=1e-6)


TRAINED = scored(6, "math").rollout.loss_mask


def shipped(one: ScoredRollout) -> ScoredRollout:
    """With the rows of the trained tokens alone, as teachers ship them."""
    mask = one.rollout.loss_mask
    return replace(one, scores=tuple((w, replace(s, payload=s.payload.at(mask))) for w, s in one.scores))


@pytest.mark.parametrize(("payload", "each"), [("full", False), ("sampled", False), ("full", True), ("topk", True)])
def test_rows_of_trained_tokens_are_all_that_a_microbatch_needs(payload, each):
    rollouts = [cut_for(payload, one) for one in mixed_batch(7)]
    whole, alone = (gather(b, payload=payload, needs_each_teacher=each) for b in (rollouts, [*map(shipped, rollouts)]))
    for ours, theirs in ((whole.teacher, alone.teacher), *zip_arrays(whole, alone)):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def zip_arrays(whole, alone):
    for ours, theirs in zip(whole.per_teacher, alone.per_teacher, strict=True):
        yield from zip(ours.arrays.values(), theirs.arrays.values(), strict=True)


@pytest.mark.parametrize("payload", ["full", "sampled", "topk"])
def test_a_loss_of_the_trained_columns_is_that_of_the_whole(payload):
    """Loss and gradient, with NaN wherever nothing is trained; a sequence that trains nothing at all is among them."""
    rollouts = [cut_for(payload, one) for one in mixed_batch(7)]
    silent = replace(rollouts[2].rollout, loss_mask=np.zeros_like(rollouts[2].rollout.loss_mask))
    rollouts[2] = replace(rollouts[2], rollout=silent)
    loss = bind(LOSS_OF[payload])
    batch = gather(rollouts, payload=payload, needs_each_teacher=loss.spec.needs_each_teacher)
    logits = torch.randn(*batch.token_ids_BT.shape, V, generator=torch.Generator().manual_seed(0))
    logits = logits.masked_fill(~batch.mask_BT.unsqueeze(-1), float("nan")).requires_grad_()
    trained = trained_columns(batch)
    mask_BN, most = trained.microbatch.mask_BT, int(batch.mask_BT.sum(1).max())
    assert mask_BN.shape == (7, most)
    assert most < batch.mask_BT.shape[1]
    columns = logits.gather(1, trained.places_BN.unsqueeze(-1).expand(-1, -1, V))
    whole, part = loss.token_loss(logits, batch), loss.token_loss(columns, trained.microbatch)
    assert torch.equal(whole.loss_BT[batch.mask_BT], part.loss_BT[mask_BN])
    for name in whole.stats:
        assert torch.equal(whole.stats[name][batch.mask_BT], part.stats[name][mask_BN])
    both = [torch.autograd.grad((x.loss_BT * w).sum(), logits)[0] for x, w in
            ((whole, batch.weights_BT), (part, trained.microbatch.weights_BT))]  # fmt: skip
    assert torch.equal(*both)
    assert trained_columns(gather([], payload=payload)).places_BN.tolist() == [[0]]


def test_one_hot_weights_are_routing_bit_by_bit():
    one = scored(6, "math")
    alone = replace(one, scores=((1.0, replace(one.scores[0][1], payload=one.scores[0][1].payload.at(TRAINED))),))
    assert combine_teachers(alone, "full") is alone.scores[0][1].payload.logprobs_TV
    assert np.array_equal(combine_teachers(one, "full"), one.scores[0][1].payload.logprobs_TV[TRAINED])


def test_teachers_apart_keep_their_order_their_weights_and_their_places():
    """The first rollout has two teachers, the second one: slot 1 holds nothing of it."""
    rollouts = [scored(0, "math", answer=2, teachers=2), scored(1, "code", answer=5)]
    full = gather(rollouts, needs_each_teacher=True)
    topk = gather([as_topk(one) for one in rollouts], payload="topk", needs_each_teacher=True)
    assert full.teacher is None
    assert [slot.weight_B.tolist() for slot in full.per_teacher] == [[0.25, 1.0], [0.75, 0.0]]
    assert [slot.weight_B.tolist() for slot in topk.per_teacher] == [[0.25, 1.0], [0.75, 0.0]]
    for k, whole, cut in zip((0, 1), full.per_teacher, topk.per_teacher, strict=True):
        for b, one in enumerate(rollouts):
            n = len(one.rollout.token_ids)
            assert not whole.arrays["logprobs_TV"][b, n:].any()
            if k == len(one.scores):
                assert not whole.arrays["logprobs_TV"][b].any()
                assert not cut.arrays["logprobs_TK"][b].any()
                continue
            said, said_in_short = one.scores[k][1].payload, as_topk(one).scores[k][1].payload
            mask = one.rollout.loss_mask
            assert np.array_equal(whole.arrays["logprobs_TV"][b, :n].numpy()[mask], said.logprobs_TV[mask])
            for name, array in said_in_short.arrays().items():
                assert np.array_equal(cut.arrays[name][b, :n].numpy()[mask], array[mask])
                assert not cut.arrays[name][b, :n].numpy()[~mask].any()
            assert not cut.arrays["rest_T"][b, n:].any()


def test_sampled_log_probabilities_are_known_from_every_payload():
    one = scored(5, "math", teachers=2)
    ids = one.rollout.token_ids
    trained = [(t, y) for t, y in enumerate(ids.tolist()) if one.rollout.loss_mask[t]]
    expected = [sum(w * score.payload.logprobs_TV[t, y] for w, score in one.scores) for t, y in trained]
    for same in (one, as_sampled(one), as_topk(one)):
        assert sampled_logprobs(same).tolist() == pytest.approx(expected, abs=1e-6)
        assert sampled_logprobs(shipped(same)).tolist() == sampled_logprobs(same).tolist()
    with pytest.raises(ValueError, match="has no teacher"):
        sampled_logprobs(ScoredRollout(one.rollout, reward=1.0))


def test_what_a_loss_cannot_use_is_refused():
    one = scored(0, "math")
    with pytest.raises(ValueError, match=r"teacher 't0' gave Full for rollout 0.*'sampled'"):
        gather([one], payload="sampled")
    with pytest.raises(ValueError, match=r"teacher 't0' gave Full for rollout 0.*'topk'"):
        gather([one], payload="topk", needs_each_teacher=True)
    untaught = ScoredRollout(one.rollout, reward=1.0)
    with pytest.raises(ValueError, match="rollout 0 of domain 'math' has no teacher"):
        gather([untaught])
    with pytest.raises(ValueError, match="rollout 0 of domain 'math' has no teacher"):
        gather([untaught], needs_each_teacher=True)
    batch = gather([as_sampled(one), untaught], payload="sampled", reward_advantages=[0.0, 1.0])
    assert batch.has_teacher_B.tolist() == [True, False]
    with pytest.raises(ValueError, match="1 reward advantages for 2 rollouts"):
        gather([one, one], reward_advantages=[1.0])


# --- a grader that selects --------------------------------------------------------------------------------------------


def test_what_a_grader_left_out_is_in_no_update():
    batch = mixed_batch(12)
    first = next(iter(SHARES))
    kept = [i % 2 == 0 and one.rollout.domain != first for i, one in enumerate(batch)]
    marked = [replace(one, kept=keep) for one, keep in zip(batch, kept, strict=True)]
    how = {"shares": SHARES, "updates": 2, "ranks": 2, "microbatch_tokens": 40}
    plans = plan_updates(marked, selective=True, **how)
    taken = [i for plan in plans for rank in plan.microbatches for members in rank for i in members]
    assert sorted(taken) == [i for i, keep in enumerate(kept) if keep]
    for plan in plans:
        assert first not in plan.token_weight, "nothing of it was kept"
        members = [batch[i].rollout for rank in plan.microbatches for microbatch in rank for i in microbatch]
        for domain, weight in plan.token_weight.items():  # the others weigh what they would have
            tokens = sum(rollout.trained_tokens for rollout in members if rollout.domain == domain)
            assert weight == pytest.approx(SHARES[domain] / sum(SHARES.values()) / tokens)
    assert plan_updates([replace(one, kept=False) for one in batch], selective=True, **how) == []
    with pytest.raises(UserError, match=f"domain {first!r} has 0 rollouts"):
        plan_updates(marked, **how)
