"""Nothing moves by mistake, and nothing is lost: zero gradients, NaN, exact resume, checkpoints and exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_kit import (
    ADAMW,
    DOMAINS,
    SGD,
    VOCABULARY,
    ProcessRanks,
    engine_of,
    furthest,
    make_batch,
    make_model,
    make_spec,
    student,
    train,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mopd.distill.student import checkpoint
from mopd.distill.types import Full, NonFinite, RunError, ScoredRollout, TeacherScore, align_logits
from mopd.rollouts.tokenizer import build_tokenizer


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
    with pytest.raises(NonFinite, match=r"domain math is NaN or infinite in step 2 "):
        learner.update(batch, step=1)
    assert furthest(dict(learner.weights().state_dict()), before) == 0


def explode(module: torch.nn.Module) -> None:
    module.get_parameter("lm_head.weight").register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_infinite_gradient_stops_before_the_weights_move(
    models: Path, tmp_path: Path, two: ProcessRanks, zero_stage: int
) -> None:
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2, zero_stage=zero_stage))
    learner = student(two.start(spec), spec)
    before = dict(learner.weights().state_dict())
    learner.weights().on_ranks(explode, [(), ()])
    with pytest.raises(NonFinite, match=r"gradient is NaN or infinite.* in step 9 "):
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


@pytest.mark.parametrize("settings", [{}, {"expert_parallel": 2}, {"zero_stage": 3}, {"packing": True}], ids=str)
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
    (half / "shard-00000-of-00001.safetensors").write_bytes(b"half")
    assert learner.load_latest() == 0
    for step in (1, 2, 3):
        learner.save(step)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]
    assert learner.load_latest() == 3
    (tmp_path / "attempt").write_text("newer")  # the run was resumed by another driver
    with pytest.raises(RunError, match="attempt now no longer owns"):
        learner.save(4)
    with pytest.raises(RunError, match="attempt now no longer owns"):
        learner.export(str(tmp_path / "student"))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]
    assert not (tmp_path / "student").exists()


def forward(module: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_export_is_the_live_model(models: Path, tmp_path: Path, two: ProcessRanks, expert_parallel: int) -> None:
    source = shutil.copytree(make_model(models), tmp_path / "source")
    tokenizer = build_tokenizer(["3 + 4 = 7", "sorted(x)"] * 20, vocabulary=VOCABULARY)
    tokenizer.save_pretrained(source)
    ends = (1,) if expert_parallel == 1 else (5, 1)
    spec = make_spec(str(source), tmp_path, engine=engine_of(2, expert_parallel=expert_parallel), end_token_ids=ends)
    learner = student(two.start(spec), spec)
    learner.update(make_batch(), step=0)
    learner.export(str(tmp_path / "student"))
    learner.update(make_batch(), step=1)
    learner.export(str(tmp_path / "student"))  # replaces what is there
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(info.values()), info
    assert model.generation_config.eos_token_id == (1 if expert_parallel == 1 else [1, 5])
    exported = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert exported.get_vocab() == tokenizer.get_vocab()
    assert exported.encode("3 + 4 = sorted") == tokenizer.encode("3 + 4 = sorted")
    ids = list(range(2, 22))
    live = learner.weights().on_ranks(forward, [(ids,), (ids,)])
    for logits in live:
        assert torch.allclose(logits, forward(model, ids), atol=2e-6)
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name or "old" in path.name] == []


def resident(module: torch.nn.Module, reset: bool) -> tuple[int, int]:
    """In a rank: bytes resident now, and at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    now, most = (
        next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key)) for key in ("VmRSS", "VmHWM")
    )
    return now, most


def test_the_first_rank_alone_holds_what_is_exported(tmp_path: Path, two: ProcessRanks) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **ids))
    model.save_pretrained(tmp_path / "model")
    model_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    spec = make_spec(str(tmp_path / "model"), tmp_path / "run", engine=engine_of(2))
    weights = student(two.start(spec), spec).weights()
    before = weights.on_ranks(resident, [(True,), (True,)])
    weights.state_dict()
    grown = [most - now for (now, _), (_, most) in zip(before, weights.on_ranks(resident, [(False,)] * 2), strict=True)]
    assert grown[0] > 0.8 * model_bytes, "it is seen where it is held"
    assert grown[1] < 0.3 * model_bytes
