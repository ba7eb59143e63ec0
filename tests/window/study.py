"""`make window`: runs the parts of the window study that are missing, one after the other, and prints what there is."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from tests.window.parts import SEEDS, TIMES, VARIATIONS, Variation, run_part
from tests.window.questions import QUESTIONS

ROWS = Path(__file__).parents[2] / "docs" / "data" / "window.jsonl"
ALIKE = 0.05
"""Accuracies at the trained length that differ by less are alike."""


def done(path: Path = ROWS) -> list[dict[str, Any]]:
    """The rows of all parts that were run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def missing(rows: Sequence[dict[str, Any]]) -> list[tuple[Variation, int]]:
    """Parts without a row, all variations on the first seed, then on the next."""
    there = {(row["variation"], row["seed"]) for row in rows}
    return [(v, seed) for seed in SEEDS for v in VARIATIONS if (v.name, seed) not in there]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of seeds, and the half-width of its 95% interval (Student's t); infinite for a single seed."""
    if len(values) < 2:
        return statistics.fmean(values), math.inf
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def table(rows: Sequence[dict[str, Any]], task: str) -> Table:
    """Accuracy by length of every variation that has a row."""
    shown = Table("window", "seeds", *(f"{n}x" for n in TIMES), "train CPU-s", "cache at 16x", title=task)
    for variation in VARIATIONS:
        own = [row for row in rows if row["variation"] == variation.name]
        if not own:
            continue
        cells = []
        for n in TIMES:
            mean, half = interval([row["accuracy"][task][str(variation.length * n)] for row in own])
            cells.append(f"{mean:.2f}" + ("" if math.isinf(half) else f" ± {half:.2f}"))
        seconds = statistics.fmean(row["train_cpu_seconds"] for row in own)
        held = own[0]["cached_bytes"][str(variation.length * TIMES[-1])]
        shown.add_row(variation.name, str(len(own)), *cells, f"{seconds:,.0f}", f"{held / 1024:,.0f} KiB")
    return shown


def pairs(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the pairs w and 4w say that score alike at the trained length, a sentence each."""
    by_name = {v.name: [row for row in rows if row["variation"] == v.name] for v in VARIATIONS}
    sentences = []
    for short in VARIATIONS:
        longer = [v for v in VARIATIONS if short.window and v.window == 4 * short.window
                  and (v.sinks, v.sliding, v.length) == (short.sinks, short.sliding, short.length)]  # fmt: skip
        for other in longer:
            both = [(r, s) for r in by_name[short.name] for s in by_name[other.name] if r["seed"] == s["seed"]]
            for task in QUESTIONS:
                sentences += _of_pair(both, task, short, other)
    return sentences


def _of_pair(
    both: Sequence[tuple[dict[str, Any], dict[str, Any]]], task: str, short: Variation, other: Variation
) -> list[str]:
    if not both:
        return []
    first, last = (str(short.length * n) for n in (TIMES[0], TIMES[-1]))
    at_once = statistics.fmean(a["accuracy"][task][first] - b["accuracy"][task][first] for a, b in both)
    mean, half = interval([a["accuracy"][task][last] - b["accuracy"][task][last] for a, b in both])
    alike = abs(at_once) < ALIKE
    words = f"{task}, {short.name} over {other.name}, {len(both)} seeds: {at_once:+.2f} at 1x"
    words += f", {mean:+.2f} ± {half:.2f} at 16x" if alike else ": not alike, so the claim is not asked"
    return [words]


def main() -> None:
    """Run what is missing until the minutes are over, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no part begins after so many")
    parser.add_argument("--show", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    start = time.monotonic()
    while not arguments.show and (parts := missing(done())) and time.monotonic() - start < 60 * arguments.minutes:
        variation, seed = parts[0]
        row = run_part(variation, seed)
        where = {"date": time.strftime("%Y-%m-%d"), "commit": _commit()}
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row | where) + os.linesep)
        print(
            f"{variation.name}, seed {seed}: loss {row['loss']:.3f}, {row['train_cpu_seconds']:.0f} CPU-s", flush=True
        )
    rows = done()
    Console().print(*(table(rows, task) for task in QUESTIONS))
    for sentence in pairs(rows):
        print(sentence)
    print(f"{len(rows)} parts of {len(SEEDS) * len(VARIATIONS)} are there")


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip()


if __name__ == "__main__":
    main()
