"""Teachers by the rows of their kinds: what a recipe may ask of them, and whether those elsewhere are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import LOSSES
from mopd.distill.payload_rows import PAYLOADS
from mopd.distill.recipe.model_names import SELF, stage_name
from mopd.distill.recipe.plugins import own_code
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.rollouts.tasks import Task
from mopd.teachers.kinds import TeacherKind, TeacherReach, TeacherUse

WHAT_SCORES = ("adapter", "scorer", "endpoint", "served_model")
"""Keys of a stanza that say what scores. A kind that does not read one would have something else score, so it is
refused; other keys that a kind does not read are warnings."""
CALL_SECONDS, REACH_SECONDS = 60.0, 600.0
"""That a kind of a user's own may take to look at a stanza, and any kind to reach a teacher elsewhere."""
PROBES = 8
"""Prompts of each domain that a server's tokenizer is tried on."""


def check_teachers(resolved: Resolved) -> Iterator[str]:
    """Whether a recipe asks of its teachers nothing but what their kinds give, each problem a sentence."""
    recipe, role, loss = resolved.recipe, resolved.method.teachers, resolved.loss
    for name, teacher in resolved.teachers.items():
        stanza, kind = teacher.settings, teacher.kind
        use = TeacherUse(
            name,
            stanza,
            made_by_run=stanza.model == SELF or stage_name(stanza.model) is not None,
            grades=role == "grade",
            estimator=loss.estimator,
            payload=loss.payload,
            support=None if loss.support is None else loss.support.whose,
            temperature=recipe.rollout.temperature,
        )
        with own_code(f"`teachers.{name}`: its kind {stanza.kind_name} fails", seconds=CALL_SECONDS):
            unread, wrong = kind.unread_keys(stanza), list(kind.check(use))
        for key in WHAT_SCORES:
            if key in unread and getattr(stanza, key) is not None:
                yield (
                    f"`teachers.{name}.{key}` is set, and a {kind.name} teacher does not score with it "
                    f"({unread[key]}); remove it"
                )
        if role in ("write", "merge") and not (kind.has_weights and kind.can_write):
            why = "and it only scores" if kind.has_weights else "which are not here"
            yield (
                f"`teachers.{name}`: method {recipe.method!r} needs its teachers' weights, {why}: it is of kind "
                f"{kind.name}; take a checkpoint"
            )
        # A payload of a user's own is made of whole distributions.
        asked = use.payload if use.payload is None or use.payload in PAYLOADS else "full"
        if use.grades and asked is not None and asked not in kind.payloads:
            yield _other_payload(use, kind)
        yield from wrong


def _other_payload(use: TeacherUse, kind: TeacherKind) -> str:
    fitting = [name for name, spec in LOSSES.items() if spec.payload in kind.payloads]
    take = "`payload: full`" if use.payload == "hidden" and "full" in kind.payloads else f"one of {', '.join(fitting)}"
    return (
        f"`teachers.{use.name}`: a {kind.name} teacher gives {', '.join(kind.payloads)}, and `loss.estimator` "
        f"{use.estimator} needs {use.payload}; take {take}"
    )


def reach_teachers(
    resolved: Resolved,
    tasks: Mapping[str, Task],
    tokenizer: PreTrainedTokenizerBase | None,
    lengths: Mapping[str, Lengths],
) -> Iterator[str]:
    """Whether every teacher that lies elsewhere is there, and what the run needs it to be; each problem a sentence.

    Args:
        tokenizer: the student's.
    """
    recipe = resolved.recipe
    tried = [task.example(seed=recipe.seed, split="train", index=i) for task in tasks.values() for i in range(PROBES)]
    for name, teacher in resolved.teachers.items():
        if (reach := teacher.kind.reach) is not None:
            asked = TeacherReach(
                name,
                teacher.settings,
                texts=[example.text for example in tried],
                tokenizer=tokenizer,
                support=None if tokenizer is None else support_of(resolved.loss, tokenizer),
                longest_prompt=max((length.longest_prompt for length in lengths.values()), default=0),
                max_new_tokens=recipe.rollout.max_new_tokens,
            )
            with own_code(f"`teachers.{name}` cannot be asked", seconds=REACH_SECONDS):
                yield from list(reach(asked))
