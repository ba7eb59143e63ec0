"""Conversations of a dataset as episodes: the user says what stands in the row, whatever the model answers.

Nobody listens, so a conversation goes wrong where the model says something that what follows does not fit. That is what
`prefix` is for: the turns before come from the row, or from a teacher, and the student writes one more.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mopd.distill.recipe import Source
from mopd.distill.types import UserError
from mopd.rollouts.environments.base import ROLES, Step, Turn
from mopd.rollouts.environments.tools import Tool
from mopd.rollouts.tasks.base import content_hash, place_in_turn, refuse_unknown_split, split_of
from mopd.rollouts.tasks.dataset_rows import RowsReport, left_out_rows, refuse_many
from mopd.rollouts.tasks.row_meaning import Message, cell, plain_content, read_message, short
from mopd.rollouts.tasks.tables import load

MESSAGES = "messages"
"""The argument that names the column, and the column where none does."""
OF_DATASETS = (
    "name", "revision", "split", "validation_split", "test_split", "limit", "drop_refused", "message_keys", "roles",
)  # fmt: skip
"""Arguments that mean what they mean of a dataset; see :class:`distill.recipe.Source`."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row.

    Attributes:
        opening: what the model is given first.
        answers: the assistant's messages, in order.
        replies: what comes after each of them but the last.
    """

    opening: tuple[Turn, ...]
    answers: tuple[str, ...]
    replies: tuple[tuple[Turn, ...], ...]

    @property
    def key(self) -> str:
        """Equal for conversations that begin alike, which belong into one split."""
        return content_hash("\n".join(f"{turn['role']}: {turn['content']}" for turn in self.opening))


class ConversationEnvironment:
    """Satisfies :class:`base.Environment`: the rows of a dataset, in an order of their own for each seed and epoch.

    Training goes through all rows before any comes again; a held-out one is asked once.

    Args:
        path: of the dataset; see :class:`distill.recipe.Source`.
        args: :data:`MESSAGES` and those of :data:`OF_DATASETS`.
        seconds: is not needed.

    Raises:
        UserError: the dataset cannot be read, has rows that are no conversations and more of them than
            ``drop_refused`` allows, or no row for one of the three splits.
    """

    immediate = True

    def __init__(self, path: str, args: Mapping[str, Any], *, seconds: float) -> None:
        self.name = f"conversations:{path}"
        known = (MESSAGES, *OF_DATASETS)
        if unknown := [str(key) for key in args if key not in known]:
            raise UserError(f"`args` of {self.name}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
        column = args.get(MESSAGES, MESSAGES)
        of_dataset = {key: value for key, value in args.items() if key != MESSAGES}
        try:
            # What is asked stands in the messages too; a dataset has to name an answer.
            self._source = Source.model_validate(
                {"path": path, "prompt": column, "answer": f"{column}.-1.content", **of_dataset}
            )
        except ValidationError as error:
            why = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise UserError(f"`args` of {self.name}: {why}") from error
        self.reports: tuple[RowsReport, ...]
        self._splits = self._read_splits()

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> ConversationEpisode:
        """See :class:`base.Environment`; an easy form there is none.

        Raises:
            UserError: no such split, or it has fewer conversations than are asked for.
        """
        refuse_unknown_split(self.name, split)
        rows = self._splits[split]
        place = place_in_turn(f"{self.name}/{seed}", split, index, len(rows))
        if place is None:
            raise UserError(
                f"{self.name} has {len(rows)} conversations for {split}, and number {index + 1} is asked for; lower "
                f"`evaluate.{split}_prompts` to {len(rows)}, or name a larger `{split}_split`"
            )
        return ConversationEpisode(rows[place])

    @property
    def left_out(self) -> Sequence[str]:
        """In sentences, which rows ``drop_refused`` left out."""
        return left_out_rows(self._source, self.reports)

    def _read_splits(self) -> dict[str, list[Conversation]]:
        """The conversations of the three splits: named ones as they are, the others held out by hash of how they begin;
        training leaves out what begins as a held-out one does."""
        settings = self._source
        named = {"test": settings.test_split, "validation": settings.validation_split, "train": settings.split}
        given = [name for name in named.values() if name is not None]
        if len(set(given)) < len(given):
            raise UserError(f"{self.name}: two of its splits are the same ({', '.join(given)}); name others, or none")
        read = {name: self._read(name) for name in given}
        self.reports = tuple(report for _, report in read.values())
        refuse_many(self._source, self.reports)
        splits: dict[str, list[Conversation]] = {}
        taken: set[str] = set()
        for split, name in named.items():
            usable, _ = read[name or settings.split]
            rows = [row for row in usable if row.key not in taken and (name is not None or split_of(row.key) == split)]
            if not rows:
                raise UserError(
                    f"{self.name} has {len(usable)} usable conversations in split {name or settings.split!r}, and none "
                    f"is left for {split}; give it more, or name splits that share none that begin alike"
                )
            taken |= {row.key for row in rows}
            splits[split] = rows
        return splits

    def _read(self, split: str) -> tuple[list[Conversation], RowsReport]:
        table, refused, rows = load(self._source, split), dict[int, str](), list[Conversation]()
        limit = self._source.limit if split == self._source.split else None
        chosen = len(table) if limit is None else min(limit, len(table))
        for number in range(chosen):
            try:
                rows.append(self._conversation(table[number]))
            except ValueError as error:
                refused[number] = str(error)
        return rows, RowsReport(split, table.version, len(table), chosen, tuple(refused.items()))

    def _conversation(self, row: Mapping[str, Any]) -> Conversation:
        """A row.

        Raises:
            ValueError: it is no conversation in which somebody is answered.
        """
        column = self._source.prompt
        value = cell(row, column)
        if not isinstance(value, list):
            raise ValueError(f"`{column}` is {short(value)}, and a list of messages is needed")
        messages = [read_message(self._source, message, place) for place, message in enumerate(value)]
        answered = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if not answered or answered[0] == 0:
            raise ValueError(f"`{column}` needs a message, and one of the assistant after it")
        turns = [_turn(message, place) for place, message in enumerate(messages[: answered[-1] + 1])]
        between = [tuple(turns[a + 1 : b]) for a, b in itertools.pairwise(answered)]
        if not all(between):
            raise ValueError(f"`{column}` has two messages of the assistant in a row")
        return Conversation(tuple(turns[: answered[0]]), tuple(turns[a]["content"] for a in answered), tuple(between))


class ConversationEpisode:
    """Satisfies :class:`base.Episode`: a row, up to where the model writes. It ends right where its last message is
    the row's, word for word."""

    def __init__(self, row: Conversation) -> None:
        self._row, self._told = row, 0
        self.messages: Sequence[Turn] = row.opening
        self.tools: Sequence[Tool] = ()
        self.script, self.answer = row.answers, row.answers[-1]

    async def step(self, message: Turn) -> Step:
        """What the row says next."""
        self._told += 1
        if self._told > len(self._row.replies):
            return Step(done=True, reward=float(str(message["content"]).strip() == self.answer.strip()))
        return Step(self._row.replies[self._told - 1])


def _turn(message: Message, place: int) -> Turn:
    """A message as templates are given it.

    Raises:
        ValueError: nobody here says such a thing.
    """
    role, content = message["role"], plain_content(message)
    if role not in (*ROLES, "assistant"):
        raise ValueError(f"message {place} has the role {role!r}; `roles` says which of {', '.join(ROLES)}, assistant")
    if message.get("tool_calls"):
        raise ValueError(f"message {place} calls tools, which nobody runs here; leave such rows out (`drop_refused`)")
    if not content.strip():
        raise ValueError(f"message {place} is empty")
    return {"role": role, "content": content}
