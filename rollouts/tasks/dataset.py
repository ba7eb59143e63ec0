"""A task made from any `datasets` source: a Hub id, JSONL, CSV or Parquet, whose rows mean what the source says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.recipe import Source
from mopd.distill.recipe.plugins import is_plugin, load_plugin, own_code
from mopd.distill.recipe.source import RUNS_PROGRAMS
from mopd.distill.types import Prompt, RunError, UserError
from mopd.distill.verdicts import UnjudgedScore
from mopd.rollouts.answers import THOUGHTS, answer_part, opened_thought
from mopd.rollouts.programs import continued
from mopd.rollouts.sandbox.bubblewrap.choice import chosen_sandbox
from mopd.rollouts.sandbox.run import SandboxKind
from mopd.rollouts.tasks.base import Example, place_in_turn
from mopd.rollouts.tasks.dataset_rows import CALL_SECONDS, DatasetRows, left_out_rows, read_splits
from mopd.rollouts.tasks.rendering import Renderer, Reworded, Written
from mopd.rollouts.tasks.row_meaning import LETTERS, Message, Problem, cell, text_of
from mopd.rollouts.verifiers import chosen_letter, last_number, verify_many

NO_ANSWER = "the thought was cut off, or the text that `answer_after` names is missing"


class DatasetTask:
    """Problems from a dataset, in an order of their own for each seed and epoch; see :class:`rollouts.tasks.base.Task`.

    Args:
        source: where the rows are, and what they mean.
        tokenizer: the student's, whose chat template writes the turns. Without one, contents are joined as bare lines,
            which serves to train a tokenizer and to check verifiers, and is given to no model.
        domain: the recipe's name of the domain; where the source has a column for it, other rows are left out.

    Raises:
        UserError: the source can't be used as it says; see :func:`rollouts.tasks.dataset_rows.read_splits`.
    """

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase | None, *, domain: str) -> None:
        if source.tests is not None and source.verifier not in RUNS_PROGRAMS:
            raise UserError(
                f"dataset {source.path!r} names a column of unit tests, {source.tests!r}, for verifier "
                f"{source.verifier!r}, which runs none; take `verifier: python_tests` or `input_output`, or leave "
                "`tests` out"
            )
        self._source, self._domain = source, domain
        self._own_verifier = own_verifier(source, where=f"domains.{domain}.task.verifier")
        runs = source.verifier in RUNS_PROGRAMS
        self.sandbox: SandboxKind | None = chosen_sandbox(source.sandbox) if runs else None
        """Where programs are run that answers hold; None: they hold none."""
        self._renderer: Renderer

        def make_check(shots: tuple[Problem, ...]) -> Callable[[Problem], None]:
            self._renderer = Renderer(source, tokenizer, shots)
            return self._renderer.check

        read = read_splits(source, make_check, domain=domain)
        self._splits, self.reports = read.splits, read.reports
        self._places = {key: (rows, place) for rows in read.splits.values() for place, key in enumerate(rows.keys)}

    @property
    def sizes(self) -> dict[str, int]:
        """How many problems each split has."""
        return {split: len(rows) for split, rows in self._splits.items()}

    @property
    def left_out(self) -> list[str]:
        """The rows that `drop_refused` leaves out, a sentence a split."""
        return left_out_rows(self._source, self.reports)

    def example(self, *, seed: int, split: str, index: int, easy: bool = False) -> Example:
        """The ``index``-th problem of a split, a pure function of its arguments; a dataset has no easy form.

        Training goes through all rows in an order keyed by (seed, epoch), so none recurs within an epoch. A
        held-out problem is asked once: counted twice it would narrow the intervals.

        Raises:
            UserError: no such split, or a held-out split has fewer rows than are asked for.
        """
        if split not in self._splits:
            raise UserError(f"dataset {self._source.path!r} has no split {split!r}; it has {', '.join(self._splits)}")
        rows = self._splits[split]
        place = place_in_turn(str(seed), split, index, len(rows))
        if place is None:
            raise UserError(
                f"dataset {self._source.path!r} has {len(rows)} problems of domain {self._domain!r} for {split}, and "
                f"problem {index + 1} is asked for; lower `evaluate.{split}_prompts` to {len(rows)}, or name a larger "
                f"`{split}_split`"
            )
        problem = rows[place]
        written = self._written(problem)
        example_id = f"{self._domain}/{split}/{seed}-{index}-{rows.keys[place]}"
        return Example(example_id, written.text, problem.answer, written.letters)

    def texts(self, split: str) -> Iterator[tuple[str, str]]:
        """Prompt and gold answer of every row of a split, in the dataset's order."""
        rows = self._splits[split]
        for place in range(len(rows)):
            problem = rows[place]
            yield self._written(problem).text, problem.answer

    def _written(self, problem: Problem) -> Written:
        try:
            return self._renderer.written(problem)
        except ValueError as error:
            raise UserError(f"dataset {self._source.path!r}: {error}") from error

    def reworded(self, prompt: Prompt, how: Reworded) -> Written:
        """The problem of a prompt as another reader is asked it, up to where an answer begins.

        Raises:
            UserError: the prompt is not of this dataset, or the chat template refuses it.
        """
        rows, place = self._placed(prompt)
        try:
            return self._renderer.reworded(rows[place], how)
        except ValueError as error:
            raise UserError(f"dataset {self._source.path!r}: {error}") from error

    def messages(self, prompt: Prompt) -> list[Message]:
        """The problem of a prompt as a conversation that a chat model is asked to go on with.

        Raises:
            UserError: the prompt is not of this dataset, or offers tools.
        """
        rows, place = self._placed(prompt)
        try:
            return self._renderer.messages(rows[place])
        except ValueError as error:
            raise UserError(f"dataset {self._source.path!r}: {error}") from error

    def column(self, prompt: Prompt, path: str) -> str:
        """What the row of a prompt holds in a column, as text; the path may lead into nested cells.

        Raises:
            UserError: the prompt is not of this dataset.
            ValueError: its row has no such column, or nothing that is text.
        """
        rows, place = self._placed(prompt)
        return text_of(cell(rows.cells(place), path), path, lines=True)

    def _placed(self, prompt: Prompt) -> tuple[DatasetRows, int]:
        row = self._row(prompt.id)
        if row is None:
            raise UserError(f"prompt {prompt.id} is none of dataset {self._source.path!r}")
        return row

    def verify(self, prompt: Prompt, text: str) -> float:
        """1 if the source's verifier accepts ``text``; 0..1 where it is a user's own."""
        return self.verify_many([prompt], [text])[0]

    def verify_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """:meth:`verify` of many answers, in one batch where verifying means executing.

        A completion without an answer (see `answer_after`) scores 0, and no verifier is asked.

        Raises:
            RunError: a user's own verifier raises, or gives no number from 0 to 1.
        """
        parts = [self._answer(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        answered = [(prompt, part) for prompt, part in zip(prompts, parts, strict=True) if part is not None]
        verdicts = iter(self._verdicts([prompt for prompt, _ in answered], [part for _, part in answered]))
        return [UnjudgedScore("no_answer", NO_ANSWER) if part is None else next(verdicts) for part in parts]

    def _answer(self, prompt: Prompt, text: str) -> str | None:
        """The part of a completion that is verified; None where it has none."""
        after = self._source.answer_after
        if after == "auto" and any(end in prompt.answer for _, end in THOUGHTS):
            return text  # the answer is to have a thought
        return answer_part(text, prompt=prompt.text, after=after)

    def completion(self, prompt: Prompt, answer: str) -> str:
        """What a model would write that answers so, with as little as an answer needs before it."""
        after = self._source.answer_after
        mark = opened_thought(prompt.text) if after == "auto" else after
        return answer if mark is None or self._answer(prompt, answer) is not None else f"{mark}{answer}"

    def _verdicts(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        if self._own_verifier is not None:
            return [self._own(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        pairs: list[tuple[str, str]] = []
        counts: list[int] = []
        for prompt, text in zip(prompts, texts, strict=True):
            golds = self._golds(prompt)
            pairs += [(gold, self._whole_program(prompt, text, gold)) for gold in golds]
            counts.append(len(golds))
        golds, written = [gold for gold, _ in pairs], [text for _, text in pairs]
        verdicts = iter(verify_many(self._source.verifier, golds, written, sandbox=self.sandbox))
        return [max([next(verdicts) for _ in range(count)]) for count in counts]

    def wrong_answer(self, example: Example) -> str:
        """An answer in the form that the verifier reads, and wrong; of a user's own verifier nothing is known."""
        verifier, rows = self._source.verifier, self._row(example.id)
        golds = [example.answer] if rows is None else rows[0].golds(rows[1])
        if self._own_verifier is not None:
            return ""
        if verifier == "number":
            return str(1 + max((value for gold in golds if (value := last_number(gold)) is not None), default=-1))
        if verifier == "choice":
            letters = {chosen_letter(gold) for gold in golds}
            return next(letter for letter in LETTERS if letter not in letters)
        if verifier == "math":
            return next(number for number in map(str, range(271828, 10**9)) if not any(number in g for g in golds))
        return "pass" if verifier in RUNS_PROGRAMS else f"not {example.answer}"

    def _row(self, prompt_id: str) -> tuple[DatasetRows, int] | None:
        return self._places.get(prompt_id.rpartition("-")[2])

    def _golds(self, prompt: Prompt) -> list[str]:
        """What is right as an answer to a prompt; most have one gold answer, which it carries."""
        row = self._row(prompt.id)
        if row is None:
            return [prompt.answer]
        rows, place = row
        several = self._source.tests is not None or self._source.several_golds == "any"
        return rows.golds(place) if several else [prompt.answer]

    def _whole_program(self, prompt: Prompt, text: str, tests: str) -> str:
        """The program that an answer makes with the code it goes on from, in a fence; other answers as they are."""
        row = self._row(prompt.id)
        if self._source.continues is None or row is None:
            return text
        before = row[0][row[1]].continues or ""
        return f"~~~~~~~~python\n{continued(before, text, tests)}\n~~~~~~~~"

    def _own(self, prompt: Prompt, text: str) -> float:
        row, verifier = self._row(prompt.id), self._source.verifier
        assert self._own_verifier is not None
        cells = {} if row is None else row[0].cells(row[1])
        what = f"verifier {verifier}, which may raise on nothing that a model writes, on {text[:40]!r} to {prompt.id}"
        try:
            with own_code(what, seconds=CALL_SECONDS):
                score = self._own_verifier(text, cells)
        except UserError as error:
            raise RunError(*error.problems) from error
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise RunError(
                f"verifier {verifier} gives {score!r} for the answer {text[:40]!r} to {prompt.id}; it must give a "
                "number from 0 to 1"
            )
        return float(score)


def own_verifier(source: Source, *, where: str) -> Callable[[str, dict[str, Any]], Any] | None:
    """The function that ``verifier: ./file.py:f`` means; None where the verifier is a shipped one.

    Raises:
        UserError: there is no such function.
    """
    if not is_plugin(source.verifier):
        return None
    function = load_plugin(source.verifier, where=where)
    if not callable(function):
        raise UserError(f"`{where}`: {source.verifier} is no function; it takes (text, row) and returns 0 to 1")
    return function
