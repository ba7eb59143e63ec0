"""Tokens that are learnt from and scored in a CPU second, with rollouts padded and packed.

The two ways take turns, on one thread, and the median of their CPU seconds counts. Lengths lie evenly up to the
longest, so that their mean is about half of it; padding is not counted among the tokens. A quarter of each is prompt.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.loss.microbatch import collate
from mopd.distill.loss.registry import bind
from mopd.distill.models.packing import rows_of
from mopd.distill.recipe import PolicyGradient
from mopd.distill.student.forward import Objective, forward
from mopd.distill.student.plan import plan_updates
from mopd.distill.student.update_metrics import UpdateTotals
from mopd.distill.types import Prompt, Rollout, Sampled, ScoredRollout, TeacherScore
from mopd.teachers.kinds.checkpoint import TeacherModel
from tests.benchmarks import attention

BUDGET = 4096
ROUNDS = 7
SHORTEST = 4
QWEN3: dict[str, Any] = {
    "vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 10,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {"mimo": ("mimo_v2_flash", attention.SIZES), "qwen3": ("qwen3", QWEN3)}
CASES = (("mimo", 48, 64), ("mimo", 48, 256), ("qwen3", 12, 64))
"""A model, how many rollouts, and the tokens of the longest."""


def rollouts_of(rows: int, longest: int, vocabulary: int) -> list[ScoredRollout]:
    """Rollouts of random tokens, graded by a teacher that says the same of all of them."""
    rng = np.random.default_rng(0)
    made = []
    for index, length in enumerate(np.linspace(longest, SHORTEST, rows).round().astype(int).tolist()):
        ids_T = rng.integers(2, vocabulary, length).astype(np.int32)
        mask_T = np.arange(length) >= max(1, length // 4)
        logprobs_T = np.where(mask_T, -np.log(vocabulary), 0.0).astype(np.float32)
        graded_T = np.where(mask_T, -3.0, 0.0).astype(np.float32)
        prompt = Prompt("d", str(index), tuple(ids_T[~mask_T].tolist()), "", "")
        rollout = Rollout(prompt, ids_T, mask_T, logprobs_T, "length", (0, 0), index, index)
        made.append(ScoredRollout(rollout, ((1.0, TeacherScore("t", Sampled(graded_T))),)))
    return made


class Engine:
    """What :func:`forward` calls: the model alone, without DeepSpeed."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def learn(model: torch.nn.Module, batch: Sequence[ScoredRollout], *, packing: bool) -> torch.Tensor:
    """Forward and backward of one optimizer step, in as many microbatches as it takes; returns the gradient."""
    how: Any = {"ranks": 1, "updates": 1, "microbatch_tokens": BUDGET, "packing": packing}
    (plan,) = plan_updates(batch, shares={"d": 1.0}, **how)
    loss, totals = bind(PolicyGradient(estimator="policy_gradient")), UpdateTotals(("d",), "cpu")
    model.zero_grad()
    for members in plan.microbatches[0]:
        microbatch = collate(
            [batch[i] for i in members], token_weight=plan.token_weight, domains=("d",), pad_id=0,
            payload=loss.payload, reward_advantages=None, device="cpu",
        )  # fmt: skip
        rows = rows_of(microbatch.token_ids_BT, microbatch.attention_mask_BT, packing=packing)
        token_loss = forward(Engine(model), microbatch, rows, Objective(loss, 1.0, {}), totals)
        (token_loss.loss_BT * microbatch.weights_BT).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure_case(name: str, rows: int, longest: int) -> dict[str, Any]:
    """Tokens in a CPU second of update and scoring, both ways, and how far the two gradients are apart."""
    family, sizes = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, pad_token_id=0)).train()
    batch = rollouts_of(rows, longest, sizes["vocab_size"])
    ids, masks = [s.rollout.token_ids for s in batch], [s.rollout.loss_mask for s in batch]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        how: Any = {"device": "cpu", "dtype": "float32", "temperature": 1.0, "microbatch_tokens": BUDGET}
        teachers = {packing: TeacherModel(folder, packing=packing, **how) for packing in (False, True)}
    ways = {"padded": False, "packed": True}
    updates = attention.cpu_seconds({way: partial(learn, model, batch, packing=on) for way, on in ways.items()}, ROUNDS)
    scored = {way: partial(teachers[on].score, ids, "sampled", masks=masks) for way, on in ways.items()}
    scores = attention.cpu_seconds(scored, ROUNDS)
    padded, packed = (learn(model, batch, packing=on) for on in ways.values())
    tokens = sum(map(len, ids))
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rollouts": rows,
        "longest": longest,
        "mean_tokens": tokens / rows,
        "update_tokens_per_second": {way: tokens / seconds for way, seconds in updates.items()},
        "scoring_tokens_per_second": {way: tokens / seconds for way, seconds in scores.items()},
        "gradient_difference": float((packed - padded).abs().max() / padded.abs().max()),
    }


def measure(cases: Sequence[tuple[str, int, int]] = CASES) -> list[dict[str, Any]]:
    """Every case's figures."""
    return [measure_case(*case) for case in cases]


def table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """The figures for a console."""
    heads = ("model", "rollouts", "longest", "mean", "update, padded", "packed", "scoring, padded", "packed")
    shown = Table(*heads, title="tokens in a CPU second")
    for case in figures:
        rates = [
            case[f"{what}_tokens_per_second"][way] for what in ("update", "scoring") for way in ("padded", "packed")
        ]
        shape = (case["model"], str(case["rollouts"]), str(case["longest"]), f"{case['mean_tokens']:.0f}")
        shown.add_row(*shape, *(f"{rate:,.0f}" for rate in rates))
    return shown


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:]  # not per token: names of models
    for case in CASES:
        if not chosen or case[0] in chosen:
            print(json.dumps(measure_case(*case)), flush=True)
