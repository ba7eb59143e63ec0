"""The saved W&B workspace: what a server is sent, and what is told where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deadline_kit import patience
from track_kit import recipe
from wandb_kit import Server

from mopd.distill.recipe.files import dump_recipe
from mopd.distill.tracking.sink import CHANGES
from mopd.distill.tracking.wandb_workspace import CHART, MOST_PAIRS, RESULTS, SECTIONS, pairs, panels
from mopd.recipes.report.charts import seesaw_preset

ROOT = Path(__file__).parents[4]


def workspace(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`mopd workspace` in a process of its own, in which nobody is logged in."""
    (folder / "recipe.yaml").write_text(dump_recipe(recipe()))
    mopd = Path(sys.executable).with_name("mopd")
    return subprocess.run(
        [mopd, "workspace", folder / "recipe.yaml"],
        capture_output=True,
        text=True,
        timeout=patience(120),
        cwd=folder,
        env={"HOME": str(folder), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "NO_PROXY": "*", **environment},
    )


def test_a_server_is_sent_one_panel_for_each_metric_and_those_of_results(tmp_path: Path) -> None:
    served = Server()
    try:
        ended = workspace(tmp_path, WANDB_BASE_URL=served.url, WANDB_API_KEY="a" * 40)
    finally:
        served.close()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{served.url}/somebody/seesaws")
    (view,) = served.views
    assert (view["entityName"], view["projectName"], view["type"]) == ("somebody", "seesaws", "project-view")
    section = json.loads(view["spec"])["section"]
    sent = {
        group["name"]: [panel["config"]["metrics"] for panel in group["panels"]]
        for group in section["panelBankConfig"]["sections"]
        if group["panels"] and group["name"] in SECTIONS
    }
    assert sent == {name: [[metric] for metric in metrics] for name, metrics in panels(list(recipe().domains)).items()}
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    drawn = {
        panel["config"]["metrics"][0]: panel["config"]["xAxis"]
        for group in section["panelBankConfig"]["sections"]
        for panel in group["panels"]
        if group["name"] in SECTIONS
    }
    assert {metric for metric, over in drawn.items() if over == "cost/flops"} == {
        "over_flops/worst_recovery_estimate",
        "over_flops/mean_recovery",
        "over_flops/score/math",
        "over_flops/score/code",
    }
    (results,) = [group for group in section["panelBankConfig"]["sections"] if group["name"] == RESULTS]
    recovery, plane = (panel["config"] for panel in results["panels"])
    assert [panel["viewType"] for panel in results["panels"]] == ["Bar Chart", "Scatter Plot"]
    assert recovery["metrics"] == ["seesaw/recovery/math", "seesaw/recovery/code", "seesaw/worst_recovery"]
    assert (plane["xAxis"], plane["yAxis"]) == ("summary:seesaw/recovery/math", "summary:seesaw/recovery/code")
    conditions = json.dumps(runs["filters"])
    assert '"jobType"' in conditions
    assert '"!="' in conditions
    assert '"stage"' in conditions


def test_the_picture_of_the_model_card_is_a_custom_chart_and_the_first_panel(tmp_path: Path) -> None:
    served = Server()
    try:
        ended = workspace(tmp_path, WANDB_BASE_URL=served.url, WANDB_API_KEY="a" * 40)
    finally:
        served.close()
    assert ended.returncode == 0, ended.stderr
    (chart,) = served.charts
    assert (chart["entity"], chart["chartName"], chart["chartType"]) == ("somebody", CHART, "vega2")
    assert json.loads(chart["spec"]) == seesaw_preset()
    bank = json.loads(served.views[0]["spec"])["section"]["panelBankConfig"]["sections"]
    (panel,) = bank[0]["panels"]
    assert panel["config"]["panelDefId"] == f"somebody/{CHART}"
    assert panel["config"]["fieldSettings"] == {name: name for name in CHANGES}
    assert '"changes"' in json.dumps(panel["config"]["userQuery"])


def test_of_many_domains_some_pairs_are_shown() -> None:
    assert len(pairs([f"d{n}" for n in range(5)])) == MOST_PAIRS == len(set(pairs([f"d{n}" for n in range(24)])))


def test_a_server_that_takes_no_chart_is_said_and_gets_the_workspace(tmp_path: Path) -> None:
    served = Server()
    served.takes_charts = False
    try:
        ended = workspace(tmp_path, WANDB_BASE_URL=served.url, WANDB_API_KEY="a" * 40)
    finally:
        served.close()
    assert ended.returncode == 0, ended.stderr
    assert f"W&B did not make the custom chart somebody/{CHART}" in ended.stderr
    assert "a chart of that name exists" in ended.stderr
    assert ended.stdout.startswith(f"{served.url}/somebody/seesaws")
    assert len(served.views) == 1


def test_every_panel_shows_a_metric_of_the_page() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for metric in {metric for metrics in panels(list(recipe().domains)).values() for metric in metrics}:
        name = metric.partition("/")[2].replace("/math", "/DOMAIN").replace("/code", "/DOMAIN")
        assert f"| `{name}` |" in page, metric


def test_logged_out_it_says_what_to_do(tmp_path: Path) -> None:
    ended = workspace(tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert "W&B is not logged in; `wandb login` does that" in ended.stderr
