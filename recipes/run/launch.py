"""The composition root: a recipe becomes a run, its stages, its measurements and its report."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mopd.distill.hosts import HOSTS
from mopd.distill.metrics.results import build_seesaw
from mopd.distill.metrics.stop_rule import stop_reason
from mopd.distill.recipe import Architecture, DomainRecipe, ModelReference, Recipe
from mopd.distill.recipe.model_names import stage_name
from mopd.distill.recipe.plugins import plugin_digests
from mopd.distill.storage import check_current, claim, write_atomic
from mopd.distill.student.rank import import_libraries
from mopd.distill.tracking.console import Progress
from mopd.distill.tracking.ledger import ledger_of, read_ledger
from mopd.distill.tracking.tracker import Tracker
from mopd.recipes.check.models import NOT_EXPORTED
from mopd.recipes.check.static import check
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.evaluator import Evaluator, exam_settings
from mopd.recipes.evaluation.own_tokens import SamplersInOwnTokens
from mopd.recipes.report.data import load_run
from mopd.recipes.report.page import table_of, write_page
from mopd.recipes.resolve.checkpoints import downloaded, local_folder
from mopd.recipes.resolve.damage import note_adapters, read_marker, refuse_damaged, result_damage, write_marker
from mopd.recipes.resolve.data import note_data, prompt_source, tasks_of
from mopd.recipes.resolve.initial import load_tokenizer, make_initial
from mopd.recipes.resolve.methods import MadeMethod
from mopd.recipes.resolve.placement import (
    ResourceRequest,
    check_cluster,
    cluster_gpus,
    resource_requests,
    stage_requests,
    stages_at_a_time,
)
from mopd.recipes.resolve.resolved import Resolved, resolve
from mopd.recipes.resolve.run_folder import DATA, kept, move_aside, note_environment, note_recipe, refuse_changed_recipe
from mopd.recipes.resolve.sources import MODELS, left_out_weights, note_models, trusted_leaves
from mopd.recipes.resolve.stages import (
    finished,
    mark_finished,
    model_path,
    run_stages,
    stage_fingerprint,
    stage_folder,
    stage_recipe,
)
from mopd.recipes.resolve.teacher_prompts import own_tokenizers, prompts_in
from mopd.recipes.resolve.teachers import ResolvedTeacher, with_folders
from mopd.recipes.run.baselines import measure_frozen, refuse_low_headroom
from mopd.recipes.run.cluster import ray_cluster
from mopd.recipes.run.context import RunContext, end_reports, noting_its_end, quieten_libraries, stopping
from mopd.recipes.run.job import Training
from mopd.recipes.run.made_student import make_student
from mopd.recipes.run.samplers import frozen_teacher
from mopd.recipes.run.tracking import artifacts_of, start_sinks
from mopd.rollouts.engines import engine_of
from mopd.rollouts.engines.base import FrozenModel
from mopd.rollouts.tasks import fingerprint


def run(recipe: Recipe, out: Path, *, restart: bool = False) -> None:
    """Run a recipe to its end in the folder ``out``, or go on with what is there.

    Raises:
        UserError: the recipe can't run as it is, another recipe was begun in ``out``, or another process runs there.
        RunError: the world broke; the same command goes on from the last checkpoint.
        Interrupted: Ctrl-C or SIGTERM; the step was finished and saved.
    """
    out = Path(os.path.realpath(out))  # it goes to actors, whose working folder may be another
    resolved = resolve(recipe)
    warnings = check(resolved, out).warnings
    quieten_libraries(resolved.device)
    if restart:
        move_aside(out)
    refuse_changed_recipe(recipe, out)
    with claim(out) as attempt, Progress(title=recipe.name) as progress, stopping(progress, partial(kept, out)) as stop:
        for warning in warnings:
            progress.print(f"warning: {warning}")
        if not is_finished(out) or result_damage(out):
            context = RunContext(out, recipe.name, resolved.device, progress, stop)
            with (
                noting_its_end(context, attempt),
                ray_cluster(out, niceness=recipe.run.niceness, device=resolved.device),
            ):
                carry_out(resolved, context, attempt)
        end_reports()
        data = load_run(out)
        write_page(data)
        for warning in warnings:
            if NOT_EXPORTED in warning and warning.startswith("`student.model`"):
                progress.print(f"{out / 'student'} is not all of what it was made from: {warning}")
    console = Console()
    console.print(table_of(data))
    console.print(Text(f"report: {out / 'report.html'}"), soft_wrap=True)


def is_finished(out: Path) -> bool:
    """Whether every result of a run is there."""
    return bool(read_marker(out))


def say_damage(folder: Path, what: str, context: RunContext) -> None:
    """Name what is wrong with a result that is about to be made again."""
    if problems := result_damage(folder):
        context.progress.print(
            f"{what}: its student is damaged ({'; '.join(problems)}); it is made again from the last checkpoint"
        )


def carry_out(resolved: Resolved, context: RunContext, attempt: str) -> None:
    """Bring a run that was checked to its end in the folder ``context.out``, which ``attempt`` owns."""
    check_cluster(resolved)
    recipe = resolved.recipe
    say_damage(context.out, recipe.name, context)
    for sentence in refuse_changed_recipe(recipe, context.out):
        context.progress.print(sentence)
    note_recipe(recipe, context.out)
    note_environment(context.out / "environment.json")
    for sentence in note_models(resolved.models.values(), context.out / MODELS):
        context.progress.print(sentence)
    context.report_soon()
    todo = {
        name: stage
        for name, stage in recipe.stages.items()
        if not finished(context.out, name, stage_fingerprint(recipe, name))
        or result_damage(stage_folder(context.out, name))
    }
    prepare_processes(
        resolved.device, resource_requests(resolved), stages=len(todo), parallel=recipe.run.parallel_stages
    )
    run_stages(
        todo,
        lambda name: make_stage(resolved, name, context),
        parallel=stages_at_a_time(stage_requests(resolved), most=recipe.run.parallel_stages, gpus=cluster_gpus()),
        stop=context.stop.set,
    )
    HOSTS.prepare_later()  # unless a stage has trained
    distill(replace(resolved, teachers=with_folders(resolved.teachers, context.out)), context, attempt)
    write_marker(context.out, steps=recipe.run.steps)


def prepare_processes(device: str, requests: Iterable[ResourceRequest], *, stages: int, parallel: int) -> None:
    """Start as many processes as stages will want at a time, so that the later ones import while the first one works;
    those that the run itself will want besides (``requests``) are left for when a stage trains."""
    if device != "cpu":
        return
    now = max(2, min(stages, parallel))
    ranks, *others = requests
    anywhere = [request.count for request in others if not request.each]
    wanted = sum(anywhere) + (ranks.count if ranks.count == 1 else 0)  # several ranks are processes of their own
    HOSTS.prepare(now, import_libraries, device, later=max(0, wanted - now))


def make_stage(resolved: Resolved, name: str, context: RunContext, *, title: str | None = None) -> None:
    """Train one stage of a recipe, or go on with it; what it starts from is there. People know it as ``title``."""
    recipe, folder = resolved.recipe, stage_folder(context.out, name)
    stage = resolve(stage_recipe(recipe, name))
    say_damage(folder, f"stage {title or name}", context)
    with (
        claim(folder) as attempt,
        Tracker(
            folder,
            sinks=start_sinks(recipe, folder, stage=name, trained=stage.recipe, say=context.progress.print),
            may_write=partial(check_current, folder, attempt),
        ) as tracker,
    ):
        model = starting_model(
            stage.recipe.student.reference,
            recipe.domains,
            stage.recipe.seed,
            out=context.out,
            folder=folder,
            attempt=attempt,
        )
        tests = None if stage.recipe.run.plateau is None else 0
        job = training(stage, folder, attempt, model=model, teachers={}, tracker=tracker, tests=tests, is_stage=True)
        steps = job.run(context, title=title or name)
        write_ledger(folder)
        mark_finished(context.out, name, stage_fingerprint(recipe, name), steps=steps)
        start = ("base", stage.recipe.student.reference, model)
        domains = stage.recipe.trained_domains
        tracker.show_artifacts(artifacts_of(recipe.name, folder, domains=domains, start=start, teachers={}, stage=name))
    context.report_soon()


def distill(resolved: Resolved, context: RunContext, attempt: str) -> None:
    """The run itself: measure base and teachers, train the student, write the results."""
    recipe, out = resolved.recipe, context.out
    with Tracker(
        out,
        sinks=start_sinks(recipe, out, say=context.progress.print),
        may_write=partial(check_current, out, attempt),
    ) as tracker:
        model = starting_model(
            recipe.student.reference, recipe.domains, recipe.seed_of_stages, out=out, folder=out, attempt=attempt
        )
        teachers = teacher_folders(resolved.routes, resolved.teachers, out)
        tests = recipe.evaluate.test_prompts
        job = training(resolved, out, attempt, model=model, teachers=teachers, tracker=tracker, tests=tests)
        evaluator = job.evaluator
        assert evaluator is not None
        graded_by = {
            name
            for domain in recipe.domains.values()
            for name in domain.teacher_weights
            if resolved.teachers[name].kind.can_write  # else it is measured on nothing
        }
        frozen = {f"teachers/{name}": model for name, model in job.frozen.items() if name in graded_by}
        base = (
            on_disk(model_path(resolved.start, out=out, folder=out))
            if resolved.start != recipe.student.reference
            else model
        )
        frozen = {"base": FrozenModel(base, trust_remote_code=recipe.student.trust_remote_code)} | frozen
        own = {f"teachers/{name}": name for name in job.own_tokenizers}
        alike = {name: model for name, model in frozen.items() if name not in own}
        measure_frozen(alike, context, evaluator, partial(job.samplers, context))
        for name in [name for name in frozen if name in own]:
            measure_frozen({name: frozen[name]}, context, evaluator, partial(in_own_tokens, job, context, own[name]))
        context.report_soon()
        taught = {name: domain.teacher_weights for name, domain in recipe.domains.items()}
        refuse_low_headroom(evaluator.rows, taught, recipe.evaluate.min_headroom, title=context.title)
        method = resolved.method
        if isinstance(method, MadeMethod):
            last = make_student(method, job, context)
        else:
            last = job.run(context, title=context.title)
        seesaw = build_seesaw(
            evaluator.rows,
            teachers=taught,
            fingerprints={name: fingerprint(task, seed=recipe.evaluate.seed) for name, task in job.tasks.items()},
        )
        why = stop_reason(recipe.stop, tracker.rows("eval"))
        if why is not None:
            context.progress.print(f"ended after step {last} of {recipe.run.steps} by `stop`: {why}")
        seesaw |= {"trials": recipe.trials, "selected": asdict(evaluator.selected(last))}
        seesaw |= {"stopped": None if why is None else {"step": last, "why": why}}
        write_atomic(out / "seesaw.json", json.dumps(seesaw, indent=2) + "\n")
        tracker.summarize(seesaw)
        start = ("base" if base == model else "start", recipe.student.reference, model)
        asked = {name: (resolved.teachers[name], path) for name, path in teachers.items()}
        shown = artifacts_of(recipe.name, out, domains=taught, start=start, teachers=asked, tasks=seesaw["tasks"])
        tracker.show_artifacts(shown)
    write_ledger(out, recipe.stages)


def in_own_tokens(job: Training, context: RunContext, teacher: str, closing: ExitStack) -> SamplersInOwnTokens:
    """What measures a teacher of another tokenizer; the processes end with ``closing``."""
    tokenizer = job.own_tokenizers[teacher].tokenizer
    prompt_of = prompts_in(teacher, tokenizer, job.tasks)
    return SamplersInOwnTokens(job.samplers(context, closing, teacher), prompt_of, tokenizer)


def starting_model(
    source: ModelReference, domains: Mapping[str, DomainRecipe], seed: int, *, out: Path, folder: Path, attempt: str
) -> str:
    """The checkpoint that a run or a stage in ``folder`` starts from; initialised here where it is an architecture.

    Args:
        domains: of the whole run: a tokenizer is trained on the texts of all of them.
        seed: of the random weights.
    """
    path = model_path(source, out=out, folder=folder)
    if isinstance(source, Architecture):
        taken = source.tokenizer_reference
        of = None if taken is None else on_disk(model_path(taken, out=out, folder=folder), weights=False)
        make_initial(source, Path(path), domains=domains, seed=seed, run_dir=folder, attempt=attempt, tokenizer_of=of)
        return path
    return on_disk(path)


def teacher_folders(
    routes: Mapping[str, Mapping[str, float]], teachers: Mapping[str, ResolvedTeacher], out: Path
) -> dict[str, str]:
    """The checkpoint of every teacher that is asked, by name; their adapters are those that the run began with."""
    used = {teacher for weights in routes.values() for teacher in weights}
    asked = [teacher for name, teacher in teachers.items() if name in used and teacher.adapter is not None]
    given = {teacher.adapter for teacher in asked if stage_name(teacher.settings.adapter) is None}
    note_adapters([folder for folder in given if folder is not None], out)
    for teacher in asked:  # a stage's is sealed
        refuse_damaged(teacher.adapter or "", "remove the stage's folder, and the same command makes it again")
    models = {name: teacher.model for name, teacher in teachers.items() if name in used}
    return {
        name: on_disk(model_path(model.source, out=out, folder=out), weights=model.has_weights)
        for name, model in models.items()
    }


def on_disk(source: str, *, weights: bool = True) -> str:
    """The folder of a checkpoint, wherever an actor's working folder is; a Hub model is downloaded."""
    folder = downloaded(local_folder(source, weights=weights))
    if weights:
        refuse_damaged(folder, "put it back as it was, or name another checkpoint")
    return str(Path(folder).resolve())


def training(
    resolved: Resolved,
    folder: Path,
    attempt: str,
    *,
    model: str,
    teachers: Mapping[str, str],
    tracker: Tracker,
    tests: int | None,
    is_stage: bool = False,
) -> Training:
    """A run or a stage, ready to be trained.

    Args:
        tests: prompts of the test split that it is measured on, a domain, beside those of validation; None: on nothing.
    """
    recipe, method, kept = resolved.recipe, resolved.method, bool(resolved.recipe.mtp.heads)
    tokenizer = load_tokenizer(model, trust_remote_code=resolved.models["student.model"].trusted)
    tasks = tasks_of(recipe.domains, tokenizer)
    note_data(tasks, folder / DATA)
    costs = Costs(
        model,
        teachers,
        writes=method.samples or method.teachers_write,
        trusted=trusted_leaves(resolved.models.values()),
    )
    evaluator = None
    if tests is not None:
        rollout = recipe.rollout
        evaluator = Evaluator(
            recipe.evaluate.model_copy(update={"test_prompts": tests}),
            folder,
            teachers={name: domain.teacher_weights for name, domain in recipe.trained_domains.items()},
            written_with=(
                *(rollout.max_new_tokens, rollout.batch_size, recipe.student.engine.dtype),
                *(*plugin_digests(rollout.engine).items(), *exam_settings(recipe.evaluate)),
                *([rollout.engine] if engine_of(rollout.engine, workers=rollout.workers).own_answers else []),
            ),
            source=prompt_source(recipe.domains, tasks, tokenizer, seed=recipe.seed),
            tasks=tasks,
            tokenizer=tokenizer,
            tracker=tracker,
            costs=costs,
        )
    return Training(
        resolved=resolved,
        folder=folder,
        attempt=attempt,
        model=model,
        teachers=teachers,
        own_tokenizers=own_tokenizers(resolved.teachers, teachers),
        frozen={name: frozen_teacher(resolved.teachers[name], folder) for name, folder in teachers.items()},
        tokenizer=tokenizer,
        tasks=tasks,
        tracker=tracker,
        costs=costs,
        evaluator=evaluator,
        is_stage=is_stage,
        left_out=() if is_stage else left_out_weights(resolved.models, "student.model", keeps_heads=kept),
    )


def write_ledger(out: Path, stages: Collection[str] = ()) -> None:
    """``ledger.json`` of a run and, under their names, of its stages; of a stage, that of itself."""
    ledger = ledger_of(out)
    for name in stages:
        ledger.include(read_ledger(stage_folder(out, name) / "ledger.json"), stage=name)
    ledger.write(out / "ledger.json")
