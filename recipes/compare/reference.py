"""One reference for runs of one base: which teacher a domain's recovery is measured against, and who hurts whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mopd.distill.errors import UserError
from mopd.distill.metrics import seesaw
from mopd.distill.metrics.against_teachers import Table, plain
from mopd.distill.metrics.evaluate import Split
from mopd.distill.metrics.results import TeacherWeights, last_steps, paired_table, scored_models
from mopd.distill.metrics.seesaw import Float64
from mopd.recipes.compare.runs import Run
from mopd.recipes.report.records import PerDomain


@dataclass(frozen=True, slots=True)
class MeasuredAgainst:
    """Whose teacher a domain's recovery is measured by: the run, and its teachers with their weights."""

    run: str
    teachers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Reference:
    """A run's answers beside those of its base and of the teachers that its recovery is measured against.

    Attributes:
        table: what the metrics are computed from.
        against: domain -> whose teacher it is; None where nobody has one.
        borrowed: domains in which that is not the run's own teacher.
        base: the first run that began from the same base.
    """

    table: Table
    against: Mapping[str, MeasuredAgainst | None]
    borrowed: Sequence[str]
    base: Run


@dataclass(frozen=True, slots=True)
class TeacherTransfer:
    """A teacher's row of the transfer matrix, a mean over the bases (seeds) that have it.

    Attributes:
        own: the domains that it teaches.
        n: over how many bases.
        scores: by domain.
        transfer: by domain, its change over the base as a part of what the domain's own teacher gains.
    """

    name: str
    own: Sequence[str]
    n: int
    scores: PerDomain
    transfer: PerDomain


def references(runs: Sequence[Run], split: Split) -> list[Reference]:
    """The reference of each run.

    Runs whose bases gave the same answers began from one base. Among those of one seed a domain has one teacher, the
    best that any of them has for it: so a method without teachers has a recovery too, and a weak teacher flatters
    nobody. Other seeds' teachers are taken only where there is none: the luckiest seed's would be too high a bar.

    Raises:
        UserError: base, teachers and student of a run answered different questions.
    """
    domains = runs[0].domains
    own = [_own_table(run, runs[0], split, {d: run.recipe.domains[d].teachers for d in domains}) for run in runs]
    by_base: dict[bytes, list[int]] = {}
    for i, table in enumerate(own):
        by_base.setdefault(b"".join(table.answers[d][0].tobytes() for d in domains), []).append(i)
    of_run: dict[int, Reference] = {}
    for members in by_base.values():
        for seed in dict.fromkeys(runs[i].recipe.seed for i in members):
            mates = [i for i in members if runs[i].recipe.seed == seed]
            best = {d: _best_teacher(d, mates, members, runs, own) for d in domains}
            against = {
                d: MeasuredAgainst(runs[i].name, runs[i].recipe.domains[d].teachers) if _level(own[i], d) >= 0 else None
                for d, i in best.items()
            }
            for i in mates:
                answers, chosen = own[i].answers, {d: own[best[d]].answers[d][1] for d in domains}
                table = Table({d: np.stack([answers[d][0], chosen[d], answers[d][2]]) for d in domains})
                borrowed = [d for d in domains if not np.array_equal(answers[d][1], chosen[d], equal_nan=True)]
                of_run[i] = Reference(table, against, borrowed, runs[members[0]])
    return [of_run[i] for i in range(len(runs))]


def _own_table(run: Run, first: Run, split: Split, weights: TeacherWeights) -> Table:
    """The run's answers with questions in the order of the first run's, so that columns of all runs are paired."""
    step, first_step = (last_steps(r.answers, split)["base"] for r in (run, first))
    base, order = run.answers["base", step, split], first.answers["base", first_step, split]
    ordered: dict[str, dict[str, float]] = {}
    for domain, given in base.items():
        place = {question: i for i, question in enumerate(order.get(domain, {}))}
        ordered[domain] = {q: given[q] for q in sorted(given, key=lambda q, p=place: p.get(q, len(p)))}
    try:
        table = paired_table({**run.answers, ("base", step, split): ordered}, split, weights)
    except ValueError as error:
        raise UserError(f"{run.folder}: {error}") from error
    assert table is not None  # base and student were measured: recipes/compare/runs.py
    return table


def _best_teacher(
    domain: str, mates: Sequence[int], members: Sequence[int], runs: Sequence[Run], own: Sequence[Table]
) -> int:
    """Whose teacher the runs of one seed are measured against: the best of theirs, else of any run of their base."""
    near = [i for i in mates if _level(own[i], domain) >= 0] or members
    return max(near, key=lambda i: (_level(own[i], domain), _distils(runs[i])))


def _distils(run: Run) -> bool:
    """Of runs that share their teachers, those that distil are named as the ones who have them."""
    return run.recipe.method == "mopd"


def _level(table: Table, domain: str) -> float:
    """The mean score of the domain's own teacher; -1 where it has none, or one that was not measured."""
    level = float(table.answers[domain][1].mean())
    return -1.0 if np.isnan(level) else level


def teachers_on_every_domain(
    runs: Sequence[Run], references: Sequence[Reference], split: Split
) -> list[TeacherTransfer]:
    """The teachers' own rows of the transfer matrix, each once a base; over several bases (seeds) their mean."""
    domains = runs[0].domains
    pairs_of: dict[str, list[tuple[Float64, Float64]]] = {}
    own: dict[str, list[str]] = {}
    for name, taught, scores_D, reference in _teachers(runs, references, split, domains):
        base_D, teacher_D, _ = reference.table.means
        transfer_D = seesaw.transfer_matrix(scores_D[None], base_D, teacher_D, defined_D=reference.table.defined)[0]
        pairs_of.setdefault(name, []).append((scores_D, transfer_D))
        own.setdefault(name, taught)
    return [
        TeacherTransfer(
            name=name,
            own=own[name],
            n=len(pairs),
            scores=plain(np.mean([scores_D for scores_D, _ in pairs], axis=0), domains),
            transfer=plain(np.mean([transfer_D for _, transfer_D in pairs], axis=0), domains),
        )
        for name, pairs in pairs_of.items()
    ]


def _teachers(
    runs: Sequence[Run], references: Sequence[Reference], split: Split, domains: Sequence[str]
) -> Iterator[tuple[str, list[str], Float64, Reference]]:
    """Every teacher that differs from those of its name and base before: name, own domains, scores ``(D,)``."""
    seen: dict[tuple[str, str], list[Float64]] = {}
    for run, reference in zip(runs, references, strict=True):
        for model, scores in scored_models(run.answers, split, domains).items():
            if not model.startswith("teachers/") or scores.keys() != set(domains):
                continue
            name = model.removeprefix("teachers/")
            scores_D = np.array([scores[d].score for d in domains])
            before = seen.setdefault((name, reference.base.name), [])
            if any(np.array_equal(scores_D, other_D) for other_D in before):
                continue
            before.append(scores_D)
            taught = [d for d, weights in run.recipe.teacher_weights.items() if name in weights]
            yield (name if len(before) == 1 else f"{name} ({run.name})"), taught, scores_D, reference
