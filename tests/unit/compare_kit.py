"""Run folders written by hand, small enough to compute their comparison on paper."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.metrics.results import build_seesaw
from mopd.distill.tracking.jsonl import append_jsonl
from mopd.recipes.report.records import read_recipe

Scores = Mapping[str, Sequence[float]]


def right(count: int, of: int = 100) -> list[float]:
    """The first ``count`` of ``of`` answers are right."""
    return [1.0] * count + [0.0] * (of - count)


def levels(math: int, code: int, chat: int) -> dict[str, list[float]]:
    return {"math": right(math), "code": right(code), "chat": right(chat)}


BASE = levels(50, 60, 70)
TEACHERS = {"math": levels(90, 20, 65), "code": levels(30, 80, 70)}
STUDENT = levels(80, 75, 64)
"""Recovery 30/40 and 15/20; chat has no teacher and falls by 6 points."""

CURVE = {0: levels(50, 60, 70), 10: levels(70, 50, 70), 20: levels(80, 75, 70)}

RECIPE: dict[str, Any] = {
    "name": "hand",
    "description": "",
    "seed": 0,
    "method": "mopd",
    "student": {"model": "stage:base", "optimizer": {"lr": 0.5}},
    "domains": {
        "math": {"task": "arithmetic", "teacher": "math", "teachers": {}, "evaluate_only": False},
        "code": {"task": "list_programs", "teacher": "code", "teachers": {}, "evaluate_only": False},
        "chat": {"task": "ordering", "teacher": None, "teachers": {}, "evaluate_only": True},
    },
    "teachers": {"math": {"model": "stage:math"}, "code": {"model": "stage:code"}},
    "evaluate": {"validation_prompts": 100, "test_prompts": 100, "seed": 0},
    "run": {"steps": 20},
    "track": {"wandb": {"tags": []}},
    "stages": {
        "base": {"from": {"architecture": "mimo_v2_flash"}, "steps": 2},
        "math": {"from": "stage:base", "steps": 2},
        "half": {"from": "stage:base", "steps": 2},
        "code": {"from": "stage:half", "steps": 2},
    },
}

LEDGER = {
    "generation": {"tokens": 10, "flops": 100.0, "seconds": 1.0},
    "update": {"tokens": 10, "flops": 300.0, "seconds": 2.0},
    "teacher/math": {"tokens": 10, "flops": 50.0, "seconds": 0.9},
    "evaluation": {"tokens": 10, "flops": 1000.0, "seconds": 10.0},
    "stage/base/update": {"tokens": 10, "flops": 7000.0, "seconds": 70.0},
    "stage/math/update": {"tokens": 10, "flops": 20.0, "seconds": 4.0},
    "stage/half/update": {"tokens": 10, "flops": 40.0, "seconds": 8.0},
    "stage/code/update": {"tokens": 10, "flops": 80.0, "seconds": 16.0},
}
"""Training 450 FLOP and 3 s, for teachers' processes work beside the loop; teachers 140 and 28 (``half`` is on the way
to code, base is nobody's teacher)."""


def laid_over(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with dotted keys changed: ``{"student.optimizer.lr": 1}``."""
    changed = copy.deepcopy(dict(tree))
    for path, value in changes.items():
        *keys, last = path.split(".")
        here = changed
        for key in keys:
            here = here[key]
        here[last] = value
    return changed


def rows_of(model: str, answers: Scores, *, step: int, split: Any) -> list[Evaluation]:
    return [
        Evaluation(model, step, split, domain, f"{domain}/{split}/{n}", correct)
        for domain, given in answers.items()
        for n, correct in enumerate(given)
    ]


def write_hand_run(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    base: Scores = BASE,
    teachers: Mapping[str, Scores] = TEACHERS,
    student: Scores = STUDENT,
    curve: Mapping[int, Scores] = CURVE,
    ledger: Mapping[str, Any] | None = LEDGER,
    fingerprints: Mapping[str, str] | None = None,
    finished: bool = True,
    selected: int | None = None,
) -> Path:
    """Write a run's folder; under way, it has no test of its student, no seesaw.json and no ledger.json.

    ``selected`` is the step whose weights are tested, the last unless given.
    """
    recipe = laid_over(RECIPE, changes or {})
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    rows: list[Evaluation] = []
    for split in ("validation", "test"):
        rows += rows_of("base", base, step=0, split=split)
        for name, answers in teachers.items():
            rows += rows_of(f"teachers/{name}", answers, step=0, split=split)
    for step, answers in curve.items():
        rows += rows_of("student", answers, step=step, split="validation")
    if finished:
        tested = max(curve) if selected is None else selected
        rows += rows_of("student", student, step=tested, split="test")
    append_jsonl(folder / "evaluations.jsonl", (row.record() for row in rows))
    # 20 FLOP a step: 12 of updates, 5 of generation, 3 of the teacher.
    spent = {"flops/update": 12.0, "flops/generation": 5.0, "flops/teacher/math": 3.0, "seconds/update": 0.5}
    steps = [{"step": step, "kind": "train", "loss": 1.0, **spent} for step in range(1, max(curve) + 1)]
    append_jsonl(folder / "metrics.jsonl", steps)
    append_jsonl(folder / "exams.jsonl", [{"model": "base", "tokens": 3, "flops": 900.0, "seconds": 9.0}])
    if finished:
        known = fingerprints or dict.fromkeys(recipe["domains"], "feed")
        seesaw = build_seesaw(rows, teachers=read_recipe(recipe).teacher_weights, fingerprints=known)
        (folder / "seesaw.json").write_text(json.dumps(seesaw))
        if ledger is not None:
            (folder / "ledger.json").write_text(json.dumps({"format": 1, "roles": ledger}))
    return folder


def no_teachers() -> dict[str, Any]:
    """Changes of a hand-made recipe into one that no teacher grades."""
    return {"teachers": {}, "domains.math.teacher": None, "domains.code.teacher": None, "method": "supervised"}
