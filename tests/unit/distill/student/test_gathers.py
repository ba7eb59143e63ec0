"""Sampling under ZeRO-3: the weights are gathered once a batch, and training goes on as if nothing had been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from student_kit import FAMILIES, SGD, ProcessRanks, engine_of, furthest, make_batch, make_spec, student
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.generate import generate

PERSISTENT = 100_000
"""Parameters of at most so many elements are whole always: DeepSpeed's ``stage3_param_persistence_threshold``."""
PROMPTS = [[[2, 3, 4], [5, 6]], [[9, 8, 7, 6, 5]]]
"""By rank: of unequal number and length."""
DECODING = Decoding(16, 1.0, greedy=False, seed=3, step=0, end_token_ids=(-1,), pad_token_id=0)


def model_with_parts(folder: Path) -> str:
    """A mixture whose embeddings, head and experts are large enough that ZeRO-3 keeps a part of them on a rank."""
    config = FAMILIES["mimo_v2_flash"] | {"hidden_size": 128, "moe_intermediate_size": 128, "vocab_size": 1024}
    common = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1}
    torch.manual_seed(0)
    sizes = {"head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mimo_v2_flash", **common, **sizes, **config))
    model.save_pretrained(folder)
    assert sum(parameter.numel() > PERSISTENT for parameter in model.parameters()) >= 4
    return str(folder)


def collectives(run: Any) -> tuple[Any, int]:
    """What ``run`` returns, and how many gathers over ranks it took."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        result = run()
    names = [event.name for event in profiler.events() or []]
    return result, sum(name.startswith("c10d::") and "gather" in name for name in names)


def whole(module: torch.nn.Module) -> int:
    return sum(p.numel() == getattr(p, "ds_numel", p.numel()) for p in module.parameters())


def write(module: Any, prompts: list[list[int]], first: int) -> dict[str, Any]:
    before = whole(module)
    rollouts = range(first, first + len(prompts))
    completions, gathers = collectives(lambda: generate(module, prompts, rollouts, DECODING))
    _, control = collectives(lambda: dist.all_gather([torch.zeros(1), torch.zeros(1)], torch.ones(1)))
    return {
        "tokens": [completion.token_ids.tolist() for completion in completions],
        "logprobs": [completion.logprobs for completion in completions],
        "gathers": gathers,
        "control": control,
        "whole": (before, whole(module), sum(1 for _ in module.parameters())),
    }


def test_a_batch_gathers_once_and_training_goes_on(models: Path, tmp_path: Path, two: ProcessRanks) -> None:
    spec = make_spec(model_with_parts(models / "parts"), tmp_path / "2", engine=engine_of(2), optimizer=SGD)
    written, weights = {}, {}
    for stage in (2, 3):
        settings = engine_of(2, zero_stage=stage)
        learner = student(two.start(replace(spec, engine=settings, run_dir=str(tmp_path / str(stage)))), spec)
        for step in range(2):
            written[stage, step] = learner.weights().on_ranks(write, [(PROMPTS[0], 0), (PROMPTS[1], 2)])
            learner.update(make_batch(seed=7, vocabulary=1024), step=step)
        weights[stage] = dict(learner.weights().state_dict())
    assert furthest(weights[2], weights[3]) < 1e-6
    for step in range(2):
        for whole_model, in_parts in zip(written[2, step], written[3, step], strict=True):
            before, after, parameters = in_parts["whole"]
            assert before == after == parameters
            assert in_parts["gathers"] == 0, "the call itself gathers, before the model is asked"
            assert in_parts["control"] > 0, "a gather is seen where there is one"
            assert in_parts["tokens"] == whole_model["tokens"]
            for a, b in zip(in_parts["logprobs"], whole_model["logprobs"], strict=True):
                assert abs(a - b).max() < 1e-4
