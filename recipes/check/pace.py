"""How fast this machine writes, scores and learns with a run's model, and how long the run would take at that pace.

The model is made from its configuration, its weights at random: how long a matrix product takes does not depend on what
is in it. Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mopd.distill.models.adapters import with_trained_adapter
from mopd.recipes.check.plan.totals import TriedModel
from mopd.recipes.check.plan.work import Part, WorkKind
from mopd.rollouts.engines.base import Decoding
from mopd.rollouts.engines.drafts import NOTHING_ENDS
from mopd.rollouts.engines.generate import generate

SECONDS = 3.0
"""Each of the three measurements takes about this long."""
FIRST_TOKENS, FIRST_ROWS = 4, 1
"""What is tried first, to find out how much fits into that time."""
WORDS: Mapping[WorkKind, str] = {"write": "written", "score": "scored", "train": "learnt from"}


@dataclass(frozen=True, slots=True)
class Pace:
    """What one process of this machine does in a second, as measured.

    Attributes:
        flops: a second, by how the model computes.
        tokens: a second, likewise: written, scored, learnt from.
        lanes: processes that compute side by side: cores, or cards.
        where: the device, in words.
    """

    flops: Mapping[WorkKind, float]
    tokens: Mapping[WorkKind, float]
    lanes: int
    where: str

    def seconds(self, parts: Iterable[Part], *, runs: int = 1) -> dict[str, float]:
        """Of work, by the parts' names; without starting processes, saving, verifying and tools.

        Args:
            runs: at a time, which share the machine.
        """
        taken: dict[str, float] = {}
        for part in parts:
            seconds = part.flops / self.flops[part.kind] / min(part.at_once * runs, self.lanes)
            taken[part.name] = taken.get(part.name, 0.0) + seconds
        return taken


def measure_pace(asked: TriedModel) -> Pace:
    """Tries out the student's model for about ten seconds, on one thread of a CPU as each process of a run has, or on
    one card."""
    device, lanes, where = _device(asked.device)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _made(asked, device)
        measured: dict[WorkKind, tuple[float, float, float]] = {
            "write": _writing(model, asked),
            "score": _reading(model, asked, learns=False),
            "train": _reading(model, asked, learns=True),
        }
    flops: dict[WorkKind, float] = {}
    tokens: dict[WorkKind, float] = {}
    for kind, (done, count, seconds) in measured.items():
        flops[kind], tokens[kind] = done / seconds, count / seconds
    return Pace(flops, tokens, lanes, where)


def sentences(pace: Pace, parts: Sequence[Part], *, runs: int = 1) -> list[str]:
    """What was measured and what follows for so much work, a line each."""
    rates = ", ".join(f"{pace.tokens[kind]:,.0f} tokens/s {word}" for kind, word in WORDS.items())
    taken = pace.seconds(parts, runs=runs)
    each = ", ".join(f"{name} {lasting(seconds)}" for name, seconds in taken.items())
    lanes = f"{pace.lanes} at a time" if pace.lanes > 1 else "one at a time"
    return [
        f"measured on {pace.where}, one process: {rates}",
        f"time: about {lasting(sum(taken.values()))} here ({each}), processes {lanes}, with answers of gold length; "
        f"starting processes, saving and verifying come on top, and other work beside it",
    ]


def lasting(seconds: float) -> str:
    """For example 40 s, 12 min or 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 99.5 * 3600 else f"{seconds / 3600:,.0f} h"


def _device(device: str) -> tuple[torch.device, int, str]:
    if device == "cuda":
        return torch.device("cuda"), torch.cuda.device_count(), torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.device("cpu"), cores, f"a core of {cores}"


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _made(asked: TriedModel, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        asked.info.config, dtype=getattr(torch, asked.dtype), trust_remote_code=asked.info.own_code
    ).to(device)
    return model if asked.lora is None else with_trained_adapter(model, asked.lora, base="measured")


def _writing(model: Any, asked: TriedModel) -> tuple[float, float, float]:
    """FLOPs, tokens and seconds of a batch of rollouts, as many and as long as fit into the time, at most those of the
    run: prompts and mean answers of its lengths."""
    vocabulary = asked.info.config.get_text_config().vocab_size
    prompts = torch.randint(vocabulary, (asked.rows, asked.prompt)).tolist()

    def write(tokens: int, rows: int) -> float:
        how = Decoding(
            max_new_tokens=tokens,
            temperature=1.0,
            greedy=False,
            seed=0,
            step=0,
            end_token_ids=NOTHING_ENDS,
            pad_token_id=0,
        )
        return _seconds(lambda: generate(model, prompts[:rows], range(rows), how), asked.device)  # not per token

    write(1, 1)  # what is made once at a first call
    rows = max(1, min(asked.rows, int(SECONDS / 2 / write(1, 1))))  # of a large model as many as are read in time
    first = min(FIRST_TOKENS, asked.answer)
    tokens, seconds = first, write(first, rows)
    more = min(asked.answer, int(first * SECONDS / seconds))
    if more > first:
        tokens, seconds = more, write(more, rows)
    done = asked.info.cost.generate([asked.prompt + tokens] * rows)
    return done, tokens * rows, seconds


def _reading(model: Any, asked: TriedModel, *, learns: bool) -> tuple[float, float, float]:
    """FLOPs, tokens and seconds of a microbatch that is scored, or learnt from; of a part of it where it takes long."""
    length, cost = asked.prompt + asked.answer, asked.info.cost
    vocabulary = asked.info.config.get_text_config().vocab_size
    full = max(1, asked.microbatch_tokens // length)

    def read(rows: int) -> float:
        ids_BT = torch.randint(vocabulary, (rows, length), device=asked.device)
        return _seconds(lambda: _learn(model, ids_BT) if learns else _score(model, ids_BT), asked.device)

    model.train(learns)
    read(FIRST_ROWS)
    first = read(FIRST_ROWS)
    rows = max(FIRST_ROWS, min(full, int(SECONDS / 2 / first)))
    seconds = [read(rows)]
    while sum(seconds) + seconds[0] < SECONDS / 2 and len(seconds) < 5:
        seconds.append(read(rows))
    flops = cost.train if learns else cost.forward
    return flops([length] * rows), length * rows, statistics.median(seconds)


@torch.no_grad()
def _score(model: Any, ids_BT: torch.Tensor) -> None:
    torch.log_softmax(model(input_ids=ids_BT, use_cache=False).logits.float(), dim=-1)


def _learn(model: Any, ids_BT: torch.Tensor) -> None:
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.flatten()).backward()
    model.zero_grad(set_to_none=True)


def _seconds(work: Callable[[], Any], device: str) -> float:
    """Of a CPU those of its core, so that other work beside it does not count; of a card those that pass."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return max(1e-6, clock() - began)
