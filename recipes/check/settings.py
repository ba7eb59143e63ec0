"""Settings of a recipe against each other: extrapolation, the rule of shares, the stop rule; leaves without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.payload_rows import payload_spec
from mopd.distill.recipe import (
    DomainRecipe,
    Engine,
    EvaluateRecipe,
    Gated,
    GymSource,
    MTPRecipe,
    RolloutRecipe,
    RunRecipe,
    Source,
    StageRecipe,
    StaleRecipe,
    StopRecipe,
    StudentRecipe,
    TeacherRecipe,
)
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.model_names import SELF
from mopd.distill.recipe.schema.rollout import Truncated
from mopd.recipes.check.teachers import WHAT_SCORES
from mopd.recipes.resolve.methods import METHODS, MadeMethod, Method
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.stages import stage_domains
from mopd.rollouts.engines import ENGINES, engine_of
from mopd.rollouts.engines.base import RolloutEngine


def check_loss(resolved: Resolved) -> Iterator[str]:
    """Every problem of the loss, the rule of shares and the stop rule, each a sentence."""
    recipe, trained = resolved.recipe, resolved.recipe.trained_domains
    yield from _extrapolation(resolved.loss, recipe.teachers, trained)
    taught = any(domain.teacher_weights for domain in trained.values())
    yield from check_stop(recipe.stop, recipe.run, graded=taught and recipe.evaluate.graded_prompts > 0)
    if recipe.share_rule != "explicit":
        yield from _share_rule(recipe.share_rule, resolved.loss, trained)
        if resolved.teachers_write and resolved.loss.payload is not None:
            yield (
                f"`share_rule` is {recipe.share_rule}, and reads the gap to the teachers from the student's own draws, "
                "and here teachers write; set it to explicit"
            )
    if recipe.prompt_rule != "fixed":
        yield from _prompt_rule(resolved.method, trained)


def check_stop(stop: StopRecipe, run: RunRecipe, *, graded: bool) -> Iterator[str]:
    """Every problem of the stop rule: one that could never fire is refused.

    Args:
        graded: whether teachers grade held-out prompts.
    """
    bounds = {name: getattr(stop, name) for name in type(stop).model_fields if name != "evaluations"}
    if all(bound is None for bound in bounds.values()):
        if stop.evaluations != type(stop).model_fields["evaluations"].default:
            names = ", ".join(bounds)
            yield f"`stop.evaluations` is set and would change nothing: set a bound ({names}) as well, or remove it"
        return
    if run.steps // run.evaluate_every + (run.steps % run.evaluate_every > 0) < stop.evaluations:
        yield (
            f"`stop.evaluations` is {stop.evaluations}, and {run.steps} steps have fewer evaluations at one in "
            f"{run.evaluate_every} (`run.evaluate_every`): the rule could never fire; lower one of them"
        )
    if stop.kl is not None and not graded:
        yield (
            "`stop.kl` is a bound of the held-out KL, and no teacher grades held-out prompts; raise "
            "`evaluate.graded_prompts`, give a domain a teacher, or take the bound away"
        )


def check_lag(name: str, method: Method | MadeMethod, run: RunRecipe) -> Iterator[str]:
    """Every problem of `run.lag`, each a sentence.

    Args:
        name: of the method.
    """
    if not run.lag:
        return
    where = f"`run.lag` is {run.lag}"
    if not method.samples:
        yield f"{where}, and in method {name} the student writes no rollouts, which could be older than it; set it to 0"
    elif method.heads_alone:
        yield f"{where}, and method {name} moves no weight that writes rollouts; set it to 0"
    elif run.lag >= run.steps:
        yield (
            f"{where}, and the run has {run.steps} steps (`run.steps`): all rollouts would be written with the weights "
            "at the start; lower it, or take more steps"
        )


def check_stale(
    stale: StaleRecipe | None, method: Method | MadeMethod, loss: BoundLoss, rollout: RolloutRecipe
) -> Iterator[str]:
    """Every problem of `run.stale`, each a sentence."""
    if stale is None or not method.trains:
        return
    if not method.samples:
        yield "`run.stale` is set, and in this method the student writes no rollouts that could be; remove it"
    elif loss.payload is None and not loss.custom:
        yield f"`run.stale` is set, and {loss.estimator} knows no ratio of policy to sampler; remove it"
    elif stale.action == "mask" and isinstance(loss.settings, Gated):
        yield (
            f"`run.stale.action` is mask, and `loss.gate` of {loss.estimator} leaves out single tokens already; set "
            "that, or take drop"
        )
    if rollout.off_policy:
        yield (
            "`run.stale` is set, and teachers write a part of the rollouts (`rollout.off_policy`): the student never "
            "was where they are; remove one of the two"
        )


def _share_rule(rule: str, loss: BoundLoss, trained: Mapping[str, DomainRecipe]) -> Iterator[str]:
    where = f"`share_rule` is {rule}"
    if loss.payload is None:
        yield f"{where}, and {loss.estimator} has neither advantages nor a gap to teachers; set it to explicit"
    elif loss.custom_payload and not payload_spec(loss.payload).tells_sampled:
        yield (
            f"{where}, and the payload of {loss.estimator} does not tell the log-probability of the sampled tokens; "
            f"give its class a method `sampled_logprobs`, or set it to explicit"
        )
    elif loss.payload == "hidden":
        yield (
            f"{where}, and hidden states tell no advantage before they meet their head, which is in the update; set it "
            f"to explicit, or `loss.payload` to full"
        )
    elif len(trained) == 1:
        yield f"{where}, and one domain has the whole loss; set it to explicit"
    if rule == "gap_following":
        for name, domain in trained.items():
            if not domain.teacher_weights:
                yield f"{where}, and domain {name!r} has no teacher to be away from; name one, or use another rule"


def _prompt_rule(method: Method | MadeMethod, trained: Mapping[str, DomainRecipe]) -> Iterator[str]:
    where = "`prompt_rule` is gap_following"
    if not method.teachers_grade:
        yield f"{where}, and no teacher grades in this method, so no step tells a gap; set it to fixed"
    elif len(trained) == 1:
        yield f"{where}, and one domain has all prompts; set it to fixed"
    for name, domain in trained.items():
        if not domain.teacher_weights:
            yield f"{where}, and domain {name!r} has no teacher to be away from; name one, or set it to fixed"


def _extrapolation(
    loss: BoundLoss, teachers: Mapping[str, TeacherRecipe], trained: Mapping[str, DomainRecipe]
) -> Iterator[str]:
    if not loss.extrapolates:
        return
    name = loss.reference
    if name is None:
        if loss.extrapolation != 1:
            yield (
                f"`loss.extrapolation` is {loss.extrapolation:g}, and no `loss.reference` says what to go away from; "
                f"write `teachers: {{anchor: {{model: self}}}}` and `loss: {{reference: anchor}}`, or set it to 1"
            )
        return
    if loss.extrapolation == 1:
        yield (
            f"`loss.reference` is {name!r} and would change nothing (`loss.extrapolation` is 1: the teacher itself); "
            f"remove it, or extrapolate"
        )
    if name not in teachers:
        yield f"`loss.reference`: no teacher {name!r} is declared under `teachers`; {guess(name, teachers)}"
    elif teachers[name].model != SELF:
        yield (
            f"`loss.reference` is the teacher {name!r}, whose model is {teachers[name].model}; what the student "
            f"goes away from is where it starts: name a teacher whose model is self"
        )
    elif teachers[name].own_prompt is not None:
        yield (
            f"`loss.reference` is the teacher {name!r}, which reads a prompt of its own; what the student goes away "
            "from is itself on its own prompt: name a teacher without `prompt`"
        )
    if not any(teacher != name for domain in trained.values() for teacher in domain.teacher_weights):
        yield (
            "`loss.extrapolation` goes beyond a teacher, and no domain has one; give a domain a `teacher`, or take "
            "`loss.extrapolation` and `loss.reference` away"
        )


# ---- leaves without effect


def idle_leaves(resolved: Resolved) -> Iterator[str]:
    """A warning for every leaf that is set and changes nothing in this recipe, with why."""
    recipe, method = resolved.recipe, resolved.method
    writer = engine_of(recipe.rollout.engine, workers=recipe.rollout.workers)
    if not method.selects:
        yield from _set(recipe.rollout, "rollout", ("keep_verified",), f"{recipe.method} keeps all of them")
    yield from _idle_cuts(recipe.rollout.truncated, method, recipe.trained_domains, recipe.stages)
    yield from _unsampled(recipe.evaluate)
    yield from _untrained(resolved, writer)
    yield from _drafts(recipe.mtp, recipe.student.engine, recipe.rollout, writer, "")
    for name, stage in recipe.stages.items():
        yield from _of_stage(f"stages.{name}", stage, recipe.rollout, writer)
    for name, domain in recipe.domains.items():
        if domain.evaluate_only:
            yield from _set(domain, f"domains.{name}", ("prompts", "share", "easy_share"), "it is evaluate_only")
        elif isinstance(domain.task, Source):
            yield from _set(domain, f"domains.{name}", ("easy_share",), "a dataset has no easy form")
        elif isinstance(domain.task, GymSource) and not domain.task.easy:
            yield from _set(domain, f"domains.{name}", ("easy_share",), "its `easy` has no settings")
    for name, stage in recipe.stages.items():
        trained = stage_domains(stage, recipe.trained_domains)
        tasks = [recipe.domains[domain].task for domain in trained if domain in recipe.domains]
        if len(trained) == 1:
            yield from _set(stage, f"stages.{name}", ("shares",), "it trains one domain")
        if all(isinstance(task, Source) or (isinstance(task, GymSource) and not task.easy) for task in tasks):
            yield from _set(stage, f"stages.{name}", ("easy_share",), "none of its tasks has an easy form")
    if recipe.method == "supervised":
        leaves = ("samples_per_prompt", "temperature", *_own_workers(writer))
        yield from _set(recipe.rollout, "rollout", leaves, "a supervised run samples nothing it trains on")
    for engine in ENGINES.values():
        if engine.section is not None and engine.section != writer.section:
            section, why = getattr(recipe.rollout, engine.section), f"`rollout.engine` is {recipe.rollout.engine}"
            yield from _set(section, f"rollout.{engine.section}", tuple(type(section).model_fields), why)
    if not recipe.teachers:
        leaves = ("retries", "backoff_seconds", "microbatch_seconds")
        unread = ("microbatch_seconds",) if writer.asks_again else leaves
        yield from _set(recipe.faults, "faults", unread, "the recipe has no teachers")
    elif recipe.faults.retries == 0:
        yield from _set(recipe.faults, "faults", ("backoff_seconds",), "a lost microbatch is never asked again")
    for name, teacher in recipe.teachers.items():
        unread = resolved.teachers[name].kind.unread_keys(teacher)
        if "gpus" not in unread and "cpu" in (teacher.device, recipe.device if teacher.device == "auto" else ""):
            unread["gpus"] = "it scores on the CPU"
        for leaf, why in unread.items():
            if leaf in WHAT_SCORES:
                continue  # refused
            yield from _set(teacher, f"teachers.{name}", (leaf,), why)
        if method.teachers_write and not method.teachers_grade:
            yield from _set(teacher, f"teachers.{name}", ("replicas",), f"{recipe.method} gives each writer a process")
    if method.trains and (not method.teachers_grade or not recipe.teachers):
        yield from _set(recipe.run, "run", ("resident_teachers",), "no teacher grades")
    if resolved.device == "cpu":
        yield from _set(recipe.student.engine, "student.engine", ("gpus",), "the run is on the CPU")
        yield from _set(recipe.rollout, "rollout", ("gpus",), "the run is on the CPU")
        for name, stage in recipe.stages.items():
            yield from _set(stage.engine, f"stages.{name}.engine", ("gpus",), "the run is on the CPU")
    yield from _of_adapters(recipe.student, recipe.stages, {n: recipe.teachers[n] for n in resolved.on_student})
    if not recipe.stages:
        yield from _set(recipe.run, "run", ("parallel_stages",), "the recipe has no stages")


def _of_stage(where: str, stage: StageRecipe, rollout: RolloutRecipe, writer: RolloutEngine) -> Iterator[str]:
    """Leaves of a stage that its method does not read."""
    method = METHODS[stage.method]
    if not method.samples:
        yield from _set(stage, where, ("samples_per_prompt",), "it samples nothing it trains on")
        yield from _set(stage.mtp, f"{where}.mtp", ("drafts",), "it samples nothing it trains on")
    if not method.selects:
        yield from _set(stage, where, ("keep_verified",), f"{stage.method} keeps all of them")
    if stage.plateau is None:
        yield from _set(stage, where, ("evaluate_every",), "without `plateau` it measures nothing")
    if method.samples or not stage.mtp.heads:
        yield from _drafts(stage.mtp, stage.engine, rollout, writer, f"{where}.")


def _unsampled(evaluate: EvaluateRecipe) -> Iterator[str]:
    if not evaluate.samples_per_prompt:
        why = "no answers are sampled (`evaluate.samples_per_prompt`)"
        yield from _set(evaluate, "evaluate", ("temperature", "top_p", "top_k"), why)


def _drafts(mtp: MTPRecipe, engine: Engine, rollout: RolloutRecipe, writer: RolloutEngine, where: str) -> Iterator[str]:
    """Draft heads that are not there, or learn in a run whose sampler cannot use them."""
    if not mtp.heads:
        leaves = tuple(name for name in type(mtp).model_fields if name != "heads")
        yield from _set(mtp, f"{where}mtp", leaves, f"`{where}mtp.heads` is 0")
    if not mtp.heads or not mtp.drafts:
        return
    if engine.expert_parallel > 1 and not rollout.workers:
        yield (
            f"`{where}mtp.drafts` is {mtp.drafts} and changes nothing: ranks that share experts take equally many "
            f"forwards, so the student writes without drafts; set `rollout.workers`, or `{where}mtp.drafts: 0`"
        )
    elif not writer.speculates:
        yield f"`{where}mtp.drafts` is {mtp.drafts} and changes nothing where `rollout.engine` is {rollout.engine}"


_CUTS_WHY = {
    "mask": "nothing that is sampled is trained on",
    "zero_reward": "no verifier gives a reward",
}


def _idle_cuts(
    truncated: Truncated,
    method: Method | MadeMethod,
    trained: Mapping[str, DomainRecipe],
    stages: Mapping[str, StageRecipe],
) -> Iterator[str]:
    """Where nothing trains on rollouts that can be cut, or gives them a reward that could be 0."""
    counts = any(METHODS[stage.method].samples for stage in stages.values())
    if truncated == "mask":
        counts = counts or method.samples or method.teachers_write
    if truncated == "zero_reward":
        counts = counts or (method.rewards and any(domain.reward for domain in trained.values()))
    if truncated != "learn" and not counts:
        yield f"`rollout.truncated` is set and changes nothing: {_CUTS_WHY[truncated]}"


def _of_adapters(
    student: StudentRecipe, stages: Mapping[str, StageRecipe], on_student: Mapping[str, TeacherRecipe]
) -> Iterator[str]:
    """What is read of no model under an adapter, and of no teacher that is the student without its own."""
    trained: dict[str, StudentRecipe | StageRecipe] = {"student": student}
    for where, settings in {**trained, **{f"stages.{name}": stage for name, stage in stages.items()}}.items():
        if settings.lora is not None:
            why = "under an adapter the routers' biases stay as they are"
            yield from _set(settings.engine, f"{where}.engine", ("expert_bias_rate",), why)
    for name, teacher in on_student.items():
        leaves = ("replicas", "gpus", "device", "dtype", "resources")
        why = "it is the student without its adapter, and scored by the student's own ranks"
        yield from _set(teacher, f"teachers.{name}", leaves, why)


def _untrained(resolved: Resolved, writer: RolloutEngine) -> Iterator[str]:
    """What only a run that trains its student reads, and what only a merge does."""
    recipe = resolved.recipe
    if recipe.method != "merge":
        yield from _set(recipe.merge, "merge", ("how", "strengths"), "only method merge reads it")
    elif recipe.merge.how == "average":
        yield from _set(recipe.merge, "merge", ("strengths",), "the average has one strength")
    if resolved.method.trains:
        return
    why = f"a {recipe.method} trains no student"
    run = tuple(name for name in type(recipe.run).model_fields if name != "parallel_stages")
    yield from _set(recipe.run, "run", run, why)
    yield from _set(recipe.student, "student", ("optimizer", "updates_per_step", "lora"), why)
    yield from _set(recipe.rollout, "rollout", ("samples_per_prompt", "temperature", *_own_workers(writer)), why)
    yield from _set(recipe, "", ("share_rule", "stop", "mtp"), why)


def _own_workers(writer: RolloutEngine) -> tuple[str, ...]:
    """The leaf of worker processes, where they are nothing but those that write what is trained on."""
    return () if writer.workers_measure else ("workers",)


def _set(section: Any, where: str, names: tuple[str, ...], why: str) -> Iterator[str]:
    for name in names:
        default = type(section).model_fields[name].get_default(call_default_factory=True)
        if getattr(section, name) != default:
            yield f"`{where}{'.' if where else ''}{name}` is set and changes nothing: {why}"
