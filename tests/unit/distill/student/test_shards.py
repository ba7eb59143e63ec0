"""A checkpoint is read by other ranks than wrote it: the same weights and moments by name, and the same way on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from student_kit import ADAMW, SGD, ProcessRanks, engine_of, furthest, make_batch, make_model, make_spec, student

from mopd.distill.recipe import LoRA
from mopd.distill.student import shards
from mopd.distill.student.spec import StudentSpec
from mopd.distill.types import RunError, UserError

State = dict[str, dict[str, torch.Tensor]]
"""By parameter, then by `weight`, `exp_avg`, `exp_avg_sq`."""


def state_in(folder: Path) -> tuple[State, dict[str, float], dict[str, torch.Tensor]]:
    """All that a checkpoint holds, put together element by element; no element may be there twice."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    steps: dict[str, float] = {}
    buffers: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for piece in json.loads(file.metadata()["pieces"]):
                steps |= {piece["name"]: piece["counts"].get("step", 0.0)}
                for state, key in piece["keys"].items():
                    stored, whole = file.get_tensor(key), values.setdefault(piece["name"], {}).setdefault(state, {})
                    for here, there, count in piece["stretches"]:
                        for i in range(count):
                            assert there + i not in whole
                            whole[there + i] = float(stored[here + i])
            buffers |= {key: file.get_tensor(key) for key in file.keys() if key.startswith("buffer/")}  # noqa: SIM118
    tensors = {
        name: {state: torch.tensor([whole[i] for i in range(len(whole))]) for state, whole in states.items()}
        for name, states in values.items()
    }
    return tensors, steps, buffers


def live(module: torch.nn.Module) -> State:
    """What DeepSpeed itself says it holds of every trained parameter. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            moments: dict[str, Any] = {key: safe_get_full_optimizer_state(p, key) for key in ("exp_avg", "exp_avg_sq")}
            state[name] = {"weight": safe_get_full_fp32_param(p), **moments}
    return {n: {key: t.detach().reshape(-1).cpu().clone() for key, t in states.items()} for n, states in state.items()}


def same(a: State, b: State) -> bool:
    assert {name: sorted(states) for name, states in a.items()} == {name: sorted(states) for name, states in b.items()}
    return all(torch.equal(a[name][key], b[name][key]) for name in a for key in a[name])


def moved(spec: StudentSpec, **settings: Any) -> StudentSpec:
    return replace(spec, engine=engine_of(**settings))


STATIONS: tuple[dict[str, Any], ...] = (
    {"ranks": 1},
    {"ranks": 2, "zero_stage": 3},
    {"ranks": 1, "zero_stage": 1},
    {"ranks": 2, "zero_stage": 0},
    {"ranks": 2, "zero_stage": 3, "expert_parallel": 2},
    {"ranks": 1, "zero_stage": 3},
    {"ranks": 2, "zero_stage": 1},
    {"ranks": 1, "zero_stage": 0},
    {"ranks": 2, "expert_parallel": 2},
)


def test_a_checkpoint_goes_around_all_layouts_and_back(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks
) -> None:
    """Weights, moments, counts and buffers are the same bits at every station, by name; and each goes on alike."""
    ranks = {1: one, 2: two}
    begun = make_spec(make_model(models), tmp_path, engine=engine_of(2, expert_parallel=2), optimizer=ADAMW)
    learner = student(two.start(begun), begun)
    for step in range(3):
        learner.update(make_batch(seed=step), step=step)
    learner.save(3)
    folder = tmp_path / "checkpoints"
    state, steps, buffers = state_in(folder / "step-000003")
    assert {*steps.values()} == {3.0}
    assert any("e_score_correction_bias" in name and bool(tensor.any()) for name, tensor in buffers.items())
    assert any("gate_up_proj" in name for name in state)
    expected = [learner.update(make_batch(seed=step), step=step) for step in (3, 4)]
    weights = dict(learner.weights().state_dict())
    for number, settings in enumerate(STATIONS, start=4):
        spec = moved(begun, **settings)
        learner = student(ranks[settings["ranks"]].start(spec), spec)
        assert learner.load_latest() == number - 1
        if settings.get("zero_stage") != 0 and "expert_parallel" not in settings:
            assert all(same(held, state) for held in learner.weights().on_ranks(live, [()] * settings["ranks"]))
        learner.save(number)
        now, counts, kept = state_in(folder / f"step-{number:06d}")
        assert same(now, state), settings
        assert counts == steps, settings
        assert kept.keys() == buffers.keys()
        assert all(torch.equal(kept[name], buffers[name]) for name in kept)
        rest = [learner.update(make_batch(seed=step), step=step) for step in (3, 4)]
        for metrics, others in zip(rest, expected, strict=True):
            assert metrics == pytest.approx(others, rel=1e-3, abs=1e-5), settings
        assert furthest(dict(learner.weights().state_dict()), weights) < 2e-5, settings


@pytest.mark.parametrize(("before", "after"), [((2, 2), (1, 3)), ((1, 3), (2, 2))], ids=str)
def test_bfloat16_weights_are_those_of_the_float32_ones(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, before: Any, after: Any
) -> None:
    ranks = {1: one, 2: two}
    specs = [
        make_spec(
            make_model(models), tmp_path, engine=engine_of(n, zero_stage=stage, dtype="bfloat16"), optimizer=ADAMW
        )
        for n, stage in (before, after)
    ]
    learner = student(ranks[before[0]].start(specs[0]), specs[0])
    for step in range(2):
        learner.update(make_batch(seed=step), step=step)
    learner.save(2)
    weights, held = dict(learner.weights().state_dict()), learner.weights().on_ranks(live, [()] * before[0])
    learner = student(ranks[after[0]].start(specs[1]), specs[1])
    assert learner.load_latest() == 2
    assert same(learner.weights().on_ranks(live, [()] * after[0])[0], held[0])
    assert furthest(dict(learner.weights().state_dict()), weights) == 0


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_an_adapter_goes_to_other_ranks(
    models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks, family: str
) -> None:
    lora = LoRA(rank=2, alpha=4, experts=family == "qwen3_moe")
    begun = make_spec(make_model(models, family), tmp_path, engine=engine_of(2), optimizer=ADAMW, lora=lora)
    learner = student(two.start(begun), begun)
    for step in range(2):
        learner.update(make_batch(seed=step), step=step)
    learner.save(2)
    adapter = dict(learner.weights().adapter_state())
    state, steps, _ = state_in(tmp_path / "checkpoints" / "step-000002")
    assert all("lora_" in name for name in state)
    assert {*steps.values()} == {2.0}
    expected = learner.update(make_batch(seed=2), step=2)
    for ranks, settings in ((one, {"ranks": 1, "zero_stage": 3}), (two, {"ranks": 2, "zero_stage": 1})):
        spec = moved(begun, **settings)
        learner = student(ranks.start(spec), spec)
        assert learner.load_latest() == 2
        assert furthest(dict(learner.weights().adapter_state()), adapter) == 0
        assert same(learner.weights().on_ranks(live, [()] * ranks.size)[0], state)
        assert learner.update(make_batch(seed=2), step=2) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_what_was_learnt_since_is_forgotten(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    """Back to a checkpoint of before the first step, in an engine that has moments: it begins as a new one does."""
    spec = make_spec(make_model(models), tmp_path, engine=engine_of(2), optimizer=ADAMW)
    learner = student(two.start(spec), spec)
    learner.save(0)
    first = [learner.update(make_batch(seed=step), step=step) for step in range(2)]
    learner.load(0)
    assert [learner.update(make_batch(seed=step), step=step) for step in range(2)] == first


def test_another_optimizer_is_refused(models: Path, tmp_path: Path, one: ProcessRanks, two: ProcessRanks) -> None:
    spec = make_spec(make_model(models), tmp_path)
    student(one.start(spec), spec).save(1)
    other = replace(spec, engine=engine_of(2), optimizer=SGD)
    with pytest.raises(UserError, match=r"'optimizer': 'adamw'.*'optimizer': 'sgd'"):
        student(two.start(other), other).load_latest()


def test_another_model_and_an_earlier_version_are_named(models: Path, tmp_path: Path, one: ProcessRanks) -> None:
    spec = make_spec(make_model(models), tmp_path)
    student(one.start(spec), spec).save(1)
    other = replace(spec, model=make_model(models, "llama"))
    learner = student(one.start(other), other)
    with pytest.raises(RunError, match="not those of the student"):
        learner.load_latest()
    folder = tmp_path / "checkpoints" / "step-000001"
    for name in (shards.shard_name(0, 1), "manifest.json", "manifest.sha256"):
        (folder / name).unlink()
    torch.save({}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="earlier version"):
        learner.load_latest()


def test_a_shard_that_lacks_a_part_is_not_taken(tmp_path: Path) -> None:
    """The files of one rank of two: what is asked for is counted, not zero."""
    values = torch.arange(10.0)
    for rank in range(2):
        place = shards.Place("w", (shards.Stretch(0, 0, 10),))
        half = shards.Piece("w", place, 5 * rank, {"weight": values[5 * rank : 5 * rank + 5]}, {})
        shards.write_shard(tmp_path / shards.shard_name(rank, 2), [half], {})
    into = shards.Piece("w", shards.Place("w", (shards.Stretch(0, 2, 6),)), 1, {"weight": torch.zeros(5)}, {})
    with shards.open_shards(tmp_path) as read:
        read.fill(into)
    assert np.array_equal(into.states["weight"].numpy(), np.arange(3.0, 8.0))
    (tmp_path / shards.shard_name(1, 2)).unlink()
    with shards.open_shards(tmp_path) as read, pytest.raises(RunError, match="2 of the 5 elements of w"):
        read.fill(into)
