"""What is saved on a W&B server by W&B's own package: a workspace for a project's runs, a comparison as a report."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from mopd.distill.errors import UserError
from mopd.distill.tracking.sink import CHANGES, one_line

SECTIONS: dict[str, tuple[str, ...]] = {
    "Does one domain pay for another?": (
        "eval/worst_recovery_estimate",
        "eval/worst_recovery/low",
        "eval/mean_recovery",
        "eval/recovery/D",
        "eval/score/D",
    ),
    "What does it take?": ("over_flops/worst_recovery_estimate", "over_flops/mean_recovery", "over_flops/score/D"),
    "How far from the teachers?": ("train/kl/D", "eval/held_out_kl/D", "eval/topk_overlap/D"),
    "What does it write?": ("train/entropy/D", "eval/length/D", "eval/truncation/D", "eval/repetition/D"),
    "Who has the update?": ("train/share/D", "train/token_share/D", "train/gradient_share/D"),
    "Is the training sound?": ("train/loss", "train/grad_norm", "train/lr", "train/router/max_load"),
    "Where does the time go?": ("train/seconds/step", "train/seconds/generation", "train/seconds/scoring"),
}
"""Panels by section; ``D`` is one panel for each domain. Their names are those of docs/metrics.md."""


def panels(domains: Sequence[str]) -> dict[str, list[str]]:
    """The metrics of each section with the domains filled in: one panel each, over :func:`axis`."""
    return {
        section: [
            metric.removesuffix("/D") + end
            for metric in metrics
            for end in ([f"/{domain}" for domain in domains] if metric.endswith("/D") else [""])
        ]
        for section, metrics in SECTIONS.items()
    }


def axis(metric: str) -> str:
    """What a panel's metric is drawn over."""
    return "cost/flops" if metric.startswith("over_flops/") else "step"


RESULTS = "Where does each domain end, and against which other?"
"""The section of a run's results: recovery as bars, and two domains against each other."""
MOST_PAIRS = 10
"""Panels of two domains, of which five have ten; of more domains the rest are left out, and their count is said."""


def bars(domains: Sequence[str]) -> list[str]:
    """Of a run's summary, what the bars of its result show."""
    return [f"seesaw/recovery/{domain}" for domain in domains] + ["seesaw/worst_recovery"]


def pairs(domains: Sequence[str]) -> list[tuple[str, str]]:
    """Two numbers of a run's summary each: the recoveries of two domains, whose runs are points of one panel."""
    recovery = [f"seesaw/recovery/{domain}" for domain in domains]
    return list(combinations(recovery, 2))[:MOST_PAIRS]  # not per token


CHART = "mopd-changes"
"""The name of the custom chart, of the entity that the workspace is saved for."""


def save_workspace(
    domains: Sequence[str],
    chart: Mapping[str, Any],
    *,
    project: str,
    entity: str | None,
    say: Callable[[str], None],
) -> str:
    """Save a workspace in a W&B project, its runs grouped by recipe and without stages; returns its address.

    Args:
        domains: each has a panel of every metric that is measured by domain.
        chart: a Vega-Lite specification of the table ``changes``, which becomes the custom chart :data:`CHART` and the
            first panel.
        project: the W&B project.
        entity: the W&B team or user; none: the one that is logged in.
        say: is told where W&B does not take the custom chart, as of one of that name that it has already; the workspace
            is saved all the same.

    Raises:
        UserError: the package is not installed, W&B is not logged in, its server can't be reached, or refuses.
    """
    wandb, wr, ws = _packages("a workspace")
    try:
        api = wandb.Api()
        owner = entity or str(api.default_entity)
        preset = _custom_chart(api, owner, chart, say)
        changes = wr.CustomChart(
            query={"summaryTable": {"tableKey": "changes"}},
            chart_name=preset,
            chart_fields={name: name for name in CHANGES},
        )
        workspace = ws.Workspace(
            entity=owner,
            project=project,
            name=f"mopd: {', '.join(domains)}",
            sections=[
                ws.Section(name="What did each specialist gain and lose?", panels=[changes], is_open=True),
                ws.Section(name=RESULTS, panels=_result_panels(wr, domains, say), is_open=True),
                *(
                    ws.Section(name=name, panels=[wr.LinePlot(title=m, x=axis(m), y=[m]) for m in metrics])
                    for name, metrics in panels(domains).items()
                ),
            ],
            runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")], filters=[ws.Metric("JobType") != "stage"]),
        )
        return str(workspace.save().url)
    except Exception as error:  # W&B's package has no errors of its own for this
        raise UserError(f"W&B did not save the workspace: {type(error).__name__}: {error}") from error


def _result_panels(wr: Any, domains: Sequence[str], say: Callable[[str], None]) -> list[Any]:
    shown = pairs(domains)
    if (left_out := len(domains) * (len(domains) - 1) // 2 - len(shown)) > 0:
        say(f"the workspace shows {len(shown)} pairs of domains against each other, and {left_out} not")
    recovery = wr.BarPlot(title="recovery by domain", metrics=bars(domains), orientation="h")
    planes = [
        wr.ScatterPlot(title=" against ".join(name.rpartition("/")[2] for name in pair), x=pair[0], y=pair[1])
        for pair in shown
    ]
    return [recovery, *planes]


def _custom_chart(api: Any, owner: str, chart: Mapping[str, Any], say: Callable[[str], None]) -> str:
    """Make the custom chart; returns what a panel calls it."""
    preset = f"{owner}/{CHART}"
    try:
        api.create_custom_chart(
            entity=owner,
            name=CHART,
            display_name="Change against the base, by model and domain",
            spec_type="vega2",
            access="private",
            spec=dict(chart),
        )
    except Exception as error:  # W&B's package has no errors of its own for this
        say(f"W&B did not make the custom chart {preset} ({one_line(error)}); the panel shows the one that it has")
    return preset


def save_report(
    title: str, text: str, runs: Mapping[str, Sequence[str]], domains: Sequence[str], *, entity: str | None
) -> str:
    """Save a report: a text, and below it what the runs of recipes measured, over compute; returns its address.

    Args:
        title: at most 128 letters of it are kept.
        text: Markdown.
        runs: project -> names of recipes whose runs are shown, without their stages. The report is the first one's.
        domains: each has a panel.
        entity: the W&B team or user; none: the one that is logged in.

    Raises:
        UserError: as :func:`save_workspace`.
    """
    wandb, wr, ws = _packages("a report")
    metrics = ["worst_recovery_estimate", "mean_recovery", *(f"score/{domain}" for domain in domains)]
    try:
        owner = entity or str(wandb.Api().default_entity)
        sets = [
            wr.Runset(
                entity=owner,
                project=project,
                name=project,
                filters=[ws.Metric("Group").isin(list(groups)), ws.Metric("JobType") != "stage"],
                groupby=["group"],
            )
            for project, groups in runs.items()
        ]
        panels = [wr.LinePlot(title=m, x="cost/flops", y=[f"over_flops/{m}"]) for m in metrics]
        blocks = [wr.MarkdownBlock(text=text), wr.PanelGrid(runsets=sets, panels=panels)]
        report = wr.Report(entity=owner, project=next(iter(runs)), title=title[:128], blocks=blocks)
        return str(report.save().url)
    except Exception as error:  # W&B's package has no errors of its own for this
        raise UserError(f"W&B did not save the report: {type(error).__name__}: {error}") from error


def _packages(what: str) -> tuple[Any, Any, Any]:
    """W&B, and of its package for workspaces the modules of reports and of workspaces.

    Raises:
        UserError: the package is not installed, or W&B is not logged in.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(f"{what} is saved by W&B's package wandb-workspaces; `pip install 'mopd[wandb]'` brings it")
    import wandb
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    if not wandb.login(prompt=False, verify=False):
        raise UserError("W&B is not logged in; `wandb login` does that")
    return wandb, wr, ws
