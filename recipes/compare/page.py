"""comparison.html: several runs on one page that needs no network; writes it and comparison.json.

Without scripts, and in print, its charts are the pictures that it holds. Its own script draws them anew, so that a row
may be chosen and values stand at the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from mopd.distill.errors import UserError
from mopd.distill.metrics.compute_to_parity import MEASURES
from mopd.distill.recipe.messages import guess
from mopd.distill.storage import write_atomic
from mopd.recipes.compare.charts import TitledChart, heat_map, pareto_chart, recovery_charts, widest
from mopd.recipes.compare.comparison import ComparedRow, ComparedRun, Comparison, RowPoint, SeedSpread, rivals
from mopd.recipes.compare.wording import (
    flops_of,
    headline,
    measures,
    notes,
    ranked,
    seconds_of,
    sentences,
    signed,
    span,
    times,
    times_interval,
    with_teachers,
    worst_forgetting,
)
from mopd.recipes.compare.wrong import compared_answers
from mopd.recipes.report.chart_parts import Line, ReferenceLine
from mopd.recipes.report.charts import line_chart
from mopd.recipes.report.drawing import Picture, css_class, key, script
from mopd.recipes.report.page import SEARCH, page_template, policy
from mopd.recipes.report.records import Ends
from mopd.recipes.report.scores import EpisodeRow, PaceRow, episode_rows, pace_rows
from mopd.recipes.report.wording import Tile, between, percent, points, si

TEMPLATE = Path(__file__).parent / "templates" / "compare.html.j2"
_LIVE = (TEMPLATE.parent / "live.js").read_text()
SHOWN_LEAVES = 24
"""Settings that differ between rows, as many as are shown."""
BANDS = 3
"""Rows of several seeds, at most, whose bands are drawn: the bands of more hide each other and the lines."""
SPREAD_OUT = 4.0
"""The most that one row computes over the least, beyond which compute is drawn on a logarithmic axis."""


def chosen_pair(comparison: Comparison, wanted: str | None) -> list[str]:
    """The two domains of the Pareto view: those wanted, as ``math,code``, else those with the largest spread.

    Raises:
        UserError: not two domains of the comparison.
    """
    domains = comparison.domains
    if wanted is None:
        return widest(comparison.rows, domains)
    names = [name.strip() for name in wanted.split(",")]
    others = [name for name in names if name not in domains]
    unknown = [f"--pareto: no domain is called {name!r}; {guess(name, domains)}" for name in others]
    if unknown:
        raise UserError(*unknown)
    if len(set(names)) != 2 or len(names) != 2:
        raise UserError(f"--pareto {wanted}: two different domains are needed, for example {','.join(domains[:2])}")
    return names


def write_comparison(comparison: Comparison, out: Path, pair: Sequence[str]) -> Path:
    """Write ``comparison.json`` and ``comparison.html`` into the folder ``out``; returns the page's path.

    Raises:
        UserError: ``out`` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "comparison.json", json.dumps(comparison.record(), indent=2, allow_nan=False) + "\n")
        write_atomic(out / "comparison.html", render(comparison, pair))
    except OSError as error:
        raise UserError(f"folder {out} cannot be written: {error.strerror}; give another with --out") from error
    return out / "comparison.html"


def render(comparison: Comparison, pair: Sequence[str]) -> str:
    """The page as HTML. Names of runs, domains and teachers are escaped."""
    rows = ranked(comparison)
    series = {row.name: i for i, row in enumerate(comparison.rows)}
    css = {name: css_class(i) for name, i in series.items()}
    tone, title = headline(comparison)
    recovery = recovery_charts(rows, series, comparison.domains)
    compute = _compute(comparison, rows, series)
    pareto = _pareto(comparison, rows, series, pair) if len(pair) == 2 else None
    pictures = [chart.picture for chart in (*recovery, *compute)] + ([pareto] if pareto else [])
    engine = f"(() => {{{script()}}})()"
    search = str(SEARCH["script"])
    return page_template(TEMPLATE).render(
        comparison=comparison,
        css=css,
        key={name: key(i) for name, i in series.items()},
        tone=tone,
        headline=title,
        tiles=_tiles(rivals(rows), alone=len(comparison.domains) == 1),
        titles=list(measures(comparison).values()),
        behind=_behind_by_domain(comparison, rows),
        sentences=sentences(comparison),
        notes=notes(comparison),
        table=[_table_row(row, comparison.domains) for row in rows],
        recovery=recovery,
        compute=compute,
        logarithmic=spread_out(rows),
        banded=banded(rows),
        parity=_parities(comparison, rows) if len(rows) > 1 else [],
        heat=heat_map(comparison, rows, css),
        pareto=pareto,
        pictures=pictures,
        scripts=[Markup(engine), Markup(_LIVE)],
        pair=pair,
        episodes=[episodes for run in comparison.runs if (episodes := _episodes(run)) is not None],
        differing=_differing(comparison, rows),
        wrong=compared_answers(comparison, rows),
        domain_css=dict.fromkeys(comparison.domains, "plain"),
        **SEARCH | {"policy": policy(engine, _LIVE, search)},
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


class Cell(NamedTuple):
    """Of a table: its text, what stands small behind it, and by what its column is sorted (None: last)."""

    text: str
    small: str = ""
    value: float | None = None


@dataclass(frozen=True, slots=True)
class BehindByDomain:
    """A row's scores less the leader's, in points, by domain."""

    name: str
    cells: Sequence[Cell]


def _behind_by_domain(comparison: Comparison, rows: Sequence[ComparedRow]) -> list[BehindByDomain]:
    behind = {row.name: row.behind.points for row in rows if row.behind is not None and row.behind.points is not None}
    return [
        BehindByDomain(name, [Cell(signed(of[d]), value=of[d].value) for d in comparison.domains])
        for name, of in behind.items()
    ]


def _tiles(rows: Sequence[ComparedRow], *, alone: bool) -> list[Tile]:
    """The leader's key numbers; ``alone``: of a single domain."""
    first = rows[0]
    metrics, ends = first.metrics, first.metrics_ci
    behind = rows[1].behind if len(rows) > 1 else None
    lead = behind.worst_recovery if behind else None
    tiles = [
        Tile(
            "Recovery" if alone else "Worst domain",
            percent(metrics.worst_recovery_estimate),
            between(ends.worst_recovery),
            f"of its teacher’s gain: {first.name}",
        ),
    ]
    if not alone:
        hides = "over domains; it hides a seesaw"
        tiles.append(Tile("Mean recovery", percent(metrics.mean_recovery), between(ends.mean_recovery), hides))
    if lead is not None:
        meaning = f"points of {'recovery' if alone else 'the worst domain'}, over {rows[1].name}, on the same questions"
        tiles.append(Tile("Ahead", points(-lead.value), span(-lead.high, -lead.low), meaning))
    whole = first.cost.with_teachers
    made = "what its teachers took is unknown" if whole is None else f"{si(whole.flops)} with its teachers’ making"
    return [*tiles, Tile("Cost", flops_of(first.cost.training), "", f"FLOP of training; {made}")]


@dataclass(frozen=True, slots=True)
class TableRow:
    """What the page's two tables show of a row: values with their intervals, or without and with teachers.

    Attributes:
        recovery: by domain.
        seesaws: how many of the row's runs are one.
    """

    name: str
    note: str
    recovery: Mapping[str, Cell]
    mean: Cell
    pooled: Cell
    worst: Cell
    imbalance: Cell
    behind: Cell
    regression: Cell
    forgetting: Cell
    seesaw: Cell
    seesaws: int
    flops: Sequence[Cell]
    seconds: Sequence[Cell]


def _table_row(row: ComparedRow, domains: Sequence[str]) -> TableRow:
    metrics, ends, cost = row.metrics, row.metrics_ci, row.cost
    seeds = f"{row.n} seeds" if row.n > 1 else f"seed {row.seeds[0]}"
    seeds += f", {row.trials} settings tried" if row.trials else ""
    low, high = ends.max_regression
    lost = [value for value in (metrics.forgetting_estimate or {}).values() if value is not None]
    behind = row.behind.worst_recovery if row.behind else None

    def recovered(domain: str) -> Cell:
        value = metrics.recovery[domain]
        if value is None:
            return Cell(f"{points(metrics.points[domain])} pt")
        return Cell(percent(value), between(ends.recovery[domain]), value)

    def valued(value: float | None, interval: Ends | None) -> Cell:
        return Cell(percent(value), between(interval), value)

    spent = (cost.training, cost.with_teachers)
    return TableRow(
        name=row.name,
        note=f"{row.method}, {seeds}" + ("" if row.finished else f", step {row.step} of {row.steps}"),
        recovery={domain: recovered(domain) for domain in domains},
        mean=valued(metrics.mean_recovery, ends.mean_recovery),
        pooled=valued(metrics.pooled_recovery, ends.pooled_recovery),
        worst=valued(metrics.worst_recovery_estimate, ends.worst_recovery),
        imbalance=valued(metrics.imbalance_estimate, ends.imbalance),
        behind=Cell(signed(behind) or "–", value=behind.value if behind else None),
        regression=Cell(
            f"{100 * metrics.max_regression_estimate:.1f}",
            f"{100 * low:.1f}–{100 * high:.1f}",
            metrics.max_regression_estimate,
        ),
        forgetting=Cell(worst_forgetting(metrics), value=max(lost, default=None)),
        seesaw=Cell(percent(metrics.seesaw_share), f"noise {percent(metrics.seesaw_noise, 1)}", metrics.seesaw_share),
        seesaws=row.seesaws,
        flops=[Cell(flops_of(of), value=None if of is None else of.flops) for of in spent],
        seconds=[Cell(seconds_of(of), value=None if of is None else of.seconds) for of in spent],
    )


def _compute(comparison: Comparison, rows: Sequence[ComparedRow], series: Mapping[str, int]) -> list[TitledChart]:
    """Validation score over the FLOPs of training, a line a row, numbered as in the legend: worst, mean, by domain."""
    levels, domains = comparison.levels, comparison.domains
    charts: list[TitledChart] = []
    of_all = (("worst_score", "the worst domain"), ("mean_score", "the mean of the domains"))
    for name, title in of_all if len(domains) > 1 else ():
        parity = ReferenceLine("parity", None, 100 * comparison.parity.levels[name], dashed=True)
        charts.append(_over_compute(rows, series, title, _over_domains(name, domains), [parity]))
    for domain in domains:
        references = [
            ReferenceLine(name, None, 100 * level, dashed=name == "teacher")
            for name, level in (("teacher", levels.teacher[domain]), ("base", levels.base[domain]))
            if level is not None
        ]
        charts.append(_over_compute(rows, series, domain, _of_domain(domain), references))
    return charts


def _over_domains(measure: str, domains: Sequence[str]) -> Callable[[RowPoint], SeedSpread]:
    """A measure of the domains' mean scores, which has no spread over seeds."""

    def value(point: RowPoint) -> SeedSpread:
        mean = float(MEASURES[measure](np.array([point.scores[domain].mean for domain in domains])))
        return SeedSpread(mean, mean, mean)

    return value


def _of_domain(domain: str) -> Callable[[RowPoint], SeedSpread]:
    return lambda point: point.scores[domain]


def spread_out(rows: Sequence[ComparedRow]) -> bool:
    """Whether the rows' compute differs so much that on an even axis the cheap ones would be a line upwards."""
    whole = [row.curve[-1].flops for row in rows if row.curve and row.curve[-1].flops > 0]
    return bool(whole) and max(whole) > SPREAD_OUT * min(whole)


def banded(rows: Sequence[ComparedRow]) -> bool:
    """Whether charts show what the seeds of a row span."""
    return 0 < sum(row.n > 1 for row in rows) <= BANDS


def _over_compute(
    rows: Sequence[ComparedRow],
    series: Mapping[str, int],
    title: str,
    value_of: Callable[[RowPoint], SeedSpread],
    references: Sequence[ReferenceLine],
) -> TitledChart:
    lines: list[Line] = []
    bands = banded(rows)
    for number, row in enumerate(rows, start=1):
        curve = [(point.flops, value_of(point)) for point in row.curve]
        band = [(x, 100 * of.lowest, 100 * of.highest) for x, of in curve] if bands and row.n > 1 else []
        path = [(x, 100 * spread.mean) for x, spread in curve]
        lines.append(Line(f"{number} ·", series[row.name], path, band, marks=True, name=row.name))
    drawn = [y for line in lines for _, y in line.points] + [low for line in lines for _, low, _ in line.band]
    heights = drawn + [reference.y for reference in references]
    picture = line_chart(
        lines,
        title=f"Score on {title} over the FLOPs of training, in %",
        y_range=(10 * math.floor(min(heights) / 10), 10 * math.ceil(max(heights) / 10)),
        y_format="{:.3g}".format,
        levels=references,
        x_label="FLOP",
        x_format=lambda x: si(x) if x else "0",
        log_x=spread_out(rows),
    )
    return TitledChart(title, picture)


@dataclass(frozen=True, slots=True)
class ParityLine:
    """A row of the table of compute to parity: by measure a cell without and one with teachers, each with its interval;
    ``reference`` is the row that is to be reached."""

    name: str
    cells: Sequence[Cell]
    reference: bool


def _parities(comparison: Comparison, rows: Sequence[ComparedRow]) -> list[ParityLine]:
    """What every row computes to reach the reference, by measure: its compute alone, and with its teachers' making."""
    lines: list[ParityLine] = []
    for row in rows:
        cells: list[Cell] = []
        for name in measures(comparison):
            alone = row.parity[name]
            counted = with_teachers(alone)
            cells.append(Cell(times(alone), times_interval(alone), alone.ratio))
            both = None if counted is None else Cell(times(counted), times_interval(counted), counted.ratio)
            cells.append(both or Cell("unknown"))
        lines.append(ParityLine(row.name, cells, reference=row.name == comparison.parity.reference))
    return lines


def _pareto(
    comparison: Comparison, rows: Sequence[ComparedRow], series: Mapping[str, int], pair: Sequence[str]
) -> Picture:
    bases = [run.models["base"] for run in comparison.runs]
    x, y = (sum(base[d].score for base in bases) / len(bases) for d in pair)
    others = {"base": (x, y)}
    for teacher in comparison.transfer:
        across, up = (teacher.scores[domain] for domain in pair)
        if set(teacher.own) & set(pair) and across is not None and up is not None:
            others[f"teacher {teacher.name}"] = across, up
    return pareto_chart(rows, series, others, pair)


@dataclass(frozen=True, slots=True)
class RunEpisodes:
    """How the episodes of a run's models went, and what they did a minute."""

    run: str
    row: str
    episodes: Sequence[EpisodeRow]
    paces: Sequence[PaceRow]


def _episodes(run: ComparedRun) -> RunEpisodes | None:
    """None of a run without environments."""
    if not run.episodes:
        return None
    return RunEpisodes(run.name, run.row, episode_rows(run.episodes), pace_rows(run.paces))


@dataclass(frozen=True, slots=True)
class DifferingLeaves:
    """Settings that differ, each with a value a row, in the rows' order; and how many more there are."""

    leaves: Mapping[str, Sequence[str]]
    more: int


def _differing(comparison: Comparison, rows: Sequence[ComparedRow]) -> DifferingLeaves:
    order = [[row.name for row in comparison.rows].index(row.name) for row in rows]
    leaves = {leaf: [values[i] for i in order] for leaf, values in comparison.differing.items()}
    return DifferingLeaves(dict(list(leaves.items())[:SHOWN_LEAVES]), max(0, len(leaves) - SHOWN_LEAVES))
