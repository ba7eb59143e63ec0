"""What each teacher reads in the place of a prompt: its stanza's ``prompt``, filled in for a question of a domain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import TeacherPromptRecipe
from mopd.distill.recipe.source import template_parts
from mopd.distill.types import Prompt, UserError
from mopd.recipes.resolve.teachers import ResolvedTeacher
from mopd.rollouts.tasks import Task
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tasks.gym import GymTask
from mopd.rollouts.tasks.rendering import Reworded, Written
from mopd.rollouts.tokenizer import encode
from mopd.teachers.views import Reads, TeacherText

GOLD = "answer"
"""The hint that is the gold answer, whatever a dataset calls its column."""


def teacher_reads(
    teachers: Mapping[str, ResolvedTeacher], tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Reads]:
    """What those teachers read that have a prompt of their own, by name.

    Args:
        tasks: by domain.
        tokenizer: the student's, which is the teachers' too.

    Raises:
        UserError: a chat template cannot be read.
    """
    return {
        name: reads_of(name, teacher.settings.prompt, tasks, tokenizer)
        for name, teacher in teachers.items()
        if teacher.settings.own_prompt is not None
    }


def reads_of(
    name: str, settings: TeacherPromptRecipe, tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase
) -> Reads:
    """What teacher ``name`` reads in the place of a prompt.

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
