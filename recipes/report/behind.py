"""Which domain a run left behind, and what its numbers say of why: sentences of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, median

from mopd.distill.metrics.stop_rule import learning
from mopd.distill.recipe import PlateauRecipe
from mopd.distill.recipe.model_names import stage_name
from mopd.recipes.report.data import RunData, Stage
from mopd.recipes.report.wording import between, percent

KEPT = 0.9
"""A domain is left behind where the whole interval of its recovery is below this."""
FALL = 0.1
"""Part by which a stage's loss fell between the last two tenths of its steps, at least, to be falling still."""
RULE = PlateauRecipe()
"""When a domain still learns, and when its divergence is far above the others'."""


def left_behind(data: RunData) -> list[str]:
    """A sentence for each domain of which the student keeps clearly less than nine tenths of its teacher's gain."""
    sentences: list[str] = []
    for domain, ends in (data.seesaw.intervals.recovery or {}).items():
        if ends is None or ends.high >= KEPT:
            continue
        kept = percent((data.seesaw.metrics.recovery or {}).get(domain))
        reasons = [*_of_student(data, domain), *_of_teachers(data, domain)]
        why = "; ".join(reasons) or "nothing that was measured says why"
        sentences.append(f"{domain} was left behind at {kept} of its teacher’s gain ({between(ends)}): {why}.")
    return sentences


def _of_student(data: RunData, domain: str) -> Iterator[str]:
    """Whether it was still on its way when the run ended, or as near to its teacher as it came to others."""
    evaluations = [{"step": row.step, **row.values} for row in data.evals]
    gaps = {d: gap for d in data.domains if (gap := _last(data, f"held_out_kl/{d}")) is not None}
    others = [gap for other, gap in gaps.items() if other != domain]
    if domain in gaps and others:
        gap, usual = gaps[domain], median(others)
        if gap > RULE.behind * max(0.0, usual):
            yield f"at the end it was {gap:.2g} nats a token from its teacher, other domains {usual:.2g}"
        elif (data.seesaw.metrics.recovery or {}).get(domain) is not None:
            yield f"at the end it was no further from its teacher than other domains ({gap:.2g} and {usual:.2g} nats)"
    trained = [d for d in data.domains if not data.recipe.domains[d].evaluate_only]
    if len(evaluations) > RULE.evaluations and domain in learning(RULE, evaluations, trained):
        yield "it was still getting better, so more steps or more of the rollouts (`prompt_rule`) may help"


def _of_teachers(data: RunData, domain: str) -> Iterator[str]:
    """Whether a teacher that a stage made was still learning when its stage ended."""
    stages = {stage.name: stage for stage in data.stages}
    for name in data.seesaw.teachers.get(domain, ()):
        recorded = data.recipe.teachers.get(name)
        made = stage_name(recorded.model) if recorded is not None and isinstance(recorded.model, str) else None
        losses = _last_tenths(stages[made]) if made in stages else None
        if losses is not None and losses[1] < (1 - FALL) * losses[0]:
            score = data.seesaw.models.get(f"teachers/{name}", {}).get(domain)
            scored = "" if score is None else f" ({percent(score.score, 1)})"
            yield (
                f"its teacher {name}{scored} was not finished: the loss of stage {made} still fell from "
                f"{losses[0]:.2g} to {losses[1]:.2g} over its last steps"
            )


def _last(data: RunData, name: str) -> float | None:
    """The mean of a metric over the last evaluations; None where it was not measured."""
    last = data.evals[-RULE.evaluations :]  # not per token
    values = [value for row in last if (value := row.values.get(name)) is not None]
    return fmean(values) if values else None


def _last_tenths(stage: Stage) -> tuple[float, float] | None:
    """A stage's mean loss over the last tenth of its steps but one, and over the last; None of fewer than 20 steps."""
    losses: Sequence[float] = [value for row in stage.rows if (value := row.values.get("loss")) is not None]
    tenth = len(losses) // 10
    return (fmean(losses[-2 * tenth : -tenth]), fmean(losses[-tenth:])) if tenth > 1 else None  # not per token
