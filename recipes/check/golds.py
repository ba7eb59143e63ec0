"""Gold answers of datasets that a verifier can't read: no answer but their own text would be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from itertools import islice

from mopd.distill.recipe import DomainRecipe
from mopd.rollouts.tasks import Task
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.verifiers import unreadable_golds

READ_GOLDS = 5000
"""Rows of a training split whose gold answers are read: a parser of LaTeX takes milliseconds for each."""
LISTED_GOLDS = 5


def gold_warnings(
    domains: Mapping[str, DomainRecipe], tasks: Mapping[str, Task], *, shared: MutableMapping[Hashable, list[str]]
) -> Iterator[str]:
    """What each domain's dataset has of gold answers that its verifier can't read, a sentence a domain.

    Only ``math`` can have any: the others refuse such rows as they are read. Gold answers are parsed in the sandbox.

    Args:
        shared: what was found of datasets already, for recipes that ask the same of them; it grows.
    """
    for name, task in tasks.items():
        source = domains[name].task
        if isinstance(source, str) or not isinstance(task, DatasetTask) or source.verifier != "math":
            continue
        depends_on = (name, repr(source))
        if depends_on not in shared:
            shared[depends_on] = list(_unreadable(f"`domains.{name}.task`", task))
        yield from shared[depends_on]


def _unreadable(where: str, task: DatasetTask) -> Iterator[str]:
    rows = Counter(gold for _, gold in islice(task.texts("train"), READ_GOLDS))
    if unread := unreadable_golds("math", rows):
        listed = ", ".join(f"{_short(gold)} ({_rows(rows[gold])})" for gold in unread[:LISTED_GOLDS])
        more = f" and {len(unread) - LISTED_GOLDS} more" if len(unread) > LISTED_GOLDS else ""
        yield (
            f"{where}: {sum(rows[gold] for gold in unread)} of {sum(rows.values())} gold answers can't be read as "
            f"mathematics, so nothing but their own text is right: {listed}{more}; fix them, or leave their rows out"
        )


def _short(gold: str) -> str:
    text = repr(gold)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
