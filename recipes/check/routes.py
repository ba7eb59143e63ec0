"""Checks of a recipe by itself: routes from domains to teachers, stages, methods, rewards. Nothing is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from mopd.distill.loss.registry import LOSSES, OWN_PAYLOADS, BoundLoss
from mopd.distill.recipe import (
    Architecture,
    DomainRecipe,
    ModelReference,
    Optimizer,
    RolloutRecipe,
    RunRecipe,
    StageRecipe,
    StudentRecipe,
    TeacherRecipe,
)
from mopd.distill.recipe.messages import guess
from mopd.distill.recipe.model_names import SELF, stage_name
from mopd.distill.recipe.plugins import is_plugin
from mopd.recipes.check.settings import check_lag, check_loss, check_stale
from mopd.recipes.check.teachers import check_teachers
from mopd.recipes.check.writers import check_writers
from mopd.recipes.resolve.methods import METHODS, MadeMethod, Method
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.sources import ModelSource, chain
from mopd.recipes.resolve.stages import stage_domains, stages_before
from mopd.recipes.resolve.teachers import group_key, placement


def check_routes(resolved: Resolved, *, tasks: Collection[str]) -> list[str]:
    """Every problem of a recipe that shows without loading anything, each a sentence.

    Args:
        tasks: names of the shipped tasks.
    """
    recipe = resolved.recipe
    return [
        *_tasks(recipe.domains, tasks),
        *_teachers(resolved),
        *_method(resolved),
        *check_writers(recipe.rollout, recipe.domains, recipe.teachers, resolved.method, resolved.loss),
        *_rewards(resolved.method, resolved.loss, recipe.domains, recipe.rollout.samples_per_prompt),
        *check_loss(resolved),
        *check_lag(recipe.method, resolved.method, recipe.run),
        *check_stale(recipe.run.stale, resolved.method, resolved.loss, recipe.rollout),
        *check_teachers(resolved),
        *_stages(resolved.models, recipe.stages, recipe.domains, recipe.teachers),
        *_stage_shares(recipe.stages, recipe.trained_domains),
        *_length("run", "student", recipe.run, recipe.student.optimizer),
        *_updates(recipe.student, recipe.run.steps, recipe.trained_domains, recipe.rollout, resolved.method),
        *_stage_updates(recipe.stages),
        *_kept(recipe.rollout, recipe.stages, resolved.method),
    ]


def _tasks(domains: Mapping[str, DomainRecipe], tasks: Collection[str]) -> Iterator[str]:
    for name, domain in domains.items():
        if isinstance(domain.task, str) and domain.task not in tasks and not is_plugin(domain.task):
            yield f"`domains.{name}.task`: no task is called {domain.task!r}; {guess(domain.task, tasks)}"
    if all(domain.evaluate_only for domain in domains.values()):
        yield "no domain is trained: every one is evaluate_only; give one a teacher or a reward"


def _teachers(resolved: Resolved) -> Iterator[str]:
    recipe = resolved.recipe
    used: set[str] = set()
    for name, domain in recipe.domains.items():
        for teacher in domain.teacher_weights:
            used.add(teacher)
            if teacher not in recipe.teachers:
                leaf = "teacher" if domain.teacher is not None else "teachers"
                yield (
                    f"`domains.{name}.{leaf}`: no teacher {teacher!r} is declared under `teachers`; "
                    f"{guess(teacher, recipe.teachers)}"
                )
    for teacher in recipe.teachers:
        if teacher not in used and teacher != resolved.loss.reference:
            yield f"`teachers.{teacher}`: no domain uses this teacher; name it in a domain, or remove it"
    yield from _anchors(recipe.student.model, recipe.teachers, recipe.domains)
    if resolved.method.teachers_grade and recipe.teachers:  # else recipes/check/settings.py says so
        yield from _turns(recipe.teachers, recipe.run.resident_teachers, resolved.turn_takers)
    for first, second in itertools.combinations([names[0] for names in resolved.groups], 2):
        a, b = recipe.teachers[first], recipe.teachers[second]
        if (a.model, group_key(a)) == (b.model, group_key(b)):
            leaf = next(leaf for leaf, value in placement(a).items() if value != placement(b)[leaf])
            has, has_too = getattr(a, leaf), getattr(b, leaf)
            yield (
                f"`teachers`: {first!r} and {second!r} over the base {a.model} have `{leaf}` {has} and {has_too}; "
                f"they share its processes, so give both the same"
            )


def _turns(teachers: Mapping[str, TeacherRecipe], resident: int | None, turns: Sequence[list[str]]) -> Iterator[str]:
    """Whether teachers that share processes are more than those, and fit each of them."""
    if resident is None:
        return
    if resident >= len(turns):
        yield (
            f"`run.resident_teachers` is {resident}, and the recipe has {len(turns)} to hold (LoRA teachers over one "
            f"base are one, those behind a server none), so that all of them are; lower it, or remove it"
        )
        return
    first, *others = [names[0] for names in turns]
    for name in [first, *others]:
        where, wanted = placement(teachers[name]), placement(teachers[first]) | {"replicas": 1}
        for leaf in [leaf for leaf, value in where.items() if value != wanted[leaf]]:
            has = getattr(teachers[name], leaf)
            needed = 1 if leaf == "replicas" else f"{getattr(teachers[first], leaf)}, as {first!r} has"
            yield (
                f"`teachers.{name}.{leaf}` is {has}: with `run.resident_teachers` teachers take turns in the same "
                f"processes, and {needed} is needed; give all the same, or take `run.resident_teachers` away"
            )


def _anchors(
    student: ModelReference, teachers: Mapping[str, TeacherRecipe], domains: Mapping[str, DomainRecipe]
) -> Iterator[str]:
    """Whether ``self`` anchors something that is worth holding, beside something that is learnt."""
    anchors = {name for name, teacher in teachers.items() if teacher.model == SELF}
    for name in sorted(anchors):
        if isinstance(student, Architecture):
            yield (
                f"`teachers.{name}.model` is self, and the student is made from scratch: it would be held to its own "
                f"noise; train it in a stage first, or name another model"
            )
    held = anchors == set(teachers) and all(teacher.own_prompt is None for teacher in teachers.values())
    if held and anchors and not any(domain.reward for domain in domains.values()):
        yield (
            "`teachers`: every one is self, so the student would be held where it is and learn nothing; name a "
            "specialist for one domain at least"
        )


def _method(resolved: Resolved) -> Iterator[str]:
    recipe, losses = resolved.recipe, resolved.method.losses
    wanted, loss = {LOSSES[name].payload for name in losses}, resolved.loss
    if not losses:
        if recipe.loss != type(recipe).model_fields["loss"].default:
            yield f"`loss` is set and would change nothing (a {recipe.method} trains no student); remove it"
    elif loss.custom:
        teaches = None not in wanted  # then any payload of a user's own does
        if loss.payload not in wanted and not (teaches and loss.custom_payload):
            shown = " or ".join(sorted(map(repr, wanted & {*OWN_PAYLOADS})))
            yield (
                f"`loss.estimator`: {loss.estimator} has payload {loss.payload!r}, and method {recipe.method!r} "
                f"takes {shown}"
            )
    elif loss.estimator not in losses:
        offered = " or ".join(sorted(losses))
        yield (
            f"`loss.estimator` is {loss.estimator!r}, which method {recipe.method!r} does not use; "
            f"write `loss: {{estimator: {offered}}}`"
        )
    method = resolved.method
    if recipe.method == "cascade" and not resolved.links:
        yield (
            "`student.model` names no chain of stages, and the student of a cascade is the end of one: write "
            "`stage:NAME` of a stage that is made from another model"
        )
    for name, domain in recipe.trained_domains.items():
        yield from _what_teaches(name, domain, recipe.method, method)


def _what_teaches(name: str, domain: DomainRecipe, method_name: str, method: Method | MadeMethod) -> Iterator[str]:
    """Whether a trained domain has what its method learns from, and nothing that it never asks."""
    if domain.teacher_weights and method.teachers == "none":
        yield f"`domains.{name}` has a teacher, which method {method_name!r} never asks; remove it"
    if domain.reward and not method.rewards:
        yield f"`domains.{name}.reward` is true, and method {method_name!r} never asks for one; remove it"
    asked = [what for what, may in (("teacher", method.teachers != "none"), ("reward", method.rewards)) if may]
    remedies = {"teacher": "name a `teacher`", "reward": "set `reward: true`"}
    has = {"teacher": bool(domain.teacher_weights), "reward": domain.reward}
    if asked and not any(has.values()):
        lacks = "neither teacher nor reward" if len(asked) > 1 else f"no {asked[0]}"
        ways = ", ".join(remedies[what] for what in asked)
        yield f"`domains.{name}` has {lacks}, so nothing teaches it; {ways}, or set `evaluate_only: true`"
    elif method.teachers_write and method.selects:
        for what in [what for what in asked if not has[what]]:
            yield (
                f"`domains.{name}` has no {what}, and method {method_name!r} learns from what teachers write and "
                f"verifiers find right; {remedies[what]}, or set `evaluate_only: true`"
            )


def _rewards(
    method: Method | MadeMethod, loss: BoundLoss, domains: Mapping[str, DomainRecipe], samples_per_prompt: int
) -> Iterator[str]:
    weight = loss.reward_weight
    rewarded = [name for name, domain in domains.items() if domain.reward]
    if not method.rewards or not loss.takes_reward:
        if method.teachers_grade:
            yield from _unweighted(rewarded)
        return
    if weight == 0:
        yield from _unweighted(rewarded)
        return
    if not rewarded:
        yield f"`loss.reward_weight` is {weight:g}, and no domain has `reward: true`; set it in one, or the weight to 0"
    if samples_per_prompt < 2:
        yield (
            f"`loss.reward_weight` is {weight:g}, and `rollout.samples_per_prompt` is 1: a reward is compared within "
            f"the group of a prompt's samples, so it needs at least 2"
        )


def _unweighted(rewarded: Iterable[str]) -> Iterator[str]:
    for name in rewarded:
        yield (
            f"`domains.{name}.reward` is true, and the loss gives rewards no weight; use `loss: {{estimator: "
            f"policy_gradient, reward_weight: 1.0}}`, or take the reward away"
        )


def _stages(
    models: Mapping[str, ModelSource],
    stages: Mapping[str, StageRecipe],
    domains: Collection[str],
    teachers: Mapping[str, TeacherRecipe],
) -> Iterator[str]:
    taken = {before for stage in stages.values() for before in stages_before(stage)}
    needed = taken | {name for teacher in teachers.values() for name in chain(stages, teacher.adapter or "")}
    for where, model in models.items():
        name = stage_name(model.source)
        if name is not None and name not in stages:
            yield f"`{where}`: no stage {name!r} is declared under `stages`; {guess(name, stages)}"
        if not where.startswith("stages."):
            needed.update(model.stages)
    in_a_circle: set[str] = set()
    for name in stages:
        path = list(chain(stages, f"stage:{name}"))
        if name not in in_a_circle and stage_name(stages[path[-1]].from_) == name:
            in_a_circle.update(path)
            circle = " is made from ".join([*path, name])
            yield f"`stages.{name}.from` leads back to itself: {circle}; one of them must start from a model"
        elif name not in needed:
            yield f"`stages.{name}`: neither the student nor a teacher comes from this stage; use it, or remove it"
        yield from _named_domains(name, stages[name].domains, domains)


def _named_domains(name: str, domains: tuple[str, ...] | None, declared: Collection[str]) -> Iterator[str]:
    if domains is None:
        return
    where = f"`stages.{name}.domains`"
    if not domains:
        yield f"{where} is empty; name a domain, or leave the key out to train on all that are trained"
    for domain in domains:
        if domain not in declared:
            yield f"{where}: no domain {domain!r} is declared under `domains`; {guess(domain, declared)}"
    for domain in sorted({domain for domain in domains if domains.count(domain) > 1}):
        yield f"{where} names {domain!r} {domains.count(domain)} times; once is enough"


def _stage_shares(stages: Mapping[str, StageRecipe], trained: Collection[str]) -> Iterator[str]:
    for name, stage in stages.items():
        domains = stage_domains(stage, trained)
        for domain in stage.shares:
            if domain not in domains:
                yield f"`stages.{name}.shares`: the stage trains no domain {domain!r}; {guess(domain, domains)}"


def _updates(
    student: StudentRecipe,
    steps: int,
    trained: Mapping[str, DomainRecipe],
    rollout: RolloutRecipe,
    method: Method | MadeMethod,
) -> Iterator[str]:
    """Whether every update gets a rollout of every domain, and the warm-up ends before the training does."""
    samples = rollout.samples_per_prompt if method.samples or method.teachers_write else 1
    for name, domain in trained.items():
        if not method.selects and domain.prompts * samples < student.updates_per_step:
            yield (
                f"`student.updates_per_step` is {student.updates_per_step}, and domain {name!r} has "
                f"{domain.prompts * samples} rollouts a step: every update needs one of every domain; raise "
                f"`domains.{name}.prompts`, or lower the updates"
            )
    yield from _warm_up("student", student.optimizer, "run.steps", steps * student.updates_per_step)


def _length(where: str, trained: str, length: RunRecipe | StageRecipe, optimizer: Optimizer) -> Iterator[str]:
    """Whether the learning rate can decay where nobody knows before when, and the rule can fire."""
    spends = isinstance(length, RunRecipe) and length.compute is not None
    if (length.plateau is not None or spends) and optimizer.schedule not in ("wsd", "constant"):
        ends = f"`{where}.plateau` ends training when no domain learns"
        ends = ends if length.plateau is not None else f"`{where}.compute` ends training when it is spent"
        yield (
            f"{ends}, and the rate of schedule {optimizer.schedule} is laid out over all of `{where}.steps`; set "
            f"`{trained}.optimizer.schedule` to wsd with `decay_steps`, or to constant"
        )
    rule = length.plateau
    never = rule is not None and rule.ceiling is None and length.steps // length.evaluate_every <= rule.evaluations
    if rule is not None and never:
        yield (
            f"`{where}.plateau.evaluations` is {rule.evaluations}, and {length.steps} steps have no more at "
            f"one in {length.evaluate_every} (`{where}.evaluate_every`): the rule could never fire; lower one of them"
        )


def _stage_updates(stages: Mapping[str, StageRecipe]) -> Iterator[str]:
    for name, stage in stages.items():
        where, updates = f"stages.{name}", stage.updates_per_step
        method = METHODS[stage.method]
        if not method.selects and stage.prompts * (stage.samples_per_prompt if method.samples else 1) < updates:
            yield (
                f"`{where}.updates_per_step` is {updates}, and `{where}.prompts` is {stage.prompts} a domain: every "
                f"update needs one of every domain; raise the prompts, or lower the updates"
            )
        yield from _warm_up(where, stage.optimizer, f"{where}.steps", stage.steps * updates)
        yield from _length(where, where, stage, stage.optimizer)


def _kept(rollout: RolloutRecipe, stages: Mapping[str, StageRecipe], method: Method | MadeMethod) -> Iterator[str]:
    """Whether groups are large enough for rewards, and no more answers are kept than are written."""
    if method.selects and rollout.keep_verified > rollout.samples_per_prompt:
        yield _more_than_written("rollout", rollout.keep_verified, rollout.samples_per_prompt)
    for name, stage in stages.items():
        if stage.method == "mix_rl" and stage.samples_per_prompt < 2:
            yield (
                f"`stages.{name}.samples_per_prompt` is 1: a reward is compared within the group of a prompt's "
                f"samples, so it needs at least 2"
            )
        if METHODS[stage.method].selects and stage.keep_verified > stage.samples_per_prompt:
            yield _more_than_written(f"stages.{name}", stage.keep_verified, stage.samples_per_prompt)


def _more_than_written(where: str, kept: int, written: int) -> str:
    return (
        f"`{where}.keep_verified` is {kept}, and `{where}.samples_per_prompt` is {written}: no more answers "
        f"to a prompt are kept than were written; raise the samples, or lower what is kept"
    )


def _warm_up(where: str, optimizer: Optimizer, steps: str, total: int) -> Iterator[str]:
    if (warmup_steps := optimizer.warm_up(total)) >= total:
        yield (
            f"`{where}.optimizer.warmup_steps` is {warmup_steps}, and the training has {total} optimizer "
            f"steps: the schedule would never begin; lower it, or raise `{steps}`"
        )
