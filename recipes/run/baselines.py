"""Measuring models that are not being trained: base and teachers of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from mopd.distill.errors import Interrupted, NoHeadroom
from mopd.distill.metrics.evaluate import Evaluation, Split
from mopd.distill.metrics.results import TeacherWeights, group, headrooms
from mopd.recipes.evaluation.cache import SharedAnswers
from mopd.recipes.evaluation.evaluator import Evaluator
from mopd.recipes.evaluation.own_tokens import SamplersInOwnTokens
from mopd.recipes.run.context import RunContext
from mopd.rollouts.engines.base import FrozenModel
from mopd.rollouts.sampler import Samplers

SPLITS: tuple[Split, ...] = ("validation", "test")


def measure_frozen(
    models: Mapping[str, FrozenModel],
    context: RunContext,
    evaluator: Evaluator,
    make_samplers: Callable[[ExitStack], Samplers | SamplersInOwnTokens],
) -> None:
    """Measure base and teachers, unless they were: their scores are the lines that the student is held against.

    Args:
        models: by their names in results, ``base`` and ``teachers/NAME``.
        make_samplers: makes those of the run; what they start ends here.
    """
    if context.answers is None:
        _measure(models, context, evaluator, make_samplers)
    else:
        _measure_once(models, context, context.answers, evaluator, make_samplers)


def _measure_once(
    models: Mapping[str, FrozenModel],
    context: RunContext,
    kept: SharedAnswers,
    evaluator: Evaluator,
    make_samplers: Callable[[ExitStack], Samplers | SamplersInOwnTokens],
) -> None:
    """The same in a study, where a model that another run has measured is not asked again."""
    fingerprint = evaluator.fingerprint
    with kept.asking:
        for name, model in models.items():
            if model.adapter is None and not evaluator.answers(name):
                evaluator.take_over(kept.find(name, model.path, fingerprint), kept.files(model.path, fingerprint))
        for name in _measure(models, context, evaluator, make_samplers):
            if models[name].adapter is None:
                answers, files = evaluator.answers(name), evaluator.files(name, 0)
                kept.keep(models[name].path, fingerprint, answers, files)


def refuse_low_headroom(rows: Sequence[Evaluation], teachers: TeacherWeights, points: float, *, title: str) -> None:
    """Train nothing where teachers are too little better than the base for a result to mean anything.

    Args:
        rows: of base and teachers.
        points: that each domain's teachers must be above the base on validation prompts; 0: no rule.
        title: the run's name.

    Raises:
        NoHeadroom: with the domains in which they are not.
    """
    if points == 0:  # a teacher below its base is the preflight's to tell, and no reason to end
        return
    low = {domain: gain for domain, gain in headrooms(group(rows), teachers).items() if 100 * gain < points}
    if low:
        shown = ", ".join(f"{domain} by {100 * gain:+.1f}" for domain, gain in low.items())
        raise NoHeadroom(
            f"{title}: teachers differ from the base in {shown} points of validation score, and "
            f"`evaluate.min_headroom` asks for {points:g}; nothing was trained. Train specialists longer, take a base "
            "that leaves them room, or lower it"
        )


def _measure(
    models: Mapping[str, FrozenModel],
    context: RunContext,
    evaluator: Evaluator,
    make_samplers: Callable[[ExitStack], Samplers | SamplersInOwnTokens],
) -> list[str]:
    """Evaluate all models that have not answered everything; returns their names."""
    todo = [name for name in models if not all(evaluator.has_evaluated(name, 0, split) for split in SPLITS)]
    if not todo:
        return []
    handle = context.progress.task(f"{context.title}: base and teachers", len(todo) * len(SPLITS))
    with ExitStack() as closing:
        closing.callback(handle.close)
        samplers = make_samplers(closing)
        for i, name in enumerate(todo):
            sampler = samplers.of(models[name])
            for j, split in enumerate(SPLITS):
                if context.stop.is_set():
                    raise Interrupted("stopped while base and teachers were measured")
                if not evaluator.has_evaluated(name, 0, split):
                    evaluator.evaluate(name, step=0, split=split, sampler=sampler)
                handle.advance(i * len(SPLITS) + j + 1, {})
    return todo
