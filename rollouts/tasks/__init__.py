"""The shipped tasks: prompts made from a seed, gold answers, verifiers. One file per task, named in :data:`TASKS`.

gym.py serves the generators of reasoning-gym. dataset.py makes a task of any dataset: tables.py reads rows as they are
written, row_meaning.py says what a row asks and what is right, rendering.py writes it for the student, dataset_rows.py
deals rows out to splits. A further leaf of a row's meaning stands in distill/recipe/source.py and is read in
row_meaning.py or rendering.py.
"""

from __future__ import annotations

import hashlib

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import GymSource, Source
from mopd.distill.recipe.plugins import IMPORT_SECONDS, is_plugin, load_plugin, own_code
from mopd.distill.types import UserError
from mopd.rollouts.tasks.arithmetic import Arithmetic
from mopd.rollouts.tasks.base import Example, Generated, Task, TaskSplit
from mopd.rollouts.tasks.list_programs import ListPrograms
from mopd.rollouts.tasks.ordering import Ordering

TASKS: dict[str, Task] = {"arithmetic": Arithmetic(), "list_programs": ListPrograms(), "ordering": Ordering()}
"""Every shipped task by the name that a recipe gives in ``domains: {NAME: {task: ...}}``."""


def make_task(task: str | Source | GymSource, *, domain: str, tokenizer: PreTrainedTokenizerBase | None) -> Task:
    """A shipped task by its name, a user's own by its file and name, or one made from a dataset or a generator.

    Args:
        domain: the recipe's name of the domain, by which a dataset's rows are chosen where it has a column for it.
        tokenizer: the student's, which renders a dataset's chat messages.

    Raises:
        UserError: no shipped task has that name, an own one is none, or the dataset can't be read as the source says.
    """
    if isinstance(task, str) and is_plugin(task):
        return own_task(task, where=f"domains.{domain}.task")
    if isinstance(task, str):
        if task not in TASKS:
            raise UserError(f"unknown task {task!r}; shipped tasks are {', '.join(TASKS)}")
        return TASKS[task]
    if isinstance(task, GymSource):
        from mopd.rollouts.tasks.gym import GymTask

        return GymTask(task, tokenizer)
    from mopd.rollouts.tasks.dataset import DatasetTask

    return DatasetTask(task, tokenizer, domain=domain)


def own_task(reference: str, *, where: str) -> Task:
    """The task that ``./file.py:NAME`` means: an object with a task's methods, or a class to make one of.

    Args:
        where: the leaf of the recipe that says it, for the message.

    Raises:
        UserError: there is no such object, it is not to be made without arguments, or it lacks a method.
    """
    task = load_plugin(reference, where=where)
    if isinstance(task, type):
        remedy = "name an object, or a class that takes no arguments and is made quickly"
        what = f"`{where}`: {reference} is a class, and {task.__name__}() fails"
        with own_code(what, seconds=IMPORT_SECONDS, remedy=remedy):
            task = task()
    methods = ("example", "verify", "verify_many", "wrong_answer")
    if lacks := [name for name in methods if not callable(getattr(task, name, None))]:
        raise UserError(
            f"`{where}`: {reference} has no {', '.join(lacks)}, which a task needs (mopd.rollouts.tasks.base.Task); a "
            "subclass of mopd.rollouts.tasks.base.Generated needs no more than `draw`"
        )
    return task


def fingerprint(task: Task, *, seed: int) -> str:
    """A hash of a task's first 32 test problems, or of all where it has fewer.

    Scores with different fingerprints are not to be compared.
    """
    digest = hashlib.sha256()
    for index in range(32):
        try:
            example = task.example(seed=seed, split="test", index=index)
        except UserError:
            if index == 0:
                raise
            break  # a dataset may have fewer
        digest.update(repr((example.id, example.text, example.answer)).encode())
    return digest.hexdigest()[:16]


__all__ = ["TASKS", "Example", "Generated", "Task", "TaskSplit", "fingerprint", "make_task", "own_task"]
