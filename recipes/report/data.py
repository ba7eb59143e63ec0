"""A run's folder as the report needs it: read once, whole or unfinished, and what is missing named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mopd.distill.metrics.evaluate import Evaluation, Split
from mopd.distill.metrics.results import build_seesaw
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.distill.tracking.ledger import Ledger, ledger_from_rows
from mopd.distill.types import UserError
from mopd.recipes.resolve.methods import METHODS

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a stage is, and what it logged."""

    name: str
    steps: int
    domains: tuple[str, ...]
    rows: Sequence[Row]

    @property
    def step(self) -> int:
        """Finished steps."""
        return max((row["step"] for row in self.rows), default=0)


@dataclass(frozen=True, slots=True)
class RunData:
    """What lies in a run's folder.

    Attributes:
        recipe: resolved, as plain values.
        train, evals: rows of metrics.jsonl by kind.
        final: content of seesaw.json; while there is none, the same made from the answers so far, on the test split
            if the student has been measured there, else on validation (its key ``split`` says which).
        validation: the same on validation: base, teachers and the student's last evaluation.
        preflight: findings of preflight.json, a row for each teacher and domain; see recipes/run/preflight.py.
        finished: seesaw.json is there.
    """

    folder: Path
    recipe: Row
    environment: Row
    train: Sequence[Row]
    evals: Sequence[Row]
    rollouts: Sequence[Row]
    stages: Sequence[Stage]
    ledger: Ledger
    final: Row
    validation: Row
    preflight: Sequence[Row]
    finished: bool

    @property
    def domains(self) -> list[str]:
        """In the recipe's order."""
        return list(self.recipe["domains"])

    @property
    def step(self) -> int:
        """Finished steps of the run itself."""
        return max((row["step"] for row in self.train), default=0)

    @property
    def trains(self) -> bool:
        """Whether the run trained its student in steps of its own."""
        method = METHODS.get(self.recipe["method"])
        return bool(self.train) if method is None else method.trains

    @property
    def steps(self) -> int:
        """Steps that the recipe asks for."""
        return int(self.recipe["run"]["steps"])

    @property
    def missing(self) -> list[str]:
        """What isn't there (yet), in sentences for people."""
        told = [f"Stage {s.name} is at step {s.step} of {s.steps}." for s in self.stages if s.step < s.steps]
        if not self.finished:
            told.append(f"The run is under way, or was broken off, at step {self.step} of {self.steps}.")
        if not self.final["models"]:
            told.append("No model has been measured yet.")
        elif self.final.get("split") == "validation":
            told.append("The student has not been tested yet: scores are on the fewer validation questions.")
        told += [f"{name} has nothing yet." for name, rows in self._records().items() if not rows]
        return told

    def _records(self) -> dict[str, object]:
        return {
            "metrics.jsonl (loss, KL, shares, cost)": self.train,
            "rollouts.jsonl (what the student writes)": self.rollouts,
            "environment.json (versions, commit, machine)": self.environment,
        }


def css_of(data: RunData) -> dict[str, str]:
    """One colour a domain throughout the report; eight, then again from the first."""
    return {domain: f"d{i % 8}" for i, domain in enumerate(data.domains)}


def teacher_weights(recipe: Row) -> dict[str, dict[str, float]]:
    """Domain -> its teachers with their weights, from a recipe's plain values; empty where it has none."""
    domains: dict[str, dict[str, float]] = {}
    for name, settings in recipe["domains"].items():
        one = settings.get("teacher")
        domains[name] = {one: 1.0} if one is not None else dict(settings.get("teachers") or {})
    return domains


def run_ledger(run_dir: Path) -> Ledger:
    """What a run spent, stages under ``stage/NAME/``: rebuilt from every metrics.jsonl of its folder, and its exams."""
    ledger = ledger_from_rows(read_jsonl(run_dir / "metrics.jsonl"))
    for row in read_jsonl(run_dir / "exams.jsonl"):
        ledger.add("evaluation", tokens=row["tokens"], flops=row["flops"], seconds=row["seconds"])
    for metrics in sorted(run_dir.glob("stages/*/metrics.jsonl")):
        ledger.include(ledger_from_rows(read_jsonl(metrics)), stage=metrics.parent.name)
    return ledger


def load_run(run_dir: Path) -> RunData:
    """Read a run's folder, of a run that is finished, under way or broken off.

    Raises:
        UserError: there is no run in ``run_dir``.
        RunError: a file of it is damaged.
    """
    if not (run_dir / "recipe.yaml").is_file():
        raise UserError(f"{run_dir} holds no run: it has no recipe.yaml; give the folder of a run, such as runs/NAME")
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    metrics = list(read_jsonl(run_dir / "metrics.jsonl"))
    answers = [Evaluation(**row) for row in read_jsonl(run_dir / "evaluations.jsonl")]
    told = _read_json(run_dir / "seesaw.json")
    tested = any(row.model == "student" and row.split == "test" for row in answers)
    return RunData(
        folder=run_dir,
        recipe=recipe,
        environment=_read_json(run_dir / "environment.json"),
        train=[row for row in metrics if row.get("kind") == "train"],
        evals=[row for row in metrics if row.get("kind") == "eval"],
        rollouts=list(read_jsonl(run_dir / "rollouts.jsonl")),
        stages=_stages(run_dir, recipe),
        ledger=run_ledger(run_dir),
        final=told or _seesaw(answers, recipe, "test" if tested else "validation"),
        validation=_seesaw(answers, recipe, "validation"),
        preflight=_read_json(run_dir / "preflight.json").get("findings", []),
        finished=bool(told),
    )


def _read_json(path: Path) -> Row:
    return json.loads(path.read_text()) if path.is_file() else {}


def _seesaw(answers: Sequence[Evaluation], recipe: Row, split: Split) -> Row:
    fingerprints = dict.fromkeys(recipe["domains"], "")
    whole = whole_evaluations(answers)
    return build_seesaw(whole, teachers=teacher_weights(recipe), fingerprints=fingerprints, split=split)


def whole_evaluations(answers: Sequence[Evaluation]) -> list[Evaluation]:
    """Without evaluations that a kill cut off: those that have fewer answers than the largest of their split."""
    counts: dict[tuple[str, int, str], int] = {}
    for row in answers:
        key = (row.model, row.step, row.split)
        counts[key] = counts.get(key, 0) + 1
    largest: dict[str, int] = {}
    for (_, _, split), count in counts.items():
        largest[split] = max(count, largest.get(split, 0))
    return [row for row in answers if counts[row.model, row.step, row.split] == largest[row.split]]


def _stages(run_dir: Path, recipe: Row) -> list[Stage]:
    stages: list[Stage] = []
    for name, settings in (recipe.get("stages") or {}).items():
        rows = [row for row in read_jsonl(run_dir / "stages" / name / "metrics.jsonl") if row.get("kind") == "train"]
        stages.append(Stage(name, int(settings["steps"]), tuple(settings.get("domains") or recipe["domains"]), rows))
    return stages
