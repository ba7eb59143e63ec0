"""What the runs of a comparison spent: training, making teachers, base and exams apart; and compute over steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mopd.distill.metrics.results import curve
from mopd.distill.metrics.stop_rule import training_flops
from mopd.distill.recipe.model_names import PREFIX, SELF, stage_name
from mopd.distill.recipe.plugins import is_plugin
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.distill.tracking.ledger import Ledger, Spent, read_ledger, total_of
from mopd.recipes.compare.runs import Run
from mopd.recipes.report.data import run_ledger
from mopd.recipes.report.records import RecordedRecipe


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating-point operations and seconds."""

    flops: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run spent, or a row on average; None where it was spent elsewhere and nothing tells how much.

    Attributes:
        training: the run's own loop: publishing, generation, teachers' scoring, updates; of a cascade, its links.
        teachers: the stages that only teachers were made by, and the runs whose result a teacher is, where
            ``ledger.json`` lies beside it.
        with_teachers: the sum of the first two.
        base: what made the student's base, which is no teacher's cost.
        evaluation: exams, which are in none of the others.
    """

    training: Cost | None
    teachers: Cost | None
    with_teachers: Cost | None
    base: Cost | None
    evaluation: Cost | None


@dataclass(frozen=True, slots=True)
class ComputePoint:
    """A run's validation scores by domain after ``step`` steps, and the FLOPs that training had taken until then."""

    step: int
    flops: float
    scores: Mapping[str, float]


def run_cost(run: Run) -> RunCost:
    """What a run spent. Seconds of stages that ran side by side are summed."""
    recipe, spent = run.recipe, _spent(run)
    own = {role: s for role, s in spent.items() if not role.startswith("stage/")}
    links = cascade_links(recipe)
    training = _sum([_total({r: s for r, s in own.items() if r != "evaluation"}), _of_stages(spent, links)])
    teachers = teachers_cost(recipe, spent)
    return RunCost(
        training=training,
        teachers=teachers,
        with_teachers=_sum([training, teachers]),
        base=_sum([_of_stages(spent, _base_stages(recipe)), _elsewhere(recipe.student_model)]),
        evaluation=_total({"evaluation": own.get("evaluation", Spent())}),
    )


def teachers_cost(recipe: RecordedRecipe, spent: Mapping[str, Spent]) -> Cost | None:
    """What the making of a run's teachers took; None where it was done elsewhere and nothing tells how much.

    Args:
        spent: of the run's ledger, stages under ``stage/NAME/``.
    """
    used = dict.fromkeys(name for weights in recipe.teacher_weights.values() for name in weights)
    used_teachers, base_stages = [recipe.teachers[name] for name in used], _base_stages(recipe)
    sources = [teacher.adapter if stage_name(teacher.adapter) else teacher.model for teacher in used_teachers]
    made = {stage: None for source in sources for stage in _stages(recipe, source) if stage not in base_stages}
    # What an adapter from elsewhere, a user's own class or kind cost, nothing tells.
    elsewhere = any(
        (teacher.adapter and not stage_name(teacher.adapter)) or teacher.scorer or is_plugin(teacher.kind)
        for teacher in used_teachers
    )
    models = [None] if elsewhere else [_elsewhere(source) for source in dict.fromkeys(sources)]
    return _sum([_of_stages(spent, made), *models])


def _base_stages(recipe: RecordedRecipe) -> dict[str, None]:
    """The stages that the student's base stands on; the links of a cascade are its training."""
    links = cascade_links(recipe)
    return {stage: None for stage in _stages(recipe, recipe.student_model) if stage not in links}


def mean_cost(costs: Sequence[RunCost]) -> RunCost:
    """The mean over seeds of each part; None where it is unknown of any."""
    return RunCost(
        training=_mean([cost.training for cost in costs]),
        teachers=_mean([cost.teachers for cost in costs]),
        with_teachers=_mean([cost.with_teachers for cost in costs]),
        base=_mean([cost.base for cost in costs]),
        evaluation=_mean([cost.evaluation for cost in costs]),
    )


def compute_curve(run: Run, domains: Sequence[str]) -> list[ComputePoint]:
    """The student's validation scores with the FLOPs of training (no exams, no stages) that each had taken."""
    flops = {0: 0.0} | _after_links(run)
    total = max(flops.values())
    for row in read_jsonl(run.folder / "metrics.jsonl"):
        if row.get("kind") == "train":
            total += training_flops(row)
            flops[row["step"]] = total
    return [ComputePoint(p.step, flops.get(p.step, total), p.scores) for p in curve(run.answers, domains)]


def cascade_links(recipe: RecordedRecipe) -> dict[str, None]:
    """The stages that a cascade trained its student in, first to last; none of another method's run."""
    if recipe.method != "cascade":
        return {}
    chain = list(_stages(recipe, recipe.student_model))[::-1]
    from_scratch = bool(chain) and not isinstance(recipe.stages[chain[0]].start, str)
    return dict.fromkeys(name for name in chain if not (from_scratch and name == chain[0]))


def _after_links(run: Run) -> dict[int, float]:
    """FLOPs of a cascade's training after each link, by the step at which the link was measured."""
    spent = _spent(run)
    flops: dict[int, float] = {}
    step, total = 0, 0.0
    for name in cascade_links(run.recipe):
        step += run.recipe.stages[name].steps
        total += _of_stages(spent, {name: None}).flops
        flops[step] = total
    return flops


def _spent(run: Run) -> Mapping[str, Spent]:
    path = run.folder / "ledger.json"
    return (read_ledger(path) if path.is_file() else run_ledger(run.folder)).spent


def _stages(recipe: RecordedRecipe, source: object) -> Iterator[str]:
    """The stages that a model stands on, nearest first."""
    seen: set[str] = set()
    while isinstance(source, str) and source.startswith(PREFIX) and source not in seen:
        seen.add(source)
        name = source.removeprefix(PREFIX)
        yield name
        source = recipe.stages[name].start


def _of_stages(spent: Mapping[str, Spent], stages: Mapping[str, None]) -> Cost:
    parts = {role: role.split("/", 2) for role in spent}
    roles = [role for role, p in parts.items() if p[0] == "stage" and p[1] in stages and p[2] != "evaluation"]
    return _total({role: spent[role] for role in roles})


def _elsewhere(source: object) -> Cost | None:
    """What a model cost that is no stage of the run: none from scratch or of the student itself, its own run's
    training, or unknown."""
    if not isinstance(source, str) or source == SELF or source.startswith(PREFIX):
        return _total({})
    beside = Path(source).parent / "ledger.json"
    ledger = read_ledger(beside) if beside.is_file() else None
    return None if ledger is None else _own_training(ledger)


def _own_training(ledger: Ledger) -> Cost:
    return _total({r: s for r, s in ledger.spent.items() if not r.startswith("stage/") and r != "evaluation"})


def _total(spent: Mapping[str, Spent]) -> Cost:
    return Cost(**total_of(spent))


def _sum(costs: Sequence[Cost | None]) -> Cost | None:
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    return Cost(sum((cost.flops for cost in known), 0.0), sum((cost.seconds for cost in known), 0.0))


def _mean(costs: Sequence[Cost | None]) -> Cost | None:
    total = _sum(costs)
    return None if total is None else Cost(total.flops / len(costs), total.seconds / len(costs))
