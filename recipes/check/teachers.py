"""Teachers by the rows of their kinds: what a recipe may ask of them, and whether those elsewhere are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import LOSSES, BoundLoss
from mopd.distill.payload_rows import PAYLOADS
from mopd.distill.recipe import DomainRecipe, WholeDistribution
from mopd.distill.recipe.model_names import SELF, stage_name
from mopd.distill.recipe.plugins import own_code
from mopd.distill.types import Prompt, UserError
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.teacher_prompts import reads_of
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import to_prompt
from mopd.teachers.kinds import TeacherKind, TeacherReach, TeacherUse
from mopd.teachers.views import TeacherText

WHAT_SCORES = ("adapter", "scorer", "endpoint", "served_model")
"""Keys of a stanza that say what scores. A kind that does not read one would have something else score, so it is
refused; other keys that a kind does not read are warnings."""
CALL_SECONDS, REACH_SECONDS = 60.0, 600.0
"""That a kind of a user's own may take to look at a stanza, and any kind to reach a teacher elsewhere."""
PROBES = 8
"""Prompts of each domain that a server's tokenizer is tried on."""


def check_teachers(resolved: Resolved) -> Iterator[str]:
    """Whether a recipe asks of its teachers nothing but what their kinds give, each problem a sentence."""
    recipe, method, loss = resolved.recipe, resolved.method, resolved.loss
    needs_weights = resolved.teachers_write or method.teachers == "merge"
    for name, teacher in resolved.teachers.items():
        stanza, kind = teacher.settings, teacher.kind
        use = TeacherUse(
            name,
            stanza,
            made_by_run=stanza.model == SELF or stage_name(stanza.model) is not None,
            grades=method.teachers_grade,
            estimator=loss.estimator,
            payload=loss.payload,
            support=None if loss.support is None else loss.support.whose,
            temperature=recipe.rollout.temperature,
        )
        if not method.teachers_grade and stanza.own_prompt is not None:
            yield f"`teachers.{name}.prompt` is read by who grades, and method {recipe.method!r} has none; remove it"
        with own_code(f"`teachers.{name}`: its kind {stanza.kind_name} fails", seconds=CALL_SECONDS):
            unread, wrong = kind.unread_keys(stanza), list(kind.check(use))
        for key in WHAT_SCORES:
            if key in unread and getattr(stanza, key) is not None:
                yield (
                    f"`teachers.{name}.{key}` is set, and a {kind.name} teacher does not score with it "
                    f"({unread[key]}); remove it"
                )
        if needs_weights and not (kind.has_weights and kind.can_write):
            why = "and it only scores" if kind.has_weights else "which are not here"
            mixed = method.teachers_grade and not method.teachers_write
            asks = "`rollout.off_policy`" if mixed else f"method {recipe.method!r}"
            yield (
                f"`teachers.{name}`: {asks} needs its teachers' weights, {why}: it is of kind {kind.name}; take a "
                "checkpoint"
            )
        # A payload of a user's own is made of whole distributions.
        asked = use.payload if use.payload is None or use.payload in PAYLOADS else "full"
        if use.grades and asked is not None and asked not in kind.payloads:
            yield _other_payload(use, kind)
        yield from wrong


def check_texts(
    teachers: Mapping[str, ResolvedTeacher],
    trained: Mapping[str, DomainRecipe],
    tasks: Mapping[str, Task],
    tokenizer: PreTrainedTokenizerBase | None,
    model_infos: Mapping[str, ModelInfo],
    max_new_tokens: int,
    seed: int,
) -> Iterator[str]:
    """Whether teachers that read a prompt of their own can be given it on their domains; each problem a sentence.

    Args:
        trained: the domains that are.
        tokenizer: the student's; without one no text is read.
        model_infos: by the leaf that names a model.
        max_new_tokens: of a completion.
        seed: of the prompts that are tried.
    """
    for name, teacher in teachers.items():
        if (settings := teacher.settings.own_prompt) is None or tokenizer is None:
            continue
        model = model_infos.get(f"teachers.{name}.model")
        context = None if model is None else getattr(model.config.get_text_config(), "max_position_embeddings", None)
        graded = [d for d, domain in trained.items() if name in domain.teacher_weights and d in tasks]
        problems: dict[str, None] = {}
        try:
            reads = reads_of(name, settings, tasks, tokenizer)
            for domain in graded:
                examples = (tasks[domain].example(seed=seed, split="train", index=i) for i in range(PROBES))
                for example in examples:
                    prompt = to_prompt(tokenizer, domain=domain, example=example)
                    text = reads(prompt)
                    unreadable = [*_of_prompt(name, domain, prompt, text, tokenizer)]
                    longest = len(text.token_ids) + max_new_tokens
                    if context is not None and longest > context:
                        unreadable.append(
                            f"`teachers.{name}.prompt` makes {len(text.token_ids)} tokens of a question of domain "
                            f"{domain!r}, and with `rollout.max_new_tokens` {longest}, beyond the teacher's context of "
                            f"{context} tokens (max_position_embeddings); shorten it, or lower the limit"
                        )
                    problems |= dict.fromkeys(unreadable)
                    if unreadable:
                        break  # the next question of the domain would have the same
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
        yield from problems


def _of_prompt(
    name: str, domain: str, prompt: Prompt, text: TeacherText, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    if not text.token_ids:
        yield f"`teachers.{name}.prompt` makes an empty text of a question of domain {domain!r}; a model needs a token"
    unknown = tokenizer.unk_token_id
    if unknown is not None and text.token_ids.count(unknown) > prompt.token_ids.count(unknown):
        yield (
            f"`teachers.{name}.prompt` has characters that the tokenizer does not know, in {text.text[:80]!r} (domain "
            f"{domain!r}); write it in others"
        )


def hint_warnings(teachers: Mapping[str, ResolvedTeacher], loss: BoundLoss) -> Iterator[str]:
    """What is known to go wrong with teachers that see more, where nothing guards against it."""
    for name, teacher in teachers.items():
        if teacher.settings.prompt.hint is None:
            continue
        if loss.token_bound is None and isinstance(loss.settings, WholeDistribution):
            yield (
                f"`teachers.{name}.prompt.hint`: a teacher that sees it may be certain where the student cannot be, "
                "and `loss.token_bound` bounds no token; set it, for example to 2 nats"
            )
        if loss.payload == "hidden":
            yield (
                f"`teachers.{name}.prompt.hint`: hidden states do not tell where the teacher repeats its hint, so the "
                "metrics `hint_gap` and `hint_gain` are left out; `loss.payload: full` tells"
            )


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
