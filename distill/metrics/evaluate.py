"""How good is a model on each domain? Greedy answers, verified one by one; scores with 95% intervals.

It is handed a sampler and a verifier and knows no task. What it returns is one row a question, so that intervals,
paired tests and seesaw.json (distill/metrics/results.py) can be computed afterwards from evaluations.jsonl alone.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mopd.distill.errors import RunError
from mopd.distill.verdicts import EpisodeRecord, UnjudgedScore

if TYPE_CHECKING:  # whoever only reads answers doesn't wait for torch
    from mopd.distill.types import Metrics, Prompt, Rollout, Sampler

Split: TypeAlias = Literal["validation", "test"]
Verify: TypeAlias = "Callable[[Sequence[Prompt], Sequence[str]], list[float]]"
"""Prompts and completions, in the same order, to scores 0..1 of each."""
Decode: TypeAlias = "Callable[[Rollout], str]"
"""A rollout to the text of its completion, without prompt and special tokens."""

Z95 = 1.959964
"""The normal distribution's two-sided 95% quantile."""

_ZLIB_OVERHEAD = len(zlib.compress(b""))


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with its 95% interval over ``n`` questions; fractions in 0..1."""

    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model's answer to one question. The first six fields are a row of evaluations.jsonl, and the score of
    sampled answers, why no verifier looked at the answer, and what became of the episode, where there are any.

    Attributes:
        model: ``base``, ``teachers/NAME`` or ``student``.
        step: finished steps of the model's run; 0 for base and teachers.
        correct: the verifier's score, 0..1.
        tokens: length of the completion, EOS included.
        truncated: the completion was cut at the limit.
        repetition: see :func:`repetition`.
        text: the completion.
        sampled: mean score of the answers to the question that were sampled; None where none were.
        unjudged: ``no_answer`` or ``refused``, where no verifier looked at the answer; see
            :mod:`distill.verdicts`.
        reason: why none did.
        episode: what became of it, where the question opens an episode of an environment.
    """

    model: str
    step: int
    split: Split
    domain: str
    prompt_id: str
    correct: float
    tokens: int = 0
    truncated: bool = False
    repetition: float = 0.0
    text: str = ""
    sampled: float | None = None
    unjudged: str = ""
    reason: str = ""
    episode: EpisodeRecord | None = None

    def __post_init__(self) -> None:
        if isinstance(self.episode, Mapping):  # as a row of evaluations.jsonl has it
            failures = tuple(self.episode["failures"])
            object.__setattr__(self, "episode", EpisodeRecord(**{**self.episode, "failures": failures}))

    def record(self) -> dict[str, Any]:
        """The row of evaluations.jsonl; ``Evaluation(**record)`` reads it back."""
        keys = ("model", "step", "split", "domain", "prompt_id", "correct")
        why = ("unjudged", "reason") if self.unjudged else ()
        sampled = ("sampled",) if self.sampled is not None else ()
        episode = {} if self.episode is None else {"episode": asdict(self.episode)}
        return {key: getattr(self, key) for key in (*keys, *sampled, *why)} | episode


def repetition(text: str) -> float:
    """How far zlib shrinks a text beyond its fixed overhead: 0 for a text without patterns, towards 1 for a loop.

    Example:
        ``repetition("ab" * 100)`` is 0.975; of eight different letters it is 0.
    """
    raw = text.encode()
    if not raw:
        return 0.0
    return max(0.0, 1.0 - (len(zlib.compress(raw, 9)) - _ZLIB_OVERHEAD) / len(raw))


def evaluate(
    sampler: Sampler,
    prompts_by_domain: Mapping[str, Sequence[Prompt]],
    verify: Verify,
    decode: Decode,
    step: int,
    *,
    model: str,
    split: Split,
    greedy: bool = True,
) -> list[Evaluation]:
    """Answer every prompt once with the weights the sampler was given last, and verify the answers.

    Args:
        prompts_by_domain: questions of each domain; the rows come in this order.
        step: finished steps of the model that answers.
        model: ``base``, ``teachers/NAME`` or ``student``.
        greedy: the likeliest token each time; else as in training, keyed by ``step``.

    Returns:
        One row a prompt.

    Raises:
        RunError: the sampler answered other prompts than it was given, or the verifier returned a wrong number
            of scores, or one outside 0..1.
    """
    prompts = [prompt for questions in prompts_by_domain.values() for prompt in questions]
    rollouts = [rollout for microbatch in sampler.sample(prompts, step=step, greedy=greedy) for rollout in microbatch]
    if [rollout.prompt.id for rollout in rollouts] != [prompt.id for prompt in prompts]:
        raise RunError(
            f"evaluation of {model!r} at step {step}: {len(prompts)} prompts were asked and {len(rollouts)} rollouts "
            "came back, not one each in the order asked; the sampler must write one completion a prompt"
        )
    texts = [decode(rollout) for rollout in rollouts]
    verdicts = _verdicts(rollouts, texts, verify, model)
    rows: list[Evaluation] = []
    for rollout, text, verdict in zip(rollouts, texts, verdicts, strict=True):
        if not 0.0 <= verdict <= 1.0:
            raise RunError(f"the verifier scored {rollout.prompt.id} (domain {rollout.domain!r}) {verdict}, not 0..1")
        rows.append(
            Evaluation(
                model=model,
                step=step,
                split=split,
                domain=rollout.domain,
                prompt_id=rollout.prompt.id,
                correct=float(verdict),
                tokens=rollout.trained_tokens,
                truncated=rollout.finish == "length",
                repetition=repetition(text),
                text=text,
                unjudged=verdict.kind if isinstance(verdict, UnjudgedScore) else "",
                reason=verdict.reason if isinstance(verdict, UnjudgedScore) else "",
                episode=rollout.episode,
            )
        )
    return rows


def _verdicts(rollouts: Sequence[Rollout], texts: Sequence[str], verify: Verify, model: str) -> list[float]:
    """The scores of answers, in order: of an episode its environment's, of the others the verifier's.

    Raises:
        RunError: the verifier returned a wrong number of scores.
    """
    asked = [n for n, rollout in enumerate(rollouts) if rollout.episode is None]
    scored = verify([rollouts[n].prompt for n in asked], [texts[n] for n in asked])
    if len(scored) != len(asked):
        raise RunError(f"the verifier returned {len(scored)} scores for {len(asked)} answers of {model!r}")
    by_place = dict(zip(asked, scored, strict=True))
    return [by_place[n] if r.episode is None else r.episode.reward for n, r in enumerate(rollouts)]


def interval(correct: Sequence[float]) -> Interval:
    """Mean score with its 95% Wilson interval, which stays within 0..1 and has a width at 0% and 100%, too.

    For partial scores (between 0 and 1) it is wider than it need be: their variance is below ``p (1 - p)``.

    Raises:
        ValueError: no scores.

    Source: E. B. Wilson, JASA 22 (1927) 209-212.
    """
    n = len(correct)
    if n == 0:
        raise ValueError("no answers: a score needs at least one")
    p = fmean(correct)
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    # Rounding may leave an end a hair on the wrong side of a score of exactly 0 or 1.
    return Interval(score=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)


def _by_domain(rows: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    domains: dict[str, list[Evaluation]] = {}
    evaluated: set[tuple[str, int, str]] = set()
    for row in rows:
        evaluated.add((row.model, row.step, row.split))
        domains.setdefault(row.domain, []).append(row)
    if len(evaluated) > 1:
        raise ValueError(f"rows of several evaluations would be averaged into one: {sorted(evaluated)}")
    return domains


def scores(rows: Iterable[Evaluation]) -> dict[str, Interval]:
    """Score of each domain, in the order of the rows, which must be of one evaluation (model, step and split)."""
    return {domain: interval([row.correct for row in answers]) for domain, answers in _by_domain(rows).items()}


def health(rows: Iterable[Evaluation]) -> Metrics:
    """Metrics of one evaluation: ``score/D``, ``length/D`` (mean tokens), ``truncation/D`` and ``repetition/D``.

    The last three are early signs of collapse; truncation is the fraction of completions cut at the limit, and a
    truncation above 0 caps the score. ``sampled_score/D`` is that of sampled answers, where some were. ``no_answer/D``
    and ``refused/D`` count answers that no verifier looked at, where there are any.
    """
    metrics: Metrics = {}
    for domain, answers in _by_domain(rows).items():
        metrics[f"score/{domain}"] = fmean(row.correct for row in answers)
        metrics[f"length/{domain}"] = fmean(row.tokens for row in answers)
        metrics[f"truncation/{domain}"] = fmean(row.truncated for row in answers)
        metrics[f"repetition/{domain}"] = fmean(row.repetition for row in answers)
        if drawn := [row.sampled for row in answers if row.sampled is not None]:
            metrics[f"sampled_score/{domain}"] = fmean(drawn)
        for kind, count in Counter(row.unjudged for row in answers if row.unjudged).items():
            metrics[f"{kind}/{domain}"] = float(count)
    return metrics
