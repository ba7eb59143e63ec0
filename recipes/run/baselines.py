"""Measuring models that are not being trained: base and teachers of a run, or any checkpoint on any tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from mopd.distill.errors import Interrupted
from mopd.distill.metrics.evaluate import Split, evaluate, scores
from mopd.distill.models.load import load_model
from mopd.distill.recipe import DomainRecipe, Recipe, StudentRecipe
from mopd.distill.types import Sampler
from mopd.recipes.evaluation.evaluator import Evaluator, verify
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.methods import decoding
from mopd.recipes.resolve.resolved import Resolved, resolve_device
from mopd.recipes.resolve.teachers import adapter_folders
from mopd.recipes.run.actors import served_sampler
from mopd.recipes.run.context import RunContext
from mopd.recipes.run.job import prompt_source, tasks_of
from mopd.rollouts.engines.workers import SamplerWorkers
from mopd.rollouts.sampler import InProcess, StudentSampler
from mopd.rollouts.tokenizer import completion_text

SPLITS: tuple[Split, ...] = ("validation", "test")


def measure_frozen(resolved: Resolved, context: RunContext, evaluator: Evaluator, models: Mapping[str, str]) -> None:
    """Base and teachers sit the exam, unless they have: their scores are the lines that the student is held against."""
    adapters = {f"teachers/{name}": folder for name, folder in adapter_folders(resolved.teachers).items()}
    if context.answers is None:
        _measure(resolved, context, evaluator, models, adapters)
        return
    told = evaluator.fingerprint
    with context.answers.asking:
        for name, path in models.items():
            if name not in adapters and not evaluator.answers(name):
                evaluator.take_over(context.answers.find(name, path, told))
        asked = _measure(resolved, context, evaluator, models, adapters)
        for name in asked - adapters.keys():
            context.answers.keep(models[name], told, evaluator.answers(name))


def _measure(
    resolved: Resolved,
    context: RunContext,
    evaluator: Evaluator,
    models: Mapping[str, str],
    adapters: Mapping[str, str],
) -> set[str]:
    """Ask all models that have not answered everything; returns their names."""
    todo = {name: path for name, path in models.items() if not all(evaluator.taken(name, 0, split) for split in SPLITS)}
    if not todo:
        return set()
    recipe, code = resolved.recipe, resolved.models["student.model"].trusted
    tokenizer = load_tokenizer(models["base"], trust_remote_code=code)
    sampler = StudentSampler(decoding(recipe, tokenizer), samples_per_prompt=1, batch_size=recipe.rollout.batch_size)
    # On a CPU two processes measure twice as fast; GPUs are only those that the run needs anyway.
    processes = max(2, recipe.student.engine.ranks) if context.device == "cpu" else recipe.student.engine.ranks
    workers = SamplerWorkers(processes, device=resolved.device, dtype=resolved.dtype, gpus=context.gpus)
    handle = context.progress.task(f"{context.title}: base and teachers", len(todo) * len(SPLITS))
    try:
        for i, (name, path) in enumerate(todo.items()):
            teacher = name.removeprefix("teachers/")
            own_code = code if name == "base" else resolved.teachers[teacher].model.trusted
            endpoint = None if name == "base" else resolved.teachers[teacher].kind.endpoint
            if endpoint is not None:
                server = endpoint(teacher, recipe.teachers[teacher])
                eval_sampler: Sampler = served_sampler(recipe, server, tokenizer)
            else:
                workers.load(path, adapters.get(name), trust_remote_code=own_code)
                sampler.load_weights(workers, version=0)
                eval_sampler = sampler
            for j, split in enumerate(SPLITS):
                if context.stop.is_set():
                    raise Interrupted("stopped while base and teachers were measured")
                if not evaluator.taken(name, 0, split):
                    evaluator.take(name, step=0, split=split, sampler=eval_sampler)
                handle.advance(i * len(SPLITS) + j + 1, {})
    finally:
        handle.close()
        workers.close()
    return set(todo)


def evaluate_model(model: str, tasks: Sequence[str], prompts: int, *, trust_remote_code: bool = False) -> None:
    """Measure a checkpoint on the test prompts of tasks, greedily, and print their scores with 95% intervals.

    Args:
        tasks: names of shipped tasks, or ``./file.py:NAME`` of a user's own, which is shown as NAME.

    Raises:
        UserError: no shipped task has one of the names, or an own one can't be used.
    """
    recipe = Recipe(
        name="eval",
        method="supervised",
        student=StudentRecipe(model=model),
        domains={task.rpartition(":")[2]: DomainRecipe(task=task) for task in tasks},
    )
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    by_domain = tasks_of(recipe, tokenizer)
    device = resolve_device("auto")
    dtype = "bfloat16" if device == "cuda" else "float32"
    module = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    how = replace(decoding(recipe, tokenizer), greedy=True)
    sampler = StudentSampler(how, samples_per_prompt=1, batch_size=recipe.rollout.batch_size)
    sampler.load_weights(InProcess(module), version=0)
    source = prompt_source(recipe, by_domain, tokenizer, held_out=True)
    rows = evaluate(
        sampler,
        source.held_out("test", prompts, seed=recipe.evaluate.seed),
        lambda asked, texts: verify(by_domain, asked, texts),
        lambda rollout: completion_text(tokenizer, rollout),
        0,
        model=model,
        split="test",
    )
    table = Table("task", "score", "95% interval", "prompts", title=model)
    for task, s in scores(rows).items():
        table.add_row(task, f"{100 * s.score:.1f}", f"{100 * s.low:.1f} to {100 * s.high:.1f}", str(s.n))
    Console().print(table)
