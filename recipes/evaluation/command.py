"""`mopd eval`: a checkpoint on the test prompts of any tasks, or of a recipe's domains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from rich.table import Table

from mopd.distill.metrics.episodes import ENDINGS, MeanCount, MeasuredEpisodes, measured_episodes
from mopd.distill.metrics.evaluate import Evaluation, Interval, interval, scores
from mopd.distill.metrics.results import UnjudgedAnswers, unjudged_answers
from mopd.distill.recipe import DomainRecipe, EvaluateRecipe, RolloutRecipe
from mopd.distill.tracking.answers import write_answers
from mopd.distill.tracking.console import Progress, TaskHandle
from mopd.distill.types import Prompt, Rollout, Sampler
from mopd.recipes.evaluation.evaluator import answer_rows, examine, verify
from mopd.recipes.resolve.data import prompt_source, tasks_of
from mopd.recipes.resolve.initial import load_tokenizer
from mopd.recipes.resolve.resolved import resolve_device
from mopd.recipes.tables import Fitted
from mopd.rollouts.engines import ENGINES
from mopd.rollouts.engines.base import FrozenModel, SamplerProcesses
from mopd.rollouts.environments.episodes import with_episodes
from mopd.rollouts.environments.task import EnvironmentTask
from mopd.rollouts.sampler import make_samplers, sampler_settings
from mopd.rollouts.tasks import Task
from mopd.rollouts.tokenizer import completion_text


@dataclass(frozen=True, slots=True)
class EvalQuestions:
    """What a model is asked.

    Attributes:
        domains: by name, each with its task.
        prompts: of the test split, for each domain at most.
        seed: which prompts those are; see `evaluate.seed`.
        rollout: how long an answer may be.
        evaluate: how many answers are sampled beside the greedy one, and how; what ends an answer.
    """

    domains: Mapping[str, DomainRecipe]
    prompts: int
    seed: int = EvaluateRecipe().seed
    rollout: RolloutRecipe = field(default_factory=RolloutRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)


@dataclass(frozen=True, slots=True)
class MeasuredTask:
    """How a model answers one domain's questions.

    Attributes:
        greedy: of the likeliest answers, with its interval over questions.
        sampled: the mean over samples of each question, with its interval over questions; None where none were drawn.
        truncated: part of the greedy answers that were cut at the limit.
        mean_tokens: of a greedy answer.
        unjudged: greedy answers that no verifier looked at; None where there were none.
        episodes: turns and tool calls of greedy episodes; None where the domain is no environment.
        left_out: in sentences, what the domain holds and the model cannot be asked.
    """

    greedy: Interval
    sampled: Interval | None
    truncated: float
    mean_tokens: float
    unjudged: UnjudgedAnswers | None
    episodes: MeasuredEpisodes | None = None
    left_out: tuple[str, ...] = ()


def evaluate_model(
    model: str, questions: EvalQuestions, *, trust_remote_code: bool = False, answers: Path | None = None
) -> dict[str, MeasuredTask]:
    """Measure a checkpoint on test prompts: greedily, and with sampled answers besides where they are asked for.

    Args:
        answers: a file for what it wrote; see :mod:`distill.tracking.answers`.

    Raises:
        UserError: a task can't be used.
    """
    domains = dict(questions.domains)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    by_domain = tasks_of(domains, tokenizer)
    device = resolve_device("auto")
    settings = sampler_settings(
        questions.rollout,
        tokenizer,
        model=model,
        seed=questions.seed,
        support=None,
        evaluate=questions.evaluate,
    )
    asked = prompt_source(domains, by_domain, tokenizer, seed=questions.seed).held_out(
        "test", questions.prompts, seed=questions.seed
    )
    questions_asked = sum(map(len, asked.values())) * (1 + questions.evaluate.samples_per_prompt)
    with Progress() as progress, ExitStack() as closing:
        task = progress.task(Path(model).name, questions_asked)
        closing.callback(task.close)
        samplers = make_samplers(
            ENGINES["in_process"],
            settings=settings,
            frozen=SamplerProcesses(0, device, "bfloat16" if device == "cuda" else "float32"),
            closing=closing,
            episodes=partial(with_episodes, tasks=by_domain, tokenizer=tokenizer),
        )
        rows, drawn = examine(
            cast(Sampler, _Counted(samplers.of(FrozenModel(model, trust_remote_code=trust_remote_code)), task)),
            asked,
            lambda prompts, texts: verify(by_domain, prompts, texts),
            lambda rollout: completion_text(tokenizer, rollout),
            settings=questions.evaluate,
            step=0,
            model=model,
            split="test",
        )
    if answers is not None:
        write_answers(answers, answer_rows(asked, rows, drawn))
    unjudged = unjudged_answers(rows, "test").get(model, {})
    return {
        domain: _measured(
            [row for row in rows if row.domain == domain], greedy, unjudged.get(domain), _left_out(by_domain[domain])
        )
        for domain, greedy in scores(rows).items()
    }


def _measured(
    rows: Sequence[Evaluation], greedy: Interval, unjudged: UnjudgedAnswers | None, left_out: tuple[str, ...]
) -> MeasuredTask:
    """What the answers to one domain come to."""
    episodes = [row.episode for row in rows if row.episode is not None]
    return MeasuredTask(
        greedy,
        _sampled(rows),
        truncated=fmean(row.truncated for row in rows),
        mean_tokens=fmean(row.tokens for row in rows),
        unjudged=unjudged,
        episodes=measured_episodes(episodes) if episodes else None,
        left_out=left_out,
    )


def _left_out(task: Task) -> tuple[str, ...]:
    return tuple(task.left_out) if isinstance(task, EnvironmentTask) else ()


class _Counted:
    """A sampler whose answers are counted on a line of the console as they come."""

    def __init__(self, sampler: Any, task: TaskHandle) -> None:
        self._sampler, self._task = sampler, task

    def sample(self, prompts: Sequence[Prompt], **how: Any) -> Iterator[list[Rollout]]:
        """As the sampler's own."""
        return self._counted(self._sampler.sample(prompts, **how))

    def examine(self, prompts: Sequence[Prompt], **how: Any) -> Iterator[list[Rollout]]:
        """As the sampler's own."""
        return self._counted(self._sampler.examine(prompts, **how))

    def _counted(self, microbatches: Iterator[list[Rollout]]) -> Iterator[list[Rollout]]:
        for microbatch in microbatches:
            self._task.advance(self._task.step + len(microbatch), {})
            yield microbatch


def _sampled(rows: Sequence[Evaluation]) -> Interval | None:
    """The mean score of each question over its samples, with its interval over questions."""
    means = [row.sampled for row in rows if row.sampled is not None]
    return interval(means) if means else None


def measured_table(model: str, measured: Mapping[str, MeasuredTask], *, samples: int) -> Fitted:
    """The scores of a model for the console, and of what no verifier looked at."""
    sampled = ("sampled", f"95% interval\nof {samples} samples") if samples else ()
    table = Table(title=model)
    for heading in ("task", "score", "95% interval", *sampled, "prompts", "cut short"):
        table.add_column(heading, no_wrap=True)
    for task, scored in measured.items():
        more = () if scored.sampled is None else _words(scored.sampled)
        table.add_row(task, *_words(scored.greedy), *more, str(scored.greedy.n), f"{100 * scored.truncated:.0f}%")
    notes = [note for task, scored in measured.items() for note in _notes(task, scored)]
    if notes:
        table.caption = "\n".join(notes)
    return Fitted(table)


def _notes(task: str, scored: MeasuredTask) -> Iterator[str]:
    """Lines under the table about a task."""
    if scored.unjudged is not None:
        each = scored.unjudged
        yield f"{task}: {each.no_answer} without an answer, {each.refused} programs refused ({each.first_reason})"
    if scored.episodes is not None:
        episodes = scored.episodes
        solved, between = _words(episodes.solved)
        after = episodes.solved_after_failure
        mended = "" if after is None else f"; {_words(after)[0]}% of {after.n} after a failure"
        yield f"{task}: {solved}% solved ({between}){mended}"
        counts = {"turns": episodes.turns, "tool calls": episodes.tool_calls, "tool errors": episodes.tool_errors}
        yield ", ".join(f"{_count_words(count)} {name}" for name, count in counts.items())
        ended = ", ".join(f"{count} by {ENDINGS[how]}" for how, count in episodes.ended.items())
        failed = "".join(f"; {count} attempts failed ({reason})" for reason, count in episodes.failures.items())
        yield f"ended: {ended}{failed}"
    yield from (f"{task}: {sentence}" for sentence in scored.left_out)


def _count_words(count: MeanCount) -> str:
    ends = "" if count.low is None or count.high is None else f" ({count.low:.1f} to {count.high:.1f})"
    return f"{count.mean:.1f}{ends}"


def measured_record(model: str, measured: Mapping[str, MeasuredTask], questions: EvalQuestions) -> dict[str, Any]:
    """The same as plain values; scores are fractions in 0..1."""
    return {
        "format": 1,
        "model": model,
        "seed": questions.seed,
        "max_new_tokens": questions.rollout.max_new_tokens,
        "temperature": questions.evaluate.temperature,
        "top_p": questions.evaluate.top_p,
        "top_k": questions.evaluate.top_k,
        "stop_strings": list(questions.evaluate.stop_strings),
        "samples": questions.evaluate.samples_per_prompt,
        "tasks": {task: asdict(scored) for task, scored in measured.items()},
    }


def _words(score: Interval) -> tuple[str, str]:
    return f"{100 * score.score:.1f}", f"{100 * score.low:.1f} to {100 * score.high:.1f}"
