"""Checks of who writes: teachers in the student's place, or before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.recipe import DomainRecipe, EnvironmentSource, RolloutRecipe, TeacherRecipe
from mopd.recipes.resolve.methods import WHOLE, MadeMethod, Method

PROGRAM = "program:"


def check_writers(
    rollout: RolloutRecipe,
    domains: Mapping[str, DomainRecipe],
    teachers: Mapping[str, TeacherRecipe],
    method: Method | MadeMethod,
    loss: BoundLoss,
) -> Iterator[str]:
    """Whether whoever is to write can, and the student can learn from it; every problem a sentence."""
    trained = {name: domain for name, domain in domains.items() if not domain.evaluate_only}
    yield from _of_teachers(rollout, method, loss, trained)
    if method.teachers_write or rollout.off_policy:
        for name, domain in trained.items():
            yield from _of_a_program(name, domain)
    for name, domain in domains.items():
        if domain.prefix:
            yield from _prefix(name, domain, method, rollout)
    played = [name for name, domain in domains.items() if isinstance(domain.task, EnvironmentSource)]
    for teacher in [name for name, teacher in teachers.items() if teacher.kind_name == "served" and played]:
        yield (
            f"`teachers.{teacher}` is served, and domain {played[0]!r} is an environment, in which every model is "
            "measured and a server is not asked for turns in this version; take a checkpoint, or leave one of them out"
        )


def _of_a_program(name: str, domain: DomainRecipe) -> Iterator[str]:
    if isinstance(domain.task, EnvironmentSource) and domain.task.environment.startswith(PROGRAM):
        yield (
            f"domain {name!r} is an environment of a program, whose requests only the student answers; give it another "
            "environment, or a task"
        )


def _of_teachers(
    rollout: RolloutRecipe, method: Method | MadeMethod, loss: BoundLoss, trained: Mapping[str, DomainRecipe]
) -> Iterator[str]:
    """What is wrong with `rollout.off_policy`."""
    if rollout.off_policy == 0:
        if rollout.off_policy_steps is not None:
            yield (
                "`rollout.off_policy_steps` is set and would change nothing (`rollout.off_policy` is 0: teachers "
                "answer no prompt); raise that, or remove it"
            )
        return
    where = f"`rollout.off_policy` is {rollout.off_policy:g}"
    if rollout.off_policy_steps == 0:
        yield f"{where} for 0 steps (`rollout.off_policy_steps`); raise the steps, or remove both"
    if not (method.samples and method.teachers_grade):
        yield f"{where}, and only where the student writes and teachers grade (mopd) is there a part to move; remove it"
    elif loss.payload not in ("full", "hidden"):
        offered = ", ".join(sorted(WHOLE))
        yield (
            f"{where}, and {loss.estimator} learns from the student's own draws alone; take a loss of whole "
            f"distributions ({offered}), or remove it"
        )
    for name, domain in trained.items():
        if not domain.teacher_weights:
            yield f"{where}, and domain {name!r} has no teacher to answer its prompts; name one, or remove it"
        if int(domain.prompts * rollout.off_policy) == 0:
            yield (
                f"{where}, which is less than one of the {domain.prompts} prompts of domain {name!r}; raise it to "
                f"{1 / domain.prompts:g} at least, or remove it"
            )


def _prefix(name: str, domain: DomainRecipe, method: Method | MadeMethod, rollout: RolloutRecipe) -> Iterator[str]:
    """What is wrong with a domain's `prefix`."""
    where = f"`domains.{name}.prefix`"
    if not domain.prefix_parts:
        return
    if domain.evaluate_only:
        yield f"{where} is set, and the domain is evaluate_only, so nobody learns from its turns; remove it"
        return
    if not isinstance(domain.task, EnvironmentSource):
        yield f"{where} is set, and its task asks once, so nothing stands before an answer; name an `environment`"
        return
    if not (method.samples and method.teachers_grade):
        yield f"{where} is set, and only where the student writes and teachers grade (mopd) does it go on; remove it"
    if domain.task.turns == 1:
        yield f"{where} is set, and an episode has one turn (`turns`), before which nothing stands; raise that"
    if domain.reward:
        yield f"{where} is set with `reward: true`, which judges whole episodes; remove one of the two"
    if "teacher" in domain.prefix_parts:
        yield from _of_a_program(name, domain)
        if not domain.teacher_weights:
            yield f"{where} names teacher, and the domain has none; name one"
        if rollout.off_policy:
            yield (
                f"{where} names teacher, and `rollout.off_policy` has teachers write whole episodes; remove one of the "
                "two"
            )
    for player, part in domain.prefix_parts.items():
        if int(domain.prompts * part + 1e-9) == 0:
            yield (
                f"{where} gives {player} {part:g}, which is less than one of the {domain.prompts} prompts; raise it to "
                f"{1 / domain.prompts:g} at least, or remove it"
            )
