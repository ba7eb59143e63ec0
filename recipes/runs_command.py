"""What `mopd ls` and `mopd report` show: the runs of a folder and how they stand; one run's report, whenever asked."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mopd.distill.errors import RunError, UserError
from mopd.distill.metrics.evaluate import Split
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.recipes.report.data import load_run
from mopd.recipes.report.page import table_of, verdict, write_page
from mopd.recipes.report.records import read_json, reading, recorded_recipe
from mopd.recipes.report.wording import percent
from mopd.recipes.resolve.damage import read_marker
from mopd.recipes.resolve.run_folder import RECIPE, STUDY, RunState, runs_of_study, standing
from mopd.recipes.tables import Fitted

TAIL = 1 << 18
"""Bytes at the end of metrics.jsonl that are looked at first: hundreds of steps."""
COLOURS = {"finished": "green", "running": "cyan", "broken": "bold red", "damaged": "bold red"}


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run as `mopd ls` lists it.

    Attributes:
        run: its folder's path below the one that was listed.
        state: how it stands; ``damaged`` is a study whose file does not say which runs it has.
        stage: the stage that is being made, while the run itself has taken no step; its steps are given then.
        step: finished steps, of ``steps``.
        worst_recovery: the worst domain's part of its teacher's gain, estimated; None where it is not known.
        split: of the questions that it is measured on: ``test`` once the run is finished.
        seconds: since a file of it was last written.
        why: it was interrupted or broke.
        problem: why nothing can be said of it; empty where all can.
    """

    run: str
    state: RunState | Literal["damaged"]
    stage: str
    step: int
    steps: int
    worst_recovery: float | None
    split: Split
    seconds: float
    why: str
    problem: str


def show_runs(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Print the runs in a folder, the one last written first; returns them as plain values.

    Raises:
        UserError: the folder is not there.
    """
    rows = list_runs(folder)
    if not rows:
        console.print(Text(f"{folder} holds no runs; `mopd run RECIPE` begins one"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading, side in (("run", "left"), ("state", "left"), ("step", "right"), ("W", "right"), ("age", "right")):
        table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=heading != "run")
    for row in rows:
        step = f"{row.step}/{row.steps}" if row.steps else "–"
        worst = percent(row.worst_recovery) + (" val" if row.worst_recovery is not None and row.split != "test" else "")
        table.add_row(
            Text(row.run, overflow="fold"),
            Text(row.state, style=COLOURS.get(row.state, "yellow")),
            f"{row.stage} {step}" if row.stage else step,
            worst,
            age(row.seconds),
        )
    if rows:
        console.print(Fitted(table))
    for row in rows:
        if row.why or row.problem:
            console.print(Text(f"{row.run}: {row.problem or row.why}"), style="dim", soft_wrap=True)
    return [asdict(row) for row in rows]


def list_runs(folder: Path) -> list[ListedRun]:
    """The runs in a folder and in its folders, or the folder itself where it is one; of a study all of its runs.

    The one last written is first.

    Raises:
        UserError: the folder is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not there; give a folder of runs, such as runs")
    rows: list[ListedRun] = []
    for place in _places(folder):
        try:
            runs = _runs_of(place)
        except UserError as error:
            if place == folder:
                raise
            rows.append(_damaged(place, str(place.relative_to(folder)), str(error)))
        else:
            rows += [_listed(run, str(run if run == folder else run.relative_to(folder))) for run in runs]
    return sorted(rows, key=lambda row: row.seconds)


def _places(folder: Path) -> list[Path]:
    """The folder itself where it is a run or a study; else those in it, and in folders of it that hold some."""
    if _is_place(folder):
        return [folder]
    below = [[path] if _is_place(path) else list(filter(_is_place, _folders(path))) for path in _folders(folder)]
    return [place for places in below for place in places]


def _is_place(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RECIPE, STUDY))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _runs_of(folder: Path) -> list[Path]:
    """The run that a folder is, or the runs of the study; none where it is neither."""
    if (folder / STUDY).is_file():
        return runs_of_study(folder)
    return [folder] if (folder / RECIPE).is_file() else []


def _damaged(study: Path, name: str, problem: str) -> ListedRun:
    return ListedRun(name, "damaged", "", 0, 0, None, "validation", _seconds_since(study), "", problem)


def _seconds_since(folder: Path) -> float:
    """How long ago a file of it was last written."""
    now = time.time()
    patterns = ("*.jsonl", "*.json", "stages/*/metrics.jsonl", RECIPE)
    written = (path.stat().st_mtime for pattern in patterns for path in folder.glob(pattern))
    return max(0.0, now - max(written, default=now))


def _listed(run: Path, name: str) -> ListedRun:
    stands, seconds = standing(run), _seconds_since(run)
    try:
        with reading(run):
            stage, step, steps = _progress(run)
            worst, split = _worst(run)
        problem = ""
    except (UserError, RunError) as error:
        stage, step, steps, worst, split, problem = "", 0, 0, None, "validation", str(error)
    return ListedRun(name, stands.state, stage, step, steps, worst, split, seconds, stands.why, problem)


def _progress(run: Path) -> tuple[str, int, int]:
    """The stage that is being made, if any, and finished steps of all."""
    recipe = recorded_recipe(run)
    step = int((_last(run / "metrics.jsonl", "train") or {}).get("step", 0))
    finished = bool(read_marker(run))
    if step or finished:
        return "", step, step if finished and recipe.may_end_sooner else recipe.steps
    stages: list[tuple[str, int, int]] = []
    for name, stage in recipe.stages.items():
        row = _last(run / "stages" / name / "metrics.jsonl", "train")
        if row is not None and not read_marker(run / "stages" / name):
            stages.append((name, int(row["step"]), stage.steps))
    return stages[0] if stages else ("", 0, recipe.steps)


def _worst(run: Path) -> tuple[float | None, Split]:
    """The worst domain's recovery: on test questions once there is a result, else at the last evaluation."""
    if record := read_json(run / "seesaw.json"):
        metrics = record["metrics"]
        return metrics.get("worst_recovery_estimate", metrics.get("worst_recovery")), record.get("split", "test")
    row = _last(run / "metrics.jsonl", "eval") or {}
    return row.get("worst_recovery_estimate"), "validation"


def _last(path: Path, kind: str) -> dict[str, Any] | None:
    """The last row of a kind; the whole file is read only where its end has none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[:-1]  # not per token; without what is being written
    for line in reversed(lines):
        if f'"kind": "{kind}"'.encode() in line:
            try:
                return json.loads(line)
            except ValueError:  # the first line, cut in the middle
                break
    if path.stat().st_size <= TAIL:
        return None
    rows = [row for row in read_jsonl(path) if row.get("kind") == kind]
    return rows[-1] if rows else None


def age(seconds: float) -> str:
    """How long ago, in the largest unit of which there is at least one: ``5 s``, ``12 min``, ``3 h``, ``2 days``."""
    for unit, name in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            number = int(seconds // unit)
            return f"{number} {name}{'s' if name == 'day' and number > 1 else ''}"
    return f"{int(seconds)} s"


def show_report(folder: Path, console: Console) -> dict[str, Any]:
    """Write the report of a run, finished or not, and print its scores; of a study, of every run that has begun.

    Returns:
        For each run what its page says, as plain values.

    Raises:
        UserError: there is no run in ``folder``.
    """
    runs = _runs_of(folder) or [folder]  # of which it is said that it is none
    reports: list[dict[str, Any]] = []
    for run in runs:
        with reading(run):
            data = load_run(run)
        page, judged = write_page(data), verdict(data)
        console.print(table_of(data))
        console.print(Text("\n- ".join([f"report: {page}", *data.missing])), soft_wrap=True)
        reports.append(
            {
                "run": str(run),
                "state": data.standing.state,
                "why": data.standing.why,
                "step": data.step,
                "steps": data.steps,
                "headline": judged.headline,
                "sentences": list(judged.sentences),
                "missing": data.missing,
                "scores": data.scores(),
                "recovery": data.recovery(),
                "page": str(page),
            }
        )
    return {"format": 1, "runs": reports}
