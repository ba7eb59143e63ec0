"""report.html, which a person understands at a glance and which needs no network; and the table for the console."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import jinja2
from rich.table import Table
from rich.text import Text

from mopd.distill.storage import write_atomic
from mopd.recipes.report.data import Row, RunData, css_of, load_run
from mopd.recipes.report.run import cost, environment, learning, samples, settings
from mopd.recipes.report.scores import changes, curves, health, recovery_rows
from mopd.recipes.report.wording import between, judge, percent

TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder, finished or not; one that is under way says what is missing.

    Returns:
        The file's path. It is self-contained: no script, no font, no image from elsewhere.

    Raises:
        UserError: there is no run in ``run_dir``.
        RunError: a file of the run is damaged.
    """
    page = render(load_run(run_dir))
    path = run_dir / "report.html"
    write_atomic(path, page)
    return path


def render(data: RunData) -> str:
    """The report as HTML. Whatever comes from the run (prompts, answers, names) is escaped."""
    return page_template(TEMPLATE).render(
        data=data,
        css=css_of(data),
        verdict=judge(data.final, finished=data.finished, step=data.step, steps=data.steps, selects=data.trains),
        changes=changes(data),
        curves=curves(data),
        recovery=recovery_rows(data),
        learning=learning(data),
        health=health(data),
        samples=samples(data),
        cost=cost(data),
        settings=settings(data),
        environment=environment(data),
        recipe_yaml=(data.folder / "recipe.yaml").read_text(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def page_template(path: Path) -> jinja2.Template:
    """A page's template, which escapes whatever it is given, and may include what lies beside it or the report's."""
    loader = jinja2.FileSystemLoader([path.parent, TEMPLATE.parent])
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    templates.filters |= {"percent": percent, "between": _between}
    return templates.get_template(path.name)


def _between(scored: Row) -> str:
    """A score's interval, if it has one."""
    return "" if scored["low"] is None else between([scored["low"], scored["high"]], 1)


def summary_table(run_dir: Path) -> Table:
    """Scores of base, each teacher and student on every domain, and the recovery, for the console.

    Raises:
        UserError: there is no run in ``run_dir``.
    """
    data = load_run(run_dir)
    final = data.final
    verdict = judge(final, finished=data.finished, step=data.step, steps=data.steps, selects=data.trains)
    split = final.get("split", "test")
    table = Table(title=f"{data.recipe['name']}: scores in %, greedy, {split} questions", caption=verdict.headline)
    table.add_column("domain")
    models = list(final["models"])
    for model in models:
        table.add_column(model.removeprefix("teachers/"), justify="right")
    table.add_column("recovery", justify="right")
    for row in recovery_rows(data):
        own = set(final["teachers"][row["domain"]])
        cells = [_cell(final, model, row["domain"], own) for model in models]
        interval = (f" ({row['recovery_ci']})", "dim") if row["recovery_ci"] else ""
        table.add_row(row["domain"], *cells, Text.assemble(row["recovery_text"], interval))
    table.add_section()
    table.add_row("mean", *(_mean(final, model) for model in models), percent(final["metrics"].get("mean_recovery")))
    return table


def _cell(final: Row, model: str, domain: str, own: set[str]) -> Text:
    """A score; a teacher's on its own domain, and the student's, stand out."""
    scored = final["models"][model].get(domain)
    if scored is None:
        return Text("–")
    stands_out = model == "student" or model.removeprefix("teachers/") in own
    return Text(f"{100 * scored['score']:.1f}", style="bold" if stands_out else "")


def _mean(final: Row, model: str) -> str:
    scores: list[float] = [scored["score"] for scored in final["models"][model].values()]
    return f"{100 * sum(scores) / len(scores):.1f}" if scores else "–"
