"""report.html, which a person understands at a glance and which needs no network; and the table for the console."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from mopd.distill.storage import write_atomic
from mopd.recipes.report.behind import left_behind
from mopd.recipes.report.data import RunData, css_of, load_run
from mopd.recipes.report.drawing import stylesheet
from mopd.recipes.report.records import DomainScore, SeesawRecord
from mopd.recipes.report.run import cost, environment, learning, samples, settings
from mopd.recipes.report.scores import (
    changes,
    curves,
    episode_rows,
    health,
    pace_rows,
    recovery_rows,
    sampled_rows,
    unjudged_rows,
)
from mopd.recipes.report.wording import RunVerdict, between, judge, percent
from mopd.recipes.report.wrong import KINDS, shown, wrong_answers
from mopd.recipes.tables import Fitted

TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
_SCRIPT = (TEMPLATE.parent / "find.js").read_text()


def policy(*scripts: str) -> Markup:
    """What a page may do, as its meta element says it: nothing from anywhere, and no script but these."""
    digests = (b64encode(sha256(script.encode()).digest()).decode() for script in scripts)
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return Markup(f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {sources}")


POLICY = policy(_SCRIPT)
SEARCH: dict[str, Any] = {"policy": POLICY, "script": Markup(_SCRIPT), "kinds": KINDS, "shown": shown}
"""What templates/wrong.html.j2 needs."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder, finished or not; one that is under way says what is missing.

    Returns:
        The file's path. It is self-contained: no script, no font, no image from elsewhere.

    Raises:
        UserError: there is no run in ``run_dir``.
        RunError: a file of the run is damaged.
    """
    return write_page(load_run(run_dir))


def write_page(data: RunData) -> Path:
    """:func:`write_report` of a run that was read."""
    path = data.folder / "report.html"
    write_atomic(path, render(data))
    return path


def render(data: RunData) -> str:
    """The report as HTML. Whatever comes from the run (prompts, answers, names) is escaped."""
    return page_template(TEMPLATE).render(
        data=data,
        css=css_of(data),
        verdict=verdict(data),
        changes=changes(data),
        curves=curves(data),
        recovery=recovery_rows(data),
        learning=learning(data),
        health=health(data),
        sampled=sampled_rows(data),
        unjudged=unjudged_rows(data),
        episodes=episode_rows(data.seesaw.episodes),
        paces=pace_rows(data.paces),
        samples=samples(data),
        cost=cost(data),
        settings=settings(data),
        environment=environment(data),
        recipe_yaml=(data.folder / "recipe.yaml").read_text(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        wrong=wrong_answers(data.folder, data.recipe.teacher_weights, split=data.seesaw.split, domains=data.domains),
        **SEARCH,
    )


def page_template(path: Path) -> jinja2.Template:
    """A page's template, which escapes whatever it is given, and may include what lies beside it or the report's."""
    loader = jinja2.FileSystemLoader([path.parent, TEMPLATE.parent])
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    templates.globals |= {"colours": stylesheet()}
    templates.filters |= {"percent": percent, "between": _between, "ends": between}
    return templates.get_template(path.name)


def verdict(data: RunData) -> RunVerdict:
    """What the run's numbers say, in words."""
    state = data.standing.state
    judged = judge(
        data.seesaw, finished=data.finished, step=data.step, steps=data.steps, state=state, selects=data.trains
    )
    return replace(judged, sentences=[*judged.sentences, *(left_behind(data) if data.finished else ())])


def _between(score: DomainScore) -> str:
    """A score's interval, if it has one."""
    return "" if score.low is None or score.high is None else between((score.low, score.high), 1)


def summary_table(run_dir: Path) -> Fitted:
    """Scores of base, each teacher and student on every domain, and the recovery, for the console.

    Raises:
        UserError: there is no run in ``run_dir``.
    """
    return table_of(load_run(run_dir))


def table_of(data: RunData) -> Fitted:
    """:func:`summary_table` of a run that was read."""
    seesaw = data.seesaw
    title = f"{data.name}: scores in %, greedy, {seesaw.split} questions"
    table = Table(title=title, caption=verdict(data).headline)
    for heading in ("domain", *(model.removeprefix("teachers/") for model in seesaw.models), "recovery"):
        table.add_column(heading, justify="left" if heading == "domain" else "right", no_wrap=True)
    for row in recovery_rows(data):
        cells = [_cell(seesaw, model, row.domain) for model in seesaw.models]
        interval = (f" ({row.recovery_ci})", "dim") if row.recovery_ci else ""
        table.add_row(row.domain, *cells, Text.assemble(row.recovery_text, interval))
    table.add_section()
    means = (_mean(scores.values()) for scores in seesaw.models.values())
    table.add_row("mean", *means, percent(seesaw.metrics.mean_recovery))
    return Fitted(table)


def _cell(seesaw: SeesawRecord, model: str, domain: str) -> Text:
    """A score; a teacher's on its own domain, and the student's, stand out."""
    score = seesaw.models[model].get(domain)
    if score is None:
        return Text("–")
    stands_out = model == "student" or model.removeprefix("teachers/") in seesaw.teachers[domain]
    return Text(f"{100 * score.score:.1f}", style="bold" if stands_out else "")


def _mean(scores: Collection[DomainScore]) -> str:
    return f"{100 * sum(score.score for score in scores) / len(scores):.1f}" if scores else "–"
