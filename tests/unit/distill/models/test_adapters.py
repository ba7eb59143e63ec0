"""LoRA adapters over one base: scores against weights added up by hand, one process for all, what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from adapter_kit import ALPHA, RANK, make_adapter, parameter_bytes, wide_bytes
from check_kit import check, problems, recipe, save_model, tokenizer_of
from safetensors.torch import load_file, save_file
from student_kit import FAMILIES, make_model, make_rollout

from mopd.distill.models.adapters import with_adapters
from mopd.distill.models.load import load_model
from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Full, UserError
from mopd.teachers.actor import TeacherSpec
from mopd.teachers.kinds.checkpoint import Checkpoint, TeacherModel
from mopd.teachers.pool import TeacherPool
from mopd.teachers.scorer import Conditions


def added_by_hand(base: str, adapter: str, folder: Path) -> str:
    """A checkpoint of the base with ``alpha / r * B A`` added to every weight that the adapter names."""
    shutil.copytree(base, folder)
    weights, low_rank = load_file(f"{base}/model.safetensors"), load_file(f"{adapter}/adapter_model.safetensors")
    for name, a in low_rank.items():
        if name.endswith("lora_A.weight"):
            b = low_rank[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[target] = weights[target] + ALPHA / RANK * (b @ a)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def asked(n: int = 8) -> list[Any]:
    rng = np.random.default_rng(0)
    return [make_rollout(rng, i, "math", prompt=3, completion=int(rng.integers(1, 9))) for i in range(n)]


def model_of(path: str, adapters: tuple[str, ...] = ()) -> TeacherModel:
    return TeacherModel(path, device="cpu", dtype="float32", temperature=0.8, microbatch_tokens=64, adapters=adapters)


def scores(model: TeacherModel, adapter: str | None = None) -> list[np.ndarray]:
    payloads = model.score([rollout.token_ids for rollout in asked()], "full", adapter)
    return [payload.logprobs_TV for payload in payloads if isinstance(payload, Full)]


def furthest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_score_like_models_whose_weights_were_added_by_hand(tmp_path: Path, family: str) -> None:
    base = make_model(tmp_path, family)
    folders = [make_adapter(base, tmp_path / f"adapter-{seed}", seed=seed) for seed in (1, 2)]
    both, alone = model_of(base, tuple(folders)), scores(model_of(base))
    for number in (0, 1, 0):  # and back: nothing of the other one stays
        whole = added_by_hand(base, folders[number], tmp_path / "whole")
        expected = scores(model_of(whole))
        mine = scores(both, folders[number])
        assert furthest(mine, expected) < 2e-5
        assert furthest(mine, alone) > 1e-2
        merged = load_model(base, device="cpu", dtype="float32", adapter=folders[number]).state_dict()
        by_hand = load_model(whole, device="cpu", dtype="float32").state_dict()
        assert merged.keys() == by_hand.keys()
        assert all(torch.allclose(merged[name], by_hand[name], atol=1e-6) for name in merged)
        shutil.rmtree(whole)
    assert furthest(scores(both), alone) == 0


@pytest.mark.parametrize("family", ["mimo_v2_flash", "llama"])
def test_in_bfloat16_an_adapter_and_its_merged_model_agree_within_its_digits(tmp_path: Path, family: str) -> None:
    base = make_model(tmp_path, family)
    folder = make_adapter(base, tmp_path / "adapter", seed=1)
    whole = added_by_hand(base, folder, tmp_path / "whole")
    settings: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "temperature": 1.0, "microbatch_tokens": 64}
    mine = scores(TeacherModel(base, **settings, adapters=[folder]), folder)
    # 8 bits of precision, and logits of size 1; the adapter itself moves scores by far more.
    assert furthest(mine, scores(TeacherModel(whole, **settings))) < 0.1
    assert furthest(mine, scores(TeacherModel(base, **settings))) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_adapters_take_a_tenth_of_the_base_at_most(tmp_path: Path, dtype: str) -> None:
    base = make_model(tmp_path)
    alone = load_model(base, device="cpu", dtype=dtype)
    expected = parameter_bytes(alone)
    folders = [make_adapter(base, tmp_path / str(seed), seed=seed, rank=1) for seed in range(4)]
    held = with_adapters(alone, folders, device="cpu")
    assert len(held.peft_config) == 4
    assert expected < parameter_bytes(held) <= 1.1 * expected
    assert not any(weight.requires_grad for name, weight in held.named_parameters() if "lora_" in name)


def test_four_adapters_of_a_real_width_do_too(tmp_path: Path) -> None:
    alone, held = wide_bytes(tmp_path, rank=16)
    # By hand: r (in + out) of queries, keys, values, outputs, gate, up and down, of two layers, two bytes a number.
    each = 16 * ((1024 + 2048) + 2 * (1024 + 1024) + (2048 + 1024) + 3 * (1024 + 3072)) * 2 * 2
    assert held == alone + 4 * each <= 1.1 * alone


def test_teachers_over_one_base_share_its_process_and_come_back_with_it(cluster: None, tmp_path: Path) -> None:
    base = make_model(tmp_path)
    folders = {"b": make_adapter(base, tmp_path / "b", seed=1), "c": make_adapter(base, tmp_path / "c", seed=2)}
    specs = {
        name: TeacherSpec(Checkpoint(base, "cpu", "float32"), Conditions(0.8, 32), 0.0, 1, adapter=folders.get(name))
        for name in ("a", "b", "c")
    }
    routes = {"math": {"a": 0.5, "b": 0.25, "c": 0.25}}
    pool = TeacherPool(specs, routes=routes, payload="full", faults=FaultRecipe(backoff_seconds=0.0), say=print)
    hosts = {id(pool._worker_pools[name]) for name in specs}
    assert len(hosts) == 1
    batch = asked()
    before = pool.score([batch])
    for one in before:
        for _, score in one.scores:
            (alone,) = model_of(base, tuple(folders.values())).score(
                [one.rollout.token_ids], "full", folders.get(score.teacher)
            )
            expected = alone.at(one.rollout.loss_mask)
            np.testing.assert_allclose(score.payload.logprobs_TV, expected.logprobs_TV, atol=2e-5)  # pyright: ignore
    process = ray.get(pool._worker_pools["a"]._replicas[0].actor.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(process, signal.SIGKILL)
    for one, other in zip(before, pool.score([batch]), strict=True):
        for (_, mine), (_, theirs) in zip(one.scores, other.scores, strict=True):
            assert mine.payload.logprobs_TV.tobytes() == theirs.payload.logprobs_TV.tobytes()  # pyright: ignore
    metrics = pool.metrics()
    assert sum(metrics[f"teacher_retries/{name}"] for name in specs) >= 1
    assert min(metrics[f"seconds/teacher/{name}"] for name in specs) > 0
    pool.close()


# ---- what does not fit


def refused(base: str, folder: str) -> str:
    with pytest.raises(UserError) as caught:
        with_adapters(load_model(base, device="cpu", dtype="float32"), [folder], device="cpu")
    return str(caught.value)


def test_an_adapter_that_is_not_whole_or_not_of_this_base_is_refused(tmp_path: Path) -> None:
    base, other = make_model(tmp_path), make_model(tmp_path, "llama")
    folder = make_adapter(base, tmp_path / "adapter", seed=1)
    weights = load_file(f"{folder}/adapter_model.safetensors")
    assert f"no adapter at {tmp_path}/nothing" in refused(base, str(tmp_path / "nothing"))
    first = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != first}, f"{folder}/adapter_model.safetensors")
    assert f"adapter {folder} lacks 1 weights" in refused(base, folder)
    extra = first.replace("layers.0", "layers.7")
    save_file({**weights, extra: weights[first].clone()}, f"{folder}/adapter_model.safetensors")
    assert "its base has no place for, 1 weights" in refused(base, folder)
    save_file({**weights, first: torch.zeros(RANK, 5)}, f"{folder}/adapter_model.safetensors")
    assert f"adapter {folder} does not fit its base" in refused(base, folder)
    settings = json.loads(Path(folder, "adapter_config.json").read_text())
    Path(folder, "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["nowhere"]}))
    assert f"adapter {folder} does not fit its base" in refused(other, folder)
    Path(folder, "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "task_type": "CAUSAL_LM"}))
    assert "only LORA is known" in refused(base, folder)


def test_the_check_looks_at_adapters_without_loading_a_weight(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", tokenizer_of("arithmetic"))
    folders = [make_adapter(base, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    domains = {
        "math": {"task": "arithmetic", "teacher": "one"},
        "rest": {"task": "ordering", "teacher": "two"},
    }
    given: dict[str, Any] = {"student": {"model": base}, "stages": {}, "domains": domains}
    teachers = {name: {"model": base, "adapter": folder} for name, folder in zip(("one", "two"), folders, strict=True)}
    plan = check(recipe(**given, teachers=teachers), tmp_path / "run")
    assert [p.name for p in plan.processes if "teacher" in p.name] == ["teacher one, two"]
    assert f"{base}, with adapter {folders[1]}" in [model.made for model in plan.models]
    (found,) = problems(tmp_path / "run", **given, teachers={**teachers, "two": {"model": base, "adapter": "here"}})
    assert "`teachers.two.adapter` is 'here'; an adapter is a folder" in found
    other = {"replicas": (1, 2), "device": ("auto", "cpu"), "gpus": (1.0, 0.5), "resources": ({}, {"a": 1.0})}
    for leaf, (has, has_too) in other.items():
        found = problems(tmp_path / "run", **given, teachers={**teachers, "two": {**teachers["two"], leaf: has_too}})
        told = f"'one' and 'two' over the base {base} have `{leaf}` {has} and {has_too}; they share its"
        assert [told in problem for problem in found].count(True) == 1, found
    weights = load_file(f"{folders[1]}/adapter_model.safetensors")
    first = sorted(weights)[0]
    save_file({**weights, first: torch.zeros(RANK, 5)}, f"{folders[1]}/adapter_model.safetensors")
    (found,) = problems(tmp_path / "run", **given, teachers=teachers)
    assert f"`teachers.two.adapter`: adapter {folders[1]} does not fit its base" in found
