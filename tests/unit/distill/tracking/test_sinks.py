"""Sinks get every row in order, and nothing that happens to one reaches the run or the other sinks."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from compare_kit import write_hand_run
from deadline_kit import patience
from track_kit import ROLLOUTS, SEESAW, as_history, recipe, tracked_run, write_run

from mopd.distill.recipe import TrackRecipe
from mopd.distill.tracking import sinks as sinks_module
from mopd.distill.tracking.accelerate_sink import AccelerateSink
from mopd.distill.tracking.sinks import open_sinks, sink_problems
from mopd.distill.tracking.tracker import Tracker
from mopd.recipes.run.tracking import sink_names

CUSTOM = '''
import json

class Lines:
    """Writes what it is given into a file of its own, one line a call."""

    def __init__(self, run):
        self._path = run.folder / "lines.jsonl"
        self._path.unlink(missing_ok=True)
        self._write("open", run.name, run.config["seed"])

    def log(self, row):
        self._write("log", row)

    def table(self, name, step, columns, rows, *, bars):
        self._write("table", name, step, columns, rows, bars)

    def summary(self, values):
        self._write("summary", values)

    def close(self, *, failed):
        self._write("close", failed)

    def _write(self, *call):
        with self._path.open("a") as file:
            file.write(json.dumps(call) + "\\n")


class Broken(Lines):
    """Raises at step 2."""

    def __init__(self, run):
        self._path = run.folder / "broken.jsonl"

    def log(self, row):
        if row["step"] == 2:
            raise SystemExit("no more")
        super().log(row)


def unopenable(run):
    raise ConnectionError("nobody there")
'''


@pytest.fixture
def custom(tmp_path: Path) -> str:
    """The file of a user's own sinks, as a recipe names it."""
    (tmp_path / "sinks.py").write_text(CUSTOM)
    return f"{tmp_path}/sinks.py"


def calls(folder: Path, name: str = "lines.jsonl") -> list[list[Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_sink_from_one_file_gets_every_row_in_order_also_after_a_resume(tmp_path: Path, custom: str) -> None:
    with Tracker(tmp_path, sinks=open_sinks([f"{custom}:Lines"], tracked_run(tmp_path))) as tracker:
        tracker.resume(0)
        write_run(tracker)
        tracker.append_rows("rollouts", ROLLOUTS)
        tracker.log("fault", 5, {"teacher_retries/math": 3}, message="teacher 'math' died")
    first = calls(tmp_path)
    assert first[0] == ["open", "tiny", 7]
    assert [call[1] for call in first if call[0] == "log"] == written(tmp_path)
    assert written(tmp_path)[-1]["message"] == "teacher 'math' died"
    assert first[-1] == ["close", False]

    with Tracker(tmp_path, sinks=open_sinks([f"{custom}:Lines"], tracked_run(tmp_path))) as tracker:
        tracker.resume(2)  # steps 3 and 4 are taken again
        write_run(tracker, after=2)
        tracker.summarize(SEESAW)
    second = calls(tmp_path)
    assert [call[1] for call in second if call[0] == "log"] == written(tmp_path)
    assert [row["step"] for row in written(tmp_path)] == [0, 1, 2, 2, 3, 4, 4]
    # The rollouts of step 2 stand after the rows of step 2 and before those of step 3.
    places = [call[1]["step"] if call[0] == "log" else call[1] for call in second[1:-1]]
    assert places == [0, 1, 2, 2, "rollouts", 3, 4, 4, "scores", "changes", "recovery_by_domain", second[-2][1]]
    assert second[-2][1]["seesaw/worst_recovery"] == 0.9


def test_the_summary_has_the_numbers_of_seesaw_json_by_their_names(tmp_path: Path, custom: str) -> None:
    """The report and mopd compare show these: an estimate, and the ends of the interval of the same name."""
    folder = write_hand_run(tmp_path / "hand")
    seesaw = json.loads((folder / "seesaw.json").read_text())
    with Tracker(tmp_path, sinks=open_sinks([f"{custom}:Lines"], tracked_run(tmp_path))) as tracker:
        tracker.summarize(seesaw)
    summary = next(call[1] for call in calls(tmp_path) if "seesaw/worst_recovery" in call[1])
    values, intervals = seesaw["metrics"], seesaw["metrics_ci"]
    for name in ("worst_recovery", "imbalance", "max_regression", "pareto_gap"):
        assert summary[f"seesaw/{name}"] == values[name]
        assert summary[f"seesaw/{name}_estimate"] == values[f"{name}_estimate"]
        assert [summary[f"seesaw/{name}/{end}"] for end in ("low", "high")] == intervals[name]
    for domain in ("math", "code", "chat"):
        assert summary[f"seesaw/forgetting_estimate/{domain}"] == values["forgetting_estimate"][domain]
        ends = [summary[f"seesaw/points_at_once/{domain}/{end}"] for end in ("low", "high")]
        assert ends == intervals["points_at_once"][domain]
    assert summary["seesaw/pooled_recovery"] == values["pooled_recovery"]


def test_a_sink_that_breaks_ends_alone(tmp_path: Path, custom: str) -> None:
    """One breaks at a row, one cannot be opened, one is whole: the run and the whole one have everything."""
    printed: list[str] = []
    names = [f"{custom}:{name}" for name in ("Broken", "unopenable", "Lines")]
    with Tracker(tmp_path, sinks=open_sinks(names, tracked_run(tmp_path, say=printed.append))) as tracker:
        write_run(tracker)
    assert [row["step"] for row in written(tmp_path)] == [0, 1, 2, 2, 3, 4, 4]
    assert [call[1] for call in calls(tmp_path) if call[0] == "log"] == written(tmp_path)
    assert [call[1]["step"] for call in calls(tmp_path, "broken.jsonl")] == [0, 1]
    assert len(printed) == 2
    assert any("sinks.py:Broken is off for tiny (SystemExit: no more)" in line for line in printed)
    assert any("sinks.py:unopenable is off for tiny (ConnectionError: nobody there)" in line for line in printed)


class Slow:
    """A sink that hangs at its first row until it is released."""

    def __init__(self, released: threading.Event) -> None:
        self.released = released
        self.rows: list[Any] = []

    def log(self, row: Any) -> None:
        self.released.wait(patience(300))
        self.rows.append(row)

    def table(self, *_: Any, bars: bool) -> None: ...

    def summary(self, values: Any) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def test_nobody_waits_for_a_slow_sink_but_the_end_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks_module, "LIMIT_SECONDS", 0.5)
    released, printed = threading.Event(), []
    run = tracked_run(tmp_path, say=printed.append)
    slow = [Slow(released) for _ in range(3)]
    hanging = [
        sinks_module.SinkThread(lambda sink=sink: lambda _: sink, run, title=f"slow {i}") for i, sink in enumerate(slow)
    ]
    tracker = Tracker(tmp_path, sinks=hanging)
    write_run(tracker)
    tracker.close()
    assert not any(sink.rows for sink in slow), "they hang still, and nobody waited for them"
    assert len(written(tmp_path)) == 7
    assert [line.partition(" is off")[0] for line in printed] == ["slow 0", "slow 1", "slow 2"]
    released.set()


class Recorded(GeneralTracker):
    """A tracker as packages for accelerate have them: it keeps what it is given."""

    name = "recorded"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, Any]] = {}
        self.state = "new"

    @property
    def tracker(self) -> dict[int, dict[str, Any]]:
        return self.steps

    def start(self) -> None:
        self.state = "started"

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        assert step is not None
        self.steps.setdefault(step, {"step": step}).update(values)

    def finish(self) -> None:
        self.state = "finished"


def test_trackers_of_accelerate_show_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    recorded = Recorded()
    thread = sinks_module.SinkThread(
        lambda: lambda _: AccelerateSink(recorded), tracked_run(tmp_path), title="recorded"
    )
    with Tracker(tmp_path, sinks=[thread]) as tracker:
        write_run(tracker)
        tracker.log("train", 5, {"loss": float("nan"), "kl/math": 0.5})
        assert recorded.state in ("new", "started")
    assert list(recorded.steps.values()) == as_history(tmp_path, costs=False)
    assert recorded.state == "finished"


def test_what_cannot_be_opened_is_known_before_a_run_starts(custom: str) -> None:
    assert sink_problems(["wandb", f"{custom}:Lines"]) == []
    problems = sink_problems(["wnadb", f"{custom}:Liens", f"{custom}:json", "./nowhere.py:Lines"])
    assert len(problems) == 4
    for culprit, problem in zip(("'wnadb'", "'Liens'", "json is a module", "nowhere.py"), problems, strict=True):
        assert culprit in problem


def test_wandb_is_on_unless_it_is_disabled_and_a_recipe_adds_others() -> None:
    assert sink_names(recipe("auto").track) == ["wandb"]
    assert sink_names(recipe("disabled").track) == []
    assert sink_names(TrackRecipe(sinks=("tensorboard", "./a.py:A"))) == ["wandb", "tensorboard", "./a.py:A"]
