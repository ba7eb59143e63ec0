"""CPU seconds of rollouts beside transformers' own ``generate``, and of the same rollouts in smaller batches.

The ways take turns, on one thread, and the least CPU seconds of each count, so that other work on the machine changes
little. The model has the quickstart's shape and random weights; all sample from whole distributions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mopd.distill.recipe.files import load_recipe
from mopd.recipes import SHIPPED
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.generate import generate

BATCHES = (8, 64, 192)
NEW_TOKENS = 40
ROUNDS = 3
SPLIT = 112
"""Rollouts of a rank in a step of the quickstart."""
PARTS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Kind:
    """Which rollouts: how many samples of a prompt, and which tokens end one (each about as likely as any other)."""

    samples: int
    ends: tuple[int, ...]


KINDS = {
    "fixed length": Kind(1, ()),
    "natural ends": Kind(1, (2, 5, 7, 9, 11)),
    "natural ends, 4 samples a prompt": Kind(4, (2, 5, 7, 9, 11)),
}


def cpu_seconds(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The least CPU seconds of each way, which take turns; the first round is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            taken[name].append(time.process_time() - start)
    return {name: min(seconds[1:]) for name, seconds in taken.items()}  # not per token


def model() -> Any:
    """The quickstart's student, before it has learnt anything."""
    architecture: Any = load_recipe("quickstart", [], shipped=SHIPPED).stages["base"].from_
    torch.manual_seed(0)
    sizes = {**architecture.config, "vocab_size": 160}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture.architecture, **sizes)).eval()


def prompts(n: int, samples: int) -> list[list[int]]:
    """Prompts of 10 to 29 tokens, each ``samples`` times."""
    rng = np.random.default_rng(0)
    asked = [rng.integers(12, 160, int(rng.integers(10, 30))).tolist() for _ in range(n // samples)]
    return [prompt for prompt in asked for _ in range(samples)]


def decoding(kind: Kind) -> Decoding:
    """As in training."""
    return Decoding(NEW_TOKENS, 1.0, greedy=False, seed=0, step=0, end_token_ids=kind.ends or (-1,), pad_token_id=0)


def beside_transformers(student: Any, kind: Kind, batch: int) -> dict[str, float]:
    """CPU seconds of both, and the tokens that mopd wrote; transformers draws others, of the same distribution."""
    asked, settings = prompts(batch, kind.samples), decoding(kind)
    width = max(map(len, asked))
    ids, mask = torch.zeros(batch, width, dtype=torch.long), torch.zeros(batch, width, dtype=torch.long)
    for b, prompt in enumerate(asked):
        ids[b, width - len(prompt) :] = torch.tensor(prompt)
        mask[b, width - len(prompt) :] = 1
    theirs = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, eos_token_id=list(kind.ends) or None, pad_token_id=0
    )
    seconds = cpu_seconds(
        {
            "mopd": lambda: generate(student, asked, range(batch), settings),
            "transformers": lambda: student.generate(ids, attention_mask=mask, generation_config=theirs),
        }
    )
    return seconds | {"ratio": seconds["transformers"] / seconds["mopd"]}


def in_parts(student: Any) -> dict[int, float]:
    """CPU seconds of a rank's rollouts of a step, written in 1, 2 and 4 batches one after the other."""
    asked, settings = prompts(SPLIT, 1), decoding(KINDS["natural ends"])

    def write(parts: int) -> None:
        size = SPLIT // parts
        for start in range(0, SPLIT, size):
            generate(student, asked[start : start + size], range(start, start + size), settings)

    seconds = cpu_seconds({str(parts): lambda parts=parts: write(parts) for parts in PARTS})
    return {int(parts): value for parts, value in seconds.items()}


def measure() -> dict[str, Any]:
    """Seconds and ratios by kind of rollouts and batch, and of a step in parts."""
    student = model()
    beside = {
        name: {batch: beside_transformers(student, kind, batch) for batch in BATCHES} for name, kind in KINDS.items()
    }
    return {"beside_transformers": beside, "in_parts_seconds": in_parts(student)}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """The figures for a console."""
    beside = Table("rollouts", "batch", "mopd", "transformers", "ratio", title="CPU seconds of rollouts")
    for name, rows in figures["beside_transformers"].items():
        for batch, row in rows.items():
            beside.add_row(name, f"{batch}", *(f"{row[k]:.2f}" for k in ("mopd", "transformers", "ratio")))
    parts = Table("batches", "CPU seconds", title=f"{SPLIT} rollouts, in batches one after the other")
    for n, seconds in figures["in_parts_seconds"].items():
        parts.add_row(f"{n}", f"{seconds:.2f}")
    return [beside, parts]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(), indent=2))
