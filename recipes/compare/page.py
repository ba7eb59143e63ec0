"""comparison.html: several runs on one page that needs neither network nor scripts; writes it and comparison.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mopd.distill.metrics.compute_to_parity import MEASURES
from mopd.distill.metrics.seesaw import Array
from mopd.distill.recipe.messages import guess
from mopd.distill.storage import write_atomic
from mopd.distill.types import UserError
from mopd.recipes.compare.charts import heat_map, pareto_chart, recovery_bars, widest
from mopd.recipes.compare.console import spent, worst_forgetting
from mopd.recipes.compare.groups import rivals
from mopd.recipes.compare.wording import (
    headline,
    notes,
    ranked,
    sentences,
    signed,
    span,
    times,
    times_interval,
    with_teachers,
)
from mopd.recipes.report.charts import MOST_LABELS, Level, Line, line_chart
from mopd.recipes.report.data import Row
from mopd.recipes.report.page import page_template
from mopd.recipes.report.run import si
from mopd.recipes.report.wording import Tile, between, percent, points

TEMPLATE = Path(__file__).parent / "templates" / "compare.html.j2"
SHOWN_LEAVES = 24
"""Settings that differ between rows, as many as are shown."""
BANDS = 3
"""Rows of several seeds, at most, whose bands are drawn: the bands of more hide each other and the lines."""
SPREAD_OUT = 4.0
"""The most that one row computes over the least, beyond which compute is drawn on a logarithmic axis."""


def chosen_pair(comparison: Row, wanted: str | None) -> list[str]:
    """The two domains of the Pareto view: those wanted, as ``math,code``, else those with the largest spread.

    Raises:
        UserError: not two domains of the comparison.
    """
    domains: Sequence[str] = comparison["domains"]
    if wanted is None:
        return widest(comparison["rows"], domains)
    names = [name.strip() for name in wanted.split(",")]
    others = [name for name in names if name not in domains]
    unknown = [f"--pareto: no domain is called {name!r}; {guess(name, domains)}" for name in others]
    if unknown:
        raise UserError(*unknown)
    if len(set(names)) != 2 or len(names) != 2:
        raise UserError(f"--pareto {wanted}: two different domains are needed, for example {','.join(domains[:2])}")
    return names


def write_comparison(comparison: Row, out: Path, pair: Sequence[str]) -> Path:
    """Write ``comparison.json`` and ``comparison.html`` into the folder ``out``; returns the page's path.

    Raises:
        UserError: ``out`` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "comparison.json", json.dumps(comparison, indent=2, allow_nan=False) + "\n")
        write_atomic(out / "comparison.html", render(comparison, pair))
    except OSError as error:
        raise UserError(f"folder {out} cannot be written: {error.strerror}; give another with --out") from error
    return out / "comparison.html"


def render(comparison: Row, pair: Sequence[str]) -> str:
    """The page as HTML. Names of runs, domains and teachers are escaped."""
    rows = ranked(comparison)
    css = {row["name"]: f"d{i % 8}" for i, row in enumerate(comparison["rows"])}
    level, told = headline(comparison)
    return page_template(TEMPLATE).render(
        comparison=comparison,
        css=css,
        level=level,
        headline=told,
        tiles=_tiles(rivals(rows)),
        sentences=sentences(comparison),
        notes=notes(comparison),
        table=[_table_row(row, comparison["domains"]) for row in rows],
        bars=recovery_bars(rows, css, comparison["domains"]),
        compute=_compute(comparison, rows, css),
        logarithmic=spread_out(rows),
        banded=banded(rows),
        most_labels=MOST_LABELS,
        parity=_parities(comparison, rows) if len(rows) > 1 else [],
        heat=heat_map(comparison, rows, css),
        pareto=_pareto(comparison, rows, css, pair) if len(pair) == 2 else None,
        pair=pair,
        differing=_differing(comparison, rows),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _tiles(rows: Sequence[Row]) -> list[Tile]:
    """The leader's key numbers."""
    first = rows[0]
    values, ends = first["metrics"], first["metrics_ci"]
    behind = rows[1]["behind"] if len(rows) > 1 else None
    lead = behind["worst_recovery"] if behind else None
    worst, mean = ((percent(values[name]), between(ends[name])) for name in ("worst_recovery", "mean_recovery"))
    tiles = [
        Tile("Worst domain", *worst, f"of its teacher’s gain: {first['name']}"),
        Tile("Mean recovery", *mean, "over domains; it hides a seesaw"),
    ]
    if lead is not None:
        meaning = f"points of the worst domain, over {rows[1]['name']}, on the same questions"
        tiles.append(Tile("Ahead", points(-lead[0]), span(-lead[2], -lead[1]), meaning))
    meaning = "FLOP of training; " + _with_teachers(first)
    return [*tiles, Tile("Cost", spent(first["cost"]["training"], "flops"), "", meaning)]


def _with_teachers(row: Row) -> str:
    cost = row["cost"]["with_teachers"]
    return "what its teachers took is unknown" if cost is None else f"{si(cost['flops'])} with its teachers’ making"


def _table_row(row: Row, domains: Sequence[str]) -> dict[str, Any]:
    """What the page's two tables show of a row."""
    values, ends, cost = row["metrics"], row["metrics_ci"], row["cost"]
    seeds = f"{row['n']} seeds" if row["n"] > 1 else f"seed {row['seeds'][0]}"
    seeds += f", {row['trials']} settings tried" if row["trials"] else ""
    low, high = ends["max_regression"]

    def recovered(domain: str) -> tuple[str, str]:
        if values["recovery"][domain] is None:
            return f"{points(values['points'][domain])} pt", ""
        return percent(values["recovery"][domain]), between(ends["recovery"][domain])

    return {
        "name": row["name"],
        "note": f"{row['method']}, {seeds}" + ("" if row["finished"] else f", step {row['step']} of {row['steps']}"),
        "recovery": [(domain, *recovered(domain)) for domain in domains],
        "mean": (percent(values["mean_recovery"]), between(ends["mean_recovery"])),
        "worst": (percent(values["worst_recovery"]), between(ends["worst_recovery"])),
        "imbalance": (percent(values["imbalance"]), between(ends["imbalance"])),
        "behind": signed(row["behind"]["worst_recovery"]) if row["behind"] else "",
        "regression": (f"{100 * values['max_regression']:.1f}", f"{100 * low:.1f}–{100 * high:.1f}"),
        "forgetting": worst_forgetting(values),
        "seesaw": (percent(values["seesaw_share"]), f"noise {percent(values['seesaw_noise'], 1)}"),
        "seesaws": row["seesaws"],
        "flops": (spent(cost["training"], "flops"), spent(cost["with_teachers"], "flops")),
        "seconds": (spent(cost["training"], "seconds"), spent(cost["with_teachers"], "seconds")),
    }


def _compute(comparison: Row, rows: Sequence[Row], css: Mapping[str, str]) -> list[dict[str, Any]]:
    """Validation score over the FLOPs of training, a line a row, numbered as in the legend: worst, mean, by domain."""
    levels, domains = comparison["levels"], comparison["domains"]
    charts = [
        _over_compute(rows, css, title, lambda p, m=MEASURES[name]: (float(m(_means(p, domains))),) * 3, parity)
        for name, title in (("worst_score", "the worst domain"), ("mean_score", "the mean of the domains"))
        for parity in [[Level("parity", "plain teacher", comparison["parity"]["levels"][name])]]
    ]
    for domain in domains:
        references = [
            Level(name, kind, levels[name][domain])
            for name, kind in (("teacher", "plain teacher"), ("base", "base"))
            if levels[name][domain] is not None
        ]
        charts.append(_over_compute(rows, css, domain, lambda p, d=domain: p["scores"][d], references))
    return charts


def spread_out(rows: Sequence[Row]) -> bool:
    """Whether the rows' compute differs so much that on an even axis the cheap ones would be a line upwards."""
    whole = [row["curve"][-1]["flops"] for row in rows if row["curve"] and row["curve"][-1]["flops"] > 0]
    return bool(whole) and max(whole) > SPREAD_OUT * min(whole)


def banded(rows: Sequence[Row]) -> bool:
    """Whether charts show what the seeds of a row span."""
    return 0 < sum(row["n"] > 1 for row in rows) <= BANDS


def _means(point: Row, domains: Sequence[str]) -> Array:
    return np.array([point["scores"][domain][0] for domain in domains])


def _over_compute(
    rows: Sequence[Row],
    css: Mapping[str, str],
    title: str,
    values: Callable[[Row], Sequence[float]],
    references: Sequence[Level],
) -> dict[str, Any]:
    """One chart; ``values`` gives mean, lowest and highest of a curve's point."""
    lines: list[Line] = []
    bands = banded(rows)
    for number, row in enumerate(rows, start=1):
        told = [(p["flops"], *values(p)) for p in row["curve"]]
        band = [(x, low, high) for x, _, low, high in told] if bands and row["n"] > 1 else []
        lines.append(Line(f"{number} ·", css[row["name"]], [(x, y) for x, y, _, _ in told], band, marks=True))
    drawn = [y for line in lines for _, y in line.points] + [low for line in lines for _, low, _ in line.band]
    lowest = min(drawn + [level.y for level in references])
    svg = line_chart(
        lines,
        title=f"Score on {title} over the FLOPs of training",
        y_range=(int(10 * lowest) / 10, 1.0),
        y_format=lambda y: f"{100 * y:.3g}",
        levels=references,
        x_label="FLOP",
        x_format=lambda x: si(x) if x else "0",
        log_x=spread_out(rows),
    )
    return {"title": title, "svg": svg}


def _parities(comparison: Row, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What every row computes to reach the reference, by measure: its compute alone, and with its teachers' making."""
    told: list[dict[str, Any]] = []
    for row in rows:
        cells = []
        for name in comparison["parity"]["levels"]:
            alone = row["parity"][name]
            made = with_teachers(alone)
            cells.append((times(alone), times_interval(alone)))
            cells.append(("unknown", "") if made is None else (times(made), times_interval(made)))
        told.append(
            {"name": row["name"], "cells": cells, "reference": row["name"] == comparison["parity"]["reference"]}
        )
    return told


def _pareto(comparison: Row, rows: Sequence[Row], css: Mapping[str, str], pair: Sequence[str]) -> Markup:
    bases = [run["models"]["base"] for run in comparison["runs"]]
    x, y = (sum(base[d]["score"] for base in bases) / len(bases) for d in pair)
    others = {"base": (x, y)}
    for teacher in comparison["transfer"]:
        if set(teacher["own"]) & set(pair):
            others[f"teacher {teacher['name']}"] = teacher["scores"][pair[0]], teacher["scores"][pair[1]]
    return pareto_chart(rows, css, others, pair)


def _differing(comparison: Row, rows: Sequence[Row]) -> dict[str, Any]:
    order = [[row["name"] for row in comparison["rows"]].index(row["name"]) for row in rows]
    leaves = {leaf: [values[i] for i in order] for leaf, values in comparison["differing"].items()}
    return {"leaves": dict(list(leaves.items())[:SHOWN_LEAVES]), "more": max(0, len(leaves) - SHOWN_LEAVES)}
