"""W&B is a view: it holds what metrics.jsonl holds, and nothing that happens to it reaches the run."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deadline_kit import patience
from track_apart import (
    Outcome,
    core_killed_after_step_2,
    killed_after_step_3,
    run_apart,
    run_with_a_stage,
    whole_run,
)
from track_kit import ROLLOUTS, SEESAW, as_history, open_tracker, recipe, stage_recipe_of, write_run
from wandb_kit import OfflineRun, Server, offline_runs, records

from mopd.distill.errors import Interrupted, RunError
from mopd.distill.metrics.episodes import measured_episodes
from mopd.distill.recipe import Architecture, Recipe
from mopd.distill.recipe.base import LONGEST_NAME
from mopd.distill.storage import seal, seal_of
from mopd.distill.tracking.jsonl import read_jsonl
from mopd.distill.tracking.sink import CHANGES
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.verdicts import EpisodeRecord
from mopd.recipes.resolve.run_folder import environment
from mopd.recipes.run.tracking import artifacts_of, start_sinks

RECORD = EpisodeRecord(1.0, "done", turns=3, tool_calls=2, tool_errors=1, failed_first=True)
PACE = {"turns_per_minute": 90.0, "tool_calls_per_minute": 60.0, "solved_per_minute": 30.0}


def test_offline_files_hold_what_the_run_wrote(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        tracker.resume(0)
        write_run(tracker)
        tracker.append_rows("rollouts", ROLLOUTS)
        tracker.log("train", 5, {"loss": float("nan"), "gate": float("inf"), "kl/math": 0.5})
        tracker.summarize(SEESAW)
    (shown,) = offline_runs(tmp_path)

    assert shown.history() == as_history(tmp_path)
    assert {name: v for name, v in shown.history()[-1].items() if "cost/" not in name} == {
        "step": 5,
        "train/kl/math": 0.5,
    }
    run = shown.run
    assert (run.project, run.run_group, run.display_name, run.job_type) == ("seesaws", "tiny", "tiny", "mopd")
    assert list(run.tags) == ["mopd", "full_reverse_kl", "seed-7", "a", "b"]
    config = dict(shown.config)
    assert config.pop("stage") is None
    assert config.pop("environment") == environment()
    assert Recipe.model_validate(config) == recipe()
    assert shown.exit_codes == [0]


def test_axes_and_summaries(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        write_run(tracker)
        tracker.summarize(SEESAW)
    (shown,) = offline_runs(tmp_path)
    for name in ("train/*", "eval/*", "eval/score/math", "eval/score/code", "cost/*"):
        assert shown.metrics[name].step_metric == "step", name
    assert shown.metrics["over_flops/*"].step_metric == "cost/flops"
    wanted = shown.metrics["eval/score/code"].summary
    assert (wanted.max, wanted.last, wanted.mean) == (True, True, False)
    summary = shown.summary()
    assert summary["eval/score/code/max"] == 0.45  # 0.9 / 2; it falls to 0.9 / 4 at the end
    assert summary["eval/score/code/last"] == 0.225
    seesaw = {name: value for name, value in summary.items() if name.startswith("seesaw/")}
    assert seesaw == {
        "seesaw/recovery/math": 0.9,
        "seesaw/worst_recovery": 0.9,
        "seesaw/worst_recovery/low": 0.8,
        "seesaw/worst_recovery/high": 1.0,
        "seesaw/recovery/math/low": 0.8,
        "seesaw/recovery/math/high": 1.0,
    }


def test_tables(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        write_run(tracker, steps=2)
        tracker.append_rows("rollouts", ROLLOUTS)
        tracker.append_rows("exams", [{"model": "student", "step": 2, "split": "test", **PACE}])
        tracker.summarize(SEESAW | {"episodes": {"student": {"math": asdict(measured_episodes([RECORD]))}}})
    (shown,) = offline_runs(tmp_path)
    charts = [u for r in shown.records for u in r.config.update if u.nested_key[:2] == ["_wandb", "visualize"]]
    assert [chart.nested_key[2] for chart in charts] == ["recovery_by_domain"]
    assert "wandb/bar/v0" in charts[0].value_json
    tables = shown.tables()
    (scores,) = tables["scores"]
    assert scores["columns"] == ["model", "math", "code"]
    assert scores["data"] == [["base", 0.5, 0.25], ["student", 0.75, None]]
    (changes,) = tables["changes"]
    assert (changes["columns"], changes["data"]) == (list(CHANGES), [["student", "math", 25.0, None, None]])
    (episodes,) = tables["episodes"]
    assert dict(zip(episodes["columns"], episodes["data"][0], strict=True)) == {
        "model": "student", "domain": "math", "solved": 1.0, "turns": 3.0, "tool_calls": 2.0, "tool_errors": 1.0,
        "solved_after_failure": 1.0,
    }  # fmt: skip
    (a_minute,) = tables["episodes_per_minute"]
    assert dict(zip(a_minute["columns"], a_minute["data"][0], strict=True)) == {"model": "student", **PACE}
    (bars,) = tables["recovery_by_domain_table"]
    assert (bars["columns"], bars["data"]) == (["domain", "recovery_by_domain"], [["math", 0.9]])
    (rollouts,) = tables["rollouts"]
    assert rollouts["columns"] == ["step", "domain", "prompt", "text", "verdict", "advantages"]
    assert rollouts["data"] == [[2, "math", "1+1=", "2", 1.0, "[0.5, -0.25]"]]


def test_a_failed_run_is_marked(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_tracker(tmp_path) as tracker:
        tracker.summarize({})  # what seesaw.json always has is missing
    assert offline_runs(tmp_path)[0].exit_codes == [1]


def test_a_killed_run_is_replayed_into_a_new_one(tmp_path: Path) -> None:
    """Killed after step 3, its last checkpoint is of step 2: step 3 is taken again."""
    assert run_apart(tmp_path, killed_after_step_3).exit_code == -9
    with open_tracker(tmp_path) as tracker:
        tracker.resume(2)
        write_run(tracker, after=2)
    whole = OfflineRun((tmp_path / "wandb" / "latest-run").resolve())
    assert [row["step"] for row in whole.history()] == [0, 1, 2, 3, 4]
    assert whole.history() == as_history(tmp_path)
    assert whole.tables()["rollouts"][0]["data"][0][:4] == [2, "math", "1+1=", "2"]
    assert whole.run.run_group == "tiny"


def test_a_run_and_two_stages_at_the_same_time(tmp_path: Path) -> None:
    def write(folder: Path, stage: str | None, steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with open_tracker(folder, stage=stage) as tracker:
            write_run(tracker, steps=steps)

    folders: dict[str | None, Path] = {None: tmp_path, "a": tmp_path / "stages" / "a", "b": tmp_path / "stages" / "b"}
    threads = [
        threading.Thread(target=write, args=(folder, stage, steps))
        for (stage, folder), steps in zip(folders.items(), (2, 3, 4), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = {stage: offline_runs(folder) for stage, folder in folders.items()}
    assert {stage: len(of_stage) for stage, of_stage in runs.items()} == {None: 1, "a": 1, "b": 1}
    assert {run.run.run_group for (run,) in runs.values()} == {"tiny"}
    assert {run.run.display_name for (run,) in runs.values()} == {"tiny", "tiny/a", "tiny/b"}
    assert runs["a"][0].run.job_type == "stage"
    own = stage_recipe_of(recipe())
    config = dict(runs["a"][0].config)
    assert (config.pop("stage"), config.pop("environment")) == ("a", environment())
    assert Recipe.model_validate(config) == own  # a stage's own method, estimator and settings
    assert list(runs["a"][0].run.tags) == ["supervised", "nll", "seed-7", "a", "b"]
    assert list(runs[None][0].run.tags) == ["mopd", "full_reverse_kl", "seed-7", "a", "b"]
    for stage, folder in folders.items():
        assert runs[stage][0].history() == as_history(folder)


def alerts(run: OfflineRun) -> list[tuple[str, str]]:
    return [(r.alert.title, r.alert.text) for r in run.records if r.HasField("alert")]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RunError("rank 1 died"), [("tiny: the run broke", "rank 1 died")]),
        (ZeroDivisionError(), [("tiny: the run broke", "ZeroDivisionError")]),
        (Interrupted("saved step 2"), []),
    ],
)
def test_somebody_is_told_of_a_fault_and_not_of_an_interrupt(
    tmp_path: Path, error: BaseException, told: list[tuple[str, str]]
) -> None:
    def broken() -> None:
        with open_tracker(tmp_path) as tracker:
            write_run(tracker, steps=2)
            raise error

    with pytest.raises(type(error)):
        broken()
    (shown,) = offline_runs(tmp_path)
    assert alerts(shown) == told
    assert shown.exit_codes == [1]


def test_somebody_is_told_of_a_domain_below_the_base_beyond_chance(tmp_path: Path) -> None:
    ends = {"math": [-0.12, -0.03], "code": [-0.05, 0.01], "chat": None}
    with open_tracker(tmp_path) as tracker:
        write_run(tracker, steps=2)
        tracker.summarize(SEESAW | {"split": "test", "metrics_ci": SEESAW["metrics_ci"] | {"points_at_once": ends}})
    (shown,) = offline_runs(tmp_path)
    text = "math, on test questions, at the end: -12.0 to -3.0 points, beyond chance"
    assert alerts(shown) == [("tiny: math fell below the base", text)]


def named(run: OfflineRun, *, used: bool) -> dict[str, Any]:
    """The artifacts of an offline run, by the role that it gives them."""
    recorded = [record.artifact for record in run.records if record.HasField("artifact")]
    of_role = {alias: artifact for artifact in recorded for alias in artifact.aliases if alias != "latest"}
    return {role: artifact for role, artifact in of_role.items() if artifact.use_after_commit == used}


def contents(artifact: Any) -> dict[str, tuple[str, int]]:
    """Digest and size by name."""
    return {entry.path: (entry.digest, entry.size) for entry in artifact.manifest.contents}


def test_artifacts_say_who_was_made_of_whom(tmp_path: Path) -> None:
    """A stage's result has the name and the content with which the run uses it, and W&B joins them by these."""
    stage = tmp_path / "stages" / "math"
    for folder, text in ((stage / "student", "specialist"), (tmp_path / "student", "student"), (stage / "base", "b")):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(text)
        seal(folder)
    (tmp_path / "answers" / "test").mkdir(parents=True)
    (tmp_path / "answers" / "test" / "student-000004.parquet").write_bytes(b"PAR1")
    (tmp_path / "data.json").write_text("{}")
    base = ("base", "./models/chat", str(stage / "base"))
    with open_tracker(tmp_path) as tracker:
        with open_tracker(stage, stage="math") as of_stage:
            of_stage.show_artifacts(
                artifacts_of("tiny", stage, domains=["math"], start=base, teachers={}, stage="math")
            )
        write_run(tracker)
        teacher = SimpleNamespace(
            model=SimpleNamespace(source="stage:math"), adapter=None, settings=SimpleNamespace(adapter=None)
        )
        asked: Any = {"math": (teacher, str(stage / "student"))}
        tasks = {"math": {"fingerprint": "abc"}}
        tracker.show_artifacts(
            artifacts_of("tiny", tmp_path, domains=["math"], start=base, teachers=asked, tasks=tasks)
        )
    (of_run,), (of_math,) = offline_runs(tmp_path), offline_runs(stage)
    used, made, specialist = named(of_run, used=True), named(of_run, used=False), named(of_math, used=False)["student"]
    assert {role: (a.name, a.type) for role, a in used.items()} == {
        "base": ("chat", "model"), "teacher-math": ("tiny-math", "model"), "data": ("tiny.data", "dataset"),
    }  # fmt: skip
    assert {role: (a.name, a.type) for role, a in made.items()} == {
        "student": ("tiny.student", "model"), "answers": ("tiny.answers", "answers"),
    }  # fmt: skip
    assert (specialist.name, specialist.digest) == (used["teacher-math"].name, used["teacher-math"].digest)
    assert named(of_math, used=True)["base"].digest == used["base"].digest
    assert len({artifact.digest for artifact in (*used.values(), *made.values())}) == 5
    assert set(contents(made["student"])) == {"manifest.json", "manifest.sha256"}  # no weights are sent
    assert set(contents(used["data"])) == {"data.json", "tasks.json"}
    assert contents(made["answers"])["test/student-000004.parquet"][1] == 4
    assert json.loads(made["student"].metadata)["seal"] == seal_of(tmp_path / "student")
    assert not (tmp_path / "home").exists()


def test_no_stage_shares_a_name_with_what_the_run_or_another_stage_has_made(tmp_path: Path) -> None:
    """Stages may be called like what a run makes, or like another with an ending, and names may be long."""
    long = "x" * LONGEST_NAME
    stages = [None, "student", "adapter", "data", "answers", "initial", "math", "math-adapter", "math-data", long]
    for folder in (tmp_path / "student", tmp_path / "adapter", tmp_path / "answers" / "test"):
        folder.mkdir(parents=True)
    (tmp_path / "answers" / "test" / "student-000004.parquet").write_bytes(b"PAR1")
    (tmp_path / "data.json").write_text("{}")
    start = ("base", Architecture(architecture="llama"), str(tmp_path / "student"))
    for recipe_name in ("tiny", long):
        names = [
            artifact.name
            for stage in stages
            for artifact in artifacts_of(recipe_name, tmp_path, domains=[], start=start, teachers={}, stage=stage)
        ]
        assert len(names) == 5 * len(stages)
        assert len(set(names)) == len(names)
        assert max(map(len, names)) <= 128


# ---- a sweep: what `wandb agent` sets in the environment of a trial's process


def agent(trial: str) -> dict[str, str]:
    return {
        "WANDB_SWEEP_ID": "sweep123",
        "WANDB_RUN_ID": trial,
        "WANDB_SWEEP_PARAM_PATH": f"wandb/sweep-sweep123/config-{trial}.yaml",
        "WANDB_PROJECT": "of-the-agent",
        "WANDB_ENTITY": "somebody",
    }


def test_a_trial_is_one_run_and_its_stages_are_none(tmp_path: Path) -> None:
    for trial in ("trial001", "trial002"):
        (tmp_path / trial).mkdir()
        worst = 0.5 if trial == "trial001" else 0.75
        assert run_apart(tmp_path / trial, run_with_a_stage, environment=agent(trial), worst=worst).stderr == ""
    seen: list[str] = []
    for trial, worst in (("trial001", 0.5), ("trial002", 0.75)):
        (run,), (stage,) = offline_runs(tmp_path / trial), offline_runs(tmp_path / trial / "stages" / "math")
        assert (run.run.run_id, run.run.sweep_id) == (trial, "sweep123")
        assert run.summary()["seesaw/worst_recovery"] == worst
        assert stage.run.sweep_id == ""
        assert "seesaw/worst_recovery" not in stage.summary()
        assert {run.run.project, stage.run.project} == {"of-the-agent"}
        assert {run.run.entity, stage.run.entity} == {"somebody"}
        assert run.config["environment"]["commit"] == environment()["commit"]
        seen += [run.run.run_id, stage.run.run_id]
    assert len(set(seen)) == 4


def test_a_trial_on_a_server_is_of_its_sweep_and_no_stage_is(tmp_path: Path, server: Server) -> None:
    online = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "NO_PROXY": "*"}
    run_apart(tmp_path, run_with_a_stage, environment=agent("trial001") | online, worst=0.5, mode="online")
    assert len(server.runs) == 2
    of_sweep = {name: asked.get("sweep") for name, asked in server.runs.items()}
    assert of_sweep.pop("trial001") == "sweep123"
    (stage,) = of_sweep.values()
    assert not stage


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.close()


def logged_in(url: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "NO_PROXY": "127.0.0.1"}


def test_online_a_resumed_run_goes_on_with_the_same_id(tmp_path: Path, server: Server) -> None:
    """The server keeps every step once although the second attempt sends the whole stream again."""
    options = {"mode": "auto", "tables": False, "environment": logged_in(server.url)}
    assert run_apart(tmp_path, whole_run, steps=3, **options).exit_code == 0
    second = run_apart(tmp_path, whole_run, after=2, steps=4, **options)
    assert second.exit_code == 0, second.stderr
    assert second.stderr.startswith(f"W&B shows tiny at {server.url}")
    assert second.stderr.count("\n") == 1
    (run_id,) = server.rows
    assert (tmp_path / "wandb" / "online_id").read_text() == run_id
    assert server.runs[run_id]["groupName"] == "tiny"
    sent = [{k: v for k, v in row.items() if not k.startswith("_")} for row in server.rows[run_id]]
    assert sent == as_history(tmp_path)
    assert not list(tmp_path.glob("wandb/offline-*"))


BROKEN = "W&B is off for tiny"
OFFLINE = "W&B cannot be reached for tiny"


@pytest.mark.parametrize("mode", ["auto", "disabled"])
def test_disabled_means_no_files(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "auto":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    with open_tracker(tmp_path, mode) as tracker:
        write_run(tracker)
        tracker.summarize(SEESAW)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_auto_without_a_login_is_offline_and_silent(tmp_path: Path) -> None:
    outcome = run_whole(tmp_path, "auto")
    assert outcome.stderr == ""
    assert offline_runs(tmp_path)[0].history() == as_history(tmp_path)
    assert not (tmp_path / "home" / ".local").exists()  # tables lie in the run's folder, not in the user's home


def test_online_without_a_login_is_offline_and_says_so(tmp_path: Path) -> None:
    assert one_line(run_whole(tmp_path, "online"), OFFLINE)
    assert offline_runs(tmp_path)[0].history() == as_history(tmp_path)


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    """Neither a step nor the end of the process waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        seconds = min(30.0, patience(4.0))  # a run waits 60 s for its sinks
        outcome = run_whole(tmp_path, "auto", init_seconds=seconds, environment=logged_in(url))
    assert one_line(outcome, OFFLINE)
    logged, closed, ended = map(float, outcome.stdout.split())
    assert closed - logged > seconds / 2, "the steps were logged while W&B was still waiting"
    assert ended - closed < patience(15), "the process lingered after its run was closed"
    assert offline_runs(tmp_path)[0].history() == as_history(tmp_path)


def test_wandb_that_cannot_be_imported(tmp_path: Path) -> None:
    package = tmp_path / "broken" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('wandb is broken')")
    outcome = run_whole(tmp_path, "offline", first_on_path=str(package.parent))
    assert one_line(outcome, BROKEN)
    assert "SystemExit: wandb is broken" in outcome.stderr


def test_a_folder_that_wandb_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where W&B wants its folder")
    assert one_line(run_whole(tmp_path, "offline"), BROKEN)


def test_a_table_that_wandb_refuses(tmp_path: Path) -> None:
    """W&B raises while the run goes on: what comes after is in metrics.jsonl, and one line says what happened."""
    printed: list[str] = []
    with Tracker(tmp_path, sinks=start_sinks(recipe(), tmp_path, say=printed.append)) as tracker:
        tracker.resume(0)
        tracker.append_rows("rollouts", [{"step": 0, "verdict": 1.0}, {"step": 0, "verdict": "right"}])
        write_run(tracker)
    assert len(printed) == 1
    assert printed[0].startswith(f"{BROKEN} (TypeError")
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 2, 3, 4, 4]


def test_wandb_dies_in_the_middle(tmp_path: Path) -> None:
    """Its own process is killed: whatever log() and finish() raise then stays on W&B's thread."""
    outcome = run_apart(tmp_path, core_killed_after_step_2, steps=200)
    assert outcome.exit_code == 0, outcome.stderr
    assert one_line(outcome, BROKEN)
    assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 200 + 101


def run_whole(tmp_path: Path, mode: str, **options: Any) -> Outcome:
    """A whole run in a process of its own, which must end well with all its lines."""
    outcome = run_apart(tmp_path, whole_run, mode=mode, steps=4, **options)
    assert outcome.exit_code == 0, outcome.stderr
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 2, 3, 4, 4]
    return outcome


def one_line(outcome: Outcome, start: str) -> bool:
    """Whether all that was printed for people is one line that begins with ``start``."""
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    return outcome.stderr.startswith(start)


def test_a_file_that_is_still_written_reads_as_what_is_whole(tmp_path: Path) -> None:
    with open_tracker(tmp_path) as tracker:
        write_run(tracker, steps=2)
    (shown,) = offline_runs(tmp_path)
    whole, cut = shown.path.read_bytes(), tmp_path / "cut.wandb"
    for length in range(7, len(whole), 13):
        cut.write_bytes(whole[:length])
        so_far = list(records(cut))
        assert so_far == shown.records[: len(so_far)]
