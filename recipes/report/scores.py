"""Sections of the report on scores: the seesaw of each specialist, the student's curves, recovery, health."""

from __future__ import annotations

import math
from typing import Any

from mopd.distill.metrics.evaluate import interval
from mopd.recipes.report.charts import Level, Line, line_chart
from mopd.recipes.report.data import Row, RunData, css_of
from mopd.recipes.report.wording import between, percent, points


def own_teacher(seesaw: Row, domain: str) -> Row | None:
    """A domain's own teacher: its score with interval, or the weighted mean without one where it has several."""
    weights = seesaw["teachers"][domain]
    scored = [seesaw["models"].get(f"teachers/{name}", {}).get(domain) for name in weights]
    if not scored or None in scored:
        return None
    if len(scored) == 1:
        return scored[0]
    mean = sum(weight * s["score"] for weight, s in zip(weights.values(), scored, strict=True))
    return {"score": mean, "low": None, "high": None, "n": scored[0]["n"]}


def changes(data: RunData) -> dict[str, Any]:
    """The seesaw as bars: every teacher's, and the student's, change against the base on each domain.

    Positions are percentages of one common scale, so that bars of different models compare.
    """
    final, css = data.final, css_of(data)
    base = final["models"].get("base")
    if base is None:
        return {"panels": []}
    own = {name: {d for d, weights in final["teachers"].items() if name in weights} for name in data.recipe["teachers"]}
    deltas = {
        model: {d: scored[d]["score"] - base[d]["score"] for d in data.domains}
        for model, scored in final["models"].items()
        if model.startswith("teachers/") or model == "student"
    }
    low = min([0.0, *(change for row in deltas.values() for change in row.values())])
    high = max([0.02, *(change for row in deltas.values() for change in row.values())])
    zero = -low / (high - low) * 100

    def bar(model: str, domain: str, change: float) -> dict[str, Any]:
        width = abs(change) / (high - low) * 100
        mine = model == "student" or domain in own.get(model.removeprefix("teachers/"), set())
        left = zero if change >= 0 else zero - width
        return {"domain": domain, "css": css[domain], "own": mine, "text": points(change), "left": left, "width": width}

    panels = [
        {
            "title": model.removeprefix("teachers/"),
            "student": model == "student",
            "bars": [bar(model, domain, change) for domain, change in row.items()],
        }
        for model, row in deltas.items()
    ]
    return {"panels": panels, "zero": zero}


def curves(data: RunData) -> list[dict[str, Any]]:
    """The student's score on validation over steps, a chart a domain, against its teacher's and the base's line."""
    css, told = css_of(data), data.validation
    models = told["models"] if "base" in told["models"] else data.final["models"]
    lines = {"models": models, "teachers": told["teachers"]}
    charts: list[dict[str, Any]] = []
    if not told["curve"]:
        return charts
    n = data.recipe["evaluate"]["validation_prompts"]
    bands = {d: [(p["step"], *_ends(p["scores"][d], n)) for p in told["curve"]] for d in data.domains}
    lowest = [low for band in bands.values() for _, low, _ in band]
    lowest += [models["base"][d]["score"] for d in data.domains if "base" in models]
    floor = math.floor(10 * min(lowest)) / 10
    for domain in data.domains:
        path = [(point["step"], point["scores"][domain]) for point in told["curve"]]
        levels: list[Level] = []
        if (teacher := own_teacher(lines, domain)) is not None:
            levels.append(Level("teacher", f"{css[domain]} teacher", teacher["score"]))
        if "base" in models:
            levels.append(Level("base", "base", models["base"][domain]["score"]))
        chart = line_chart(
            [Line("student", css[domain], path, bands[domain], marks=True)],
            title=f"Score of the student on {domain} over training steps",
            y_range=(floor, 1.0),
            y_format=lambda y: f"{100 * y:.3g}",
            levels=levels,
            x_end=data.steps,
        )
        charts.append({"title": domain, "css": css[domain], "svg": chart})
    return charts


def _ends(score: float, n: int) -> tuple[float, float]:
    right = round(score * n)
    found = interval([1.0] * right + [0.0] * (n - right))
    return found.low, found.high


def recovery_rows(data: RunData) -> list[dict[str, Any]]:
    """Base, own teacher, student and recovery of each domain."""
    final, css = data.final, css_of(data)
    recovery, recovery_ci = (final[key].get("recovery") or {} for key in ("metrics", "metrics_ci"))
    gained, gained_ci = (final[key].get("points") or {} for key in ("metrics", "metrics_ci"))
    rows: list[dict[str, Any]] = []
    for domain in data.domains:
        base, student = (final["models"].get(model, {}).get(domain) for model in ("base", "student"))
        ends, moved = recovery_ci.get(domain), gained_ci.get(domain)
        rows.append(
            {
                "domain": domain,
                "css": css[domain],
                "teachers": ", ".join(final["teachers"][domain]) or "none",
                "n": (base or student or {}).get("n", "–"),
                "base": base,
                "teacher": own_teacher(final, domain),
                "student": student,
                "points": points(gained.get(domain)),
                "points_ci": "" if moved is None else f"{points(moved[0])} to {points(moved[1])}",
                "recovery": recovery.get(domain),
                "recovery_text": percent(recovery.get(domain)),
                "recovery_ci": between(ends),
                "whisker": None if ends is None else [min(1.1, max(0.0, end)) / 1.1 * 100 for end in ends],
            }
        )
    return rows


def health(data: RunData) -> list[dict[str, Any]]:
    """Length, truncation and repetition of the last evaluation's answers."""
    measured = [row for row in data.evals if any(name.startswith("length/") for name in row)]
    if not measured:
        return []
    last, css = measured[-1], css_of(data)
    return [
        {
            "domain": d,
            "css": css[d],
            "step": last["step"],
            "length": f"{last[f'length/{d}']:.1f}",
            "truncation": percent(last.get(f"truncation/{d}"), 1),
            "repetition": percent(last.get(f"repetition/{d}")),
        }
        for d in data.domains
        if last.get(f"length/{d}") is not None
    ]
