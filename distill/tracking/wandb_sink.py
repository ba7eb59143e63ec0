"""A Weights & Biases run as a view of a record stream: it may break or be slow, the run that it shows never notices.

All calls into W&B after its import happen on a thread of their own, fed by a queue. Its files lie in ``<run>/wandb/``.

Layout of a workspace: the group is the recipe's name; the run and each of its stages are W&B runs of that group, with
one x axis, ``step``. The same metric of base, specialists and student is therefore one panel with one line for each.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mopd.distill.recipe import Recipe

if TYPE_CHECKING:
    import wandb

_TAG = 64  # characters of a tag, at most
_LOCK = threading.Lock()  # stages start and end at the same time; W&B's process-wide state is touched by one of them
_OPEN: set[WandbSink] = set()  # sinks whose threads use W&B


class WandbSink:
    """One W&B run. Every method returns at once, except ``close``, which waits for a limited time; none raises.

    A killed run leaves a part of its rows in its offline folder (W&B writes late). The next attempt is given the whole
    stream again: offline it is a new W&B run, and ``<run>/wandb/latest-run`` is the whole one; online it goes on with
    the W&B run of the first attempt, where steps that the server has are skipped.

    Args:
        folder: the run's folder.
        recipe: the resolved recipe; its ``track.wandb`` says where to, the whole of it is W&B's config.
        stage: the stage's name, if it is a stage that is shown.
        say: prints one line for people.
        init_seconds: how long W&B may take to open a run online before it is recorded offline.
        finish_seconds: how long ``close`` waits for uploads.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        stage: str | None = None,
        say: Callable[[str], None],
        init_seconds: float = 30.0,
        finish_seconds: float = 30.0,
    ) -> None:
        self._folder, self._recipe, self._stage, self._say = folder, recipe, stage, say
        self._init_seconds, self._finish_seconds = init_seconds, finish_seconds
        self._jobs: queue.SimpleQueue[Callable[[wandb.Run], None] | None] = queue.SimpleQueue()
        self._off = False
        self._failed = False
        # W&B reports its own crashes and usage to its authors; where they can't be reached, exit would wait 20 s.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            # Here and not on the thread: two threads that import packages with cycles can meet a half-made module.
            importlib.import_module("wandb")
        except BaseException as error:
            self._give_up(error)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, kind: str, step: int, values: Mapping[str, float | None]) -> None:
        """Show one line of metrics.jsonl: ``values`` as ``<kind>/<name>`` at ``step``. Null is left out."""
        shown = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
        self._put(lambda run: _log(run, step, {"step": step, **shown}))

    def table(
        self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bars: bool = False
    ) -> None:
        """Show a table at ``step``; as ``bars``, a chart of its two columns, whose table is ``<name>_table``."""

        def show(run: wandb.Run) -> None:
            import wandb

            with _staging(self._folder / "wandb" / "staging"):
                table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
                title = name.replace("_", " ")
                _log(run, step, {name: wandb.plot.bar(table, *columns, title=title) if bars else table})

        self._put(show)

    def summary(self, values: Mapping[str, float | None]) -> None:
        """Set values of the run's summary. Null is left out."""
        shown = {name: value for name, value in values.items() if value is not None}
        self._put(lambda run: run.summary.update(shown))

    def close(self, *, failed: bool = False) -> None:
        """End the W&B run; waits at most about ``init_seconds + finish_seconds``."""
        self._failed = failed
        self._jobs.put(None)
        self._thread.join(timeout=self._init_seconds + self._finish_seconds)
        if self._thread.is_alive() and not self._off:
            self._give_up(TimeoutError("it did not finish in time"))

    def _put(self, job: Callable[[wandb.Run], None]) -> None:
        if not self._off:
            self._jobs.put(job)

    def _work(self) -> None:
        if self._off:
            return
        _OPEN.add(self)
        try:
            run = self._open()
            if run is None:
                self._off = True
                return
            while (job := self._jobs.get()) is not None:
                job(run)
            run.finish(exit_code=int(self._failed))
        except BaseException as error:  # whatever W&B raises, SystemExit included, ends W&B and nothing else
            self._give_up(error)
        finally:
            _OPEN.discard(self)
            if self._off and not _OPEN:
                self._tear_down()

    def _tear_down(self) -> None:
        """Leave nothing to W&B's exit hook: where its process has died, the hook would print a traceback."""
        import wandb

        with _LOCK, contextlib.suppress(BaseException):
            wandb.teardown()

    def _give_up(self, error: BaseException) -> None:
        self._off = True
        self._say(
            f"W&B is off for {self._name} ({_one_line(error)}); the run goes on; metrics.jsonl has all it would show"
        )

    @property
    def _name(self) -> str:
        return self._recipe.name if self._stage is None else f"{self._recipe.name}/{self._stage}"

    def _open(self) -> wandb.Run | None:
        import wandb

        with _LOCK:
            wandb.setup(wandb.Settings(silent=True))
            mode = self._mode()
            if mode == "disabled":
                return None
            (self._folder / "wandb").mkdir(exist_ok=True)
            if mode == "online":
                try:
                    if not wandb.login(prompt=False, verify=False):
                        raise ConnectionError("not logged in; `wandb login` does that")
                    run = self._init("online")
                    self._say(f"W&B shows {self._name} at {run.url}")
                    return run
                except Exception as error:
                    self._say(
                        f"W&B cannot be reached for {self._name} ({_one_line(error)}); recording offline, "
                        f"to be uploaded with `wandb sync {self._folder / 'wandb' / 'latest-run'}`"
                    )
            return self._init("offline")

    def _mode(self) -> str:
        """The recipe's mode; ``auto`` follows WANDB_MODE, else is online where W&B is logged in."""
        import wandb

        mode = self._recipe.track.wandb.mode
        if mode != "auto":
            return mode
        if asked := os.environ.get("WANDB_MODE"):
            return asked if asked in ("online", "disabled") else "offline"
        return "online" if wandb.login(prompt=False, verify=False) else "offline"

    def _init(self, mode: Literal["online", "offline"]) -> wandb.Run:
        import wandb

        settings, recipe = self._recipe.track.wandb, self._recipe
        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            tags=_tags(recipe),
            notes=recipe.description or None,
            group=recipe.name,
            name=self._name,
            job_type=recipe.method if self._stage is None else "stage",
            config={**recipe.model_dump(mode="json", by_alias=True), "stage": self._stage},
            dir=self._folder,
            mode=mode,
            id=self._online_id() if mode == "online" else None,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",  # the console belongs to the progress display
                init_timeout=self._init_seconds,
                finish_timeout=self._finish_seconds,
            ),
        )
        # W&B shows the row of a step only once a later step is logged, and merges what is logged at one step.
        run.define_metric("step", hidden=True)
        run.define_metric("train/*", step_metric="step", summary="last")
        run.define_metric("eval/*", step_metric="step", summary="last")
        for domain in recipe.domains:
            run.define_metric(f"eval/score/{domain}", step_metric="step", summary="max,last")
        return run

    def _online_id(self) -> str:
        path = self._folder / "wandb" / "online_id"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        return path.read_text()


def _tags(recipe: Recipe) -> list[str]:
    """What runs are told apart by in a workspace of several recipes: method, estimator, seed; then the recipe's own."""
    estimator = recipe.loss.estimator.rpartition("/")[2]
    tags = [recipe.method, estimator[:_TAG], f"seed-{recipe.seed}", *recipe.track.wandb.tags]  # not per token
    return list(dict.fromkeys(tags))


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[None]:
    """W&B keeps tables that are still to be uploaded in the user's home, unless the environment says otherwise."""
    with _LOCK:
        ours = "WANDB_DATA_DIR" not in os.environ
        if ours:
            os.environ["WANDB_DATA_DIR"] = str(folder)
        try:
            yield
        finally:
            if ours:
                del os.environ["WANDB_DATA_DIR"]


def _log(run: wandb.Run, step: int, values: dict[str, Any]) -> None:
    if step >= run.starting_step:  # else this W&B run was resumed, and its server has the step already
        run.log(values, step=max(step, run.step))


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
