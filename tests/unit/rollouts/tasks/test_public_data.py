"""Whole public files, where the machine has them: every row is usable as docs/datasets.md says, or named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from public_data_kit import FOLDER, public_rows

from mopd.distill.recipe import Source
from mopd.distill.types import Prompt
from mopd.rollouts.tasks.dataset import DatasetTask
from mopd.rollouts.tokenizer import build_tokenizer

ROWS: dict[str, tuple[Mapping[str, Any], int, list[int]]] = {
    "gsm_test.jsonl": ({"prompt": "question", "verifier": "number"}, 1319, []),
    "math500.jsonl": ({"prompt": "problem", "verifier": "math"}, 500, []),
    "math_train.json": (
        {"prompt": "question", "answer": "ground_truth_answer", "verifier": "math", "drop_refused": 0.001},
        8523,
        [5054, 5158],
    ),
    "humaneval.jsonl": (
        {
            "answer": "canonical_solution",
            "tests": "{test}\ncheck({entry_point})",
            "continues": "prompt",
            "verifier": "python_tests",
        },
        164,
        [],
    ),
    "mbpp.jsonl": (
        {
            "prompt": "{text}\nTests:\n{test_list}",
            "answer": "code",
            "tests": "{test_setup_code}\n{test_list}",
            "verifier": "python_tests",
        },
        974,
        [],
    ),
}
"""By file: what its rows mean, how many there are, and the numbers of those whose gold answer is empty."""
EXECUTED = 12


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_of_a_public_file_is_usable_or_named(name: str) -> None:
    settings, count, refused = ROWS[name]
    assert len(public_rows(name)) == count
    tokenizer = build_tokenizer(["abc"], 60)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    task = DatasetTask(Source(path=str(FOLDER / name), **settings), tokenizer, domain="d")
    (report,) = task.reports
    assert (report.rows, report.chosen) == (count, count)
    assert [number for number, _ in report.refused] == refused
    assert count - len(refused) - sum(task.sizes.values()) <= count / 100, "rows that ask the same"
    examples = [task.example(seed=0, split="validation", index=i) for i in range(EXECUTED)]
    assert all(e.text.startswith("<user>") and e.text.endswith("<assistant>") for e in examples)
    prompts = [Prompt("d", e.id, (0,), e.text, e.answer) for e in examples]
    right = sum(task.verify_many(prompts, [e.answer for e in examples]))
    assert right >= EXECUTED - (name == "mbpp.jsonl"), "the sandbox refuses a few of MBPP's"
    assert task.verify_many(prompts, [task.wrong_answer(e) for e in examples]) == [0.0] * EXECUTED
