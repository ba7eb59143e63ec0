"""Sections of the report on the run: how it learned, what the student writes, what it cost, with which settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mopd.distill.tracking.ledger import ROLES, Spent
from mopd.recipes.report.charts import Line, line_chart, share_chart
from mopd.recipes.report.data import Row, RunData, css_of

SETTINGS = (
    "method",
    "seed",
    "loss.estimator",
    "student.model",
    "student.optimizer.name",
    "student.optimizer.lr",
    "student.optimizer.schedule",
    "student.optimizer.clip",
    "student.updates_per_step",
    "student.engine.ranks",
    "student.engine.zero_stage",
    "student.engine.expert_parallel",
    "rollout.temperature",
    "rollout.max_new_tokens",
    "rollout.samples_per_prompt",
    "run.steps",
)
"""The leaves that are shown at once; the whole recipe folds out below them."""

STRONG_ADVANTAGE = 2.0
"""Nats at which a token's colour is at its strongest."""


def _series(rows: Iterable[Row], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _from_zero(lines: Sequence[Line]) -> tuple[float, float]:
    return 0.0, max([y for line in lines for _, y in line.points], default=1.0) * 1.05 or 1.0


def learning(data: RunData) -> list[dict[str, Any]]:
    """Loss, KL and entropy by domain, shares of tokens and of the gradient, and the stages' losses, where logged."""
    css = css_of(data)
    charts: list[dict[str, Any]] = []

    def lines(title: str, note: str, drawn: Sequence[Line]) -> None:
        drawn = [line for line in drawn if len(line.points) > 1]
        if drawn:
            svg = line_chart(
                drawn, title=title, y_range=_from_zero(drawn), y_format=lambda y: f"{y:.3g}", label_values=False
            )
            charts.append({"title": title, "note": note, "svg": svg})

    def by_domain(metric: str, rows: Sequence[Row] = data.train) -> list[Line]:
        return [Line(d, css[d], _series(rows, f"{metric}/{d}")) for d in data.domains]

    def shares(title: str, note: str, metric: str) -> None:
        names = [d for d in data.domains if _series(data.train, f"{metric}/{d}")]
        rows = [(row["step"], [row[f"{metric}/{d}"] or 0.0 for d in names]) for row in data.train if names]
        if len(rows) > 1:
            svg = share_chart([(d, css[d]) for d in names], rows, title=title)
            charts.append({"title": title, "note": note, "svg": svg})

    lines("KL to the teacher", "nats a token, student against its own teacher", by_domain("kl"))
    note = "nats a token, on validation questions that it does not train on"
    lines("KL to the teacher, held out", note, by_domain("held_out_kl", data.evals))
    note = "which part of the student’s likeliest tokens is among the teacher’s"
    lines("Top-k overlap with the teacher, held out", note, by_domain("topk_overlap", data.evals))
    lines("Loss", "weighted sum over domains", [Line("loss", "plain", _series(data.train, "loss"))])
    lines("Entropy", "nats a token; towards 0 is collapse", by_domain("entropy"))
    shares("Token share", "who writes the tokens that are trained", "token_share")
    shares("Gradient share", "who moves the weights: the recipe’s shares decide, not lengths", "gradient_share")
    stage_lines = [
        Line(s.name, css[s.domains[0]] if len(s.domains) == 1 else "plain", _series(s.rows, "loss"))
        for s in data.stages
    ]
    lines("Stages before it: loss", "base and specialists, nats a token", stage_lines)
    return charts


def samples(data: RunData) -> list[dict[str, Any]]:
    """The rollouts kept first and last, by domain, each token with its advantage as a colour's strength."""
    steps = sorted({row["step"] for row in data.rollouts})
    css = css_of(data)
    return [
        {
            "step": step,
            "domains": [
                {"domain": d, "css": css[d], "rollouts": [_sample(row) for row in data.rollouts if _is(row, step, d)]}
                for d in data.domains
                if any(_is(row, step, d) for row in data.rollouts)
            ],
        }
        for step in dict.fromkeys([*steps[-1:], *steps[:1]])  # not per token
    ]


def _is(row: Row, step: int, domain: str) -> bool:
    return row["step"] == step and row["domain"] == domain


def _sample(row: Row) -> dict[str, Any]:
    advantages = row.get("advantages") or [0.0] * len(row["tokens"])
    tokens = [
        {
            "text": token,
            "css": "up" if advantage > 0 else "down",
            "strength": f"{min(1.0, abs(advantage) / STRONG_ADVANTAGE) * 0.85:.2f}",
            "title": f"{advantage:+.2f} nat",
        }
        for token, advantage in zip(row["tokens"], advantages, strict=True)
    ]
    return {"prompt": row["prompt"], "tokens": tokens, "right": row["verdict"] >= 1.0, "verdict": row["verdict"]}


def cost(data: RunData) -> list[dict[str, Any]]:
    """Tokens, FLOPs and seconds of each role, longest first; every stage is one row."""
    roles: dict[str, Spent] = {}
    for role, spent in data.ledger.spent.items():
        name = f"stage {role.split('/')[1]}" if role.startswith("stage/") else role.replace("teacher/", "teacher ")
        roles[name] = roles.get(name, Spent()).plus(spent)
    longest = max((spent.seconds for spent in roles.values()), default=0.0) or 1.0
    ordered = sorted(roles.items(), key=lambda item: -item[1].seconds)
    return [
        {
            "role": role,
            "note": re.split(r"[;(]", ROLES.get(role.split()[0], ""))[0],
            "tokens": si(spent.tokens) if spent.tokens else "–",
            "flops": si(spent.flops) if spent.flops else "–",
            "seconds": duration(spent.seconds),
            "rate": si(spent.tokens / spent.seconds) if spent.tokens and spent.seconds else "–",
            "width": spent.seconds / longest * 100,
        }
        for role, spent in ordered
    ]


def si(number: float) -> str:
    """``3968000`` as ``3.97 M``."""
    for power, name in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {name}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """``3725`` as ``1 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def settings(data: RunData) -> list[tuple[str, str]]:
    """The leaves of the recipe that are shown at once."""
    shown: list[tuple[str, str]] = []
    for path in SETTINGS:
        value: Any = data.recipe
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            shown.append((path, value.get("architecture", "") if isinstance(value, Mapping) else str(value)))
    for domain, leaf in data.recipe["domains"].items():
        told = (
            "measured only"
            if leaf.get("evaluate_only")
            else f"{leaf['prompts']} prompts a step, share {leaf['share']:g}"
        )
        shown.append((f"domains.{domain}", told))
    return shown


def environment(data: RunData) -> list[tuple[str, str]]:
    """Versions, commit and machine."""
    told = data.environment
    pairs = [("commit", told.get("commit")), ("Python", told.get("python"))]
    pairs += list((told.get("packages") or {}).items())
    pairs += list((told.get("machine") or {}).items())
    return [(name, str(value)) for name, value in pairs if value is not None]
