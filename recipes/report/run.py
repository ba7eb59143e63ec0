"""Sections of the report on the run: how it learned, what the student writes, what it cost, with which settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mopd.distill.tracking.ledger import ROLES, Spent
from mopd.recipes.report.chart_parts import Line
from mopd.recipes.report.charts import line_chart, share_chart
from mopd.recipes.report.data import RunData, css_of, series_of
from mopd.recipes.report.drawing import Picture
from mopd.recipes.report.records import SampledRollout, StepMetrics
from mopd.recipes.report.wording import duration, si

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


@dataclass(frozen=True, slots=True)
class NotedChart:
    """A chart with its title and what its numbers are."""

    title: str
    note: str
    picture: Picture


def learning(data: RunData) -> list[NotedChart]:
    """Loss, KL and entropy by domain, shares of tokens and of the gradient, the stages' losses, and who waited, where
    logged."""
    series = series_of(data)
    note = "nats a token, on validation questions that it does not train on"
    overlap = "which part of the student’s likeliest tokens is among the teacher’s"
    stage_lines = [
        Line(s.name, series[s.domains[0]] if len(s.domains) == 1 else None, _values(s.rows, "loss"))
        for s in data.stages
    ]
    charts = [
        _lines("KL to the teacher", "nats a token, student against its own", _by_domain("kl", data.train, series)),
        _lines("KL to the teacher, held out", note, _by_domain("held_out_kl", data.evals, series)),
        _lines("Top-k overlap with the teacher, held out", overlap, _by_domain("topk_overlap", data.evals, series)),
        _lines("Loss", "weighted sum over domains", [Line("loss", None, _values(data.train, "loss"))]),
        _lines("Entropy", "nats a token; towards 0 is collapse", _by_domain("entropy", data.train, series)),
        _shares("Token share", "who writes the tokens that are trained", "token_share", data.train, series),
        _shares(
            "Gradient share",
            "who moves the weights: the recipe’s shares decide, not lengths",
            "gradient_share",
            data.train,
            series,
        ),
        *_draft_heads(data.train, series),
        _lines("Stages before it: loss", "base and specialists, nats a token", stage_lines),
        _lines(
            "Idle share",
            "part of a step in which a rank or a teacher computes nothing, mean over their processes",
            [
                Line(who, colour, _values(data.train, f"idle/{who}"))
                for who, colour in (("ranks", None), ("teachers", 1))
            ],
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _draft_heads(train: Sequence[StepMetrics], series: Mapping[str, int]) -> list[NotedChart | None]:
    """How well draft heads guess, where the student has any."""
    agree, written = "part of draws in which it can be the student’s token", "of what was written with guesses"
    return [
        _lines("Draft heads: first guess", agree, _by_domain("draft_overlap_1", train, series)),
        _lines("Draft heads: tokens a forward", written, _by_domain("draft_tokens_per_forward", train, series)),
    ]


def _values(rows: Iterable[StepMetrics], name: str) -> list[tuple[float, float]]:
    return [(row.step, row.values[name]) for row in rows if row.values.get(name) is not None]


def _by_domain(metric: str, rows: Sequence[StepMetrics], series: Mapping[str, int]) -> list[Line]:
    return [Line(domain, i, _values(rows, f"{metric}/{domain}")) for domain, i in series.items()]


def _lines(title: str, note: str, lines: Sequence[Line]) -> NotedChart | None:
    """A chart of the lines that have two points or more; None where there is none."""
    drawn = [line for line in lines if len(line.points) > 1]
    if not drawn:
        return None
    highest = max([y for line in drawn for _, y in line.points], default=1.0) * 1.05 or 1.0
    picture = line_chart(
        drawn, title=f"{title}: {note}", y_range=(0.0, highest), y_format="{:.3g}".format, label_values=False
    )
    return NotedChart(title, note, picture)


def _shares(
    title: str, note: str, metric: str, rows: Sequence[StepMetrics], series: Mapping[str, int]
) -> NotedChart | None:
    """A chart of the domains' shares; None where fewer than two steps have any."""
    names = [domain for domain in series if _values(rows, f"{metric}/{domain}")]
    shares = [(row.step, [row.values[f"{metric}/{domain}"] or 0.0 for domain in names]) for row in rows if names]
    if len(shares) < 2:
        return None
    pairs = [(domain, series[domain]) for domain in names]
    return NotedChart(title, note, share_chart(pairs, shares, title=f"{title}: {note}"))


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token with its advantage: as a colour (``up``, ``down``), how strong it is, and in nats."""

    text: str
    css: str
    strength: str
    title: str


@dataclass(frozen=True, slots=True)
class ShownRollout:
    """A rollout, and what its verifier said: the score 0..1, and whether that is right."""

    prompt: str
    tokens: Sequence[ShownToken]
    right: bool
    verdict: float


@dataclass(frozen=True, slots=True)
class DomainSamples:
    """The rollouts of one domain at one step."""

    domain: str
    css: str
    rollouts: Sequence[ShownRollout]


@dataclass(frozen=True, slots=True)
class StepSamples:
    """The rollouts of one step."""

    step: int
    domains: Sequence[DomainSamples]


def samples(data: RunData) -> list[StepSamples]:
    """The rollouts kept first and last, by domain, each token with its advantage as a colour's strength."""
    steps = sorted({row.step for row in data.rollouts})
    shown: list[StepSamples] = []
    for step in dict.fromkeys([*steps[-1:], *steps[:1]]):  # not per token
        domains: list[DomainSamples] = []
        for domain, css in css_of(data).items():
            rollouts = [_sample(row) for row in data.rollouts if (row.step, row.domain) == (step, domain)]
            if rollouts:
                domains.append(DomainSamples(domain, css, rollouts))
        shown.append(StepSamples(step, domains))
    return shown


def _sample(row: SampledRollout) -> ShownRollout:
    advantages = row.advantages or [0.0] * len(row.tokens)
    tokens = [
        ShownToken(
            text=token,
            css="up" if advantage > 0 else "down",
            strength=f"{min(1.0, abs(advantage) / STRONG_ADVANTAGE) * 0.85:.2f}",
            title=f"{advantage:+.2f} nat",
        )
        for token, advantage in zip(row.tokens, advantages, strict=True)
    ]
    return ShownRollout(row.prompt, tokens, row.verdict >= 1.0, row.verdict)


@dataclass(frozen=True, slots=True)
class CostRow:
    """What a role spent, as text; ``rate`` is tokens a second, ``width`` its seconds in percent of the longest."""

    role: str
    note: str
    tokens: str
    flops: str
    seconds: str
    rate: str
    width: float


def cost(data: RunData) -> list[CostRow]:
    """Tokens, FLOPs and seconds of each role, longest first; every stage is one row."""
    roles: dict[str, Spent] = {}
    for role, spent in data.ledger.spent.items():
        name = f"stage {role.split('/')[1]}" if role.startswith("stage/") else role.replace("teacher/", "teacher ")
        roles[name] = roles.get(name, Spent()).plus(spent)
    longest = max((spent.seconds for spent in roles.values()), default=0.0) or 1.0
    return [
        CostRow(
            role=role,
            note=re.split(r"[;(]", ROLES.get(role.split()[0], ""))[0],
            tokens=si(spent.tokens) if spent.tokens else "–",
            flops=si(spent.flops) if spent.flops else "–",
            seconds=duration(spent.seconds),
            rate=si(spent.tokens / spent.seconds) if spent.tokens and spent.seconds else "–",
            width=spent.seconds / longest * 100,
        )
        for role, spent in sorted(roles.items(), key=lambda item: -item[1].seconds)
    ]


def settings(data: RunData) -> list[tuple[str, str]]:
    """The leaves of the recipe that are shown at once."""
    shown: list[tuple[str, str]] = []
    for path in SETTINGS:
        value: Any = data.recipe.tree
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            shown.append((path, value.get("architecture", "") if isinstance(value, Mapping) else str(value)))
    for name, domain in data.recipe.domains.items():
        trained = (
            "measured only" if domain.evaluate_only else f"{domain.prompts} prompts a step, share {domain.share:g}"
        )
        shown.append((f"domains.{name}", trained))
    return shown


def environment(data: RunData) -> list[tuple[str, str]]:
    """Versions, commit and machine."""
    known = data.environment
    if known is None:
        return []
    pairs = [("commit", known.commit), ("Python", known.python), *known.packages.items(), *known.machine.items()]
    return [(name, str(value)) for name, value in pairs if value is not None]
