"""Measuring models on held-out prompts, once each: what was written down is not asked again after a resume."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from mopd.distill.metrics.against_teachers import measure
from mopd.distill.metrics.episodes import evaluation_metrics, pace
from mopd.distill.metrics.evaluate import Decode, Evaluation, Split, Verify, evaluate, health
from mopd.distill.metrics.results import TeacherWeights, group, paired_table
from mopd.distill.metrics.selection import Selected, select_step
from mopd.distill.recipe import EvaluateRecipe
from mopd.distill.tracking.answers import answers_path, read_answers
from mopd.distill.tracking.tracker import Tracker, fallen
from mopd.distill.types import Metrics, Prompt, Rollout, Sampler
from mopd.recipes.evaluation.costs import Costs
from mopd.recipes.evaluation.own_tokens import InOwnTokens
from mopd.rollouts.prompts import PromptSource
from mopd.rollouts.sampler import asks_more
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import completion_text

RECOVERIES = ("worst_recovery", "worst_recovery_estimate", "mean_recovery", "pooled_recovery")
"""Numbers over domains that every validation logs."""


def verify(tasks: Mapping[str, Task], prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """Scores 0..1 of answers to prompts of any domains, in order; each domain's go to its task together."""
    verdicts: dict[int, float] = {}
    for domain, task in tasks.items():
        places = [i for i, prompt in enumerate(prompts) if prompt.domain == domain]
        scores = task.verify_many([prompts[i] for i in places], [texts[i] for i in places])
        verdicts.update(zip(places, scores, strict=True))
    return [verdicts[i] for i in range(len(prompts))]


class _Examined:
    """A sampler whose answers are those of evaluations; satisfies what :func:`evaluate` asks."""

    def __init__(self, sampler: Any, number: int | None) -> None:
        self._sampler, self._number = sampler, number

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """Greedy answers, or those of the sample's number."""
        return self._sampler.examine(prompts, step=step, sample=self._number)


def examine(
    sampler: Sampler,
    prompts: Mapping[str, Sequence[Prompt]],
    verify: Verify,
    decode: Decode,
    *,
    settings: EvaluateRecipe,
    step: int,
    model: str,
    split: Split,
) -> tuple[list[Evaluation], list[Evaluation]]:
    """Greedy answers of a model as `evaluate` wants them, with the mean score of sampled ones, and those themselves.

    A sampler without ``examine``, such as a server's, samples none; its answers are cut at stop strings all the same.
    """
    asked_of = sampler.sampler if isinstance(sampler, InOwnTokens) else sampler
    whole = asks_more(settings) and hasattr(asked_of, "examine")

    def decoded(rollout: Rollout) -> str:
        return cut_at(decode(rollout), settings.stop_strings)

    def answers(number: int | None) -> list[Evaluation]:
        asked: Any = _Examined(sampler, number) if whole else sampler
        return evaluate(asked, prompts, verify, decoded, step, model=model, split=split, greedy=number is None)

    rows = answers(None)
    drawn = [answers(number) for number in range(settings.samples_per_prompt)] if whole else []
    if drawn:
        means = [fmean(row.correct for row in of_question) for of_question in zip(*drawn, strict=True)]
        rows = [replace(row, sampled=mean) for row, mean in zip(rows, means, strict=True)]
    return rows, [row for each in drawn for row in each]


def by_question(prompts: Mapping[str, Sequence[Prompt]]) -> dict[tuple[str, str], Prompt]:
    """Prompts by domain and id: domains of one task may ask questions of the same ids."""
    return {(prompt.domain, prompt.id): prompt for of_domain in prompts.values() for prompt in of_domain}


def answer_rows(
    prompts: Mapping[str, Sequence[Prompt]], rows: Sequence[Evaluation], drawn: Sequence[Evaluation]
) -> Iterator[dict[str, Any]]:
    """The answers of an exam as :mod:`distill.tracking.answers` keeps them: greedy ones, then sample by sample.

    Args:
        prompts: what was asked, by domain.
        rows: the greedy answers.
        drawn: the sampled ones, in the same order, one sample after the other.
    """
    asked = by_question(prompts)
    for place, row in enumerate((*rows, *drawn)):
        prompt = asked[row.domain, row.prompt_id]
        yield {
            "model": row.model,
            "step": row.step,
            "split": row.split,
            "domain": row.domain,
            "prompt_id": row.prompt_id,
            "prompt": prompt.text,
            "gold": prompt.answer,
            "sample": place // len(rows),
            "text": row.text,
            "verdict": row.correct,
            "tokens": row.tokens,
            "truncated": row.truncated,
            "unjudged": row.unjudged,
            "reason": row.reason,
        }


def exam_settings(settings: EvaluateRecipe) -> tuple[object, ...]:
    """What answers depend on of `evaluate`, besides the questions; nothing where they are greedy and whole."""
    if not asks_more(settings):
        return ()
    sampled = (settings.samples_per_prompt, settings.temperature, settings.top_p, settings.top_k)
    return ("exam", settings.stop_strings, *(sampled if settings.samples_per_prompt else ()))


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
    """A text up to the first of the stop strings."""
    places = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class Evaluator:
    """The held-out prompts of a run, its verifiers, and what every model scored so far.

    Args:
        settings: how many prompts of which seed, and which step is selected.
        folder: the run's; answers of an earlier attempt are read from its evaluations.jsonl.
        teachers: for each trained domain its teachers with their weights.
        written_with: the settings that answers depend on, besides the prompts: for the fingerprint.
        source: draws the held-out prompts of all domains.
        tasks: verify them, by domain.
        tokenizer: the student's.
        tracker: writes the answers down.
        costs: counts what they take.
    """

    def __init__(
        self,
        settings: EvaluateRecipe,
        folder: Path,
        *,
        teachers: TeacherWeights,
        written_with: tuple[object, ...],
        source: PromptSource,
        tasks: Mapping[str, Task],
        tokenizer: PreTrainedTokenizerBase,
        tracker: Tracker,
        costs: Costs,
    ) -> None:
        counts: dict[Split, int] = {"validation": settings.validation_prompts, "test": settings.test_prompts}
        self.prompts: dict[Split, dict[str, list[Prompt]]] = {
            split: source.held_out(split, n, seed=settings.seed) for split, n in counts.items()
        }
        self._asked = {key: prompt for of in self.prompts.values() for key, prompt in by_question(of).items()}
        self._written_with = written_with
        self._tasks = tasks
        self._tokenizer = tokenizer
        self._tracker = tracker
        self._costs = costs
        self._select = settings.select
        self._settings = settings
        self._teachers = teachers
        self.rows: list[Evaluation] = []
        self.fallen: dict[str, tuple[float, float]] = {}
        self._folder = folder
        self._read(folder / "evaluations.jsonl")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any question, and with how answers are written."""
        digest = hashlib.sha256(repr(self._written_with).encode())
        for split, by_domain in self.prompts.items():
            for prompts in by_domain.values():
                for prompt in prompts:
                    digest.update(repr((split, prompt.domain, prompt.id, prompt.answer, prompt.token_ids)).encode())
        return digest.hexdigest()[:16]

    def answers(self, model: str) -> list[Evaluation]:
        """What ``model`` answered so far."""
        return [row for row in self.rows if row.model == model]

    def files(self, model: str, step: int) -> dict[Split, Path]:
        """Where what ``model`` wrote at ``step`` is, by split, whether it has been asked or not."""
        return {split: answers_path(self._folder, model, step, split) for split in self.prompts}

    def take_over(self, answers: Sequence[Evaluation], files: Mapping[Split, Path]) -> None:
        """Write down answers that were given to the same questions before, at no cost.

        Args:
            answers: of one model at one step.
            files: where their texts are, by split; a file that is not there was not written by an earlier version.
        """
        if not answers:
            return
        model, step = answers[0].model, answers[0].step
        for split, path in files.items():
            if rows := read_answers(path):
                renamed = ({**row, "model": model, "step": step} for row in rows)
                self._tracker.keep_answers(model, step, split, renamed)
        self._tracker.append_rows("evaluations", [row.record() for row in answers])
        self._add(answers)

    def has_evaluated(self, model: str, step: int, split: Split) -> bool:
        """Whether ``model`` has answered every question of ``split`` at ``step``."""
        n = sum(len(questions) for questions in self.prompts[split].values())
        return self._counts[model, step, split] == n

    def evaluate(self, model: str, *, step: int, split: Split, sampler: Sampler) -> Metrics:
        """Have the weights that ``sampler`` has now answer ``split``; returns ``score/D`` and signs of health."""
        start = time.perf_counter()
        decode = sampler.decode if isinstance(sampler, InOwnTokens) else self.decode
        rows, drawn = examine(
            *(sampler, self.prompts[split], self.verify, decode),
            settings=self._settings, step=step, model=model, split=split,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        asked = by_question(self.prompts[split])
        lengths = [len(asked[row.domain, row.prompt_id].token_ids) + row.tokens for row in (*rows, *drawn)]
        written = sum(row.tokens for row in (*rows, *drawn))
        spent = self._costs.of_evaluation(model, lengths, written=written, seconds=seconds)
        # First: an exam whose rows are there is not asked again.
        self._tracker.keep_answers(model, step, split, answer_rows(self.prompts[split], rows, drawn))
        self._tracker.append_rows("evaluations", [row.record() for row in rows])
        paced = pace([*rows, *drawn], seconds)
        self._tracker.append_rows("exams", [{"model": model, "step": step, "split": split, **spent, **paced}])
        self._add(rows)
        return health(rows) | evaluation_metrics(rows) | paced

    def against_teachers(self) -> Metrics:
        """Recoveries of the student's last validation, where defined, by the names that seesaw.json has for them.

        ``recovery/D``; ``worst_recovery``, its estimate and the ends of its interval; mean and pooled recovery. A
        domain without enough headroom has none.
        """
        graded = {domain: weights for domain, weights in self._teachers.items() if weights}
        table = paired_table(group(self.rows), "validation", graded) if graded else None
        if table is None:
            return {}
        measured = measure([table])
        recovery = {f"recovery/{domain}": value for domain, value in measured.values["recovery"].items()}
        recovery |= {name: measured.values[name] for name in RECOVERIES}
        low, high = measured.intervals["worst_recovery"] or (None, None)
        recovery |= {"worst_recovery/low": low, "worst_recovery/high": high}
        self.fallen = fallen(measured.intervals["points_at_once"])
        return {name: value for name, value in recovery.items() if value is not None}

    def selected(self, last: int) -> Selected:
        """The step that is the run's result, of those measured; ``last`` where none was, or the recipe says so."""
        best = select_step(group(self.rows), self._teachers) if self._select == "worst_recovery" else None
        return best or Selected(last, "last")

    def forget_after(self, step: int) -> None:
        """Drop what the student was measured at after ``step``, or at all where no step is finished."""
        kept = [row for row in self.rows if row.step <= step and (step > 0 or row.model != "student")]
        self._replace(kept)

    def verify(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Scores 0..1 of answers to prompts of any domains, in order, in whosever tokens the prompts are."""
        return verify(self._tasks, [self._asked.get((prompt.domain, prompt.id), prompt) for prompt in prompts], texts)

    def decode(self, rollout: Rollout) -> str:
        """The completion's text, without the closing EOS."""
        return completion_text(self._tokenizer, rollout)

    def pieces(self, rollout: Rollout) -> list[str]:
        """The completion's tokens, each as text."""
        return [str(self._tokenizer.decode([token])) for token in rollout.token_ids[rollout.loss_mask].tolist()]

    def _replace(self, rows: Sequence[Evaluation]) -> None:
        self.rows = []
        self._counts = Counter()
        self._add(rows)

    def _add(self, rows: Sequence[Evaluation]) -> None:
        self.rows.extend(rows)
        self._counts.update((row.model, row.step, row.split) for row in rows)

    def _read(self, path: Path) -> None:
        """Take up the whole evaluations of an earlier attempt; a partial one, cut off by a kill, is asked again."""
        self._counts: Counter[tuple[str, int, str]] = Counter()
        if not path.is_file():
            return
        records: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
        self._add([Evaluation(**record) for record in records])
        whole = {key for key in self._counts if self.has_evaluated(*key)}  # type: ignore[arg-type]
        if len(whole) < len(self._counts):
            self._tracker.keep_rows("evaluations", lambda r: (r["model"], r["step"], r["split"]) in whole)
            kept = [row for row in self.rows if (row.model, row.step, row.split) in whole]
            self._replace(kept)
