"""The sinks there are, and the threads that feed them: one may break or be slow, and the run goes on."""

from __future__ import annotations

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mopd.distill.errors import UserError
from mopd.distill.recipe.plugins import is_plugin, load_plugin
from mopd.distill.tracking.sink import Artifact, Sink, SinkFactory, TrackedRun, one_line

LIMIT_SECONDS = 60.0
"""How long the end of a run waits for a sink: W&B may take 30 s to open and 30 s to upload."""


@dataclass(frozen=True, slots=True)
class SinkRow:
    """A sink that is shipped.

    Attributes:
        title: what people call it.
        packages: it needs one of these; checked before a run starts.
        load: imports it, and returns what opens it.
    """

    title: str
    packages: tuple[str, ...]
    load: Callable[[], SinkFactory]


def _wandb() -> SinkFactory:
    from mopd.distill.tracking.wandb_sink import WandbSink

    return WandbSink


def _of_accelerate(name: str) -> SinkFactory:
    from mopd.distill.tracking.accelerate_sink import apart

    return partial(apart, name)


SINKS: dict[str, SinkRow] = {
    "wandb": SinkRow("W&B", ("wandb",), _wandb),
    "tensorboard": SinkRow("TensorBoard", ("tensorboard", "tensorboardX"), partial(_of_accelerate, "tensorboard")),
    "trackio": SinkRow("trackio", ("trackio",), partial(_of_accelerate, "trackio")),
    "mlflow": SinkRow("MLflow", ("mlflow",), partial(_of_accelerate, "mlflow")),
    "aim": SinkRow("Aim", ("aim",), partial(_of_accelerate, "aim")),
    "comet_ml": SinkRow("Comet", ("comet_ml",), partial(_of_accelerate, "comet_ml")),
    "clearml": SinkRow("ClearML", ("clearml",), partial(_of_accelerate, "clearml")),
    "swanlab": SinkRow("SwanLab", ("swanlab",), partial(_of_accelerate, "swanlab")),
    "dvclive": SinkRow("DVCLive", ("dvclive",), partial(_of_accelerate, "dvclive")),
}
"""By the name that a recipe has for it in ``track.sinks``; W&B is on unless ``track.wandb.mode`` is ``disabled``."""


def sink_problems(names: Iterable[str]) -> list[str]:
    """What is wrong with the sinks of a recipe, a sentence each; nothing is opened, and no shipped sink is imported."""
    problems = []
    for name in names:
        if is_plugin(name):
            try:
                loaded = load_plugin(name, where="track.sinks")
            except UserError as error:
                problems += error.problems
                continue
            if not callable(loaded):
                problems.append(
                    f"`track.sinks`: {name} is a {type(loaded).__name__}; what is needed is a class or function that "
                    "opens a sink"
                )
        elif name not in SINKS:
            problems.append(
                f"`track.sinks` has {name!r}; there are {', '.join(SINKS)}, and ./file.py:NAME for your own"
            )
        elif not any(importlib.util.find_spec(package) for package in SINKS[name].packages):
            packages = " or ".join(SINKS[name].packages)
            problems.append(f"`track.sinks` has {name!r}, which needs the package {packages}; install it with pip")
    return problems


def open_sinks(names: Iterable[str], run: TrackedRun) -> list[SinkThread]:
    """Start the sinks of one run, each on a thread of its own.

    Args:
        names: rows of :data:`SINKS`, or ``./file.py:NAME``; a name that comes twice is one sink.
    """
    return [_start(name, run) for name in dict.fromkeys(names)]


def _start(name: str, run: TrackedRun) -> SinkThread:
    title = SINKS[name].title if name in SINKS else f"sink {name}"

    def load() -> SinkFactory:
        return load_plugin(name, where="track.sinks") if is_plugin(name) else SINKS[name].load()

    return SinkThread(load, run, title=title)


class SinkThread:
    """A sink on a thread of its own, fed by a queue. No method raises; all but ``join`` return at once.

    Args:
        load: imports the sink and returns its factory; called here and not on the thread, because two threads that
            import packages with cycles can meet a half-made module.
        run: what is shown.
        title: what people call the sink.
    """

    def __init__(self, load: Callable[[], SinkFactory], run: TrackedRun, *, title: str) -> None:
        self._run = run
        self._title = title
        self._off = False
        self._jobs: queue.SimpleQueue[Callable[[Sink], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            factory = load()
        except BaseException as error:  # a package may even exit where it cannot be imported
            self._give_up(error)
            return
        self._thread = threading.Thread(target=self._work, args=(factory,), name=title, daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        self._put(lambda sink: sink.log(row))

    def table(
        self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bars: bool = False
    ) -> None:
        """Show a table; see :meth:`Sink.table`."""
        self._put(lambda sink: sink.table(name, step, columns, rows, bars=bars))

    def summary(self, values: Mapping[str, float | None]) -> None:
        """Show the run's result."""
        self._put(lambda sink: sink.summary(values))

    def alert(self, title: str, text: str) -> None:
        """Tell somebody, where the sink can."""
        self._put(lambda sink: getattr(sink, "alert", _nothing)(title, text))

    def artifact(self, artifact: Artifact) -> None:
        """Show what the run began with or has made, where the sink can."""
        self._put(lambda sink: getattr(sink, "artifact", _nothing)(artifact))

    def end(self, *, failed: bool) -> None:
        """Nothing more will come: the sink closes once it has shown what it was given."""
        self._put(lambda sink: sink.close(failed=failed))
        self._put(None)

    def join(self, deadline: float) -> None:
        """Wait until the sink is closed, at most until ``deadline`` (of ``time.monotonic``, in seconds)."""
        if self._thread is None:
            return
        self._thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._give_up(TimeoutError("it did not finish in time"))

    def _put(self, job: Callable[[Sink], None] | None) -> None:
        if not self._off:
            self._jobs.put(job)

    def _work(self, factory: SinkFactory) -> None:
        try:
            sink = factory(self._run)
            while (job := self._jobs.get()) is not None:
                job(sink)
        except BaseException as error:  # whatever a sink raises, SystemExit included, ends the sink and nothing else
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        if self._off:  # it did not finish in time, and now it ends by an error
            return
        self._off = True
        self._run.say(
            f"{self._title} is off for {self._run.name} ({one_line(error)}); the run goes on; "
            "metrics.jsonl has all it would show"
        )


def _nothing(*_: object) -> None:
    """Of a sink that has no alerts, or no artifacts."""


def close_sinks(sinks: Sequence[SinkThread], *, failed: bool) -> None:
    """End all sinks at the same time; waits at most :data:`LIMIT_SECONDS`."""
    for sink in sinks:
        sink.end(failed=failed)
    deadline = time.monotonic() + LIMIT_SECONDS
    for sink in sinks:
        sink.join(deadline)
