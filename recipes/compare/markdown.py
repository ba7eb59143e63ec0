"""A comparison as Markdown, for a page that is kept: tables, what they say, and which code and day they are of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mopd.distill.errors import UserError
from mopd.distill.storage import write_atomic
from mopd.recipes.compare.comparison import ComparedMetrics, ComparedRow, Comparison
from mopd.recipes.compare.wording import (
    flops_of,
    headline,
    measures,
    notes,
    ranked,
    seconds_of,
    sentences,
    signed,
    times,
    times_interval,
    with_teachers,
    worst_forgetting,
)
from mopd.recipes.report.wording import between, listed, percent, points, si

BUDGETS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Where curves are read, in multiples of the training compute of the reference row."""

HEAD, OF_ALL = ("", "seeds", "tried"), ("mean", "pooled", "worst", "imbalance")
"""Of the first table: domains come between; for a single domain there are no numbers of all."""

BEGIN, END = "<!-- written by mopd compare -->", "<!-- end of what mopd compare wrote -->"


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write the comparison between the markers of ``path``, or a file of its own where there is none.

    Raises:
        UserError: the file has no markers, which would overwrite what it says, or it cannot be written.
    """
    content = f"{BEGIN}\n\n{markdown(comparison)}\n{END}"
    try:
        text = path.read_text() if path.exists() else f"{BEGIN}{END}\n"
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            raise UserError(
                f"--markdown {path}: it is there, and has not the two lines between which the comparison goes; give "
                f"another file, or write into it:\n{BEGIN}\n{END}"
            )
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, before + content + after)
    except OSError as error:
        raise UserError(f"--markdown {path}: cannot be written: {error.strerror}; give another file") from error


def markdown(comparison: Comparison) -> str:
    """The headline, tables, the teachers' transfer, and what to know before believing a number."""
    rows, domains = ranked(comparison), comparison.domains
    parts = [
        f"**{headline(comparison)[1]}.** {_origin(comparison)}",
        "Recovery of the teachers’ gain, with 95% intervals over questions and seeds"
        + (
            ""
            if len(domains) == 1
            else "; pooled: all gains over all headrooms; worst: the least of the domains’ means"
        )
        + f"; behind: that less what {_plain(comparison.leader or '–')} has, in points, by base, seed and question.",
        _table(
            [*HEAD, *domains, *(OF_ALL if len(domains) > 1 else ()), "behind"],
            [_recoveries(row, domains) for row in rows],
        ),
        *_behind_by_domain(comparison, rows),
        *_by_seed(comparison, rows),
        "Points lost, and the cost of training without and with the making of its teachers.",
        _table(["", "regression", "forgetting", "seesaw (noise)", "FLOP", "time"], [_losses(row) for row in rows]),
    ]
    if len(rows) > 1:
        reference, titles = comparison.parity.reference, measures(comparison)
        parts.append(f"Compute to reach what {_plain(reference)} reached, as a multiple of what that took itself.")
        columns = [column for head in titles.values() for column in (head, "+ teachers")]
        parts.append(_table(["", *columns], [_parity(row, list(titles)) for row in rows]))
        parts += _curves(rows, next(row for row in rows if row.name == reference), domains)
    if comparison.transfer:
        parts += [
            "The teachers themselves: change on every domain, as a part of what the domain’s own teacher gains.",
            _table(
                ["teacher", *domains],
                [[_plain(t.name), *(percent(t.transfer[d]) for d in domains)] for t in comparison.transfer],
            ),
        ]
    lines = [f"- {_plain(line)}" for line in (*sentences(comparison), *notes(comparison))]
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _origin(comparison: Comparison) -> str:
    """The day, and the code that the runs were begun with."""
    commits = dict.fromkeys((run.commit or "unknown")[:12] for run in comparison.runs)
    asked = [f"{task.questions} of {_plain(domain)}" for domain, task in comparison.tasks.items()]
    day = datetime.now(UTC).strftime("%-d %B %Y")
    what = f"{len(comparison.runs)} runs on {comparison.split} questions ({listed(asked)})"
    return f"{what}, commit {listed(list(commits))}, written {day}."


def _recoveries(row: ComparedRow, domains: Sequence[str]) -> list[str]:
    metrics, ends = row.metrics, row.metrics_ci
    of_all = (
        (metrics.mean_recovery, ends.mean_recovery),
        (metrics.pooled_recovery, ends.pooled_recovery),
        (metrics.worst_recovery_estimate, ends.worst_recovery),
        (metrics.imbalance_estimate, ends.imbalance),
    )

    def recovered(domain: str) -> str:
        if metrics.recovery[domain] is None:
            return f"{points(metrics.points[domain])} pt"
        return _with(percent(metrics.recovery[domain]), between(ends.recovery[domain]))

    return [
        _plain(row.name),
        str(row.n),
        str(row.trials or "–"),
        *map(recovered, domains),
        *(_with(percent(value), between(interval)) for value, interval in of_all if len(domains) > 1),
        signed(row.behind.worst_recovery) if row.behind else "–",
    ]


def _behind_by_domain(comparison: Comparison, rows: Sequence[ComparedRow]) -> list[str]:
    """Every other row's scores less the leader's; nothing where there is no other on the same seeds."""
    behind = {row.name: row.behind.points for row in rows if row.behind is not None and row.behind.points is not None}
    if not behind:
        return []
    title = (
        f"Scores less those of {_plain(comparison.leader or '–')}, in points, paired by base, seed and question; these "
        "95% intervals hold for all domains and rows together."
    )
    lines = [[_plain(name), *(signed(of[d]) for d in comparison.domains)] for name, of in behind.items()]
    return [title, _table(["", *comparison.domains], lines)]


def _by_seed(comparison: Comparison, rows: Sequence[ComparedRow]) -> list[str]:
    """What each seed's run recovered in its worst domain, and which that is; nothing where every row has one seed."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    if len(seeds) == 1 or all(row.n == 1 for row in rows):
        return []
    runs = {(run.row, run.seed): run.metrics for run in comparison.runs}
    if len(comparison.domains) == 1:
        return []
    lines = [
        [
            _plain(row.name),
            *(_worst(runs.get((row.name, seed))) for seed in seeds),
            _with(percent(row.metrics.worst_by_seed), between(row.metrics_ci.worst_by_seed)),
        ]
        for row in rows
    ]
    title = "The worst domain of each seed, with its recovery, and the mean of these, without the bias that each has."
    return [title, _table(["", *(f"seed {seed}" for seed in seeds), "mean"], lines)]


def _worst(metrics: ComparedMetrics | None) -> str:
    known = {} if metrics is None else {d: value for d, value in metrics.recovery.items() if value is not None}
    if not known:
        return "–"
    domain = min(known, key=lambda d: known[d])
    return f"{_plain(domain)} {percent(known[domain])}"


def _curves(rows: Sequence[ComparedRow], reference: ComparedRow, domains: Sequence[str]) -> list[str]:
    """Mean scores over compute, of rows that were evaluated on the way; between evaluations a curve is straight."""
    curves = {row.name: row.curve for row in rows if len(row.curve) > 1 and row.curve[-1].flops > 0}
    if reference.name not in curves:
        return []
    whole, most = reference.curve[-1].flops, max(curve[-1].flops for curve in curves.values())
    budgets = [share * whole for share in BUDGETS if share * whole <= most]
    lines: list[list[str]] = []
    for name, curve in curves.items():
        flops = [point.flops for point in curve]
        means = [np.mean([point.scores[d].mean for d in domains]) for point in curve]
        inside = [flops[0] <= budget <= flops[-1] for budget in budgets]  # a cascade is first measured after a link
        scores = np.interp(budgets, flops, means)
        read = [f"{100 * value:.1f}" if known else "–" for value, known in zip(scores, inside, strict=True)]
        lines.append([_plain(name), *read, f"{100 * means[-1]:.1f} ({si(flops[-1])})"])
    title = f"Mean validation score in percent over training FLOP; {_plain(reference.name)} takes {si(whole)} in all."
    return [title, _table(["", *map(si, budgets), "at its end"], lines)]


def _losses(row: ComparedRow) -> list[str]:
    metrics, cost = row.metrics, row.cost
    low, high = row.metrics_ci.max_regression
    return [
        _plain(row.name),
        _with(f"{100 * metrics.max_regression_estimate:.1f}", f"{100 * low:.1f}–{100 * high:.1f}"),
        worst_forgetting(metrics),
        _with(percent(metrics.seesaw_share), percent(metrics.seesaw_noise, 1)),
        f"{flops_of(cost.training)} / {flops_of(cost.with_teachers)}",
        f"{seconds_of(cost.training)} / {seconds_of(cost.with_teachers)}",
    ]


def _parity(row: ComparedRow, measures: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for name in measures:
        alone = row.parity[name]
        counted = with_teachers(alone)
        cells.append(_with(times(alone), times_interval(alone)))
        cells.append("unknown" if counted is None else _with(times(counted), times_interval(counted)))
    return [_plain(row.name), *cells]


def _with(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _plain(text: str) -> str:
    """Text whose characters mean nothing in Markdown."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text
