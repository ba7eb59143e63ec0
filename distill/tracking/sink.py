"""What a sink is: a view of a run's record stream, as Weights & Biases or TensorBoard have one.

metrics.jsonl is the truth. A sink is given what was written there, in order, and shows it somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CHANGES = ("model", "domain", "points", "low", "high")
"""Columns of the table ``changes``: a model's change over the base on a domain in points, and its 95% interval."""

NO_METRICS = ("step", "kind", "message")
"""Keys of a line of metrics.jsonl that are not numbers to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a sink may know of the run that it shows.

    Example:
        TrackedRun(folder=Path("runs/quickstart/stages/math"), name="quickstart/math", group="quickstart",
                   job_type="stage", tags=("mopd", "seed-0"), description="", config={"name": "quickstart", ...},
                   domains=("math", "code"), project="mopd", entity=None, mode="auto", say=print)

    Attributes:
        folder: the folder of the run, or of one of its stages; a sink's own files go below it.
        name: the run's name, of a stage ``RUN/STAGE``.
        group: the recipe's name, which a run shares with its stages.
        job_type: the method, or ``"stage"``.
        tags: what runs are told apart by: method, estimator (of a stage its own), seed, and the recipe's own tags.
        description: one line for people; may be empty.
        config: the resolved recipe as plain JSON, of a stage its own; ``"stage"``, its name or None, and
            ``"environment"``, the commit, the versions and the machine.
        domains: the domains of the recipe, in its order.
        project: ``track.wandb.project``.
        entity: ``track.wandb.entity``.
        mode: ``track.wandb.mode``.
        say: prints one line for people.
    """

    folder: Path
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    description: str
    config: Mapping[str, Any]
    domains: tuple[str, ...]
    project: str
    entity: str | None
    mode: str
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What a run began with, or has made; where a run's base is what a stage has made, both name the same content.

    Example:
        Artifact(name="quickstart-math", kind="model", role="teacher-math", used=True,
                 files={"manifest.json": Path("runs/quickstart/stages/math/student/manifest.json")},
                 metadata={"folder": "/home/me/runs/quickstart/stages/math/student"})

    Attributes:
        name: of letters, digits, dots, dashes and underscores; at most 128.
        kind: ``"model"``, ``"dataset"`` or ``"answers"``.
        role: what it is to the run: ``"base"``, ``"teacher-math"``, ``"student"``, ...
        used: whether the run began with it; else it has made it.
        files: by name a file, or a text. Of a model they are the list of its files, and not its weights.
        metadata: what else is known of it, as plain JSON.
    """

    name: str
    kind: str
    role: str
    used: bool
    files: Mapping[str, Path | str]
    metadata: Mapping[str, Any]


class Sink(Protocol):
    """One view of the records of one run.

    All its methods are called on one thread of the sink's own, in the order of the records. It may be slow, and what it
    raises ends this sink alone: the run, and its other sinks, go on.

    A run that was killed and resumed starts its sinks again and gives them the whole stream from its first row: rows
    that an earlier attempt had shown, and those of steps that are taken again.
    """

    def log(self, row: Mapping[str, Any]) -> None:
        """Show one line of metrics.jsonl, ``{"step": 3, "kind": "train", "loss": 0.4, "kl/math": None, ...}``.

        A value that was not finite is None. A row of kind ``"fault"`` has a ``"message"`` too.
        """
        ...

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bars: bool) -> None:
        """Show a table: ``"rollouts"`` of a step; at the end ``"scores"``, ``"changes"`` and ``"recovery_by_domain"``,
        of environments ``"episodes"`` and ``"episodes_per_minute"`` besides.

        Args:
            bars: whether it has two columns, a name and a number, and is best shown as a bar chart.
        """
        ...

    def summary(self, values: Mapping[str, float | None]) -> None:
        """Show the run's result: the numbers of seesaw.json, ``seesaw/worst_recovery`` and so on."""
        ...

    # It may have ``alert(title, text)`` too, which is called where somebody should be told: a run broke, or a domain
    # fell below the base beyond chance; and ``artifact(artifact)``, which is called at the end with each
    # :class:`Artifact` that the run began with or has made.

    def close(self, *, failed: bool) -> None:
        """Finish: everything was logged. ``failed``: the run ended by an error or an interrupt."""
        ...


SinkFactory = Callable[[TrackedRun], Sink]
"""Opens a sink of a run, on the sink's thread; a class whose ``__init__`` takes the run is one."""


OVER_FLOPS = ("score/", "recovery/", "worst_recovery_estimate", "mean_recovery")
"""Beginnings of the numbers of an evaluation that are shown over compute, too."""


class CumulativeCost:
    """What training has cost until a step: the sums of the rows of metrics.jsonl that were given, as axes of charts.

    ``cost/flops``: of generation, teachers and updates, evaluations left out. ``cost/tokens``: that were trained on.
    ``cost/seconds``: of the loop. Stages are runs of their own, and in none of these.
    """

    def __init__(self) -> None:
        self._sums = dict.fromkeys(("cost/flops", "cost/tokens", "cost/seconds"), 0.0)

    def see(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The sums with one row more; an evaluation's scores and recoveries besides, as ``over_flops/NAME``."""
        numbers = {name: value for name, value in row.items() if name not in NO_METRICS and value is not None}
        if row["kind"] == "train":
            flops = [v for name, v in numbers.items() if name.startswith("flops/") and name != "flops/evaluation"]
            self._sums["cost/flops"] += sum(flops)
            self._sums["cost/tokens"] += numbers.get("tokens/update", 0.0)
            self._sums["cost/seconds"] += numbers.get("seconds/step", 0.0)
        if row["kind"] == "fault":
            return {}
        shown = {n: value for n, value in numbers.items() if row["kind"] == "eval" and n.startswith(OVER_FLOPS)}
        return dict(self._sums) | {f"over_flops/{name}": value for name, value in shown.items()}


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, each as ``KIND/NAME``; None is left out.

    Example:
        numbers_of({"step": 3, "kind": "train", "loss": 0.4, "kl/math": None})  # {"train/loss": 0.4}
    """
    return {
        f"{row['kind']}/{name}": value for name, value in row.items() if name not in NO_METRICS and value is not None
    }


def one_line(error: BaseException) -> str:
    """An error as its class and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
