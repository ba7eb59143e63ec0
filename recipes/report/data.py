"""A run's folder as its report and notebooks need it: read once, whole or unfinished, and what is missing named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd.distill.metrics.evaluate import Evaluation, Split
from mopd.distill.metrics.results import STATISTICS, build_seesaw
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.distill.tracking.ledger import Ledger, ledger_of
from mopd.distill.verdicts import paces
from mopd.recipes.report.drawing import css_class
from mopd.recipes.report.records import (
    RecordedRecipe,
    RunEnvironment,
    SampledRollout,
    SeesawRecord,
    StepMetrics,
    TeacherFinding,
    read_environment,
    read_json,
    read_rollout,
    read_seesaw,
    recorded_recipe,
    steps_of,
)
from mopd.recipes.resolve.damage import read_marker
from mopd.recipes.resolve.run_folder import RunStanding, standing


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a stage is, and what it logged.

    Attributes:
        steps: that it took, or may take at most.
        domains: that it trains on.
    """

    name: str
    steps: int
    domains: tuple[str, ...]
    rows: Sequence[StepMetrics]

    @property
    def step(self) -> int:
        """Finished steps."""
        return max((row.step for row in self.rows), default=0)


@dataclass(frozen=True, slots=True)
class RunData:
    """What lies in a run's folder.

    Attributes:
        metrics: the rows of metrics.jsonl as they are, for tables: ``step``, ``kind``, and numbers by name.
        train, evals: the same rows by kind.
        seesaw: content of seesaw.json; while there is none, the same made from the answers so far, on the test split
            if the student has been measured there, else on validation (its ``split`` says which).
        validation: the same on validation: base, teachers and the student's last evaluation.
        environment: None where it is not written down.
        paces: by model, turns, calls of tools and solved episodes a minute on the questions of ``seesaw``; empty
            without environments.
        preflight: one finding for each teacher and domain; empty where they were not asked.
        ledger: what the run spent, by role; stages under ``stage/NAME/``.
        finished: seesaw.json is there.
        standing: whether it is running, and how it ended.
    """

    folder: Path
    recipe: RecordedRecipe
    environment: RunEnvironment | None
    metrics: Sequence[Mapping[str, Any]]
    train: Sequence[StepMetrics]
    evals: Sequence[StepMetrics]
    rollouts: Sequence[SampledRollout]
    stages: Sequence[Stage]
    ledger: Ledger
    seesaw: SeesawRecord
    validation: SeesawRecord
    paces: Mapping[str, Mapping[str, float]]
    preflight: Sequence[TeacherFinding]
    finished: bool
    standing: RunStanding

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.recipe.name

    @property
    def method(self) -> str:
        """The recipe's."""
        return self.recipe.method

    @property
    def seed(self) -> int:
        """The recipe's."""
        return self.recipe.seed

    @property
    def domains(self) -> list[str]:
        """In the recipe's order."""
        return list(self.recipe.domains)

    @property
    def step(self) -> int:
        """Finished steps of the run itself."""
        return max((row.step for row in self.train), default=0)

    @property
    def trains(self) -> bool:
        """Whether the run trained its student in steps of its own; a merge and a cascade log none."""
        return bool(self.train)

    @property
    def steps(self) -> int:
        """Steps that the run took, or that it may take at most."""
        return self.step if self.finished and self.recipe.may_end_sooner else self.recipe.steps

    @property
    def missing(self) -> list[str]:
        """What isn't there (yet), in sentences for people."""
        sentences = [f"Stage {s.name} is at step {s.step} of {s.steps}." for s in self.stages if s.step < s.steps]
        if not self.finished:
            sentences.append(self._where())
        if not self.seesaw.models:
            sentences.append("No model has been measured yet.")
        elif self.seesaw.split == "validation":
            sentences.append("The student has not been tested yet: scores are on the fewer validation questions.")
        records: dict[str, object] = {
            "metrics.jsonl (loss, KL, shares, cost)": self.train,
            "rollouts.jsonl (what the student writes)": self.rollouts,
            "environment.json (versions, commit, machine)": self.environment,
        }
        return [*sentences, *(f"{name} has nothing yet." for name, content in records.items() if not content)]

    def _where(self) -> str:
        """Where a run is that has no result yet, and why it is not going on."""
        at, why = f"at step {self.step} of {self.steps}", self.standing.why.rstrip(".")
        return {
            "interrupted": f"The run was interrupted {at}; the command that began it goes on. {why}.",
            "broken": f"The run broke {at}; the command that began it goes on from the last checkpoint. {why}.",
            "killed": f"The run was ended from outside {at}; the command that began it goes on.",
        }.get(self.standing.state, f"The run is under way, {at}.")

    def scores(self) -> list[dict[str, Any]]:
        """Every model's score on every domain with its 95% interval, a plain row each, as ``pandas.DataFrame`` takes.

        Columns: model (``base``, ``teachers/NAME``, ``student``), domain, split, score, low, high, n.
        """
        return [
            {"model": model, "domain": domain, "split": self.seesaw.split}
            | {"score": score.score, "low": score.low, "high": score.high, "n": score.n}
            for model, by_domain in self.seesaw.models.items()
            for domain, score in by_domain.items()
        ]

    def recovery(self) -> list[dict[str, Any]]:
        """Every domain's recovery, the part of its teacher's gain that the student has, as ``pandas.DataFrame`` takes.

        Columns: domain, teachers (names), base, teacher, student (scores), recovery, low, high (its 95% interval),
        points, points_low, points_high (the student's change over the base); None where undefined.
        """
        seesaw, rows = self.seesaw, list[dict[str, Any]]()
        for domain in self.domains:
            base, student = (seesaw.models.get(model, {}).get(domain) for model in ("base", "student"))
            scores = {"base": base, "teacher": seesaw.own_teacher(domain), "student": student}
            ends = (seesaw.intervals.recovery or {}).get(domain)
            moved = (seesaw.intervals.points or {}).get(domain)
            rows.append(
                {"domain": domain, "teachers": ", ".join(seesaw.teachers[domain])}
                | {name: None if score is None else score.score for name, score in scores.items()}
                | {"recovery": (seesaw.metrics.recovery or {}).get(domain)}
                | {"low": ends and ends.low, "high": ends and ends.high}
                | {"points": (seesaw.metrics.points or {}).get(domain)}
                | {"points_low": moved and moved.low, "points_high": moved and moved.high}
            )
        return rows


def css_of(data: RunData) -> dict[str, str]:
    """One colour a domain throughout the report, and one shape: 24 that differ."""
    return {domain: css_class(series) for domain, series in series_of(data).items()}


def series_of(data: RunData) -> dict[str, int]:
    """The number of each domain, by which its colour, dashes and shape are chosen."""
    return {domain: i for i, domain in enumerate(data.domains)}


def run_ledger(run_dir: Path) -> Ledger:
    """What a run spent so far, stages under ``stage/NAME/``: from the rows of its folder and theirs."""
    ledger = ledger_of(run_dir)
    for metrics in sorted(run_dir.glob("stages/*/metrics.jsonl")):
        ledger.include(ledger_of(metrics.parent), stage=metrics.parent.name)
    return ledger


def load_run(folder: str | Path) -> RunData:
    """Read a run's folder, of a run that is finished, under way or broken off.

    Raises:
        UserError: there is no run in ``folder``.
        RunError: a file of it is damaged.

    Example:
        ``pandas.DataFrame(load_run("runs/quickstart").recovery())``.
    """
    folder = Path(folder)
    recipe = recorded_recipe(folder)
    metrics = list(read_jsonl(folder / "metrics.jsonl"))
    answers = [Evaluation(**row) for row in read_jsonl(folder / "evaluations.jsonl")]
    record = read_json(folder / "seesaw.json")
    tested = any(row.model == "student" and row.split == "test" for row in answers)
    so_far: Split = "test" if tested else "validation"
    seesaw = _final(record, answers, recipe) if record else _so_far(answers, recipe, so_far)
    return RunData(
        folder=folder,
        recipe=recipe,
        environment=read_environment(folder),
        metrics=metrics,
        train=steps_of(metrics, "train"),
        evals=steps_of(metrics, "eval"),
        rollouts=[read_rollout(row) for row in read_jsonl(folder / "rollouts.jsonl")],
        stages=_stages(folder, recipe),
        ledger=run_ledger(folder),
        seesaw=seesaw,
        validation=_so_far(answers, recipe, "validation"),
        paces=paces(read_jsonl(folder / "exams.jsonl"), seesaw.split),
        preflight=[
            TeacherFinding(row["teacher"], row["domain"], row["verdict"], row["reason"], row["remedy"])
            for row in read_json(folder / "preflight.json").get("findings", [])
        ],
        finished=bool(record),
        standing=standing(folder),
    )


def _final(record: Mapping[str, Any], answers: Sequence[Evaluation], recipe: RecordedRecipe) -> SeesawRecord:
    """What seesaw.json says; where an older version wrote it, with metrics and intervals made anew from the answers."""
    split = record.get("split", "test")
    measured = {row.model for row in answers if row.split == split}
    current = record.get("statistics") == STATISTICS
    if (current and "teacher_points" in record["metrics_ci"]) or not {"base", "student"} <= measured:
        return read_seesaw(record)
    unknown = dict.fromkeys(recipe.domains, "")
    anew = build_seesaw(whole_evaluations(answers), teachers=recipe.teacher_weights, fingerprints=unknown, split=split)
    if current:
        ends = {**record["metrics_ci"], "teacher_points": anew["metrics_ci"]["teacher_points"]}
        return read_seesaw({**record, "metrics_ci": ends})
    return read_seesaw({**record, **{key: anew[key] for key in ("metrics", "metrics_ci", "verdict")}})


def _so_far(answers: Sequence[Evaluation], recipe: RecordedRecipe, split: Split) -> SeesawRecord:
    """What seesaw.json would hold of the answers that are there."""
    unknown = dict.fromkeys(recipe.domains, "")
    whole = whole_evaluations(answers)
    return read_seesaw(build_seesaw(whole, teachers=recipe.teacher_weights, fingerprints=unknown, split=split))


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


def _stages(run_dir: Path, recipe: RecordedRecipe) -> list[Stage]:
    stages: list[Stage] = []
    for name, stage in recipe.stages.items():
        rows = steps_of(list(read_jsonl(run_dir / "stages" / name / "metrics.jsonl")), "train")
        steps = int(read_marker(run_dir / "stages" / name).get("steps", stage.steps))
        stages.append(Stage(name, steps, stage.domains or tuple(recipe.domains), rows))
    return stages
