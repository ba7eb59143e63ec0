"""Checks of what a recipe says of its loss besides the estimator: extrapolation, the rule of shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.payload_rows import payload_spec
from mopd.distill.recipe import DomainRecipe, RunRecipe, StopRecipe, TeacherRecipe
from mopd.distill.recipe.messages import guess
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.sources import SELF


def check_loss(resolved: Resolved) -> Iterator[str]:
    """Every problem of the loss, the rule of shares and the stop rule, each a sentence."""
    recipe, trained = resolved.recipe, resolved.recipe.trained_domains
    yield from _extrapolation(resolved.loss, recipe.teachers, trained)
    taught = any(domain.teacher_weights for domain in trained.values())
    yield from check_stop(recipe.stop, recipe.run, graded=taught and recipe.evaluate.graded_prompts > 0)
    if recipe.share_rule != "explicit":
        yield from _share_rule(recipe.share_rule, resolved.loss, trained)


def check_stop(stop: StopRecipe, run: RunRecipe, *, graded: bool) -> Iterator[str]:
    """Every problem of the stop rule: one that could never fire is refused.

    Args:
        graded: whether teachers grade held-out prompts.
    """
    bounds = {name: getattr(stop, name) for name in type(stop).model_fields if name != "evaluations"}
    if all(bound is None for bound in bounds.values()):
        if stop.evaluations != type(stop).model_fields["evaluations"].default:
            names = ", ".join(bounds)
            yield f"`stop.evaluations` is set and would change nothing: set a bound ({names}) as well, or take it away"
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
            f"take it away, or extrapolate"
        )
    if name not in teachers:
        yield f"`loss.reference`: no teacher {name!r} is declared under `teachers`; {guess(name, teachers)}"
    elif teachers[name].model != SELF:
        yield (
            f"`loss.reference` is the teacher {name!r}, whose model is {teachers[name].model}; what the student "
            f"goes away from is where it starts: name a teacher whose model is self"
        )
    if not any(teacher != name for domain in trained.values() for teacher in domain.teacher_weights):
        yield (
            "`loss.extrapolation` goes beyond a teacher, and no domain has one; give a domain a `teacher`, or take "
            "`loss.extrapolation` and `loss.reference` away"
        )
