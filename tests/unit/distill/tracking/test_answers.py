"""What models wrote in exams: kept whole, opened by `datasets`, and every answer once after whatever broke a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from mopd.distill.errors import RunError
from mopd.distill.tracking.answers import TYPES, answers_path, exam_files, read_answers, write_answers
from mopd.distill.tracking.tracker import Tracker


def rows(model: str, step: int, split: str = "validation", n: int = 4, text: str = "x") -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "step": step,
            "split": split,
            "domain": "math",
            "prompt_id": f"math/{i}",
            "prompt": f"{i} + 1 =",
            "gold": str(i + 1),
            "sample": 0,
            "text": f"{text}{i}",
            "verdict": i / 4,
            "tokens": 3 + i,
            "truncated": i == 2,
            "unjudged": "refused" if i == 3 else "",
            "reason": "it imports os" if i == 3 else "",
        }
        for i in range(n)
    ]


def test_datasets_opens_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "run").mkdir()
    with Tracker(tmp_path / "run") as tracker:
        tracker.keep_answers("base", 0, "test", rows("base", 0, "test"))
        tracker.keep_answers("teachers/math", 0, "test", rows("teachers/math", 0, "test"))
    files = str(tmp_path / "run" / "answers" / "test" / "*.parquet")
    opened = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert list(opened.features) == list(TYPES)
    assert list(opened) == rows("base", 0, "test") + rows("teachers/math", 0, "test")


def test_text_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    (row,) = rows("student", 1, n=1)
    write_answers(tmp_path / "a.parquet", [row | {"text": "é\ud800 \0 ∑", "prompt": "线"}])
    (read,) = read_answers(tmp_path / "a.parquet")
    assert (read["text"], read["prompt"]) == ("é? \0 ∑", "线")


def test_a_resumed_run_has_every_answer_once(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.resume(0)
        tracker.keep_answers("base", 0, "test", rows("base", 0, "test"))
        for step in (0, 10, 20):
            tracker.keep_answers("student", step, "validation", rows("student", step, text="before"))
    with Tracker(tmp_path) as tracker:
        tracker.resume(10)
        assert [(model, step) for _, model, step, _ in exam_files(tmp_path)] == [
            ("base", 0),
            ("student", 0),
            ("student", 10),
        ]
        tracker.keep_answers("student", 20, "validation", rows("student", 20, text="after"))
        tracker.keep_answers("student", 20, "validation", rows("student", 20, text="after"))  # asked again
    assert read_answers(answers_path(tmp_path, "student", 20, "validation")) == rows("student", 20, text="after")
    assert read_answers(answers_path(tmp_path, "student", 10, "validation")) == rows("student", 10, text="before")
    with Tracker(tmp_path) as tracker:
        tracker.resume(0)
    assert [model for _, model, _, _ in exam_files(tmp_path)] == ["base"]


def test_the_same_answers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_answers(tmp_path / name, rows("base", 0))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_attempt_that_lost_its_folder_writes_none(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise RunError(f"{name} was not written")

    with Tracker(tmp_path, may_write=refuse) as tracker, pytest.raises(RunError, match="answers/test/base-000000"):
        tracker.keep_answers("base", 0, "test", rows("base", 0, "test"))
    assert not (tmp_path / "answers").exists()


def test_a_damaged_file_is_named_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    assert read_answers(tmp_path / "none.parquet") == []
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match=r"bad\.parquet is damaged"):
        read_answers(tmp_path / "bad.parquet")
    (tmp_path / "folder").write_text("a file where a folder is needed")
    with pytest.raises(RunError, match="cannot be written"):
        write_answers(tmp_path / "folder" / "a.parquet", rows("base", 0))
