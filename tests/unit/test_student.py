"""The student's engine: the same training on one rank and on several, exact resume, and nothing moved by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import (
    DOMAINS,
    FAMILIES,
    VOCABULARY,
    ProcessRanks,
    make_batch,
    make_model,
    make_spec,
)
from transformers import AutoModelForCausalLM

from distill import checkpoint, engine
from distill.rank import StudentSpec
from distill.recipe import Engine, NegativeLogLikelihood, Optimizer, PolicyGradient
from distill.student import DeepSpeedStudent, InlineRanks, Ranks
from distill.types import Full, NonFinite, Sampled, ScoredRollout, TeacherScore, UserError, WorldError, align_logits

SGD = Optimizer(name="sgd", lr=0.5, warmup_steps=2, clip=0.05)
ADAMW = Optimizer(name="adamw", lr=1e-2, warmup_steps=2, clip=0.05)
SHARES = {"code": 1.0, "math": 2.0, "reasoning": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def one() -> Iterator[ProcessRanks]:
    ranks = ProcessRanks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two() -> Iterator[ProcessRanks]:
    ranks = ProcessRanks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def fresh() -> Iterator[ProcessRanks]:
    """Processes that hold nothing of what ``two`` did."""
    ranks = ProcessRanks(2)
    yield ranks
    ranks.close()


def student(ranks: Ranks, spec: StudentSpec, *, updates: int = 1, shares: dict[str, float] = SHARES) -> Any:
    return DeepSpeedStudent(ranks, spec, shares=shares, updates_per_step=updates)


def engine_of(ranks: int, **changes: Any) -> Engine:
    return Engine(**{"ranks": ranks, "microbatch_tokens": 96, "expert_bias_rate": 1e-3, **changes})


def train(
    ranks: ProcessRanks, spec: StudentSpec, steps: int = 5
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    learner = student(ranks.start(spec), spec)
    metrics = [learner.update(make_batch(seed=7), step=step) for step in range(steps)]
    return dict(learner.weights().state_dict()), metrics


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_update_is_plain_torch(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """One rank against a loop over rollouts with autograd's own KL, torch's clip and torch's SGD."""
    model_path = make_model(models, "mimo_v2_flash")
    spec = make_spec(model_path, tmp_path, optimizer=SGD, engine=engine_of(1, expert_bias_rate=0))
    engine_weights, metrics = train(one, spec, steps=2)
    model = AutoModelForCausalLM.from_pretrained(model_path)
    batch = make_batch(seed=7)
    tokens = {d: sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d) for d in DOMAINS}
    for k, lr in enumerate([0.25, 0.5]):  # warm-up of two steps
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        loss = torch.zeros((), dtype=torch.float64)
        for scored in batch:
            rollout = scored.rollout
            logits = align_logits(model(torch.from_numpy(rollout.token_ids).long()[None]).logits)[0]
            logp = logits.double().log_softmax(-1)
            payload = scored.scores[0][1].payload
            assert isinstance(payload, Full)
            kl_T = (logp.exp() * (logp - torch.from_numpy(payload.logprobs_TV).double())).sum(-1)
            weight = SHARES[rollout.domain] / sum(SHARES.values()) / tokens[rollout.domain]
            loss = loss + weight * kl_T[torch.from_numpy(rollout.loss_mask)].sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), SGD.clip)
        optimizer.step()
        assert metrics[k]["loss"] == pytest.approx(float(loss), abs=1e-6)
        assert metrics[k]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        assert metrics[k]["grad_norm"] > SGD.clip  # the clip is at work
        assert metrics[k]["lr"] == lr
    assert furthest(engine_weights, dict(model.state_dict())) < 1e-6


@pytest.mark.parametrize(("optimizer", "tolerance"), [(SGD, 1e-6), (ADAMW, 1e-5)], ids=["sgd", "adamw"])
def test_ranks_and_expert_parallel_train_alike(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, optimizer: Optimizer, tolerance: float
) -> None:
    spec = make_spec(make_model(models), tmp_path / "1", optimizer=optimizer)
    reference, first = train(one, spec)
    start = AutoModelForCausalLM.from_pretrained(spec.model).state_dict()
    assert furthest(reference, dict(start)) > 1e-3
    for expert_parallel in (1, 2):
        other = make_spec(
            spec.model,
            tmp_path / f"2-{expert_parallel}",
            optimizer=optimizer,
            engine=engine_of(2, expert_parallel=expert_parallel),
        )
        weights, metrics = train(two, other)
        assert furthest(weights, reference) < tolerance
        for ours, theirs in zip(metrics, first, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mimo_v2_flash"])
def test_other_families(models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, family: str) -> None:
    spec = make_spec(make_model(models, family), tmp_path / "1", optimizer=SGD)
    reference, first = train(one, spec, steps=2)
    for expert_parallel in (1,) if family == "llama" else (1, 2):
        settings = engine_of(2, expert_parallel=expert_parallel)
        weights, metrics = train(two, replace(spec, engine=settings, run_dir=str(tmp_path / "2")), steps=2)
        assert furthest(weights, reference) < 1e-6
        assert metrics[-1] == pytest.approx(first[-1], rel=1e-4, abs=1e-5)
    assert ("router/max_load" in first[-1]) == (family != "llama")


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "expert_parallel": 2},
        {"zero_stage": 3},
        {"zero_stage": 3, "expert_parallel": 2},
        {"gradient_checkpointing": True, "expert_parallel": 2},
        {"microbatch_tokens": 24},
    ],
    ids=str,
)
def test_every_way_to_spread_trains_alike(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, changes: dict[str, Any]
) -> None:
    spec = make_spec(make_model(models), tmp_path / "1", optimizer=SGD)
    reference, first = train(one, spec, steps=2)
    weights, metrics = train(two, replace(spec, engine=engine_of(2, **changes), run_dir=str(tmp_path / "2")), steps=2)
    assert furthest(weights, reference) < 1e-6
    assert metrics[-1] == pytest.approx(first[-1], rel=1e-4, abs=1e-5)


def test_bfloat16_keeps_small_steps_of_the_bias(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    settings = engine_of(2, dtype="bfloat16", expert_parallel=2, expert_bias_rate=1e-5)
    spec = make_spec(make_model(models), tmp_path, engine=settings, optimizer=SGD)
    weights, _ = train(two, spec, steps=1)
    before = AutoModelForCausalLM.from_pretrained(spec.model).state_dict()
    biases = [name for name in weights if "e_score_correction_bias" in name]
    assert len(biases) == 2
    for name in biases:
        moved = (weights[name] - before[name]).abs()
        assert weights[name].dtype == torch.float32
        assert moved.max() == pytest.approx(1e-5, rel=0.01)


def test_teacher_equal_to_student_moves_nothing(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    spec = make_spec(
        make_model(models), tmp_path, engine=engine_of(2, expert_parallel=2, expert_bias_rate=0), optimizer=SGD
    )
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    batch = [graded_by(model, scored) for scored in make_batch()]
    learner = student(two.start(spec), spec)
    metrics = learner.update(batch, step=3)
    assert metrics["grad_norm"] < 1e-7
    assert all(abs(metrics[f"kl/{d}"]) < 1e-6 for d in DOMAINS)
    assert furthest(dict(learner.weights().state_dict()), dict(model.state_dict())) < 1e-7


def graded_by(model: Any, scored: ScoredRollout) -> ScoredRollout:
    """The same rollout, with ``model`` as its teacher."""
    with torch.no_grad():
        logits = align_logits(model(torch.from_numpy(scored.rollout.token_ids).long()[None]).logits)[0]
    payload = Full(logits.float().log_softmax(-1).numpy())
    return ScoredRollout(scored.rollout, scores=((1.0, TeacherScore("self", payload)),))


def test_nan_stops_before_the_weights_move(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, expert_parallel=2))
    learner = student(two.start(spec), spec)
    learner.update(make_batch(), step=0)
    before = dict(learner.weights().state_dict())
    batch = make_batch()
    bad = next(i for i, scored in enumerate(batch) if scored.rollout.domain == "math")
    payload = batch[bad].scores[0][1].payload
    assert isinstance(payload, Full)
    payload.logprobs_TV[-1, 3] = np.nan
    with pytest.raises(NonFinite, match=r"domain math .* optimizer step 1;"):
        learner.update(batch, step=1)
    assert furthest(dict(learner.weights().state_dict()), before) == 0


def explode(module: torch.nn.Module) -> None:
    module.get_parameter("lm_head.weight").register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_infinite_gradient_stops_before_the_weights_move(
    models: Path, tmp_path: Path, two: ProcessRanks, zero_stage: int
) -> None:
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, zero_stage=zero_stage))
    learner = student(two.start(spec), spec)
    before = dict(learner.weights().state_dict())
    learner.weights().on_ranks(explode, [(), ()])
    with pytest.raises(NonFinite, match="gradient is NaN or infinite in optimizer step 8"):
        learner.update(make_batch(), step=8)
    assert furthest(dict(learner.weights().state_dict()), before) == 0


def test_masked_scores_may_be_nan(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    spec = make_spec(make_model(models), tmp_path)
    _, clean = train(one, spec, steps=1)
    batch = make_batch(seed=7)
    for scored in batch:
        payload = scored.scores[0][1].payload
        assert isinstance(payload, Full)
        payload.logprobs_TV[~scored.rollout.loss_mask] = np.nan
    assert student(one.start(spec), spec).update(batch, step=0) == clean[0]


@pytest.mark.parametrize("settings", [{}, {"expert_parallel": 2}, {"zero_stage": 3}], ids=str)
def test_resume_is_bitwise(
    models: Path, tmp_path: Path, two: ProcessRanks, fresh: ProcessRanks, settings: dict[str, Any]
) -> None:
    """Five steps in one go, against three, then other processes and two more."""
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, **settings), optimizer=ADAMW)
    learner = student(two.start(spec), spec, updates=2)
    assert learner.load_latest() == 0
    for step in range(3):
        learner.update(make_batch(seed=step), step=step)
    learner.save(3)
    rest = [learner.update(make_batch(seed=step), step=step) for step in (3, 4)]
    weights = dict(learner.weights().state_dict())
    resumed = student(fresh.start(spec), spec, updates=2)
    assert resumed.load_latest() == 3
    assert [resumed.update(make_batch(seed=step), step=step) for step in (3, 4)] == rest
    assert furthest(dict(resumed.weights().state_dict()), weights) == 0


def test_checkpoints_are_whole_or_absent(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    spec = make_spec(make_model(models), tmp_path, keep_checkpoints=2)
    learner = student(one.start(spec), spec)
    folder = tmp_path / "checkpoints"
    half = folder / f"{checkpoint.checkpoint_name(9)}.tmp-old"
    half.mkdir(parents=True)
    (half / "mp_rank_00_model_states.pt").write_bytes(b"half")
    assert learner.load_latest() == 0
    for step in (1, 2, 3):
        learner.save(step)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]
    assert learner.load_latest() == 3
    (tmp_path / "attempt").write_text("newer")  # the run was resumed by another driver
    with pytest.raises(WorldError, match="attempt now no longer owns"):
        learner.save(4)
    with pytest.raises(WorldError, match="attempt now no longer owns"):
        learner.export(str(tmp_path / "student"))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]
    assert not (tmp_path / "student").exists()


def test_checkpoint_of_another_layout_is_refused(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks
) -> None:
    spec = make_spec(make_model(models), tmp_path)
    student(one.start(spec), spec).save(1)
    other = replace(spec, engine=engine_of(2))
    with pytest.raises(UserError, match=r"'ranks': 1.*'ranks': 2"):
        student(two.start(other), other).load_latest()


def forward(module: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_export_is_the_live_model(models: Path, tmp_path: Path, two: ProcessRanks, expert_parallel: int) -> None:
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, expert_parallel=expert_parallel))
    learner = student(two.start(spec), spec)
    learner.update(make_batch(), step=0)
    learner.export(str(tmp_path / "student"))
    learner.update(make_batch(), step=1)
    learner.export(str(tmp_path / "student"))  # replaces what is there
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(info.values()), info
    assert model.generation_config.eos_token_id == 1
    ids = list(range(2, 22))
    live = learner.weights().on_ranks(forward, [(ids,), (ids,)])
    for logits in live:
        assert torch.allclose(logits, forward(model, ids), atol=2e-6)
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name or "old" in path.name] == []


def test_expert_bias_follows_the_load(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """Counts by a loop over unpadded sequences; the bias moves by the rate towards the experts below the mean."""
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(1, expert_bias_rate=0.01))
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    batch = make_batch(seed=7)
    chosen: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: chosen.setdefault(name, []).extend(out[2].flatten().tolist())
            )
    for scored in batch:
        model(torch.from_numpy(scored.rollout.token_ids).long()[None])
    weights, metrics = train(one, spec, steps=1)
    tokens = sum(len(scored.rollout.token_ids) for scored in batch)
    loads = []
    assert len(chosen) == 2
    for name, experts in chosen.items():
        assert len(experts) == 2 * tokens
        mean = len(experts) / 4
        for e in range(4):
            bias = model.get_buffer(f"{name}.e_score_correction_bias")[e]
            expected = float(bias) + 0.01 * float(np.sign(mean - experts.count(e)))
            assert float(weights[f"{name}.e_score_correction_bias"][e]) == pytest.approx(expected, abs=1e-7)
            loads.append(experts.count(e) / mean)
    assert metrics[0]["router/max_load"] == pytest.approx(max(loads))
    assert metrics[0]["router/min_load"] == pytest.approx(min(loads))
    assert metrics[0]["router/dead_experts"] == loads.count(0.0)


def test_shares_by_loops(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    spec = make_spec(make_model(models), tmp_path, temperature=0.7)
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    batch = make_batch(seed=7)
    tokens, advantages, gradients = (dict.fromkeys(DOMAINS, 0.0) for _ in range(3))
    for scored in batch:
        rollout, d = scored.rollout, scored.rollout.domain
        ids = torch.from_numpy(rollout.token_ids).long()
        with torch.no_grad():
            logp_TV = (align_logits(model(ids[None]).logits)[0] / 0.7).log_softmax(-1)
        payload = scored.scores[0][1].payload
        assert isinstance(payload, Full)
        for t in np.flatnonzero(rollout.loss_mask):
            z = logp_TV[t].clone().requires_grad_()
            p, q = z.log_softmax(-1), torch.from_numpy(payload.logprobs_TV[t])
            kl = (p.exp() * (p - q)).sum()
            kl.backward()
            assert z.grad is not None
            tokens[d] += 1
            advantages[d] += abs(float((q - p.detach())[ids[t]]))
            gradients[d] += (
                float(z.grad.norm()) * SHARES[d] / sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d)
            )
    metrics = student(one.start(spec), spec).update(batch, step=0)
    for name, sums in {"token_share": tokens, "advantage_share": advantages, "gradient_share": gradients}.items():
        for d in DOMAINS:
            assert metrics[f"{name}/{d}"] == pytest.approx(sums[d] / sum(sums.values()), rel=1e-4), (name, d)


def test_other_losses_and_several_updates(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    """Two updates of a batch take two optimizer steps; one rank with one microbatch less runs a dummy."""
    spec = make_spec(
        make_model(models),
        tmp_path,
        loss=PolicyGradient(estimator="policy_gradient", reward_weight=0.5, gate=(1e-9, 1e9)),
        engine=engine_of(2, expert_parallel=2, microbatch_tokens=16),
    )
    batch = [sampled(scored, reward=float(i % 4 == 0)) for i, scored in enumerate(make_batch(per_domain=3))]
    metrics = student(two.start(spec), spec, updates=3).update(batch, step=0)
    assert metrics["lr"] == pytest.approx((0.5 + 1 + 1) / 3 * 1e-2, rel=0.02)
    assert {f"gate_dropped/{d}" for d in DOMAINS} <= metrics.keys()
    spec = replace(spec, loss=NegativeLogLikelihood(estimator="nll"))
    learner = student(two.start(spec), spec)
    losses = [learner.update(batch, step=step)["loss"] for step in range(8)]
    assert losses[0] == pytest.approx(np.log(VOCABULARY), rel=0.05)
    assert losses[-1] < losses[0] - 0.3


def sampled(scored: ScoredRollout, *, reward: float) -> ScoredRollout:
    payload = Sampled(np.full(len(scored.rollout.token_ids), -4.0, dtype=np.float32))
    return ScoredRollout(replace(scored.rollout, group=0), scores=((1.0, TeacherScore("t", payload)),), reward=reward)


def generate(module: Any, ids: list[list[int]]) -> list[list[int]]:
    module.eval()
    with torch.no_grad():
        return module.generate(torch.tensor(ids), max_new_tokens=6, do_sample=False).tolist()


@pytest.mark.parametrize("settings", [{"expert_parallel": 2}, {"zero_stage": 3}], ids=str)
def test_generation_through_the_door(models: Path, tmp_path: Path, two: ProcessRanks, settings: dict[str, Any]) -> None:
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, **settings))
    weights = student(two.start(spec), spec).weights()
    prompts = [[2, 3, 4], [9, 8, 7]]
    model = AutoModelForCausalLM.from_pretrained(spec.model)
    assert weights.on_ranks(generate, [([p],) for p in prompts]) == [generate(model, [p]) for p in prompts]


def test_inline_rank(models: Path, tmp_path: Path, one: ProcessRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(make_model(models), tmp_path)
    for name, value in engine.environment(0, 1, address="127.0.0.1", port=1, device="cpu").items():
        monkeypatch.setenv(name, value)  # the inline rank sets them too; here they are taken back
    ranks = InlineRanks(spec)
    metrics = student(ranks, spec).update(make_batch(seed=7), step=0)
    ranks.close()
    assert metrics == train(one, spec, steps=1)[1][0]
