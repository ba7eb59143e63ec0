"""A task made from any `datasets` source: a Hub id, JSONL or Parquet, with columns for prompt, answer and domain."""

from __future__ import annotations

import functools
import random
from array import array
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import Source
from mopd.distill.types import Prompt, UserError
from mopd.rollouts.tasks.base import Example, content_hash
from mopd.rollouts.tasks.dataset_rows import Message, Row, read_splits
from mopd.rollouts.verifiers import chosen_letter, last_number, verify_many


class DatasetTask:
    """Problems from a dataset, in an order of their own for each seed and epoch; see :class:`rollouts.tasks.base.Task`.

    Args:
        source: where the rows are, and what their columns are called.
        tokenizer: the student's, whose chat template renders chat messages. Without one they are joined as bare lines,
            which serves to train a tokenizer and to check verifiers, and is given to no model.
        domain: the recipe's name of the domain; where the source has a column for it, other rows are left out.

    Raises:
        UserError: the source can't be used as it says; see :func:`rollouts.tasks.dataset_rows.read_splits`.
    """

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase | None, *, domain: str) -> None:
        if source.tests is not None and source.verifier != "python_tests":
            raise UserError(
                f"dataset {source.path!r} names a column of unit tests, {source.tests!r}, for verifier "
                f"{source.verifier!r}, which runs none; take `verifier: python_tests`, or leave `tests` out"
            )
        self._source, self._tokenizer, self._domain = source, tokenizer, domain
        self._splits = read_splits(source, domain=domain)
        chat = isinstance(self._splits["train"][0].prompt, list)
        if chat and tokenizer is not None and tokenizer.chat_template is None:
            raise UserError(
                f"dataset {source.path!r}: column {source.prompt!r} holds chat messages, and the student's tokenizer "
                f"has no chat template; take a student that has one, or a column of plain text"
            )

    @property
    def sizes(self) -> dict[str, int]:
        """How many problems each split has."""
        return {split: len(rows) for split, rows in self._splits.items()}

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """The ``index``-th problem of a split, a pure function of its arguments; a dataset has no easy form.

        Training goes through all rows in an order keyed by (seed, epoch), so none recurs within an epoch. A
        held-out problem is asked once: counted twice it would narrow the intervals.

        Raises:
            UserError: no such split, a held-out split has fewer rows than are asked for, or the chat template
                refuses a row.
        """
        if split not in self._splits:
            raise UserError(f"dataset {self._source.path!r} has no split {split!r}; it has {', '.join(self._splits)}")
        rows = self._splits[split]
        epoch, place = divmod(index, len(rows))
        if epoch and split != "train":
            raise UserError(
                f"dataset {self._source.path!r} has {len(rows)} problems of domain {self._domain!r} for {split}, and "
                f"problem {index + 1} is asked for; lower `evaluate.{split}_prompts` to {len(rows)}, or name a larger "
                f"`{split}_split`"
            )
        row = rows[_order(f"{seed}/{split}/{epoch}", len(rows))[place]]
        return Example(f"{self._domain}/{split}/{seed}-{index}-{_key(row)}", self._render(row), row.answer)

    def texts(self, split: str) -> Iterator[tuple[str, str]]:
        """Prompt and gold answer of every row of a split, in the dataset's order.

        Raises:
            UserError: the chat template refuses a row.
        """
        rows = self._splits[split]
        for place in range(len(rows)):
            row = rows[place]
            yield self._render(row), row.answer

    def verify(self, prompt: Prompt, text: str) -> float:
        """1 if the source's verifier accepts ``text``."""
        return self.verify_many([prompt], [text])[0]

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """:meth:`verify` of many answers, in one batch where verifying means executing.

        Where a prompt has several gold answers, any of them is right.
        """
        asked: list[tuple[int, str, str]] = []
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            key = prompt.id.rpartition("-")[2]
            gold = prompt.answer if self._source.tests is None else self._tests[key]
            asked += [(place, wanted, text) for wanted in (gold, *self._more_golds.get(key, ()))]
        verdicts = verify_many(self._source.verifier, [gold for _, gold, _ in asked], [text for *_, text in asked])
        best = [0.0] * len(texts)
        for (place, _, _), verdict in zip(asked, verdicts, strict=True):
            best[place] = max(best[place], verdict)
        return best

    def wrong_answer(self, example: Example) -> str:
        """An answer in the form that the verifier reads, and wrong by every gold answer of the prompt."""
        verifier = self._source.verifier
        golds = [example.answer, *self._more_golds.get(example.id.rpartition("-")[2], ())]
        if verifier == "number":
            return str(1 + max((value for gold in golds if (value := last_number(gold)) is not None), default=-1))
        if verifier == "choice":
            taken = {chosen_letter(gold) for gold in golds}
            return next((letter for letter in "ABCDEFGHIJ" if letter not in taken), "none")
        if verifier == "math":
            return next(number for number in map(str, range(271828, 10**9)) if not any(number in g for g in golds))
        return "pass" if verifier == "python_tests" else f"not {example.answer}"

    @functools.cached_property
    def _tests(self) -> dict[str, str]:
        """The unit tests of every problem, by the key at the end of its id."""
        rows = (rows[place] for rows in self._splits.values() for place in range(len(rows)))
        return {_key(row): row.tests or "" for row in rows}

    @functools.cached_property
    def _more_golds(self) -> dict[str, list[str]]:
        """The gold answers of a prompt besides its first, by the key at the end of its id; most have none."""
        more: dict[str, list[str]] = {}
        for rows in self._splits.values():
            for row in rows.more_golds():
                more.setdefault(_key(row), []).append(row.gold)
        return more

    def _render(self, row: Row) -> str:
        if isinstance(row.prompt, str):
            return row.prompt
        if self._tokenizer is None:
            return "\n".join(message["content"] for message in row.prompt)
        return self._apply_template(self._tokenizer, row.prompt)

    def _apply_template(self, tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise what they like
            raise UserError(
                f"dataset {self._source.path!r}: the student's chat template refuses the messages "
                f"{messages!s:.200}: {error}; fix the rows, or take a student whose template takes them"
            ) from error


def _key(row: Row) -> str:
    return content_hash(row.canonical)


@functools.lru_cache(maxsize=16)
def _order(key: str, count: int) -> array[int]:
    """A permutation of ``range(count)`` that depends on nothing but ``key``."""
    order = array("q", range(count))
    random.Random(key).shuffle(order)
    return order
