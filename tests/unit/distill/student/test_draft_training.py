"""Draft heads that learn beside the student: it moves as without them, they as their loss says, and both resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from student_kit import (
    ProcessRanks,
    engine_of,
    furthest,
    make_batch,
    make_model,
    make_spec,
    student,
    train,
)

from mopd.distill.models.load import load_whole
from mopd.distill.models.mtp import heads_of_checkpoint, make_heads
from mopd.distill.recipe import Engine, MTPRecipe
from mopd.distill.types import NonFinite, UserError, align_logits

HEADS = MTPRecipe(heads=3, share=0.5, lr=1e-2)


@pytest.fixture(scope="module")
def one_rank() -> Any:
    ranks = ProcessRanks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two_ranks() -> Any:
    ranks = ProcessRanks(2)
    yield ranks
    ranks.close()


def split(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The model's own weights, and its draft heads'."""
    heads = {name: tensor for name, tensor in state.items() if name.startswith("model.mtp.")}
    return {name: tensor for name, tensor in state.items() if name not in heads}, heads


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_the_student_moves_as_without_heads(tmp_path: Path, one_rank: ProcessRanks, zero_stage: int) -> None:
    model = make_model(tmp_path)
    engine = engine_of(1, zero_stage=zero_stage)
    without, plain = train(one_rank, make_spec(model, tmp_path / "off", engine=engine), steps=3)
    state, metrics = train(one_rank, make_spec(model, tmp_path / "on", engine=engine, mtp=HEADS), steps=3)
    trunk, heads = split(state)
    assert len(heads) == 3 * 14
    assert trunk.keys() == without.keys()
    for name, tensor in without.items():
        assert torch.equal(trunk[name], tensor), name
    for row, row_without in zip(metrics, plain, strict=True):
        assert {name: row[name] for name in row_without} == row_without
    for domain in ("code", "math", "reasoning"):
        assert metrics[-1][f"draft_kl/{domain}"] < metrics[0][f"draft_kl/{domain}"]
        assert 0 < metrics[-1][f"draft_overlap_1/{domain}"] <= 1


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_two_ranks_move_the_heads_as_one_does(
    tmp_path: Path, one_rank: ProcessRanks, two_ranks: ProcessRanks, zero_stage: int
) -> None:
    model = make_model(tmp_path)
    ends = []
    for ranks in (one_rank, two_ranks):
        engine = engine_of(ranks.size, zero_stage=zero_stage)
        spec = make_spec(model, tmp_path / str(ranks.size), engine=engine, mtp=HEADS)
        ends.append(train(ranks, spec, steps=2))
    (one, first), (two, second) = ends
    assert furthest(split(one)[1], split(two)[1]) < 2e-3  # of steps of 1e-2: AdamW's first are its sign
    for name in first[0]:
        if name.startswith("draft_") and name != "draft_grad_norm":
            assert second[0][name] == pytest.approx(first[0][name], abs=1e-4), name


def test_heads_learn_the_same_from_packed_rollouts(tmp_path: Path, one_rank: ProcessRanks) -> None:
    model = make_model(tmp_path)
    ends = []
    for packing in (False, True):
        spec = make_spec(model, tmp_path / str(packing), engine=engine_of(1, packing=packing), mtp=HEADS)
        ends.append(train(one_rank, spec, steps=1))
    (padded, expected), (packed, metrics) = ends
    assert furthest(split(padded)[1], split(packed)[1]) < 2e-3  # of steps of 1e-2: AdamW's first are its sign
    assert metrics[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-5)


def test_a_resumed_student_has_bitwise_the_same_heads(tmp_path: Path, two_ranks: ProcessRanks) -> None:
    spec = make_spec(make_model(tmp_path), tmp_path / "run", engine=engine_of(2), mtp=HEADS)
    learner = student(two_ranks.start(spec), spec)
    for step in range(2):
        learner.update(make_batch(seed=step), step=step)
    learner.save(2)
    learner.update(make_batch(seed=2), step=2)
    whole = dict(learner.weights().state_dict())
    resumed = student(two_ranks.start(spec), spec)
    assert resumed.load_latest() == 2
    resumed.update(make_batch(seed=2), step=2)
    again = dict(resumed.weights().state_dict())
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(again[name], tensor), name


def test_the_first_gradient_is_plain_torchs(tmp_path: Path, one_rank: ProcessRanks) -> None:
    """Of all rollouts, from whole forwards of each alone: sum_t g_d / N_d KL(student || guess) at every depth, and of
    the further layers on the first's output; compared by the norm of the gradient, and by what each domain's guesses
    cost."""
    path = make_model(tmp_path)
    settings = MTPRecipe(heads=3, share=1.0, depth=2)
    spec = make_spec(path, tmp_path / "run", mtp=settings, temperature=0.7)
    learner = student(one_rank.start(spec), spec)
    batch = make_batch(seed=3)
    metrics = learner.update(batch, step=0)

    model = load_whole(path, dtype=torch.float32).eval()
    heads = make_heads(path, model, 3, seed=spec.seed)
    tokens = {d: sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d) for d in spec.domains}
    shares = {"code": 0.25, "math": 0.5, "reasoning": 0.25}
    total, weight, costs = torch.zeros(()), 0.0, {d: [] for d in spec.domains}
    for scored in batch:
        rollout = scored.rollout
        ids_1T = torch.tensor(rollout.token_ids[None].astype("int64"))
        with torch.no_grad():
            output = model(input_ids=ids_1T, output_hidden_states=True, use_cache=False)
        own_TV = align_logits(output.logits)[0] / 0.7
        hidden_1TH = output.hidden_states[-1]
        first = heads.unroll(hidden_1TH, ids_1T, 2)
        further = heads.chain(first[0], ids_1T)
        each = shares[rollout.domain] / tokens[rollout.domain]
        for k, guess_1TH in enumerate([*first, *further]):
            ahead = k + 2 if k < 2 else k - 2 + 3
            for p in range(len(rollout.token_ids) - ahead):
                if not rollout.loss_mask[p + ahead]:
                    continue
                q_V = (model.lm_head(guess_1TH[0, p]) / 0.7).log_softmax(-1)
                p_V = own_TV[p + ahead].softmax(-1)
                kl = (p_V * (p_V.log() - q_V)).sum()
                total, weight = total + each * kl, weight + each
                if k < 2:
                    costs[rollout.domain].append(float(kl.detach()))
    (total / weight).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in heads.parameters() if p.grad is not None])
    assert metrics["draft_grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    for domain, values in costs.items():
        assert metrics[f"draft_kl/{domain}"] == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_heads_alone_leave_the_model_as_it_is_and_are_exported(tmp_path: Path, two_ranks: ProcessRanks) -> None:
    path = make_model(tmp_path)
    spec = make_spec(path, tmp_path / "run", engine=engine_of(2), mtp=HEADS, heads_alone=True)
    learner = student(two_ranks.start(spec), spec)
    metrics = [learner.update(make_batch(seed=7), step=step) for step in range(6)]
    assert metrics[-1]["draft_kl/math"] < metrics[0]["draft_kl/math"]
    learner.export(str(tmp_path / "student"))
    files = [Path(folder) / "model.safetensors" for folder in (path, tmp_path / "student")]
    with safe_open(files[0], "pt") as before, safe_open(files[1], "pt") as after:
        assert set(after.keys()) > set(before.keys())
        for name in before.keys():  # noqa: SIM118
            assert torch.equal(before.get_tensor(name), after.get_tensor(name)), name
    model = load_whole(tmp_path / "student", dtype=torch.float32)
    heads = heads_of_checkpoint(tmp_path / "student", model)
    assert heads is not None
    state = learner.weights().state_dict()
    for name, tensor in heads.tensors().items():
        assert torch.equal(state[name], tensor), name


def test_a_student_of_the_hub_keeps_the_heads_that_it_came_with(tmp_path: Path, one_rank: ProcessRanks) -> None:
    spec = make_spec(make_model(tmp_path), tmp_path / "first", mtp=HEADS)
    learner = student(one_rank.start(spec), spec)
    learner.update(make_batch(seed=7), step=0)
    learner.export(str(tmp_path / "student"))
    left = dict(learner.weights().state_dict())
    spec = make_spec(str(tmp_path / "student"), tmp_path / "second", mtp=HEADS, seed=5)
    begun = student(one_rank.start(spec), spec).weights().state_dict()
    for name, tensor in left.items():
        assert torch.equal(begun[name], tensor), name


def test_what_cannot_be_is_refused(tmp_path: Path, one_rank: ProcessRanks) -> None:
    with pytest.raises(UserError, match="zero_stage 3"):
        one_rank.start(make_spec(make_model(tmp_path), tmp_path / "a", engine=Engine(zero_stage=3), mtp=HEADS))
    with pytest.raises(UserError, match="qwen3 has no draft heads that are known"):
        one_rank.start(make_spec(make_model(tmp_path, "qwen3"), tmp_path / "b", mtp=HEADS))


def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path: Path, one_rank: ProcessRanks) -> None:
    spec = make_spec(make_model(tmp_path), tmp_path / "run", mtp=HEADS)
    learner = student(one_rank.start(spec), spec)
    one_rank.call("call", [(_spoil, ())])
    before = dict(learner.weights().state_dict())
    with pytest.raises(NonFinite, match="draft heads"):
        learner.update(make_batch(seed=7), step=0)
    after = learner.weights().state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name].nan_to_num(), tensor.nan_to_num()), name


def _spoil(module: Any) -> None:
    from mopd.distill.models.mtp import draft_heads

    heads = draft_heads(module)
    assert heads is not None
    with torch.no_grad():
        next(heads.parameters()).fill_(torch.nan)
