"""metrics.jsonl is the truth: it survives kills at any byte, and a resumed run writes every step once."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from track_apart import log_until_killed, run_apart
from track_kit import write_run

from mopd.distill.storage import check_current, claim
from mopd.distill.tracking.jsonl import append_jsonl, read_jsonl, truncate_jsonl
from mopd.distill.tracking.ledger import ledger_of
from mopd.distill.tracking.tracker import Tracker
from mopd.distill.types import RunError


def open_tracker(folder: Path) -> Tracker:
    return Tracker(folder)


def test_one_json_object_per_line(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    tracker.log("eval", 0, {"score/math": 0.5})
    tracker.log("train", 1, {"loss": 0.1, "kl/math": np.float32(0.25), "kl/code": torch.tensor(2.0)})  # type: ignore[dict-item]
    tracker.log("train", 2, {"loss": float("nan"), "gate": float("inf"), "tokens": 3})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 0, "kind": "eval", "score/math": 0.5}',
        '{"step": 1, "kind": "train", "loss": 0.1, "kl/math": 0.25, "kl/code": 2.0}',
        '{"step": 2, "kind": "train", "loss": null, "gate": null, "tokens": 3.0}',
    ]


def test_numbers_come_back_bitwise(tmp_path: Path) -> None:
    values = {str(i): float(x) for i, x in enumerate(np.random.default_rng(0).normal(size=200))}
    open_tracker(tmp_path).log("train", 1, values)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert {name: row[name] for name in values} == values


def test_rows_hold_arrays_and_text_of_any_language(tmp_path: Path) -> None:
    row = {"step": 1, "text": "ﬁ\u2028 \n π", "advantages": np.array([0.5, -np.inf]), "tokens": torch.tensor([1, 2])}
    open_tracker(tmp_path).append_rows("rollouts", [row])
    assert list(read_jsonl(tmp_path / "rollouts.jsonl")) == [
        {"step": 1, "text": "ﬁ\u2028 \n π", "advantages": [0.5, None], "tokens": [1, 2]}
    ]


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_resume_drops_later_steps_and_half_a_line_from_all_three_files(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    write_run(tracker)
    for step in (0, 2, 4):
        tracker.append_rows("evaluations", [{"step": step, "model": "student"}])
        tracker.append_rows("rollouts", [{"step": step, "text": "x"}])
    paths = [tmp_path / name for name in ("metrics.jsonl", "evaluations.jsonl", "rollouts.jsonl")]
    kept = [[line for line in path.read_bytes().splitlines(True) if json.loads(line)["step"] <= 2] for path in paths]
    for path in paths:
        path.write_bytes(path.read_bytes() + b'{"step": 1, "ki')  # what a writer killed in mid-line leaves

    resumed = open_tracker(tmp_path)
    resumed.resume(2)
    assert [path.read_bytes().splitlines(True) for path in paths] == kept
    write_run(resumed, after=2)
    assert steps(paths[0]) == [0, 1, 2, 2, 3, 4, 4]


def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        write_run(open_tracker(tmp_path / name))
    resumed = open_tracker(tmp_path / "resumed")
    resumed.resume(2)
    write_run(resumed, after=2)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "resumed" / "metrics.jsonl").read_bytes()


def test_a_fault_says_in_words_what_ended_the_step_and_is_void_once_that_is_taken_again(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    tracker.log("train", 1, {"loss": 0.5})
    for _ in range(2):  # the teacher was not mended in between
        tracker.log("fault", 2, {"teacher_retries/math": 3}, message="teacher 'math' died")
        last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
        assert last == '{"step": 2, "kind": "fault", "teacher_retries/math": 3.0, "message": "teacher \'math\' died"}'
        tracker = open_tracker(tmp_path)
        tracker.resume(1)
        assert steps(tmp_path / "metrics.jsonl") == [1]
    tracker.log("train", 2, {"loss": 0.25})


def test_without_a_checkpoint_only_what_base_and_teachers_scored_stays(tmp_path: Path) -> None:
    """They are measured before the first step, and not again; the student starts from the beginning."""
    tracker = open_tracker(tmp_path)
    measured = [{"step": 0, "model": model} for model in ("base", "teachers/math", "student")]
    tracker.append_rows("evaluations", measured)
    tracker.append_rows("rollouts", [{"step": 0, "text": "x"}])
    write_run(tracker)
    open_tracker(tmp_path).resume(0)
    assert list(read_jsonl(tmp_path / "evaluations.jsonl")) == measured[:2]
    assert steps(tmp_path / "metrics.jsonl") == steps(tmp_path / "rollouts.jsonl") == []


def test_opening_mends_a_half_written_line_before_anything_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step":')
    open_tracker(tmp_path).append_rows("evaluations", [{"step": 1}])
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize(
    ("kind", "step", "message"),
    [("train", 4, "comes after step 4"), ("train", 3, "comes after step 4"), ("other", 3, "comes too late")],
)
def test_every_step_once_and_in_order(tmp_path: Path, kind: str, step: int, message: str) -> None:
    write_run(open_tracker(tmp_path))
    again = open_tracker(tmp_path)  # a new Tracker knows what the file holds
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message):
        again.log(kind, step, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_keep_rows_drops_a_partial_evaluation(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    rows: list[dict[str, Any]] = [{"step": 0, "model": "base"}, {"step": 0, "model": "student"}]
    tracker.append_rows("evaluations", rows)
    tracker.keep_rows("evaluations", lambda row: row["model"] == "base")
    assert list(read_jsonl(tmp_path / "evaluations.jsonl")) == rows[:1]


def test_rows_that_resume_could_not_cut_are_refused(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    with pytest.raises(ValueError, match=r"evaluations, exams, rollouts, not to 'notes'"):
        tracker.append_rows("notes", [])
    with pytest.raises(ValueError, match=r"rollouts\.jsonl has no step"):
        tracker.append_rows("rollouts", [{"step": 1}, {"text": "x"}])
    assert not (tmp_path / "rollouts.jsonl").exists()


def test_a_spoilt_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train"}\nspoilt\n{"step": 2, "kind": "train"}\n')
    with pytest.raises(RunError, match=re.escape(f"{path}, line 2 is not a JSON object")):
        open_tracker(tmp_path)


def test_a_file_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        tracker.log("train", 1, {})


def test_truncation_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """What a kill amid a truncation leaves, half a new file beside the old one, does no harm."""
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, [{"step": step} for step in range(4)])
    (tmp_path / ".rows.jsonl.new").write_text('{"step"')
    truncate_jsonl(path, lambda row: row["step"] != 1)
    assert list(read_jsonl(path)) == [{"step": 0}, {"step": 2}, {"step": 3}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_truncation_that_drops_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, [{"step": 1}])
    before = path.stat().st_ino
    truncate_jsonl(path, lambda row: True)
    assert path.stat().st_ino == before


def test_the_ledger_adds_up_the_steps(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.log("train", step, {"tokens/update": 10.0, "seconds/update": 0.5, "loss": 1.0})
    tracker.append_rows("exams", [{"step": 3, "tokens": 5, "flops": 7.0, "seconds": 2.0}])
    roles = ledger_of(tmp_path).record()["roles"]
    assert roles["update"] == {"tokens": 30, "flops": 0.0, "seconds": 1.5}
    assert roles["evaluation"] == {"tokens": 5, "flops": 7.0, "seconds": 2.0}


def test_sigkill_loses_no_line_that_log_returned_from(tmp_path: Path) -> None:
    outcome = run_apart(tmp_path, log_until_killed, kill_when=lambda out: out.count("\n") > 20)
    assert outcome.exit_code == -9
    printed_steps = list(map(int, outcome.stdout.split("\n")[:-1]))
    open_tracker(tmp_path)
    written_steps = steps(tmp_path / "metrics.jsonl")
    assert written_steps == list(range(1, len(written_steps) + 1))
    assert len(written_steps) in (printed_steps[-1], printed_steps[-1] + 1)


def test_an_attempt_that_was_followed_by_another_writes_no_row(tmp_path: Path) -> None:
    with claim(tmp_path) as attempt:
        tracker = Tracker(tmp_path, may_write=partial(check_current, tmp_path, attempt))
        tracker.log("train", 1, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with claim(tmp_path):
        with pytest.raises(RunError, match=r"no longer owns .*; metrics.jsonl was not written"):
            tracker.log("train", 2, {"loss": 1.0})
        with pytest.raises(RunError, match="exams"):
            tracker.append_rows("exams", [{"step": 2}])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    tracker.close()
