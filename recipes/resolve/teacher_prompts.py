"""What each teacher reads in the place of a prompt: its stanza's ``prompt``, filled in for a question of a domain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from mopd.distill.loss.registry import BoundLoss
from mopd.distill.recipe import TeacherPromptRecipe
from mopd.distill.recipe.source import template_parts
from mopd.distill.types import Prompt, UserError
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.methods import support_of
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.tasks import Task
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tasks.gym import GymTask
from mopd.rollouts.tasks.rendering import Reworded, Written
from mopd.rollouts.tokenizer import control_ids, encode, end_token_ids, token_count
from mopd.teachers.retokenized import Retokenizer, TokenizerSide
from mopd.teachers.token_bytes import token_bytes
from mopd.teachers.views import Reads, TeacherText

GOLD = "answer"
"""The hint that is the gold answer, whatever a dataset calls its column."""


def teacher_reads(
    teachers: Mapping[str, ResolvedTeacher], tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Reads]:
    """What those teachers read that have a prompt of their own and the student's tokens, by name.

    Args:
        tasks: by domain.
        tokenizer: the student's, which is the teachers' too.

    Raises:
        UserError: a chat template cannot be read.
    """
    return {
        name: reads_of(name, teacher.settings.prompt, tasks, tokenizer)
        for name, teacher in teachers.items()
        if teacher.settings.own_prompt is not None and not teacher.settings.reads_own_tokens
    }


@dataclass(frozen=True, slots=True)
class OwnTokenizer:
    """The tokenizer of a model that does not have the student's.

    Attributes:
        tokenizer: that.
        ends: tokens that end its answers; the first closes them.
        context: tokens that it can read; None: any number.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    context: int | None = None


def own_tokenizers(teachers: Mapping[str, ResolvedTeacher], folders: Mapping[str, str]) -> dict[str, OwnTokenizer]:
    """Those of the teachers that read rollouts in their own tokens, by name.

    Args:
        folders: of the teachers' checkpoints, by name.
    """
    made: dict[str, OwnTokenizer] = {}
    for name, folder in folders.items():
        teacher = teachers[name]
        if teacher.settings.reads_own_tokens:
            trusted = teacher.model.trusted
            tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted).get_text_config()
            context = getattr(config, "max_position_embeddings", None)
            made[name] = OwnTokenizer(tokenizer, end_token_ids(tokenizer, folder), context)
    return made


def own_sizes(own: Mapping[str, OwnTokenizer]) -> dict[str, int]:
    """How many tokens each tokenizer has, by name of the teacher."""
    return {name: token_count(of_teacher.tokenizer) for name, of_teacher in own.items()}


def retokenizers_of(
    teachers: Mapping[str, ResolvedTeacher],
    own: Mapping[str, OwnTokenizer],
    tasks: Mapping[str, Task],
    student: OwnTokenizer,
    loss: BoundLoss,
) -> dict[str, Retokenizer]:
    """What writes rollouts in the tokens of those teachers that have their own, by name.

    Args:
        own: their tokenizers; see :func:`own_tokenizers`.
        tasks: by domain.

    Raises:
        UserError: the bytes of a tokenizer's tokens cannot be told, or a chat template cannot be read.
    """
    if not own:
        return {}
    support = support_of(loss, student.tokenizer)
    width = 0 if support is None else min(support.k + len(support.forced), token_count(student.tokenizer))
    side = tokenizer_side(student, "`student.model`")
    return {
        name: Retokenizer(
            name,
            student=side,
            teacher=tokenizer_side(of_teacher, f"`teachers.{name}.model`"),
            reads=reads_of(name, teachers[name].settings.prompt, tasks, of_teacher.tokenizer),
            context=of_teacher.context,
            width=width,
        )
        for name, of_teacher in own.items()
    }


def prompts_in(name: str, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task]) -> Callable[[Prompt], Prompt]:
    """The student's prompts in the tokens and the chat template of teacher ``name``, without a prompt of its own."""
    reads = reads_of(name, TeacherPromptRecipe(), tasks, tokenizer)

    def prompt_of(prompt: Prompt) -> Prompt:
        text = reads(prompt)
        return Prompt(prompt.domain, prompt.id, text.token_ids, text.text, prompt.answer)

    return prompt_of


def tokenizer_side(own: OwnTokenizer, where: str) -> TokenizerSide:
    """A tokenizer as it is aligned; ``where`` names it in a message.

    Raises:
        UserError: the bytes of its tokens cannot be told.
    """
    try:
        strings = token_bytes(own.tokenizer, control_ids(own.tokenizer))
    except UserError as error:
        raise UserError(f"{where}: its tokenizer {error}") from error

    def text_ids(text: str) -> tuple[int, ...]:
        return encode(own.tokenizer, text, letters=[(0, len(text))])

    def each(texts: Sequence[str]) -> list[list[int]]:
        encoded: Any = own.tokenizer([*texts], add_special_tokens=False, split_special_tokens=True) if texts else {}
        return encoded.get("input_ids", [])

    return TokenizerSide(strings, text_ids, own.ends, each)


def reads_of(
    name: str, settings: TeacherPromptRecipe, tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase
) -> Reads:
    """What teacher ``name`` reads in the place of a prompt.

    Args:
        tokenizer: in whose tokens it reads; its chat template writes the turns, unless the settings have another.

    Raises:
        UserError: its chat template cannot be read; by the function: a domain's task has no such hint, no chat turns,
            or the template refuses the question.
    """
    where = f"`teachers.{name}.prompt"
    in_template = tokenizer
    if settings.chat_template is not None:
        try:
            text = Path(settings.chat_template).read_text()
        except OSError as error:
            raise UserError(f"{where}.chat_template` is {settings.chat_template!r}: {error.strerror}") from None
        in_template = copy.deepcopy(tokenizer)
        in_template.chat_template = text

    def reads(prompt: Prompt) -> TeacherText:
        task = tasks[prompt.domain]
        hint = _hint(where, settings.hint, task, prompt)

        def reworded(question: str) -> str:
            return filled(settings.template, question, hint)

        if isinstance(task, DatasetTask | GymTask):
            written = task.reworded(prompt, Reworded(reworded, settings.system, in_template))
        elif settings.chat_template is not None:
            raise UserError(
                f"{where}.chat_template` is set, and the questions of domain {prompt.domain!r} are plain text; remove "
                "it, or take a domain of chat messages"
            )
        else:
            written = Written((settings.system or "") + reworded(prompt.text))
        hint_ids = () if hint is None else encode(tokenizer, hint)
        token_ids = encode(tokenizer, written.text, letters=written.letters)
        return TeacherText(written.text, token_ids, hint, hint_ids)

    return reads


def filled(template: str, question: str, hint: str | None) -> str:
    """A template with the question and the hint in it.

    Example:
        ``filled("{hint}\\n{prompt}", "2+2=", "4")`` is ``"4\\n2+2="``.
    """
    values = {"prompt": question, "hint": hint or ""}
    return "".join(text + ("" if name is None else values[name]) for text, name in template_parts(template))


def _hint(where: str, column: str | None, task: Task, prompt: Prompt) -> str | None:
    if column is None:
        return None
    if column == GOLD:
        if not prompt.answer:
            raise UserError(f"{where}.hint` is answer, and prompt {prompt.id} has no gold answer; name a column")
        return prompt.answer
    if not isinstance(task, DatasetTask):
        raise UserError(
            f"{where}.hint` is {column!r}, a column, and domain {prompt.domain!r} is no dataset; write answer, the "
            "gold answer"
        )
    try:
        return task.column(prompt, column)
    except ValueError as error:
        raise UserError(f"{where}.hint`: {error}") from error
