"""A finished run's folder, with made-up but plausible numbers: what the report is made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mopd.distill.metrics.evaluate import Evaluation, Split
from mopd.distill.metrics.results import build_seesaw
from mopd.distill.tracking.jsonl import append_jsonl

BASE = {"math": 0.74, "code": 0.79, "reasoning": 0.575}
TEACHERS = {
    "math": {"math": 0.985, "code": 0.31, "reasoning": 0.44},
    "code": {"math": 0.05, "code": 0.964, "reasoning": 0.36},
    "reasoning": {"math": 0.42, "code": 0.55, "reasoning": 0.93},
}
STUDENT = {"math": 0.968, "code": 0.931, "reasoning": 0.871}
STEPS, EVERY = 200, 20
TOKENS = {
    "math": ["3", "+", "7", "=", "10", ",", "2", "+9", "+1", "=", "12", ";", "122", "0"],
    "code": ["sorted", "([", "v", " for", " v", " in", " x", " if", " v", ">", "2", "])"],
    "reasoning": ["k", "d", "m", "c", ";", "k"],
}
PROMPTS = {"math": "math 623+597=", "code": "code over 2, sort=", "reasoning": "rank d<k,m>c,d>m 1="}


def recipe(domains: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The leaves of a resolved recipe that the report reads."""
    stages = {
        "base": {"from": {"architecture": "mimo_v2_flash"}, "domains": None, "steps": 850, "method": "supervised"}
    }
    stages |= {t: {"from": "stage:base", "domains": [t], "steps": 200, "method": "supervised"} for t in TEACHERS}
    return {
        "name": "quickstart",
        "description": "Three specialists, arithmetic, list programs and ordering, into one small MoE student",
        "seed": 0,
        "method": "mopd",
        "device": "auto",
        "student": {
            "model": "stage:base",
            "engine": {"ranks": 1, "zero_stage": 2, "expert_parallel": 1, "microbatch_tokens": 4096},
            "optimizer": {"name": "adamw", "lr": 5e-4, "schedule": "cosine", "warmup_steps": 20, "clip": 1.0},
            "updates_per_step": 2,
        },
        "domains": dict(domains),
        "teachers": {t: {"model": f"stage:{t}"} for t in TEACHERS},
        "loss": {"estimator": "full_reverse_kl"},
        "rollout": {"samples_per_prompt": 1, "max_new_tokens": 64, "temperature": 1.0},
        "evaluate": {"validation_prompts": 200, "test_prompts": 1000, "seed": 0, "select": "last"},
        "run": {"steps": STEPS, "evaluate_every": EVERY, "save_every": EVERY},
        "stages": stages,
    } | more


def domain_settings() -> dict[str, Any]:
    tasks = {"math": "arithmetic", "code": "list_programs", "reasoning": "ordering"}
    return {
        name: {"task": task, "teacher": name, "teachers": {}, "evaluate_only": False, "prompts": 64, "share": 1.0}
        for name, task in tasks.items()
    }


def answers(
    rng: np.random.Generator, model: str, levels: Mapping[str, float], *, step: int, split: Split, n: int
) -> list[Evaluation]:
    """``n`` answers a domain, as many of them right as ``levels`` says, up to chance."""
    return [
        Evaluation(model, step, split, domain, f"{domain}/{split}/{q}", float(rng.random() < level))
        for domain, level in levels.items()
        for q in range(n)
    ]


def student_at(step: int, *, seesaw: bool = False) -> dict[str, float]:
    """The student's true level: it rises from base to :data:`STUDENT`; with a seesaw, domains take turns."""
    levels = {}
    for i, domain in enumerate(BASE):
        risen = BASE[domain] + (STUDENT[domain] - BASE[domain]) * (1 - math.exp(-step / 45))
        swing = 0.16 * math.sin(step / 13 + i * 2.1) * min(1.0, step / 40) if seesaw else 0.0
        levels[domain] = min(0.995, max(0.02, risen + swing - (0.08 if seesaw else 0.0)))
    return levels


def evaluations(*, n_test: int, n_validation: int, steps: int, seesaw: bool, finished: bool) -> list[Evaluation]:
    rng = np.random.default_rng(0)
    rows: list[Evaluation] = []
    splits: tuple[tuple[Split, int], ...] = (("validation", n_validation), ("test", n_test))
    for split, n in splits:
        rows += answers(rng, "base", BASE, step=0, split=split, n=n)
        for teacher, levels in TEACHERS.items():
            rows += answers(rng, f"teachers/{teacher}", levels, step=0, split=split, n=n)
    for step in range(0, steps + 1, EVERY):
        levels = student_at(step, seesaw=seesaw)
        rows += answers(rng, "student", levels, step=step, split="validation", n=n_validation)
    if finished:
        rows += answers(rng, "student", student_at(steps, seesaw=seesaw), step=steps, split="test", n=n_test)
    return rows


def train_row(rng: np.random.Generator, step: int) -> dict[str, Any]:
    kl = {
        d: top * math.exp(-step / 60) + 0.012 + 0.006 * rng.random()
        for d, top in zip(BASE, (0.11, 0.16, 0.2), strict=True)
    }
    written = np.array([30, 25, 7]) + rng.normal(size=3)
    gradient = np.array([0.34, 0.35, 0.31]) + 0.02 * rng.normal(size=3)
    row: dict[str, Any] = {"step": step, "kind": "train", "loss": sum(kl.values()) / 3, "lr": 5e-4}
    for i, domain in enumerate(BASE):
        row[f"kl/{domain}"] = kl[domain]
        row[f"entropy/{domain}"] = 0.3 * math.exp(-step / 90) + 0.05
        row[f"token_share/{domain}"] = written[i] / written.sum()
        row[f"gradient_share/{domain}"] = gradient[i] / gradient.sum()
        row |= {f"tokens/teacher/{domain}": 64 * 40.0, f"flops/teacher/{domain}": 1.2e9}
        row[f"seconds/teacher/{domain}"] = 0.05
    row |= {
        "tokens/generation": 64 * 62.0,
        "flops/generation": 3.1e9,
        "tokens/update": 64 * 62.0,
        "flops/update": 9.5e9,
    }
    row |= {"seconds/generation": 0.31, "seconds/scoring": 0.05, "seconds/update": 0.38, "seconds/publish": 0.001}
    return row | {"seconds/step": 0.76, "seconds/other": 0.019}


def eval_row(step: int) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step, "kind": "eval", "seconds/evaluation": 1.4, "tokens/evaluation": 12400.0}
    for domain, length in zip(BASE, (30.2, 24.1, 7.0), strict=True):
        row |= {f"score/{domain}": student_at(step)[domain], f"length/{domain}": length}
        row |= {f"truncation/{domain}": 0.0, f"repetition/{domain}": 0.13}
    return row


def rollouts(steps: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for step in range(EVERY, steps + 1, EVERY):
        for domain, tokens in TOKENS.items():
            for sample in range(3):
                gap = rng.normal(size=len(tokens)) * 0.15
                if sample == 1:
                    gap[rng.integers(len(tokens))] = -3.4
                row = {
                    "step": step,
                    "domain": domain,
                    "prompt_id": f"{domain}/train/{sample}",
                    "prompt": PROMPTS[domain],
                }
                row |= {"text": "".join(tokens), "verdict": float(sample != 1), "finish": "eos"}
                rows.append(row | {"tokens": [*tokens, "<eos>"], "advantages": [*gap.round(4).tolist(), 0.01]})
    return rows


def write_run(
    folder: Path,
    *,
    steps: int = STEPS,
    finished: bool = True,
    seesaw: bool = False,
    n_test: int = 1000,
    n_validation: int = 200,
) -> Path:
    """Write a run's folder, finished or stopped after ``steps``; with ``seesaw``, one whose domains trade."""
    settings, rng = domain_settings(), np.random.default_rng(2)
    (folder / "stages").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(settings), sort_keys=False))
    packages = {"mopd": "0.1.0", "torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0", "ray": "2.60.0"}
    machine = {"system": "Linux-6.1-x86_64", "processor": "x86_64", "cores": 2}
    environment = {"python": "3.11.9", "packages": packages, "commit": "c0ffee" * 6 + "beef", "machine": machine}
    (folder / "environment.json").write_text(json.dumps(environment))
    rows = evaluations(n_test=n_test, n_validation=n_validation, steps=steps, seesaw=seesaw, finished=finished)
    append_jsonl(folder / "evaluations.jsonl", (row.record() for row in rows))
    for step in range(steps + 1):
        append_jsonl(folder / "metrics.jsonl", [train_row(rng, step)] if step else [])
        append_jsonl(folder / "metrics.jsonl", [eval_row(step)] if step % EVERY == 0 else [])
    append_jsonl(folder / "rollouts.jsonl", rollouts(steps))
    for name, total in {"base": 850, "math": 200, "code": 200, "reasoning": 200}.items():
        stage = folder / "stages" / name
        stage.mkdir()
        for step in range(1, total + 1):
            loss = 2.4 * math.exp(-step / 80) + 0.05 + 0.02 * rng.random()
            spent = {"tokens/update": 1900.0, "flops/update": 4.4e9, "seconds/update": 0.14}
            append_jsonl(stage / "metrics.jsonl", [{"step": step, "kind": "train", "loss": loss, **spent}])
    if finished:
        own = {domain: {str(setting["teacher"]): 1.0} for domain, setting in settings.items()}
        result = build_seesaw(rows, teachers=own, fingerprints=dict.fromkeys(settings, "feed"))
        (folder / "seesaw.json").write_text(json.dumps(result))
    return folder
