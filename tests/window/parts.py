"""Parts of the window study: one model trained at one length, and measured at that and at up to sixteen times it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.distill.models.attention import set_attention
from mopd.distill.models.flops import model_cost
from mopd.distill.types import align_logits
from tests.window.questions import QUESTIONS, VOCABULARY, batch

TIMES = (1, 2, 4, 8, 16)
"""Lengths that are measured, over the one that was trained."""
OFF = -1e4
"""A sink's score that takes no probability and has no gradient."""


@dataclass(frozen=True, slots=True)
class Variation:
    """A model of the study.

    Attributes:
        window: tokens that a sliding layer sees, the query included; None: every layer is global.
        sinks: whether sliding layers have sinks.
        sliding: sliding layers to a global one, which is the last.
        length: tokens of a training sequence.
        steps: optimizer steps.
        sequences: of each task in a step.
        measured: sequences of each task and length.
    """

    window: int | None
    sinks: bool = True
    sliding: int = 5
    length: int = 128
    steps: int = 1200
    sequences: int = 4
    measured: int = 64

    @property
    def name(self) -> str:
        """Such as ``32``, ``global`` or ``128 of 1024, 3:1, no sinks``."""
        words = "global" if self.window is None else str(self.window)
        words += f" of {self.length}" if self.length != 128 else ""
        words += f", {self.sliding}:1" if self.sliding != 5 else ""
        return words + ("" if self.sinks else ", no sinks")


SEEDS = (0, 1, 2)
VARIATIONS = (
    *(Variation(window) for window in (32, 128, 16, 64, None)),  # 32 and 128 are the pair that is asked about: first
    *(Variation(window, sinks=False) for window in (32, 128)),
    *(Variation(window, sliding=3) for window in (32, 128)),
    *(Variation(window, length=1024, steps=600, sequences=1, measured=24) for window in (128, 512)),
)
"""Windows at 5:1 with sinks; without sinks; at 3:1; and a pair trained at 1,024 tokens."""


def build(variation: Variation, seed: int) -> Any:
    """The student before training: a MiMo-V2-Flash with dense layers, its weights keyed by the seed."""
    layers = 6 if variation.sliding == 5 else 8
    kinds = ["full_attention" if (i + 1) % (variation.sliding + 1) == 0 else "sliding_attention" for i in range(layers)]
    if variation.window is None:
        kinds = ["full_attention"] * layers
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = AutoConfig.for_model(
        "mimo_v2_flash", vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=layers, intermediate_size=192,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, v_head_dim=16, initializer_range=0.05,
        sliding_window=variation.window or variation.length, layer_types=kinds, mlp_layer_types=["dense"] * layers,
        max_position_embeddings=variation.length * TIMES[-1], pad_token_id=0,
        rope_parameters={"full_attention": rope, "sliding_attention": dict(rope)},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.constant_(parameter, 0.0 if variation.sinks else OFF)
    set_attention(model, "banded", named=variation.name)
    return model


def learning_rate(step: int, steps: int) -> float:
    """Up over a twentieth of the steps, and down with a cosine to a tenth."""
    warm = max(1, steps // 20)
    rest = (step - warm) / max(1, steps - warm)
    return 3e-3 * (min(1.0, (step + 1) / warm) if step < warm else 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * rest)))


def train(model: Any, variation: Variation, seed: int) -> float:
    """Train on all tasks at one length, on their answers alone; returns the last hundred steps' mean loss in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    for step in range(variation.steps):
        drawn = [
            batch(name, key=(1, seed, step), sequences=variation.sequences, length=variation.length)
            for name in QUESTIONS
        ]
        ids, right = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*drawn, strict=True))
        logits = align_logits(model(input_ids=ids, use_cache=False).logits)
        loss = cross_entropy(logits[right], ids[right])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, variation.steps)
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-100:]))  # not per token


@torch.no_grad()
def accuracy(model: Any, name: str, length: int, sequences: int) -> float:
    """The share of sequences whose answers are all likeliest, each given what stands before; one set for all models."""
    right = 0
    size = max(1, 8192 // length)
    for start in range(0, sequences, size):
        n = min(size, sequences - start)
        ids, answers = (torch.from_numpy(a) for a in batch(name, key=(2, start), sequences=n, length=length))
        likeliest = align_logits(model(input_ids=ids, use_cache=False).logits).argmax(-1)
        right += int(((likeliest == ids) | ~answers).all(1).sum())
    return right / sequences


def run_part(variation: Variation, seed: int) -> dict[str, Any]:
    """Train and measure one model; its row."""
    torch.set_num_threads(1)
    start = time.process_time()
    model = build(variation, seed)
    loss = train(model.train(), variation, seed)
    trained = time.process_time()
    model.eval()
    lengths = [variation.length * times for times in TIMES]
    scores = {name: {str(n): accuracy(model, name, n, variation.measured) for n in lengths} for name in QUESTIONS}
    cost = model_cost(model)
    return {
        "variation": variation.name,
        **asdict(variation),
        "seed": seed,
        "loss": loss,
        "accuracy": scores,
        "train_cpu_seconds": trained - start,
        "measure_cpu_seconds": time.process_time() - trained,
        "cached_bytes": {str(n): cost.cached_bytes(n, value_bytes=4) for n in lengths},
        "forward_flops": {str(n): cost.forward([n]) for n in lengths},
    }
