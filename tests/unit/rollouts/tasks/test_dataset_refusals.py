"""Data that can't be used is refused before anything is spent, with a sentence that names the culprit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dataset_kit import sums, task_of, write

from mopd.distill.types import UserError

BAD_ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "column": (sums(40), {"prompt": "question"}, r"no column 'question'; it has 'prompt', 'answer'; set `prompt`"),
    "two columns": (sums(40), {"answer": "gold", "prompt": "ask"}, r"no column 'ask'(.|\n)*no column 'gold'"),
    "nothing": ([{"prompt": "a", "answer": "b"}], {}, "1 usable rows.*none is left for"),
    "no answer": ([*sums(40), {"prompt": "a", "answer": None}], {}, "row 40: `answer` is None"),
    "blank": ([*sums(40), {"prompt": " ", "answer": "b"}], {}, "row 40: `prompt` is ' ', which is neither text nor"),
    "empty answer": ([*sums(40), {"prompt": "a", "answer": ""}], {}, "row 40: `answer`, '', is empty"),
    "no number": (
        [*sums(40), *({"prompt": f"a{i}", "answer": "none"} for i in range(5))],
        {"verifier": "number"},
        r"row 40: `answer`, 'none', has no number in it \(verifier 'number'\)(.|\n)*and 2 more rows",
    ),
    "no option": (sums(40), {"verifier": "choice"}, "row 0: `answer`, '0', names no option"),
    "tests": ([{"prompt": "a", "answer": "assert f("}], {"verifier": "python_tests"}, "row 0: .*not Python"),
    "tests for another": (
        sums(40),
        {"tests": "prompt", "prompt": "answer", "answer": "gold"},
        "names a column of unit tests, 'prompt', for verifier 'exact'",
    ),
    "message": ([{"prompt": [{"role": "user"}], "answer": "b"}], {}, "row 0: `prompt` has {'role': 'user'} in it"),
    "no options": ([{"prompt": "A city?", "answer": "B"}], {"verifier": "choice"}, "options do not stand in `prompt`"),
    "two golds": ([*sums(40), {"prompt": "what is 3+3?", "answer": "7"}], {}, "row 3: `answer` is .6., and row 40"),
    "split of a file": (sums(40), {"test_split": "test"}, "is one file.*`test_split` is 'test'"),
    "same split": (sums(40), {"test_split": "train"}, r"the same \(train, train\)"),
}


@pytest.mark.parametrize("case", list(BAD_ROWS))
def test_bad_data_is_refused_by_name(tmp_path: Path, case: str) -> None:
    rows, source, problem = BAD_ROWS[case]
    with pytest.raises(UserError, match=problem):
        task_of(write(tmp_path / "rows.jsonl", rows), **source)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere.jsonl' does not exist"):
        task_of(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "answer"\n')
    with pytest.raises(UserError, match=r"broken.jsonl'.*can't be read"):
        task_of(str(tmp_path / "broken.jsonl"))
    (tmp_path / "rows.xml").write_text("<prompt>a</prompt>\n")
    with pytest.raises(UserError, match=r"ends in .jsonl, .json, .parquet, .csv"):
        task_of(str(tmp_path / "rows.xml"))
    write(tmp_path / "train.jsonl", sums(9))
    with pytest.raises(UserError, match=r"split 'holdout', can't be read"):
        task_of(str(tmp_path), split="holdout")
