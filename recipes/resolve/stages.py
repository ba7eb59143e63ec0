"""What base and specialists are made from: stages are ordinary runs in ``stages/<name>/``, each after what it needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import reduce
from pathlib import Path
from typing import Any

from mopd.distill.recipe import (
    Architecture,
    DomainRecipe,
    MTPRecipe,
    NegativeLogLikelihood,
    PolicyGradient,
    Recipe,
    RolloutRecipe,
    RunRecipe,
    StageRecipe,
    StudentRecipe,
    TrackRecipe,
    VLLMRecipe,
    WandbRecipe,
)
from mopd.distill.recipe.model_names import PREFIX, stage_name
from mopd.distill.recipe.plugins import plugin_digests
from mopd.recipes.resolve.damage import read_marker, write_marker

LEARN_BY_REWARD = ("mix_rl", "expert_iteration")
"""Methods of a stage whose answers are verified."""


def stage_seed(seed: int, name: str) -> int:
    """A stage's own seed, so that no two stages of a run draw the same prompts: 31 bits of a hash of both."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def stages_before(stage: StageRecipe) -> list[str]:
    """The stages that one needs: what it starts from, or whose tokenizer it takes."""
    source = stage.from_
    name = stage_name(source.tokenizer if isinstance(source, Architecture) else source)
    return [] if name is None else [name]


def stage_domains(stage: StageRecipe, trained: Iterable[str]) -> tuple[str, ...]:
    """The domains that a stage trains on: those it names, else all that the recipe trains, no evaluate_only ones."""
    return stage.domains if stage.domains is not None else tuple(trained)


def stage_recipe(recipe: Recipe, name: str) -> Recipe:
    """The recipe of a stage, as a run of its own: one way to train serves stages and runs alike."""
    stage = recipe.stages[name]
    return Recipe(
        name=f"{recipe.name}-{name}",
        seed=stage_seed(recipe.seed_of_stages, name),
        method=stage.method,
        device=recipe.device,
        student=StudentRecipe(
            model=stage.from_,
            revision=stage.revision,
            trust_remote_code=stage.trust_remote_code,
            engine=stage.engine,
            optimizer=stage.optimizer,
            updates_per_step=stage.updates_per_step,
            lora=stage.lora,
        ),
        domains={
            domain: DomainRecipe(
                task=recipe.domains[domain].task,
                reward=stage.method in LEARN_BY_REWARD,
                prompts=stage.prompts,
                share=stage.shares.get(domain, 1.0),
                easy_share=stage.easy_share,
            )
            for domain in stage_domains(stage, recipe.trained_domains)
        },
        loss=PolicyGradient(estimator="policy_gradient", reward_weight=1.0)
        if stage.method == "mix_rl"
        else NegativeLogLikelihood(estimator="nll"),
        rollout=_stage_rollout(recipe.rollout, stage),
        mtp=stage.mtp,
        evaluate=recipe.evaluate.model_copy(update={"select": "last", "min_headroom": 0.0}),
        faults=recipe.faults,
        run=RunRecipe(
            steps=stage.steps,
            plateau=stage.plateau,
            save_every=stage.save_every,
            keep_checkpoints=1,
            evaluate_every=stage.steps if stage.plateau is None else stage.evaluate_every,
        ),
        track=TrackRecipe(wandb=WandbRecipe(mode="disabled"), rollouts_per_domain=0),
    )


def _stage_rollout(rollout: RolloutRecipe, stage: StageRecipe) -> RolloutRecipe:
    """How a stage's model writes: as the student, alone."""
    alone: dict[str, Any] = {"off_policy": 0.0, "off_policy_steps": None}
    if stage.method != "supervised":
        alone |= {"samples_per_prompt": stage.samples_per_prompt, "keep_verified": stage.keep_verified}
    return rollout.model_copy(update=alone)


LATER_LEAVES: dict[str, Any] = {
    "mtp": MTPRecipe().model_dump(mode="json"),
    "prompt_rule": "fixed",
    "stages_seed": None,
    "rollout.vllm": VLLMRecipe().model_dump(mode="json"),
    "rollout.off_policy": 0.0,
    "rollout.off_policy_steps": None,
    "evaluate.min_headroom": 0.0,
    "run.plateau": None,
    "run.plateau.ceiling": None,
    "run.compute": None,
    "run.lag": 0,
    "run.stale": None,
    "student.engine.packing": False,
    "student.optimizer.decay_steps": 0,
    "student.revision": None,
    "student.model.tokenizer_revision": None,
}
"""Leaves that came later, as they are where they change nothing: stages made before are still known as finished."""
LATER_OF_TASKS: dict[str, Any] = {"sandbox": "auto"}
"""The same of a domain's task."""


def stage_fingerprint(recipe: Recipe, name: str) -> str:
    """A hash of all that a stage's weights depend on: its own recipe and those of the stages before it."""
    from mopd.recipes.resolve.methods import METHODS  # loads transformers, which comparisons don't need

    upstream = "".join(stage_fingerprint(recipe, before) for before in stages_before(recipe.stages[name]))
    # The tokenizer of a model made from scratch is trained on the texts of every domain, so all tasks count.
    tasks = {domain: settings.task for domain, settings in recipe.domains.items()}
    # Not what no weight depends on: names, exams that end nothing, faults, and how a student writes where it writes
    # no answers.
    measured = recipe.stages[name].plateau is not None
    unused = {"name", "faults"} if measured else {"name", "evaluate", "faults"}
    own = stage_recipe(recipe, name).model_dump(mode="json", by_alias=True, exclude=unused)
    for path, default in LATER_LEAVES.items():
        *above, leaf = path.split(".")
        section: Any = reduce(lambda section, key: section.get(key) if isinstance(section, dict) else None, above, own)
        if isinstance(section, dict) and section.get(leaf, default) == default:
            section.pop(leaf, None)
    if not METHODS[recipe.stages[name].method].samples and not measured:
        own["rollout"] = {"temperature": recipe.rollout.temperature}
    texts: dict[str, Any] = {d: t if isinstance(t, str) else t.model_dump() for d, t in tasks.items()}
    for task in (*texts.values(), *(domain["task"] for domain in own["domains"].values())):
        for leaf, default in LATER_OF_TASKS.items() if isinstance(task, dict) else ():
            if task.get(leaf) == default:
                del task[leaf]
    content = json.dumps([upstream, own, texts, *plugin_digests([own, texts]).items()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def stage_folder(out: Path, name: str) -> Path:
    """Where a stage runs."""
    return out / "stages" / name


def adapter_folder(out: Path, name: str) -> Path:
    """Where the adapter lies that a stage with `lora` has trained."""
    return (stage_folder(out, name) / "adapter").absolute()


def model_path(source: str | Architecture, *, out: Path, folder: Path) -> str:
    """Where the weights that ``source`` names lie: a stage's result, a path, a Hub id, or the initial checkpoint made
    from an architecture in ``folder``."""
    if isinstance(source, Architecture):
        return str(folder / "initial")
    if source.startswith(PREFIX):
        return str(stage_folder(out, source.removeprefix(PREFIX)) / "student")
    return source


def finished(out: Path, name: str, fingerprint: str) -> bool:
    """Whether a stage's result is there, and was made as ``fingerprint`` says (:func:`stage_fingerprint`)."""
    return read_marker(stage_folder(out, name)).get("fingerprint") == fingerprint


def mark_finished(out: Path, name: str, fingerprint: str, *, steps: int) -> None:
    """Note that a stage's result is whole."""
    write_marker(stage_folder(out, name), stage=name, fingerprint=fingerprint, steps=steps)


def run_stages(
    stages: Mapping[str, StageRecipe], run_one: Callable[[str], None], *, parallel: int, stop: Callable[[], None]
) -> None:
    """Run every stage once what it starts from is there, up to ``parallel`` at a time.

    Args:
        stages: by name, without cycles; those already finished are to be left out.
        run_one: runs one stage to its end.
        stop: asks the stages under way to end; called when one fails.

    Raises:
        Exception: what the first failing stage raised, after the others have ended.
    """

    def end(name: str, error: BaseException) -> bool:
        stop()
        return False

    needed = {name: stages_before(stage) for name, stage in stages.items()}
    for failure in run_jobs(needed, run_one, parallel=parallel, goes_on=end).values():
        raise failure


def run_jobs(
    needs: Mapping[str, Collection[str]],
    run_one: Callable[[str], None],
    *,
    parallel: int,
    goes_on: Callable[[str, BaseException], bool],
) -> dict[str, BaseException]:
    """Run every job once those that it needs are done, up to ``parallel`` at a time, each in a thread.

    Args:
        needs: by job, in the order in which they are to begin; without cycles. What is no job itself counts as done.
        run_one: runs a job to its end.
        goes_on: told of every failure at once; whether further jobs may begin.

    Returns:
        What the failed jobs raised, in the order in which they failed. A job that needs a failed one is not begun.
    """
    waiting = dict(needs)
    running: dict[Future[None], str] = {}
    failures: dict[str, BaseException] = {}
    may_begin = True
    with ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="job") as pool:
        while True:
            unfinished = {*waiting, *running.values(), *failures}
            ready = [job for job, others in waiting.items() if unfinished.isdisjoint(others)]
            for job in ready[: parallel - len(running)] if may_begin else []:
                del waiting[job]
                running[pool.submit(run_one, job)] = job
            if not running:
                return failures
            # With a time limit, so that the main thread can take a Ctrl-C.
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                if (error := future.exception()) is not None:
                    failures[job] = error
                    may_begin = goes_on(job, error) and may_begin
