"""Whole public sets: every gold answer verifies itself in other clothes, and no near miss does."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from public_data_kit import public_rows

from mopd.rollouts.programs import extract_program
from mopd.rollouts.verifiers import gold_problem, verify_many

FEW = 200
"""Pairs of each kind that are drawn: all of them take minutes (docs/verifiers.md has their figures)."""


def refused(verifier: str, pairs: list[tuple[str, str]], *, verdict: float = 1.0) -> list[tuple[str, str]]:
    scores = verify_many(verifier, [gold for gold, _ in pairs], [text for _, text in pairs])
    return [pair for pair, score in zip(pairs, scores, strict=True) if score != verdict]


def test_every_label_of_worded_solutions_is_met() -> None:
    rows = public_rows("gsm_sol.jsonl")
    solutions = [(row["ground_truth"], value) for row in rows for value in row.values() if isinstance(value, dict)]
    assert len(solutions) == 5276
    scores = verify_many("number", [gold for gold, _ in solutions], [value["solution"] for _, value in solutions])
    wrong = [pair for pair, score in zip(solutions, scores, strict=True) if bool(score) != pair[1]["is_correct"]]
    assert wrong == []


def test_every_gold_answer_of_gsm8k_verifies() -> None:
    golds = [row["answer"] for row in public_rows("gsm_test.jsonl")]
    values = [int(gold.split("####")[1].replace(",", "")) for gold in golds]
    assert len(golds) == 1319
    assert [gold for gold in golds if gold_problem("number", gold)] == []
    for clothes in ("#### {}", r"so \boxed{{{}}}", "The answer is {:,}.", "It is **${}**", "{} apples"):
        assert refused("number", [(g, clothes.format(v)) for g, v in zip(golds, values, strict=True)]) == []
    misses = [(gold, f"The answer is {value + 1}.") for gold, value in zip(golds, values, strict=True)]
    assert refused("number", misses, verdict=0.0) == []


def test_every_gold_answer_of_math_500_verifies() -> None:
    golds = [row["answer"] for row in public_rows("math500.jsonl")]
    assert len(golds) == 500
    pairs = [(gold, text) for gold in golds for text in (gold, rf"Hence \boxed{{{gold}}}.")]
    assert refused("math", pairs) == []


def clothes(gold: str) -> Iterator[str]:
    """The same answer as other people write it."""
    yield rf"**\boxed{{{gold}}}**"
    yield rf"\boxed{{{gold}.}}"
    yield rf"\boxed{{{gold.replace(chr(92) + 'frac', chr(92) + 'dfrac')}}}"
    yield f"so\n\\[\n{gold}\n\\]"
    yield f"The answer is: ${gold.replace(chr(92) + '$', '')}$. I checked it with $n=3$."
    if not re.search(r"[=,<>]|\\text|leq|geq|cup|[A-Z]", gold):
        yield rf"\boxed{{y = {gold}}}"


def near_misses(gold: str) -> Iterator[str]:
    """Another answer, by one digit, sign or bracket."""
    digits = list(re.finditer(r"\d", gold))
    for digit in {digits[0].start(), digits[-1].start()} if digits else ():
        yield gold[:digit] + str((int(gold[digit]) + 1) % 10) + gold[digit + 1 :]
    if not re.search(r"text|[=<>:0]|cup", gold):
        yield gold.removeprefix("-") if gold.startswith("-") else f"-{gold}"
    if gold.endswith("]") and "cup" not in gold:
        yield f"{gold.removesuffix('right]').removesuffix(']')}{'right)' if gold.endswith('right]') else ')'}"


def test_golds_of_math_are_known_in_other_clothes_and_near_misses_are_not() -> None:
    golds = [row["answer"] for row in public_rows("math500.jsonl")]
    golds += [row["ground_truth_answer"] for row in public_rows("math_train.json") if row["ground_truth_answer"]]
    golds = list(dict.fromkeys(golds))
    draw = random.Random(0)
    right = draw.sample([(gold, text) for gold in golds for text in clothes(gold)], FEW)
    wrong = draw.sample([(gold, rf"\boxed{{{text}}}") for gold in golds for text in near_misses(gold)], FEW)
    assert refused("math", right) == []
    assert refused("math", wrong, verdict=0.0) == []


def test_every_program_of_mbpp_is_found_among_what_is_written_around_it() -> None:
    rows = public_rows("mbpp.jsonl")
    assert len(rows) == 974
    for row in rows:
        code, tests = row["code"], "\n".join(row["test_list"])
        with_usage = f"So:\n```python\n{code}\n```\nUsage:\n```python\nprint('x')\n```\nOutput:\n```\nx\n```"
        in_a_list = "1. Do:\n   ```py\n" + "\n".join(f"   {line}" for line in code.splitlines()) + "\n   ```"
        for text in (with_usage, in_a_list):
            assert extract_program(text, tests).split() == code.split(), row["task_id"]
