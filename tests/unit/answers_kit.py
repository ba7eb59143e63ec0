"""Answers with texts for the runs that kits write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mopd.distill.metrics.evaluate import Evaluation
from mopd.distill.tracking.answers import answers_path, write_answers
from mopd.distill.tracking.jsonl import read_jsonl


def keep_answers(run: Path, **changes: Any) -> Path:
    """Write the answers of a run's evaluations: ``NAME says right`` or ``wrong``, with ``changes`` for every row."""
    exams: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in (Evaluation(**row) for row in read_jsonl(run / "evaluations.jsonl")):
        text = f"{row.model} says {'right' if row.correct else 'wrong'}"
        exams.setdefault((row.model, row.step, row.split), []).append(
            {
                "model": row.model, "step": row.step, "split": row.split, "domain": row.domain,
                "prompt_id": row.prompt_id, "prompt": f"question {row.prompt_id}", "gold": "gold", "sample": 0,
                "text": text, "verdict": row.correct, "tokens": 4, "truncated": False, "unjudged": "", "reason": "",
            }
            | changes
        )  # fmt: skip
    for (model, step, split), rows in exams.items():
        write_answers(answers_path(run, model, step, split), rows)
    return run
