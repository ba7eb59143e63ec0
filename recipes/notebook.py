"""What `import mopd` offers a notebook: check, run and compare as functions that return what the commands print.

A recipe is a shipped recipe's name, a path of a .yaml, or a mapping of its keys, in which `extends` may stand too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mopd.distill.errors import UserError
from mopd.distill.metrics import results
from mopd.distill.metrics.evaluate import Evaluation, Split
from mopd.distill.recipe.study import Study, load
from mopd.recipes import SHIPPED
from mopd.recipes.check.model_info import read_model_infos
from mopd.recipes.check.plan.totals import Plan
from mopd.recipes.check.static import check as check_resolved
from mopd.recipes.check.study import StudyPlan, check_study
from mopd.recipes.check.tasks import make_tasks
from mopd.recipes.compare import comparison
from mopd.recipes.report.data import RunData, load_run
from mopd.recipes.resolve.resolved import Resolved, resolve
from mopd.recipes.resolve.study import study_runs

RecipeLike: TypeAlias = str | Path | Mapping[str, Any]
"""A shipped recipe's name, a path of a .yaml, or a mapping of the keys of a recipe."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What :func:`check` says of a recipe.

    Attributes:
        problems: a sentence each; a recipe without any can be run.
        plan: what the run, or the runs of a study, will take; None where there are problems.
        prompts: the first training prompt of each domain, as the student is given it; of a study, of its first method.
            A domain whose task can't be made is left out.
    """

    problems: tuple[str, ...]
    plan: Plan | StudyPlan | None
    prompts: dict[str, str]


def check(
    recipe: RecipeLike,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    offline: bool = False,
    plan_only: bool = False,
) -> Checked:
    """Check a recipe or a study without running it, as `mopd check` does; problems are returned and not raised.

    Args:
        overrides: ``key=value`` each, as on the command line.
        out: the run's folder; runs/NAME unless given.
        offline: ask nothing of the Hub.
        plan_only: whether this machine has the memory and the disk does not matter.
    """
    try:
        read = load(recipe, overrides, shipped=SHIPPED)
        runs = study_runs(read) if isinstance(read, Study) else []
        resolved = runs[0].resolved if isinstance(read, Study) else resolve(read)
    except UserError as error:
        return Checked(error.problems, None, {})
    folder = _folder(read.name, out)
    prompts = _first_prompts(resolved, offline=offline)
    try:
        if isinstance(read, Study):
            return Checked((), check_study(read, runs, folder, offline=offline, plan_only=plan_only), prompts)
        return Checked((), check_resolved(resolved, folder, offline=offline, plan_only=plan_only), prompts)
    except UserError as error:
        return Checked(error.problems, None, prompts)


def run(
    recipe: RecipeLike, overrides: Sequence[str] = (), *, out: str | Path | None = None, restart: bool = False
) -> RunData | dict[str, RunData]:
    """Run a recipe or a study to its end, or go on with what is there, as `mopd run` does.

    Args:
        overrides: ``key=value`` each, as on the command line.
        out: the run's folder; runs/NAME unless given.
        restart: move what is there aside and begin from scratch.

    Returns:
        What lies in the run's folder, see ``load_run``; of a study, that of each run by its folder's name.

    Raises:
        UserError: the recipe can't run as it is.
        RunError: the world broke; the same call goes on from the last checkpoint.
    """
    read = load(recipe, overrides, shipped=SHIPPED)
    folder = _folder(read.name, out)
    if isinstance(read, Study):
        from mopd.recipes.run.study import run_study  # loads what trains

        run_study(read, folder, restart=restart)
        return {child.name: load_run(folder / child.name) for child in read.children}
    from mopd.recipes.run.launch import run as run_recipe

    run_recipe(read, folder, restart=restart)
    return load_run(folder)


def compare(runs: Sequence[RecipeLike | RunData], *, validation: bool = False) -> comparison.Comparison:
    """Set the seesaw of several runs side by side, as `mopd compare` does.

    Args:
        runs: each a run's folder, what ``load_run`` returned, or a recipe whose run lies in runs/NAME.
        validation: score validation prompts, by which settings are chosen.

    Returns:
        What comparison.json and the page are made of.

    Raises:
        UserError: a folder holds no run, or the runs were not asked the same questions.
    """
    return comparison.compare([_folder_of_run(entry) for entry in runs], validation=validation)


def build_seesaw(
    rows: Iterable[Mapping[str, Any]],
    teachers: Mapping[str, Mapping[str, float]],
    *,
    fingerprints: Mapping[str, str] | None = None,
    split: Split = "test",
) -> dict[str, Any]:
    """The content of seesaw.json from answers, of whatever made them.

    Args:
        rows: as in evaluations.jsonl: ``model`` (``base``, ``teachers/NAME`` or ``student``), ``step``, ``split``,
            ``domain``, ``prompt_id`` and ``correct`` (0..1).
        teachers: domain -> its teachers with weights that sum to 1; empty where it has none.
        fingerprints: domain -> fingerprint of its task; runs are comparable where these agree. Empty unless given.
        split: what the final scores come from.

    Raises:
        ValueError: two models that must be compared answered different questions.
    """
    evaluations = [Evaluation(**row) for row in rows]
    tasks = dict.fromkeys(teachers, "") if fingerprints is None else fingerprints
    return results.build_seesaw(evaluations, teachers=teachers, fingerprints=tasks, split=split)


def _first_prompts(resolved: Resolved, *, offline: bool) -> dict[str, str]:
    """The first training prompt of each domain, as text; a dataset's chat messages need the student's tokenizer."""
    tasks, _ = make_tasks(resolved.recipe.domains, None, seed=resolved.recipe.seed)
    model_infos, _ = read_model_infos(resolved, tasks, offline=offline)
    student = model_infos.get("student.model")
    if student is not None:
        tasks, _ = make_tasks(resolved.recipe.domains, student.tokenizer, seed=resolved.recipe.seed)
    seed = resolved.recipe.seed
    return {name: task.example(seed=seed, split="train", index=0).text for name, task in tasks.items()}


def _folder(name: str, out: str | Path | None) -> Path:
    return Path(out) if out is not None else Path("runs") / name


def _folder_of_run(entry: RecipeLike | RunData) -> Path:
    if isinstance(entry, RunData):
        return entry.folder
    if not isinstance(entry, Mapping) and Path(entry).is_dir():
        return Path(entry)
    return _folder(load(entry, shipped=SHIPPED).name, None)
