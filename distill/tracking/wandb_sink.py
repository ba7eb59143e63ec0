"""A Weights & Biases run as a sink; its files lie in ``<run>/wandb/``.

Under `wandb agent` the run is the trial, with its id, and its stages are runs beside it that belong to no sweep.

Layout of a workspace: the group is the recipe's name; the run and each of its stages are W&B runs of that group, with
one x axis, ``step``. The same metric of base, specialists and student is therefore one panel with one line for each.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mopd.distill.tracking.sink import Artifact, CumulativeCost, TrackedRun, numbers_of, one_line

# W&B reports its own crashes and usage to its authors; where they can't be reached, exit would wait 20 s.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
import wandb

SWEEP_ID, RUN_ID = "WANDB_SWEEP_ID", "WANDB_RUN_ID"
"""Set by `wandb agent` for the process of a trial."""
_LOCK = threading.Lock()  # stages start and end at the same time; W&B's process-wide state is touched by one of them
_OPEN: set[WandbSink] = set()  # sinks that use W&B


class WandbSink:
    """One W&B run; implements :class:`~mopd.distill.tracking.sink.Sink`.

    A killed run leaves a part of its rows in its offline folder (W&B writes late). The next attempt is given the whole
    stream again: offline it is a new W&B run, and ``<run>/wandb/latest-run`` is the whole one; online it goes on with
    the W&B run of the first attempt, where steps that the server has are skipped.

    Args:
        tracked: the run that is shown; its ``mode`` says where.
        init_seconds: how long W&B may take to open a run online before it is recorded offline.
        finish_seconds: how long ``close`` waits for uploads.
    """

    def __init__(self, tracked: TrackedRun, *, init_seconds: float = 30.0, finish_seconds: float = 30.0) -> None:
        self._tracked = tracked
        self._folder = tracked.folder / "wandb"
        self._init_seconds = init_seconds
        self._finish_seconds = finish_seconds
        self._cost = CumulativeCost()
        self._run: wandb.Run | None = None  # none: W&B is disabled by its environment
        _OPEN.add(self)
        with self._until_it_breaks():
            self._run = self._open()
        if self._run is None:
            self._leave()

    def log(self, row: Mapping[str, Any]) -> None:
        """Show the numbers of one line of metrics.jsonl at its step."""
        with self._until_it_breaks():
            if self._run is not None:
                costs = self._cost.see(row)
                _log(self._run, row["step"], {"step": row["step"], **numbers_of(row), **costs})

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bars: bool) -> None:
        """Show a table at ``step``; as ``bars``, a chart of its two columns, whose table is ``<name>_table``."""
        if self._run is None:
            return
        with self._until_it_breaks(), _staging(self._folder / "staging"):
            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            shown = wandb.plot.bar(table, *columns, title=name.replace("_", " ")) if bars else table
            _log(self._run, step, {name: shown})

    def summary(self, values: Mapping[str, float | None]) -> None:
        """Set values of the run's summary. None is left out."""
        with self._until_it_breaks():
            if self._run is not None:
                self._run.summary.update({name: value for name, value in values.items() if value is not None})

    def alert(self, title: str, text: str) -> None:
        """Have W&B send a message, as the user's settings there say."""
        with self._until_it_breaks():
            if self._run is not None:
                self._run.alert(f"{self._tracked.name}: {title}", text, level="ERROR")

    def artifact(self, artifact: Artifact) -> None:
        """Record an artifact that the run used or made; of the same name and content, W&B keeps one.

        No public call of W&B (0.31) notes offline what a run used: ``use_artifact`` refuses such a run, and waits for
        the upload of another. What it does with a new artifact does neither, and is called here; a test reads it back.
        """
        if self._run is None:
            return
        with self._until_it_breaks(), _staging(self._folder / "staging"):
            recorded = wandb.Artifact(artifact.name, artifact.kind, metadata=dict(artifact.metadata))
            for name, content in artifact.files.items():
                if isinstance(content, Path):
                    recorded.add_file(str(content), name, skip_cache=True, policy="immutable")  # else it is copied
                else:
                    with recorded.new_file(name) as file:
                        file.write(content)
            aliases = ["latest", artifact.role]
            if artifact.used:
                self._run._log_artifact(recorded, aliases=aliases, is_user_created=True, use_after_commit=True)
            else:
                self._run.log_artifact(recorded, aliases=aliases)

    def close(self, *, failed: bool) -> None:
        """End the W&B run; waits for uploads."""
        with self._until_it_breaks():
            if self._run is not None:
                self._run.finish(exit_code=int(failed))
        _OPEN.discard(self)

    @contextlib.contextmanager
    def _until_it_breaks(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        """Leave nothing to W&B's exit hook: where its process has died, the hook would print a traceback."""
        _OPEN.discard(self)
        if not _OPEN:
            with _LOCK, contextlib.suppress(BaseException):
                wandb.teardown()

    def _open(self) -> wandb.Run | None:
        name = self._tracked.name
        with _LOCK, _trial() as trial:
            wandb.setup(wandb.Settings(silent=True))
            mode = self._mode()
            if mode == "disabled":
                return None
            self._folder.mkdir(exist_ok=True)
            if mode == "online":
                try:
                    if not wandb.login(prompt=False, verify=False):
                        raise ConnectionError("not logged in; `wandb login` does that")
                    run = self._init("online", trial)
                    self._tracked.say(f"W&B shows {name} at {run.url}")
                    return run
                except Exception as error:
                    self._tracked.say(
                        f"W&B cannot be reached for {name} ({one_line(error)}); recording offline, "
                        f"to be uploaded with `wandb sync {self._folder / 'latest-run'}`"
                    )
            return self._init("offline", trial)

    def _mode(self) -> str:
        """The recipe's mode; ``auto`` follows WANDB_MODE, else is online where W&B is logged in."""
        if self._tracked.mode != "auto":
            return self._tracked.mode
        if from_environment := os.environ.get("WANDB_MODE"):
            return from_environment if from_environment in ("online", "disabled") else "offline"
        return "online" if wandb.login(prompt=False, verify=False) else "offline"

    def _init(self, mode: Literal["online", "offline"], trial: Mapping[str, str]) -> wandb.Run:
        tracked = self._tracked
        own = {} if tracked.config.get("stage") else trial  # a stage is no trial
        in_sweep = SWEEP_ID in trial  # whose project the agent names
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", tracked.project) if in_sweep else tracked.project,
            entity=os.environ.get("WANDB_ENTITY", tracked.entity) if in_sweep else tracked.entity,
            tags=list(tracked.tags),
            notes=tracked.description or None,
            group=tracked.group,
            name=tracked.name,
            job_type=tracked.job_type,
            config=dict(tracked.config),
            dir=tracked.folder,
            mode=mode,
            id=self._online_id(own.get(RUN_ID)) if mode == "online" else own.get(RUN_ID),
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",  # the console belongs to the progress display
                init_timeout=self._init_seconds,
                finish_timeout=self._finish_seconds,
                sweep_id=own.get(SWEEP_ID),
            ),
        )
        # W&B shows the row of a step only once a later step is logged, and merges what is logged at one step.
        run.define_metric("step", hidden=True)
        run.define_metric("train/*", step_metric="step", summary="last")
        run.define_metric("eval/*", step_metric="step", summary="last")
        run.define_metric("cost/*", step_metric="step", summary="last")
        run.define_metric("over_flops/*", step_metric="cost/flops", summary="last")
        for domain in tracked.domains:
            run.define_metric(f"eval/score/{domain}", step_metric="step", summary="max,last")
        return run

    def _online_id(self, given: str | None) -> str:
        """The id that the first attempt took, ``given`` or a new one."""
        path = self._folder / "online_id"
        if not path.exists():
            path.write_text(given or secrets.token_hex(4))
        return path.read_text()


@contextlib.contextmanager
def _trial() -> Iterator[Mapping[str, str]]:
    """What `wandb agent` says of the trial that this process is. W&B itself doesn't see it here: it would make every
    run that it opens this one, and stages are runs."""
    given = {name: os.environ.pop(name) for name in (SWEEP_ID, RUN_ID, "WANDB_SWEEP_PARAM_PATH") if name in os.environ}
    try:
        yield given
    finally:
        os.environ.update(given)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[None]:
    """W&B keeps files that are still to be uploaded in the user's home, unless the environment says otherwise."""
    with _LOCK:
        unset = "WANDB_DATA_DIR" not in os.environ
        if unset:
            os.environ["WANDB_DATA_DIR"] = str(folder)
        try:
            yield
        finally:
            if unset:
                del os.environ["WANDB_DATA_DIR"]


def _log(run: wandb.Run, step: int, values: dict[str, Any]) -> None:
    if step >= run.starting_step:  # else this W&B run was resumed, and its server has the step already
        run.log(values, step=max(step, run.step))
