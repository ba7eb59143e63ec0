"""Gold answers that the verifier of mathematics can't read are named, with counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from check_kit import check, recipe

from mopd.recipes.check.tasks import LISTED_GOLDS

HELD_OUT = {"validation_prompts": 5, "test_prompts": 10}


def domains(folder: Path, unreadable: list[str]) -> dict[str, Any]:
    """200 sums with ``unreadable`` as gold answers of the first prompts that training draws from."""
    rows = [{"prompt": f"math 1+{i}=", "answer": rf"\frac{{{i}}}{{2}}"} for i in range(200)]
    for row, gold in zip(rows, unreadable, strict=False):
        row["answer"] = gold
    path = folder / "formulas.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"math": {"task": {"path": str(path), "verifier": "math"}, "teacher": "math"}}


def sentences(folder: Path, unreadable: list[str]) -> list[str]:
    made = recipe(domains=domains(folder, unreadable), evaluate=HELD_OUT)
    return [text for text in check(made, folder / "run").warnings if "be read as mathematics" in text]


def test_check_warns_of_gold_answers_that_cannot_be_read(tmp_path: Path) -> None:
    (warning,) = sentences(tmp_path, [r"\frac{1}{"] * 40)
    assert r"'\\frac{1}{'" in warning
    assert "`domains.math.task`" in warning
    count = int(warning.split(": ")[1].split()[0])
    assert f"({count} rows)" in warning
    assert 20 <= count < 40  # the training split's part of them


def test_many_are_counted_and_some_are_listed(tmp_path: Path) -> None:
    (sentence,) = sentences(tmp_path, [rf"\sqrt{{{i}" for i in range(60)])
    assert sentence.count(r"\sqrt") == LISTED_GOLDS
    assert f" and {int(sentence.split(': ')[1].split()[0]) - LISTED_GOLDS} more;" in sentence


def test_words_lists_units_and_bases_can_be_read(tmp_path: Path) -> None:
    readable = [r"\text{east}", "(1, 2]", r"18\text{ cm}", "101_2", "10:30", r"\{1,2\}", "x=5", r"\sin^2 t", "a+b+c"]
    assert sentences(tmp_path, readable * 10) == []
