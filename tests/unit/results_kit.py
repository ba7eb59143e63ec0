"""Rows of evaluations, made by hand."""

from __future__ import annotations

from mopd.distill.metrics.evaluate import Evaluation, Split


def rows_of(model: str, answers: dict[str, list[float]], *, step: int = 0, split: Split = "test") -> list[Evaluation]:
    return [
        Evaluation(model, step, split, domain, f"{domain}/{split}/{n}", correct)
        for domain, given in answers.items()
        for n, correct in enumerate(given)
    ]


def right(count: int, of: int = 100) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)
