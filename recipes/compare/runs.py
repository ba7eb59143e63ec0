"""Runs that are to be compared: read from their folders, and refused where they were asked different questions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mopd.distill.errors import UserError
from mopd.distill.metrics.episodes import MeasuredEpisodes
from mopd.distill.metrics.evaluate import Evaluation, Interval, Split
from mopd.distill.metrics.results import Rows, episodes_of_models, group, last_steps, sampled_models
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.distill.verdicts import paces
from mopd.recipes.report.data import whole_evaluations
from mopd.recipes.report.kept import SUFFIX, unpack
from mopd.recipes.report.records import (
    RecordedRecipe,
    read_environment,
    read_json,
    read_recipe,
    reading,
    recipe_tree,
)
from mopd.recipes.resolve.run_folder import DATA, FIRST_SANDBOX, STUDY, noted_sandbox, runs_of_study

NEEDED = ("seed", "method", "student", "domains", "evaluate", "run")
"""Keys of a recipe without which nothing can be compared; a run's own recipe.yaml has every leaf written out."""

SPLITS: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder, finished or under way, as a comparison needs it.

    Attributes:
        name: of its folder, with as many of those above it as tell it from the others.
        answers: of whole evaluations.
        fingerprints: of its tasks; None where only the questions themselves can tell.
        sandboxes: in which programs of a domain are run, where that is noted.
        sampled: model -> domain -> score of sampled answers, by split; empty where none were sampled.
        episodes: model -> domain -> how episodes went, by split; empty without environments.
        paces: model -> turns, calls and solved episodes a minute, by split; empty without environments.
        finished: its results are written.
        commit: of the code that began it, where it is known.
    """

    name: str
    folder: Path
    recipe: RecordedRecipe
    answers: Rows
    sampled: Mapping[Split, Mapping[str, Mapping[str, Interval]]]
    episodes: Mapping[Split, Mapping[str, Mapping[str, MeasuredEpisodes]]]
    paces: Mapping[Split, Mapping[str, Mapping[str, float]]]
    fingerprints: Mapping[str, str | None]
    sandboxes: Mapping[str, str]
    finished: bool
    commit: str | None

    @property
    def domains(self) -> list[str]:
        """In its recipe's order."""
        return list(self.recipe.domains)

    def step(self, split: Split) -> int:
        """The finished steps of the student that was measured last on ``split``."""
        return last_steps(self.answers, split)["student"]

    def questions(self, split: Split, domain: str) -> frozenset[str]:
        """Ids of what the student was asked last; empty where it wasn't."""
        step = last_steps(self.answers, split).get("student", -1)
        return frozenset(self.answers.get(("student", step, split), {}).get(domain, {}))


def expand_studies(folders: Sequence[Path]) -> list[Path]:
    """The folders, with a study's replaced by those of its runs that have been measured, and kept runs unpacked.

    Raises:
        UserError: a study none of whose runs has been; a kept run that is damaged.
    """
    expanded: list[Path] = []
    for folder in folders:
        if folder.is_file() and folder.suffix == SUFFIX:
            expanded.append(unpack(folder))
            continue
        if not (folder / STUDY).is_file():
            expanded.append(folder)
            continue
        with reading(folder):
            measured = [run for run in runs_of_study(folder) if _student_measured(run)]
        if not measured:
            raise UserError(f"no run of the study {folder} has been measured yet; compare it once one has been")
        expanded += measured
    return expanded


def _student_measured(run: Path) -> bool:
    return any(row["model"] == "student" for row in read_jsonl(run / "evaluations.jsonl"))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs' folders.

    Raises:
        UserError: with every folder that is not there, given twice, no run, damaged, or without evaluations.
    """
    places = [os.path.realpath(folder) for folder in folders]
    problems = [f"{folder} is given twice" for folder in folders if places.count(os.path.realpath(folder)) > 1]
    runs: list[Run] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        try:
            with reading(folder):
                runs.append(_read_run(folder, name))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return runs


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; give the folder of a run, such as runs/NAME")
    tree = recipe_tree(folder)
    if absent := [key for key in NEEDED if not isinstance(tree, dict) or key not in tree]:
        raise UserError(f"{folder / 'recipe.yaml'} is not the recipe of a run: it has no {', '.join(absent)}")
    rows = whole_evaluations([Evaluation(**row) for row in read_jsonl(folder / "evaluations.jsonl")])
    answers = group(rows)
    measured = last_steps(answers, "validation")
    missing = [model for model in ("base", "student") if model not in measured]
    if missing:
        raise UserError(
            f"{folder} has no evaluation of its {' and its '.join(missing)} yet; "
            "compare it once its first evaluation is done, or leave it out"
        )
    recipe, result = read_recipe(tree), read_json(folder / "seesaw.json")
    known = {domain: task["fingerprint"] for domain, task in result.get("tasks", {}).items()}
    environment = read_environment(folder)
    return Run(
        name=name,
        folder=folder,
        recipe=recipe,
        answers=answers,
        sampled={split: sampled_models(rows, split, list(recipe.domains)) for split in SPLITS},
        episodes={split: episodes_of_models(rows, split) for split in SPLITS},
        paces={split: paces(read_jsonl(folder / "exams.jsonl"), split) for split in SPLITS},
        fingerprints=known or {domain: _fingerprint(recipe, domain) for domain in recipe.domains},
        sandboxes={d: kind for d, noted in read_json(folder / DATA).items() if (kind := noted_sandbox(noted))},
        finished=bool(result),
        commit=None if environment is None else environment.commit,
    )


def _fingerprint(recipe: RecordedRecipe, domain: str) -> str | None:
    """What seesaw.json will hold of a shipped task once the run is done; None for a dataset, which may be gone."""
    from mopd.rollouts.tasks import TASKS, fingerprint  # loads transformers, which finished runs don't need

    task = recipe.domains[domain].task
    if not isinstance(task, str) or task not in TASKS:
        return None
    return fingerprint(TASKS[task], seed=recipe.evaluate_seed)


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [Path(os.path.realpath(folder)).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[max(0, len(path) - length) :]) for path in parts]
        if len(set(names)) == len(set(parts)):
            return names
    raise AssertionError("resolved paths differ")


def refuse_unlike(runs: Sequence[Run]) -> None:
    """Refuse runs that were measured on different domains, tasks or questions.

    Raises:
        UserError: with every difference between the first run and another.
    """
    first = runs[0]
    problems = [problem for run in runs if run is not first for problem in _unlike(first, run)]
    if problems:
        raise UserError(*problems)


def _unlike(first: Run, other: Run) -> list[str]:
    if set(first.domains) != set(other.domains):
        return [
            f"{first.name} has the domains {', '.join(first.domains)}, and {other.name} has "
            f"{', '.join(other.domains)}; runs are compared on the same domains (`evaluate_only: true` measures one "
            "without training on it)"
        ]
    seeds = first.recipe.evaluate_seed, other.recipe.evaluate_seed
    if seeds[0] != seeds[1]:
        return [
            f"{first.name} was asked the questions of `evaluate.seed` {seeds[0]}, and {other.name} those of "
            f"{seeds[1]}; runs are compared on the same questions"
        ]
    return [problem for domain in first.domains for problem in _unlike_in(domain, first, other)][:8]


def _unlike_in(domain: str, first: Run, other: Run) -> list[str]:
    tasks = [run.recipe.domains[domain].task for run in (first, other)]
    keys = ("path", "reasoning_gym", "environment")
    names = [task if isinstance(task, str) else next((task[k] for k in keys if k in task), None) for task in tasks]
    if names[0] != names[1]:
        return [f"domain {domain!r} is the task {names[0]} in {first.name}, and {names[1]} in {other.name}"]
    verifiers = [task.get("verifier") if isinstance(task, Mapping) else None for task in tasks]
    if verifiers[0] != verifiers[1]:
        return [
            f"answers of domain {domain!r} were checked by {verifiers[0]} in {first.name}, by {verifiers[1]} in "
            f"{other.name}"
        ]
    sandboxes = [run.sandboxes.get(domain, FIRST_SANDBOX) for run in (first, other)]
    if sandboxes[0] != sandboxes[1]:
        return [
            f"programs of domain {domain!r} were run in sandbox {sandboxes[0]} in {first.name} and in {sandboxes[1]} "
            f"in {other.name}, which takes others for right; set the task's `sandbox` and run one of them again"
        ]
    prints = [run.fingerprints.get(domain) for run in (first, other)]
    if None not in prints and prints[0] != prints[1]:
        return [
            f"task {names[0]} of domain {domain!r} has the fingerprint {prints[0]} in {first.name} and {prints[1]} in "
            f"{other.name}: its problems are not the same (another version of the task, or of the data?)"
        ]
    problems: list[str] = []
    for split in SPLITS:
        asked = [run.questions(split, domain) for run in (first, other)]
        if all(asked) and asked[0] != asked[1]:
            wanted = [run.recipe.prompts[split] for run in (first, other)]
            problems.append(
                f"{split} questions of domain {domain!r}: {first.name} was asked {len(asked[0])} and {other.name} "
                f"{len(asked[1])}, of which {len(asked[0] & asked[1])} are the same, and all must be "
                f"(`evaluate.{split}_prompts` is {wanted[0]} and {wanted[1]})"
            )
    return problems


def common_split(runs: Iterable[Run]) -> Split:
    """``test`` if every run's base and student were tested, else ``validation``, which all of them have."""
    tested = all({"base", "student"} <= last_steps(run.answers, "test").keys() for run in runs)
    return "test" if tested else "validation"
