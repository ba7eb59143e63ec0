"""Teachers by the rows of their kinds: what a recipe may ask of them, and whether those elsewhere are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from transformers import PreTrainedTokenizerBase

from mopd.distill.loss.registry import LOSSES, BoundLoss
from mopd.distill.payload_rows import PAYLOADS
from mopd.distill.recipe import DomainRecipe, EnvironmentSource, TeacherRecipe, WholeDistribution
from mopd.distill.recipe.model_names import SELF, stage_name
from mopd.distill.recipe.plugins import own_code
from mopd.distill.types import Prompt, UserError
from mopd.recipes.check.model_info import ModelInfo
from mopd.recipes.check.tasks import Lengths
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.resolved import Resolved
from mopd.recipes.resolve.teacher_prompts import OwnTokenizer, reads_of, retokenizers_of
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.sampler import GoldSampler
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import closing_id, completion_ids, to_prompt
from mopd.teachers.compatibility import compare_tokenizers
from mopd.teachers.kinds import TeacherKind, TeacherReach, TeacherUse
from mopd.teachers.retokenized import PAYLOADS_ACROSS, ChunkCount, asked_payload
from mopd.teachers.views import TeacherText

WHAT_SCORES = ("adapter", "scorer", "endpoint", "served_model")
"""Keys of a stanza that say what scores. A kind that does not read one would have something else score, so it is
refused; other keys that a kind does not read are warnings."""
CALL_SECONDS, REACH_SECONDS = 60.0, 600.0
"""That a kind of a user's own may take to look at a stanza, and any kind to reach a teacher elsewhere."""
PROBES = 8
"""Prompts of each domain that a server's tokenizer is tried on."""
GOLDS = 64
"""Gold answers of each domain on which two tokenizers are aligned."""


def check_teachers(resolved: Resolved) -> Iterator[str]:
    """Whether a recipe asks of its teachers nothing but what their kinds give, each problem a sentence."""
    recipe, method, loss = resolved.recipe, resolved.method, resolved.loss
    for name, teacher in resolved.teachers.items():
        stanza, kind = teacher.settings, teacher.kind
        needs_weights = name in resolved.writers or method.teachers == "merge"
        use = TeacherUse(
            name,
            stanza,
            made_by_run=stanza.model == SELF or stage_name(stanza.model) is not None,
            grades=method.teachers_grade,
            estimator=loss.estimator,
            payload=None if loss.payload is None else asked_payload(loss.payload),
            support=None if loss.support is None else loss.support.whose,
            temperature=recipe.rollout.temperature,
        )
        if not method.teachers_grade and stanza.own_prompt is not None:
            yield f"`teachers.{name}.prompt` is read by who grades, and method {recipe.method!r} has none; remove it"
        if stanza.reads_own_tokens:
            yield from _own_tokens(
                name, stanza, loss, grades_alone=method.teachers_grade and name not in resolved.writers
            )
            graded = {d: domain for d, domain in recipe.trained_domains.items() if name in domain.teacher_weights}
            yield from _own_turns(name, graded)
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
            begun = mixed and not recipe.rollout.off_policy
            asks = "`prefix`" if begun else "`rollout.off_policy`" if mixed else f"method {recipe.method!r}"
            yield (
                f"`teachers.{name}`: {asks} needs its teachers' weights, {why}: it is of kind {kind.name}; take a "
                "checkpoint"
            )
        # A payload of a user's own is made of whole distributions.
        asked = use.payload if use.payload is None or use.payload in PAYLOADS else "full"
        if use.grades and asked is not None and asked not in kind.payloads:
            yield _other_payload(use, kind)
        yield from wrong


def _own_tokens(name: str, stanza: TeacherRecipe, loss: BoundLoss, *, grades_alone: bool) -> Iterator[str]:
    """What cannot be had of a teacher that scores its own tokens, each a sentence."""
    where = f"`teachers.{name}.tokenizer` is own"
    if not grades_alone:
        yield f"{where}, which is for who grades alone, and here teachers do something else; remove it"
        return
    if stanza.model == SELF:
        yield f"{where}, and its model is self, whose tokenizer is the student's; remove it"
    if loss.payload is not None and loss.payload not in PAYLOADS_ACROSS:
        fitting = ", ".join(sorted(name for name, spec in LOSSES.items() if spec.payload in PAYLOADS_ACROSS))
        yield (
            f"{where}, and `loss.estimator` {loss.estimator} compares distributions over the student's tokens; take "
            f"one of {fitting}"
        )
    if loss.extrapolation != 1:
        yield (
            f"{where}, and `loss.extrapolation` {loss.extrapolation:g} leads away from a reference token by token, "
            "which chunks are not; set it to 1"
        )


def _own_turns(name: str, graded: Mapping[str, DomainRecipe]) -> Iterator[str]:
    for domain, settings in graded.items():
        if isinstance(settings.task, EnvironmentSource):
            yield (
                f"`teachers.{name}.tokenizer` is own, and domain {domain!r} is an environment of several turns, which "
                "only the student's tokenizer writes in this version; take a teacher of the student's tokenizer there"
            )


def align_golds(
    teachers: Mapping[str, ResolvedTeacher],
    trained: Mapping[str, DomainRecipe],
    tasks: Mapping[str, Task],
    loss: BoundLoss,
    model_infos: Mapping[str, ModelInfo],
    seed: int,
) -> dict[str, ChunkCount]:
    """How gold answers of its domains align, of each teacher that scores its own tokens, by name.

    Args:
        seed: of the prompts that are tried.

    Raises:
        UserError: a prompt cannot be written for the teacher.
    """
    own = {
        name: OwnTokenizer(info.tokenizer, (closing_id(info.tokenizer),))
        for name, teacher in teachers.items()
        if teacher.settings.reads_own_tokens
        and (info := model_infos.get(f"teachers.{name}.model")) is not None
        and info.tokenizer is not None
    }
    student = model_infos.get("student.model")
    if not own or student is None or student.tokenizer is None:
        return {}
    tokenizer, closing = student.tokenizer, closing_id(student.tokenizer)
    gold = GoldSampler(lambda answer: completion_ids(tokenizer, answer, closing=closing))
    counts: dict[str, ChunkCount] = {}
    for name, retokenizer in retokenizers_of(teachers, own, tasks, OwnTokenizer(tokenizer, (closing,)), loss).items():
        counts[name] = ChunkCount()
        for domain in [d for d, domain in trained.items() if name in domain.teacher_weights and d in tasks]:
            examples = [tasks[domain].example(seed=seed, split="train", index=i) for i in range(GOLDS)]
            prompts = [to_prompt(tokenizer, domain=domain, example=each) for each in examples if each.answer]
            for rollout in next(gold.sample(prompts, step=0)):
                counts[name].add(retokenizer(rollout))
    return counts


def check_texts(
    teachers: Mapping[str, ResolvedTeacher],
    trained: Mapping[str, DomainRecipe],
    tasks: Mapping[str, Task],
    tokenizer: PreTrainedTokenizerBase | None,
    model_infos: Mapping[str, ModelInfo],
    max_new_tokens: int,
    seed: int,
) -> Iterator[str]:
    """Whether teachers that read a prompt or tokens of their own can be given them on their domains; each problem a
    sentence.

    Args:
        trained: the domains that are.
        tokenizer: the student's; without one no text is read.
        model_infos: by the leaf that names a model.
        max_new_tokens: of a completion.
        seed: of the prompts that are tried.
    """
    for name, teacher in teachers.items():
        model, reads_own = model_infos.get(f"teachers.{name}.model"), teacher.settings.reads_own_tokens
        in_tokens = tokenizer if not reads_own else None if model is None else model.tokenizer
        if (teacher.settings.own_prompt is None and not reads_own) or tokenizer is None or in_tokens is None:
            continue
        settings = teacher.settings.prompt
        context = None if model is None else getattr(model.config.get_text_config(), "max_position_embeddings", None)
        graded = [d for d, domain in trained.items() if name in domain.teacher_weights and d in tasks]
        problems: dict[str, None] = {}
        try:
            reads = reads_of(name, settings, tasks, in_tokens)
            for domain in graded:
                examples = (tasks[domain].example(seed=seed, split="train", index=i) for i in range(PROBES))
                for example in examples:
                    prompt = to_prompt(tokenizer, domain=domain, example=example)
                    text = reads(prompt)
                    unreadable = [*_of_prompt(name, domain, prompt, text, in_tokens)]
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


def teacher_warnings(
    teachers: Mapping[str, ResolvedTeacher], loss: BoundLoss, model_infos: Mapping[str, ModelInfo]
) -> Iterator[str]:
    """What a person should know of teachers that see more, or read otherwise, each a sentence."""
    yield from hint_warnings(teachers, loss)
    yield from _same_tokens(teachers, model_infos)


def _same_tokens(teachers: Mapping[str, ResolvedTeacher], model_infos: Mapping[str, ModelInfo]) -> Iterator[str]:
    """Teachers that are asked in tokens of their own, which are the student's."""
    student = model_infos.get("student.model")
    for name, teacher in teachers.items():
        info = model_infos.get(f"teachers.{name}.model")
        if not teacher.settings.reads_own_tokens or info is None or student is None:
            continue
        of_both = info.tokenizer, student.tokenizer
        if of_both[0] is not None and of_both[1] is not None and not compare_tokenizers(of_both[0], of_both[1]):
            yield (
                f"`teachers.{name}.tokenizer` is own, and its tokenizer is the student's: without it whole "
                "distributions could be compared; remove it"
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
    given = {*kind.payloads}
    fitting = [
        name for name, spec in LOSSES.items() if isinstance(spec.payload, str) and asked_payload(spec.payload) in given
    ]
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
    model_infos: Mapping[str, ModelInfo],
) -> Iterator[str]:
    """Whether every teacher that lies elsewhere is there, and what the run needs it to be; each problem a sentence.

    Args:
        tokenizer: the student's.
        model_infos: by the leaf that names a model.
    """
    recipe = resolved.recipe
    tried = [task.example(seed=recipe.seed, split="train", index=i) for task in tasks.values() for i in range(PROBES)]
    for name, teacher in resolved.teachers.items():
        if (reach := teacher.kind.reach) is not None:
            in_tokens = tokenizer
            if teacher.settings.reads_own_tokens:
                model = model_infos.get(f"teachers.{name}.model")
                in_tokens = None if model is None else model.tokenizer
            asked = TeacherReach(
                name,
                teacher.settings,
                texts=[example.text for example in tried],
                tokenizer=in_tokens,
                support=None if in_tokens is None else support_of(resolved.loss, in_tokens),
                longest_prompt=max((length.longest_prompt for length in lengths.values()), default=0),
                max_new_tokens=recipe.rollout.max_new_tokens,
            )
            with own_code(f"`teachers.{name}` cannot be asked", seconds=REACH_SECONDS):
                yield from list(reach(asked))
