"""What `mopd eval` does: which questions a checkpoint is asked, and its scores as a table and as plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from mopd.distill.errors import UserError
from mopd.distill.recipe import DomainRecipe, Recipe
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.plugins import is_plugin
from mopd.distill.recipe.study import load
from mopd.recipes import SHIPPED
from mopd.recipes.evaluation.command import EvalQuestions, evaluate_model, measured_record, measured_table
from mopd.recipes.resolve.checkpoints import downloaded, local_folder, read_checkpoint
from mopd.recipes.resolve.damage import refuse_damaged
from mopd.rollouts.tasks import TASKS


@dataclass(frozen=True, slots=True)
class AskedModel:
    """What the command line says of an evaluation.

    Attributes:
        model: a checkpoint's folder, or a Hub id.
        tasks: names of tasks, separated by commas; None where a recipe or the harness asks.
        recipe: whose domains are asked; ``domains`` picks from them.
        sampled: leaves of `evaluate` by name; None where the command line says nothing.
        stop: texts that end an answer.
        harness: tasks of lm-evaluation-harness, separated by commas.
        answers: a file for what the model writes.
    """

    model: str
    tasks: str | None
    recipe: str | None
    domains: str | None
    prompts: int | None
    sampled: Mapping[str, Any]
    stop: Sequence[str]
    harness: str | None
    runs_code: bool
    answers: Path | None
    trust_remote_code: bool


def evaluate(asked: AskedModel, console: Console) -> dict[str, Any]:
    """Measure a checkpoint and print its scores; returns them as plain values.

    Raises:
        UserError: it is not said which questions, or they or the checkpoint can't be used.
    """
    if [asked.tasks, asked.recipe, asked.harness].count(None) != 2:
        raise UserError("give --tasks, or --recipe, or --harness: which questions the model is asked")
    if asked.domains is not None and asked.recipe is None:
        raise UserError("--domains picks from the domains of a recipe; give --recipe, or name tasks with --tasks")
    if asked.harness is not None:
        return _by_harness(asked, asked.harness, console)
    if asked.recipe is None:
        questions = _of_tasks(asked.tasks, asked.prompts)
    else:
        questions = _of_recipe(asked.recipe, asked.domains, asked.prompts)
    questions = _asked_so(questions, {**asked.sampled, "stop_strings": asked.stop or None})
    folder, _ = _checkpoint(asked.model, asked.trust_remote_code)
    measured = evaluate_model(folder, questions, trust_remote_code=asked.trust_remote_code, answers=asked.answers)
    console.print(measured_table(folder, measured, samples=questions.evaluate.samples_per_prompt))
    return measured_record(folder, measured, questions)


def _by_harness(asked: AskedModel, harness: str, console: Console) -> dict[str, Any]:
    """The same by lm-evaluation-harness."""
    from mopd.recipes.evaluation.harness import harness_table, run_harness  # its package is an extra

    if asked.answers is not None:
        raise UserError("--answers keeps what a model writes to --tasks or --recipe; --harness has files of its own")
    options = {**asked.sampled, "stop": asked.stop}
    given = [f"--{name.partition('_per')[0].replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise UserError(f"{given[0]} is set by the tasks of --harness themselves; leave it out")
    folder, tokenizer = _checkpoint(asked.model, asked.trust_remote_code)
    scores = run_harness(
        folder,
        list(dict.fromkeys(name.strip() for name in harness.split(","))),
        prompts=asked.prompts,
        chat=bool(tokenizer.chat_template),
        trust_remote_code=asked.trust_remote_code,
        runs_code=asked.runs_code,
    )
    console.print(harness_table(folder, scores))
    return {"format": 1, "model": folder, "prompts": asked.prompts, "scores": [asdict(score) for score in scores]}


def _checkpoint(model: str, trust_remote_code: bool) -> tuple[str, Any]:
    """The folder of a checkpoint that can be loaded, and its tokenizer."""
    # Here, unlike in a recipe, a folder needs no ./ in front: nothing else of that name is meant.
    is_folder = os.path.isdir(model) and not Path(model).is_absolute()
    folder = downloaded(local_folder(f"./{model}" if is_folder else model))
    refuse_damaged(folder, "put it back as it was")
    read = read_checkpoint(folder, permit="give --trust-remote-code", trust_remote_code=trust_remote_code)
    return folder, read.tokenizer


def _asked_so(questions: EvalQuestions, given: Mapping[str, Any]) -> EvalQuestions:
    """Questions with what the command line says of how answers are written, checked as a recipe's `evaluate` is."""
    settings = {**questions.evaluate.model_dump(), **{key: value for key, value in given.items() if value is not None}}
    try:
        return replace(questions, evaluate=type(questions.evaluate).model_validate(settings))
    except ValidationError as error:
        raise UserError(*(f"--{'-'.join(str(p['loc'][0]).split('_'))}: {p['msg']}" for p in error.errors())) from error


def _of_tasks(tasks: str | None, prompts: int | None) -> EvalQuestions:
    """The questions of named tasks."""
    names = list(dict.fromkeys(name.strip() for name in (tasks or "").split(",")))
    shipped = [name for name in names if not is_plugin(name)]
    unknown = [f"--tasks: no task is called {name!r}; {guess(name, TASKS)}" for name in shipped if name not in TASKS]
    shown = [name.rpartition(":")[2] for name in names]
    unknown += [f"--tasks: two are called {name!r}; ask them one by one" for name in {*shown} if shown.count(name) > 1]
    if unknown:
        raise UserError(*unknown)
    domains = {name.rpartition(":")[2]: DomainRecipe(task=name) for name in names}
    return EvalQuestions(domains, prompts or 200)


def _of_recipe(recipe: str, domains: str | None, prompts: int | None) -> EvalQuestions:
    """The questions of a recipe's domains: those that its own runs are measured on."""
    loaded = load(recipe, (), shipped=SHIPPED)
    if not isinstance(loaded, Recipe):
        raise UserError(f"--recipe: {recipe} is a study; name the recipe.yaml of one of its runs")
    names = list(loaded.domains) if domains is None else [name.strip() for name in domains.split(",")]
    unknown = [name for name in names if name not in loaded.domains]
    if unknown:
        raise UserError(*(f"--domains: no domain is called {n!r}; {guess(n, loaded.domains)}" for n in unknown))
    chosen = {name: loaded.domains[name] for name in names}
    many = loaded.evaluate.test_prompts if prompts is None else prompts
    return EvalQuestions(chosen, many, seed=loaded.evaluate.seed, rollout=loaded.rollout, evaluate=loaded.evaluate)
