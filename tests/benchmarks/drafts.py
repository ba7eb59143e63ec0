"""What draft heads save: tokens a forward by domain, and the time of exams and of rollouts with few rows and with many.

`python -m tests.benchmarks.drafts CHECKPOINT [learn_steps=300] [rollouts=1280]` measures a student of the quickstart.
Heads learn from its own rollouts first. With and without guesses take turns, and CPU seconds of this process of one
thread are compared: other work on the machine lengthens wall time, and those hardly.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from mopd.distill.loss.microbatch import collate
from mopd.distill.metrics.drafts import draft_metrics
from mopd.distill.models.load import load_whole
from mopd.distill.models.mtp import attach, draft_heads
from mopd.distill.models.packing import PaddedRows
from mopd.distill.recipe import MTPRecipe
from mopd.distill.recipe.files import load_recipe
from mopd.distill.student.drafts import DraftTrainer
from mopd.distill.types import Prompt, Rollout, ScoredRollout
from mopd.recipes import SHIPPED
from mopd.recipes.resolve.data import prompt_source, tasks_of
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.rollouts.engines.base import Decoding, DraftCosts, Drafts
from mopd.rollouts.engines.drafts import measure_costs
from mopd.rollouts.engines.generate import generate, pick_tokens
from mopd.rollouts.engines.in_process import InProcess, StudentSampler
from mopd.rollouts.sampler import sampler_settings

HEADS = MTPRecipe(heads=1, share=1.0, lr=3e-3)
BATCH = 48
TURNS = 3


def learn(
    model: Any, path: str, rollouts: Sequence[Rollout], domains: tuple[str, ...], vocabulary: int | None, steps: int
) -> float:
    """Give the model draft heads that have learnt from ``rollouts``; returns the CPU seconds that it took."""
    began = time.process_time()
    settings: Any = {"domains": domains, "temperature": 1.0, "vocabulary": vocabulary, "seed": 0, "device": "cpu"}
    trainer = DraftTrainer(model, path, HEADS, **settings)
    for step in range(steps):
        start = step * BATCH % max(1, len(rollouts) - BATCH)
        batch = [ScoredRollout(rollout) for rollout in rollouts[start : start + BATCH]]
        tokens = {d: sum(s.rollout.trained_tokens for s in batch if s.rollout.domain == d) for d in domains}
        microbatch = collate(
            batch,
            token_weight={domain: 1.0 / max(1, count) for domain, count in tokens.items()},
            domains=domains,
            pad_id=0,
            payload=None,
            reward_advantages=None,
            device="cpu",
        )
        rows = PaddedRows(microbatch.token_ids_BT, microbatch.attention_mask_BT)
        with trainer.watching(), torch.no_grad():
            model(**rows.inputs, use_cache=False)
        trainer.learn(microbatch, rows, tuple(range(len(batch))), step=step)
        trainer.gather()
        trainer.step(HEADS.lr * min(1.0, (step + 1) / 10) * (1.0 - 0.9 * step / steps))
    return time.process_time() - began


def written(model: Any, prompts: Sequence[Prompt], decoding: Decoding, batch_size: int) -> tuple[list[Rollout], float]:
    """Rollouts, and the CPU seconds that they took."""
    sampler = StudentSampler(decoding, samples_per_prompt=1, batch_size=batch_size)
    sampler.load_weights(InProcess(model), version=0)
    began = time.process_time()
    greedy = decoding.greedy
    rollouts = [r for batch in sampler.sample(prompts, step=decoding.step, greedy=greedy) for r in batch]
    return rollouts, time.process_time() - began


def speed_up(
    model: Any, prompts: Sequence[Prompt], decoding: Decoding, drafts: Drafts, batch_size: int
) -> dict[str, float]:
    """How many times as fast guesses make it: the median over pairs that take turns."""
    ratios, same = list[float](), True
    for turn in range(TURNS):
        how = replace(decoding, step=turn)
        plain, seconds = written(model, prompts, how, batch_size)
        guessed, seconds_guessed = written(model, prompts, replace(how, drafts=drafts), batch_size)
        same &= [r.token_ids.tolist() for r in plain] == [r.token_ids.tolist() for r in guessed]
        ratios.append(seconds / seconds_guessed)
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "same_tokens": float(same)}


def measure(path: str, *, learn_steps: int = 300, rollouts: int = 1280) -> dict[str, Any]:
    """Figures of a student of the quickstart; each is printed to stderr as soon as it is there."""
    recipe = load_recipe("quickstart", [], shipped=SHIPPED)
    tokenizer = load_tokenizer(path)
    source = prompt_source(recipe.trained_domains, tasks_of(recipe.domains, tokenizer), tokenizer, seed=101)
    decoding = sampler_settings(recipe.rollout, tokenizer, model=path, seed=101, support=None).decoding
    model = load_whole(path, dtype=torch.float32).eval()
    steps = range(-(-rollouts // len(source(0))))
    own = [r for step in steps for r in written(model, source(step), replace(decoding, step=step), 256)[0]]
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0)).tolist()
    domains = tuple(recipe.trained_domains)
    took = learn(model, path, [own[i] for i in order], domains, decoding.vocabulary, learn_steps)
    fresh = source(len(steps) + 1)
    figures: dict[str, Any] = {"learning_cpu_seconds": took, "rollouts": len(own), "learning_steps": learn_steps}
    print(figures, file=sys.stderr, flush=True)
    heads = draft_heads(model)
    always, measured = Drafts(3), replace(decoding, drafts=Drafts(3))
    for name, greedy in (("sampled", False), ("greedy", True)):
        rows, _ = written(model, fresh, replace(decoding, drafts=always, greedy=greedy, step=5000), 64)
        figures[f"tokens_per_forward_{name}"] = {k: v for k, v in draft_metrics(rows).items() if "accepted" not in k}
        figures[f"accepted_{name}"] = {k: v for k, v in draft_metrics(rows).items() if "accepted" in k}
        print(figures, file=sys.stderr, flush=True)
    costs = measure_costs(model, measured, generate, partial(pick_tokens, greedy=False))
    assert isinstance(costs, DraftCosts)
    adaptive = Drafts(3, costs)
    figures["guesses_by_rows"] = {str(n): costs.best(n, [0.9, 0.9, 0.9]) for n in (1, 4, 8, 16, 32, 64, 128, 192, 256)}
    figures["costs"] = {"rows": costs.rows, "plain": costs.plain, "rounds": costs.rounds}
    print(figures, file=sys.stderr, flush=True)
    by_domain = [[p for p in fresh if p.domain == d] for d in domains]
    mixed = [prompt for group in zip(*by_domain, strict=False) for prompt in group]
    exam = replace(decoding, greedy=True)
    for name, how, asked, size in (
        ("rollouts_of_8_rows", decoding, mixed[:24], 8),
        ("exam_of_8_rows", exam, mixed[:24], 8),
        ("rollouts_of_192_rows", decoding, mixed[:192], 192),
        ("exam_of_64_rows", exam, mixed[:128], 64),
    ):
        figures[name] = speed_up(model, asked, how, adaptive, size)
        print(name, figures[name], file=sys.stderr, flush=True)
    attach(model, None)
    assert heads is not None
    return figures


def tables(figures: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    by_domain = Table("", *figures["tokens_per_forward_sampled"], title="guesses of draft heads, three a forward")
    for name in ("sampled", "greedy"):
        by_domain.add_row(name, *(f"{value:.2f}" for value in figures[f"tokens_per_forward_{name}"].values()))
    faster = Table("", "times as fast", "least", "most", title="with guesses over without, CPU seconds, in turns")
    for name in ("rollouts_of_8_rows", "rollouts_of_192_rows", "exam_of_8_rows", "exam_of_64_rows"):
        row = figures[name]
        faster.add_row(name.replace("_", " "), *(f"{row[key]:.2f}" for key in ("ratio", "least", "most")))
    return [by_domain, faster]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sizes = {name: int(value) for name, value in (argument.split("=") for argument in sys.argv[2:])}
    json.dump(measure(str(Path(sys.argv[1])), **sizes), sys.stdout, indent=1)
