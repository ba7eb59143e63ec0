"""A student that trains an adapter: as plain torch does, however it is spread; small checkpoints, resumed bitwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from student_kit import (
    ADAMW,
    DOMAINS,
    SGD,
    SHARES,
    ProcessRanks,
    engine_of,
    furthest,
    make_batch,
    make_model,
    make_spec,
    student,
)
from transformers import AutoModelForCausalLM

from mopd.distill.models.adapters import adapter_state, with_trained_adapter
from mopd.distill.models.load import load_model
from mopd.distill.recipe import AdamW, LoRA
from mopd.distill.student import engine
from mopd.distill.student.spec import StudentSpec
from mopd.distill.types import Full, ScoredRollout, TeacherScore, UserError, align_logits
from mopd.teachers.kinds.checkpoint import TeacherModel

LAYERS = LoRA(rank=2, alpha=4)
EXPERTS = LoRA(rank=2, alpha=4, experts=True)
IDS = torch.arange(12)[None]


def spec_of(
    models: Path, run_dir: Path, family: str = "qwen3_moe", lora: LoRA = EXPERTS, **changes: Any
) -> StudentSpec:
    settings = {"optimizer": SGD, "engine": engine_of(1), "lora": lora, **changes}
    return make_spec(make_model(models, family), run_dir, **settings)


def learn(ranks: ProcessRanks, spec: StudentSpec, steps: range) -> Any:
    learner = student(ranks.start(spec), spec)
    learner.load_latest()
    metrics = [learner.update(make_batch(seed=7), step=step) for step in steps]
    return learner, metrics


def adapter_of(learner: Any) -> dict[str, torch.Tensor]:
    return dict(learner.weights().adapter_state())


def base_weights(module: Any) -> dict[str, torch.Tensor]:
    state = module.get_base_model().state_dict()
    return {name.replace(".base_layer", ""): tensor.clone() for name, tensor in state.items() if ".lora_" not in name}


def test_an_adapter_is_trained_as_by_plain_torch(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """One rank against a loop over rollouts with autograd's own KL, torch's clip and torch's SGD."""
    spec = spec_of(models, tmp_path)
    learner, metrics = learn(one, spec, range(2))
    torch.manual_seed(spec.seed)
    model = with_trained_adapter(load_model(spec.model, device="cpu", dtype="float32"), EXPERTS, base="")
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    batch = make_batch(seed=7)
    tokens = {d: sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d) for d in DOMAINS}
    for k, lr in enumerate([0.25, 0.5]):  # warm-up of two steps
        loss = torch.zeros((), dtype=torch.float64)
        for scored in batch:
            rollout, payload = scored.rollout, scored.scores[0][1].payload
            assert isinstance(payload, Full)
            ids_1T = torch.from_numpy(rollout.token_ids).long()[None]
            logp = align_logits(model(input_ids=ids_1T).logits)[0].double().log_softmax(-1)
            kl_T = (logp.exp() * (logp - torch.from_numpy(payload.logprobs_TV).double())).sum(-1)
            weight = SHARES[rollout.domain] / sum(SHARES.values()) / tokens[rollout.domain]
            loss = loss + weight * kl_T[torch.from_numpy(rollout.loss_mask)].sum()
        model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, SGD.clip)
        torch.optim.SGD(trained, lr=lr).step()
        assert metrics[k]["loss"] == pytest.approx(loss.item(), abs=1e-6)
        assert metrics[k]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert furthest(adapter_of(learner), adapter_state(model)) < 1e-6
    kept, before = one.call("call", [(base_weights, ())])[0], load_model(spec.model, device="cpu", dtype="float32")
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [{"zero_stage": 0}, {}, {"zero_stage": 3}, {"gradient_checkpointing": True}, {"packing": True}],
    ids=str,
)
def test_every_way_to_spread_trains_an_adapter_alike(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, changes: dict[str, Any]
) -> None:
    spec = spec_of(models, tmp_path / "1")
    first, metrics = learn(one, spec, range(2))
    expected, whole = adapter_of(first), dict(first.weights().state_dict())
    spread = replace(spec, engine=engine_of(2, **changes), run_dir=str(tmp_path / "2"))
    second, others = learn(two, spread, range(2))
    assert furthest(adapter_of(second), expected) < 1e-6
    assert furthest(dict(second.weights().state_dict()), whole) < 1e-6
    assert others[-1] == pytest.approx(metrics[-1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_an_adapter_is_resumed_bitwise_from_a_small_checkpoint(
    models: Path, tmp_path: Path, two: ProcessRanks, zero_stage: int
) -> None:
    settings: dict[str, Any] = {"optimizer": ADAMW, "engine": engine_of(2, zero_stage=zero_stage), "lora": LAYERS}
    spec = spec_of(models, tmp_path / "1", "mimo_v2_flash", **settings)
    learner, _ = learn(two, spec, range(4))
    expected = adapter_of(learner)
    other = replace(spec, run_dir=str(tmp_path / "2"))
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "attempt").write_text("now")
    learner, _ = learn(two, other, range(2))
    learner.save(2)
    learner, _ = learn(two, other, range(2, 4))
    again = adapter_of(learner)
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    files = [path for path in (tmp_path / "2" / "checkpoints" / "step-000002").rglob("*") if path.is_file()]
    trained = sum(tensor.numel() for tensor in expected.values())
    whole = sum(tensor.numel() for tensor in learner.weights().state_dict().values())
    tensors = [t for file in files if file.suffix == ".safetensors" for t in load_file(file).values()]
    buffers = 4 * 2  # the correction biases of two mixtures of four experts
    assert sum(t.numel() for t in tensors) == 3 * trained + buffers < whole / 2, "the weights and two moments"
    assert "lora" in (tmp_path / "2" / "checkpoints" / "step-000002" / "layout.json").read_text()
    with pytest.raises(UserError, match="rank"):
        student(two.start(replace(other, lora=LoRA(rank=3))), other).load_latest()


def test_an_adapter_learns_what_a_teacher_knows(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    """The KL to another model of the family falls by two fifths in twenty steps; no weight of the base has moved."""
    optimizer = AdamW(lr=3e-2, warmup_steps=0, schedule="constant")
    spec = spec_of(models, tmp_path, "qwen3", LoRA(rank=8, alpha=16), optimizer=optimizer)
    teacher = TeacherModel(
        make_model(models, "qwen3", seed=1), device="cpu", dtype="float32", temperature=1.0, microbatch_tokens=96
    )
    rollouts = [scored.rollout for scored in make_batch(seed=7)]
    scores = teacher.score([rollout.token_ids for rollout in rollouts], "full")
    batch = [
        ScoredRollout(rollout, ((1.0, TeacherScore("t", score)),))
        for rollout, score in zip(rollouts, scores, strict=True)
    ]
    learner = student(one.start(spec), spec)
    losses = [learner.update(batch, step=step)["loss"] for step in range(20)]
    assert losses[-1] < 0.6 * losses[0], losses


def test_the_export_is_merged_and_an_adapter_beside_it(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    spec = spec_of(models, tmp_path, base="org/base")
    learner, _ = learn(one, spec, range(2))
    learner.export(str(tmp_path / "student"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    base = load_model(spec.model, device="cpu", dtype="float32")
    begun = base(IDS).logits
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert adapted.peft_config["default"].base_model_name_or_path == "org/base"
    assert (adapted(IDS).logits - merged(IDS).logits).abs().max() < 1e-5
    assert (begun - merged(IDS).logits).abs().max() > 1e-4
    assert furthest(dict(learner.weights().state_dict()), dict(merged.state_dict())) == 0
    assert (tmp_path / "adapter" / "manifest.json").is_file()


def test_experts_that_are_spread_take_no_adapter(models: Path, tmp_path: Path) -> None:
    spec = spec_of(models, tmp_path)
    config = load_model(spec.model, device="cpu", dtype="float32").config
    with pytest.raises(UserError, match="expert_parallel"):
        engine.check_engine(config, engine_of(2, expert_parallel=2), SGD, device="cpu", lora=LAYERS)
