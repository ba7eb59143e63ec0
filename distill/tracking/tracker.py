"""One record stream of a run: metrics.jsonl is the truth; Weights & Biases and other sinks are views of it.

Every stage of a run is a run of its own folder, so it has its own Tracker, its own metrics.jsonl and its own sinks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mopd.distill.errors import Interrupted
from mopd.distill.tracking.answers import answers_path, forget_answers, write_answers
from mopd.distill.tracking.jsonl import append_jsonl, as_json, read_jsonl, truncate_jsonl
from mopd.distill.tracking.sink import CHANGES, Artifact
from mopd.distill.tracking.sinks import SinkThread, close_sinks
from mopd.distill.verdicts import PER_MINUTE, paces

__all__ = ["Tracker", "read_jsonl", "truncate_jsonl"]

ROWS = ("evaluations", "exams", "rollouts")
"""What else is written row by row into ``NAME.jsonl``, and cut back on resume: answers, costs of exams, samples."""


class Tracker:
    """Writes the records of one run's folder and passes them on to sinks; a context manager.

    Opening one drops half-written last lines, which a killed run leaves behind.

    Args:
        folder: the run's folder, or that of one of its stages; it must exist.
        sinks: where the records are shown as well; they are closed with the Tracker.
        may_write: is called with a file's name before it is changed, and raises RunError where the folder has become
            another attempt's; see :func:`distill.storage.check_current`.

    Raises:
        RunError: a file of the folder is not what a Tracker writes, or cannot be written.
    """

    def __init__(
        self, folder: Path, *, sinks: Sequence[SinkThread] = (), may_write: Callable[[str], None] = lambda _: None
    ) -> None:
        self._folder = folder
        self._may_write = may_write
        self._metrics = folder / "metrics.jsonl"
        self._sinks = sinks
        try:
            for path in self._files():
                truncate_jsonl(path, lambda row: True)
            self._last_steps = {str(row["kind"]): int(row["step"]) for row in read_jsonl(self._metrics)}
        except BaseException:
            self.close(failed=True)
            raise

    def resume(self, step: int) -> None:
        """Go on after ``step`` finished steps: rows of later steps are dropped, because those steps are taken again.

        After step 0 nothing is finished: all that was recorded of the student is void, and only what base and teachers
        scored stays. What is left is given to the sinks. Call it before the first ``log``, with step 0 for a new run.

        Raises:
            RunError: a file is not what a Tracker writes, or cannot be written.
        """
        for path in self._files():
            truncate_jsonl(
                path, lambda row: row["step"] <= step and (step > 0 or row.get("model", "student") != "student")
            )
        forget_answers(self._folder, step)
        self._last_steps = {}
        self._replay()

    def log(self, kind: str, step: int, metrics: Mapping[str, float], *, message: str | None = None) -> None:
        """Append one line ``{"step", "kind", **metrics}`` to metrics.jsonl and show it.

        A SIGKILL loses at most the line being written. A value that is not finite is written as null.

        Args:
            kind: ``"train"``, ``"eval"``, ``"fault"`` or another short name; the prefix of the metrics in sinks.
            step: finished steps of the loop, in 0..steps; of a fault one more, so that it is dropped on resume.
            metrics: flat names such as ``loss``, ``kl/math``, ``score/math``.
            message: what a person reads beside them.

        Raises:
            ValueError: this kind has logged this step already, or steps run backwards.
            RunError: the file cannot be written.
        """
        self._in_order(kind, step)
        values = {name: as_json(float(value)) for name, value in metrics.items()}
        row = {"step": step, "kind": kind, **values} | ({} if message is None else {"message": message})
        self._may_write(self._metrics.name)
        append_jsonl(self._metrics, [row])
        self._show(row)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl of one kind, in order."""
        return [row for row in read_jsonl(self._metrics) if row.get("kind") == kind]

    def append_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to one of the :data:`ROWS`' files; rollouts are a table of their step in sinks too.

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
        self._may_write(path.name)
        append_jsonl(path, plain)
        if name == "rollouts":
            self._show_rollouts(plain)

    def keep_answers(self, model: str, step: int, split: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write what a model wrote in an exam; what an earlier attempt wrote of the same exam is replaced.

        Args:
            rows: see :mod:`distill.tracking.answers`.

        Raises:
            RunError: the file cannot be written.
        """
        path = answers_path(self._folder, model, step, split)
        self._may_write(str(path.relative_to(self._folder)))
        write_answers(path, rows)

    def keep_rows(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows of one of the :data:`ROWS`' files for which ``keep`` does not hold."""
        self._may_write(name)
        truncate_jsonl(self._rows(name), keep)

    def summarize(self, seesaw: Mapping[str, Any]) -> None:
        """Show the result in the sinks: a summary of its numbers, tables of models x domains, recovery as bars.

        Args:
            seesaw: the content of seesaw.json (format 1).
        """
        domains = seesaw["domains"]
        scores = [
            [model, *(by_domain[domain]["score"] if domain in by_domain else None for domain in domains)]
            for model, by_domain in seesaw["models"].items()
        ]
        recovery = [[name, value] for name, value in seesaw["metrics"]["recovery"].items() if value is not None]
        numbers = _flat("seesaw", seesaw["metrics"]) | _flat("seesaw", seesaw["metrics_ci"])
        changes, last = _changes(seesaw), max(self._last_steps.values(), default=0)
        episodes = _episodes(seesaw, read_jsonl(self._rows("exams")))
        for sink in self._sinks:
            sink.table("scores", last, ["model", *domains], scores)
            sink.table("changes", last, CHANGES, changes)
            for name, (columns, cells) in episodes.items():
                sink.table(name, last, columns, cells)
            sink.table("recovery_by_domain", last, ["domain", "recovery_by_domain"], recovery, bars=True)
            sink.summary(numbers)
        for domain, ends in fallen(seesaw["metrics_ci"].get("points_at_once")).items():
            self.alert(*regression(domain, ends, f"on {seesaw.get('split', 'test')} questions, at the end"))

    def alert(self, title: str, text: str) -> None:
        """Have the sinks tell somebody, where they can."""
        for sink in self._sinks:
            sink.alert(title, text)

    def show_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Have the sinks show what the run began with and has made, where they can; called once, at the end."""
        for artifact in artifacts:
            for sink in self._sinks:
                sink.artifact(artifact)

    def close(self, *, failed: bool = False) -> None:
        """Close the sinks, waiting for them for a limited time."""
        close_sinks(self._sinks, failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None and not isinstance(error, Interrupted | KeyboardInterrupt):
            self.alert("the run broke", str(error) or type(error).__name__)
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
                    self._show(row)
            self._show_rollouts([row for row in rows if "kind" not in row])

    def _show(self, row: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink.log(row)

    def _show_rollouts(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[_cell(row.get(name)) for name in columns] for row in rows]
        for sink in self._sinks:
            sink.table("rollouts", max(map(_step, rows)), columns, cells)


def fallen(points: Mapping[str, Sequence[float] | None] | None) -> dict[str, tuple[float, float]]:
    """The domains that are below the base beyond chance, of 95% intervals of all domains' changes together."""
    return {domain: (ends[0], ends[1]) for domain, ends in (points or {}).items() if ends and ends[1] < 0}


def regression(domain: str, ends: Sequence[float], when: str) -> tuple[str, str]:
    """Title and text of an alert: a domain is below the base beyond chance.

    Args:
        ends: of the 95% interval of its change over the base, a fraction, that holds for all domains together.
    """
    low, high = (100 * end for end in ends)
    return f"{domain} fell below the base", f"{domain}, {when}: {low:.1f} to {high:.1f} points, beyond chance"


def _episodes(
    seesaw: Mapping[str, Any], exams: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Tables of how episodes of environments went, each with its columns; none where there were none."""
    after = "solved_after_failure"
    counts = ("turns", "tool_calls", "tool_errors")
    measured = [
        [model, domain, of["solved"]["score"], *(of[name]["mean"] for name in counts), (of[after] or {}).get("score")]
        for model, by_domain in seesaw.get("episodes", {}).items()
        for domain, of in by_domain.items()
    ]
    if not measured:
        return {}
    a_minute = [[model, *pace.values()] for model, pace in paces(exams, seesaw.get("split", "test")).items()]
    return {
        "episodes": (["model", "domain", "solved", *counts, after], measured),
        "episodes_per_minute": (["model", *PER_MINUTE], a_minute),
    }


def _changes(seesaw: Mapping[str, Any]) -> list[list[Any]]:
    """Of :data:`CHANGES`, every teacher's and the student's; none where the base was not measured."""
    models, ends = seesaw["models"], seesaw["metrics_ci"]
    rows: list[list[Any]] = []
    for model, scores in models.items():
        teacher = model.removeprefix("teachers/")
        of = ends.get("points") if model == "student" else (ends.get("teacher_points") or {}).get(teacher)
        for domain, score in scores.items():
            if (base := models.get("base", {}).get(domain)) is not None and model != "base":
                low, high = (of or {}).get(domain) or (None, None)
                change = score["score"] - base["score"]
                in_points = [None if value is None else round(100 * value, 3) for value in (change, low, high)]
                rows.append(["student" if model == "student" else f"teacher {teacher}", domain, *in_points])
    return rows


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, float | None]:
    """Nested numbers under one name each; an interval ``[low, high]`` is two of them."""
    flat: dict[str, float | None] = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            value = dict(zip(("low", "high"), value, strict=True))
        flat |= _flat(f"{prefix}/{name}", value) if isinstance(value, Mapping) else {f"{prefix}/{name}": value}
    return flat


def _cell(value: Any) -> Any:
    """A value as a cell of a table, whose columns hold one type each."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _step(row: Mapping[str, Any]) -> int:
    return int(row["step"])
