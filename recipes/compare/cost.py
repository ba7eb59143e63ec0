"""What the runs of a comparison spent: training, making teachers, base and exams apart; and compute over steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mopd.distill.metrics.results import curve
from mopd.distill.recipe.plugins import is_plugin
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.distill.tracking.ledger import Ledger, Spent, read_ledger, total_of
from mopd.recipes.compare.runs import Run
from mopd.recipes.report.data import run_ledger, teacher_weights
from mopd.recipes.resolve.sources import SELF
from mopd.recipes.resolve.stages import PREFIX

Cost: TypeAlias = dict[str, float]
"""``{"flops": ..., "seconds": ...}``."""

PARTS = ("training", "teachers", "with_teachers", "base", "evaluation")
"""What is told apart. ``with_teachers`` is the sum of the first two; base and exams are in neither."""


def cost(run: Run) -> dict[str, Cost | None]:
    """What a run spent, by :data:`PARTS`; None where it was spent elsewhere and nothing tells how much.

    ``training`` is the run's own loop: publishing, generation, teachers' scoring, updates; of a cascade, its links.
    ``teachers`` are the stages that only teachers were made by, and the runs whose result a teacher is, where
    ``ledger.json`` lies beside it; what made the student's base (``base``) is no teacher's cost. Seconds of stages that
    ran side by side are summed.
    """
    spent = _spent(run)
    own = {role: s for role, s in spent.items() if not role.startswith("stage/")}
    used = dict.fromkeys(name for weights in teacher_weights(run.recipe).values() for name in weights)
    links = cascade_links(run.recipe)
    base_stages = {stage for stage in _stages(run.recipe, run.recipe["student"]["model"]) if stage not in links}
    used_teachers = [run.recipe["teachers"][name] for name in used]
    sources = [teacher["model"] for teacher in used_teachers]
    made = {stage: None for source in sources for stage in _stages(run.recipe, source) if stage not in base_stages}
    training = _sum([total_of({r: s for r, s in own.items() if r != "evaluation"}), _of_stages(spent, links)])
    # What an adapter, a user's own class or kind cost, nothing tells.
    elsewhere = any(
        teacher.get("adapter") or teacher.get("scorer") or is_plugin(teacher.get("kind") or "")
        for teacher in used_teachers
    )
    models = [None] if elsewhere else [_elsewhere(source) for source in dict.fromkeys(sources)]
    teachers = _sum([_of_stages(spent, made), *models])
    return {
        "training": training,
        "teachers": teachers,
        "with_teachers": _sum([training, teachers]),
        "base": _sum([_of_stages(spent, dict.fromkeys(base_stages)), _elsewhere(run.recipe["student"]["model"])]),
        "evaluation": total_of({"evaluation": own.get("evaluation", Spent())}),
    }


def mean_cost(costs: Sequence[Mapping[str, Cost | None]]) -> dict[str, Cost | None]:
    """The mean over seeds of each part; None where it is unknown of any."""
    summed = {part: _sum([one[part] for one in costs]) for part in PARTS}
    return {
        p: None if c is None else {unit: value / len(costs) for unit, value in c.items()} for p, c in summed.items()
    }


def compute_curve(run: Run, domains: Sequence[str]) -> list[dict[str, Any]]:
    """The student's validation scores with the FLOPs of training (no exams, no stages) that each had taken.

    Returns:
        ``[{"step": 0, "flops": 0.0, "scores": {"math": 0.39, ...}}, ...]``.
    """
    flops = {0: 0.0} | _after_links(run)
    total = max(flops.values())
    for row in read_jsonl(run.folder / "metrics.jsonl"):
        if row.get("kind") == "train":
            total += sum(
                v or 0.0 for name, v in row.items() if name.startswith("flops/") and name != "flops/evaluation"
            )
            flops[row["step"]] = total
    points = curve(run.answers, domains)
    return [{"step": p["step"], "flops": flops.get(p["step"], total), "scores": p["scores"]} for p in points]


def cascade_links(recipe: Mapping[str, Any]) -> dict[str, None]:
    """The stages that a cascade trained its student in, first to last; none of another method's run."""
    if recipe["method"] != "cascade":
        return {}
    chain = list(_stages(recipe, recipe["student"]["model"]))[::-1]
    from_nothing = bool(chain) and not isinstance(recipe["stages"][chain[0]]["from"], str)
    return dict.fromkeys(name for name in chain if not (from_nothing and name == chain[0]))


def _after_links(run: Run) -> dict[int, float]:
    """FLOPs of a cascade's training after each link, by the step at which the link was measured."""
    spent = _spent(run)
    flops: dict[int, float] = {}
    step, total = 0, 0.0
    for name in cascade_links(run.recipe):
        step += run.recipe["stages"][name]["steps"]
        total += _of_stages(spent, {name: None})["flops"]
        flops[step] = total
    return flops


def _spent(run: Run) -> Mapping[str, Spent]:
    path = run.folder / "ledger.json"
    return (read_ledger(path) if path.is_file() else run_ledger(run.folder)).spent


def _stages(recipe: Mapping[str, Any], source: Any) -> Iterator[str]:
    """The stages that a model stands on, nearest first."""
    seen: set[str] = set()
    while isinstance(source, str) and source.startswith(PREFIX) and source not in seen:
        seen.add(source)
        name = source.removeprefix(PREFIX)
        yield name
        source = recipe["stages"][name]["from"]


def _of_stages(spent: Mapping[str, Spent], stages: Mapping[str, None]) -> Cost:
    parts = {role: role.split("/", 2) for role in spent}
    mine = [role for role, p in parts.items() if p[0] == "stage" and p[1] in stages and p[2] != "evaluation"]
    return total_of({role: spent[role] for role in mine})


def _elsewhere(source: Any) -> Cost | None:
    """What a model cost that is no stage of the run: none from nothing or of the student itself, its own run's
    training, or unknown."""
    if not isinstance(source, str) or source == SELF or source.startswith(PREFIX):
        return total_of({})
    beside = Path(source).parent / "ledger.json"
    ledger = read_ledger(beside) if beside.is_file() else None
    return None if ledger is None else _own_training(ledger)


def _own_training(ledger: Ledger) -> Cost:
    return total_of({r: s for r, s in ledger.spent.items() if not r.startswith("stage/") and r != "evaluation"})


def _sum(costs: Sequence[Cost | None]) -> Cost | None:
    total: Cost = {"flops": 0.0, "seconds": 0.0}
    for one in costs:
        if one is None:
            return None
        total = {unit: total[unit] + one[unit] for unit in total}
    return total
