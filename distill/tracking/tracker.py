"""One record stream of a run: metrics.jsonl is the truth, Weights & Biases a view of it.

Every stage of a run is a run of its own folder, so it has its own Tracker, its own metrics.jsonl and its own W&B run.
All W&B runs of a recipe share one group: base, specialists and student are lines of the same panels.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from mopd.distill.recipe import Recipe
from mopd.distill.tracking.jsonl import append_jsonl, as_json, read_jsonl, truncate_jsonl
from mopd.distill.tracking.ledger import ledger_from_rows
from mopd.distill.tracking.wandb_sink import WandbSink

__all__ = ["Tracker", "read_jsonl", "truncate_jsonl"]

ROWS = ("evaluations", "exams", "rollouts")
"""What else is written row by row into ``NAME.jsonl``, and cut back on resume: answers, costs of exams, samples."""

NO_METRICS = ("step", "kind", "message")
"""Keys of a line of metrics.jsonl that are not numbers to show."""


def say_on_stderr(line: str) -> None:
    """Print one line for people."""
    print(line, file=sys.stderr, flush=True)


class Tracker:
    """Writes the records of one run's folder and shows them in W&B; a context manager.

    Opening one drops half-written last lines, which a killed run leaves behind.

    Args:
        folder: the run's folder, or that of one of its stages; it must exist.
        recipe: the resolved recipe of the whole run.
        stage: the stage's name, if this is one.
        say: prints one line for people; W&B's troubles go there.

    Raises:
        RunError: a file of the folder is not what a Tracker writes, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        recipe: Recipe,
        stage: str | None = None,
        say: Callable[[str], None] = say_on_stderr,
    ) -> None:
        self._folder, self._metrics = folder, folder / "metrics.jsonl"
        for path in self._files():
            truncate_jsonl(path, lambda row: True)
        self._last_steps = {str(row["kind"]): int(row["step"]) for row in read_jsonl(self._metrics)}
        disabled = recipe.track.wandb.mode == "disabled"
        self._sink = None if disabled else WandbSink(folder, recipe, stage=stage, say=say)

    def resume(self, step: int) -> None:
        """Go on after ``step`` finished steps: rows of later steps are dropped, because those steps are taken again.

        After step 0 nothing is finished: all that was recorded of the student is void, and only what base and teachers
        scored stays. What is left is shown in W&B. To be called before the first ``log``, by a new run with step 0.

        Raises:
            RunError: a file is not what a Tracker writes, or cannot be written.
        """
        for path in self._files():
            truncate_jsonl(
                path, lambda row: row["step"] <= step and (step > 0 or row.get("model", "student") != "student")
            )
        self._last_steps = {}
        self._replay()

    def log(self, kind: str, step: int, metrics: Mapping[str, float], *, message: str | None = None) -> None:
        """Append one line ``{"step", "kind", **metrics}`` to metrics.jsonl and show it.

        A SIGKILL loses at most the line being written. A value that is not finite is written as null.

        Args:
            kind: ``"train"``, ``"eval"``, ``"fault"`` or another short name; the prefix of the metrics in W&B.
            step: finished steps of the loop, in 0..steps; of a fault one more, so that it is dropped on resume.
            metrics: flat names such as ``loss``, ``kl/math``, ``score/math``.
            message: what a person reads beside them; W&B, whose metrics are numbers, is not told.

        Raises:
            ValueError: this kind has logged this step already, or steps run backwards.
            RunError: the file cannot be written.
        """
        self._in_order(kind, step)
        values = {name: as_json(float(value)) for name, value in metrics.items()}
        told = {} if message is None else {"message": message}
        append_jsonl(self._metrics, [{"step": step, "kind": kind, **values, **told}])
        if self._sink is not None:
            self._sink.log(kind, step, values)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl of one kind, in order."""
        return [row for row in read_jsonl(self._metrics) if row.get("kind") == kind]

    def append_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to one of the :data:`ROWS`' files; rollouts are a W&B table of their step as well.

        A SIGKILL may leave only the first of ``rows``: who needs all of them or none asks ``keep_rows`` to drop those.

        Args:
            name: ``"evaluations"``, ``"exams"`` or ``"rollouts"``.
            rows: JSON-like values and arrays; each row has a ``step``.

        Raises:
            ValueError: another name, or a row without ``step``: a resumed run could not tell whether to keep it.
            RunError: the file cannot be written.
        """
        path = self._rows(name)
        plain = [as_json(row) for row in rows]
        if any("step" not in row for row in plain):
            raise ValueError(f"a row for {path.name} has no step")
        append_jsonl(path, plain)
        if name == "rollouts":
            self._show_rollouts(plain)

    def keep_rows(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows of one of the :data:`ROWS`' files for which ``keep`` does not hold."""
        truncate_jsonl(self._rows(name), keep)

    def summarize(self, seesaw: Mapping[str, Any]) -> None:
        """Show the result in W&B: the metrics as the run's summary, a table of models x domains, recovery as bars.

        Args:
            seesaw: the content of seesaw.json (format 1).
        """
        if self._sink is None:
            return
        domains = seesaw["domains"]
        rows = [
            [model, *(scores[domain]["score"] if domain in scores else None for domain in domains)]
            for model, scores in seesaw["models"].items()
        ]
        last = max(self._last_steps.values(), default=0)
        self._sink.table("scores", last, ["model", *domains], rows)
        known = [[name, value] for name, value in seesaw["metrics"]["recovery"].items() if value is not None]
        self._sink.table("recovery_by_domain", last, ["domain", "recovery_by_domain"], known, bars=True)
        self._sink.summary(_flat("seesaw", seesaw["metrics"]) | _flat("seesaw", seesaw["metrics_ci"]))

    def write_ledger(self) -> None:
        """Add up what the steps of metrics.jsonl cost into ledger.json."""
        ledger_from_rows(read_jsonl(self._metrics)).write(self._folder / "ledger.json")

    def close(self, *, failed: bool = False) -> None:
        """End the W&B run, waiting for uploads for a limited time."""
        if self._sink is not None:
            self._sink.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def _rows(self, name: str) -> Path:
        if name not in ROWS:
            raise ValueError(f"rows go to one of {', '.join(ROWS)}, not to {name!r}: only these are cut on resume")
        return self._folder / f"{name}.jsonl"

    def _files(self) -> list[Path]:
        return [self._metrics, *map(self._rows, ROWS)]

    def _in_order(self, kind: str, step: int) -> None:
        last = self._last_steps.get(kind, -1)
        if step <= last:
            raise ValueError(f"step {step} of {kind!r} comes after step {last}; every step is logged once, in order")
        if step < max(self._last_steps.values(), default=0):
            raise ValueError(f"step {step} of {kind!r} comes too late; logged already: {self._last_steps}")
        self._last_steps[kind] = step

    def _replay(self) -> None:
        """Show what is in the folder already, step by step: its metrics, then its rollouts."""
        metrics = list(read_jsonl(self._metrics))
        rollouts = list(read_jsonl(self._rows("rollouts")))
        for step, of_step in itertools.groupby(sorted(metrics + rollouts, key=_step), key=_step):
            rows = list(of_step)
            for row in rows:
                if "kind" in row:
                    self._in_order(row["kind"], step)
                    if self._sink is not None:
                        values = {name: value for name, value in row.items() if name not in NO_METRICS}
                        self._sink.log(row["kind"], step, values)
            self._show_rollouts([row for row in rows if "kind" not in row])

    def _show_rollouts(self, rows: list[dict[str, Any]]) -> None:
        if self._sink is None or not rows:
            return
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[_cell(row.get(name)) for name in columns] for row in rows]
        self._sink.table("rollouts", max(map(_step, rows)), columns, cells)


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, float | None]:
    """Nested numbers under one name each; an interval ``[low, high]`` is two of them."""
    flat: dict[str, float | None] = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            value = dict(zip(("low", "high"), value, strict=True))
        flat |= _flat(f"{prefix}/{name}", value) if isinstance(value, Mapping) else {f"{prefix}/{name}": value}
    return flat


def _cell(value: Any) -> Any:
    """A value as a cell of a W&B table, whose columns hold one type each."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _step(row: Mapping[str, Any]) -> int:
    return int(row["step"])
